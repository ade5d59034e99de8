"""What is made of what within an experiment, by the names that its configuration gives.

An arm names a model, a trace set, perhaps an arm whose number of tokens it takes; a trace set names models, or another
trace set whose rows it takes; a model may be one that an arm trains (trained://ARM/SEED). A merged configuration ->
what a run needs, whatever leads there, and what is wrong with such names. Reads no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]
Node = tuple[str, str]  # (arms | models | traces, name)

TRAINED = "trained://"
# Trace sets with attempts of their own; those that select anew from another's attempts; those that take another's rows.
ATTEMPTED = ("rsd", "sample", "dataset")
SELECTED = ("select",)
DERIVED = ("filter", "recode")


def trained_by(source: str) -> tuple[str, int] | None:
    """(arm, training seed) of a model that the experiment itself trains; None for a model from elsewhere."""
    if not source.startswith(TRAINED):
        return None
    arm, _, seed = source.removeprefix(TRAINED).partition("/")
    return arm, int(seed)


def origin(config: Config, model: str) -> str:
    """The model from outside that training made this one of, the same but for the weights; itself if none did."""
    made_by = trained_by(config["models"][model]["source"])
    return model if made_by is None else origin(config, config["arms"][made_by[0]]["model"])


def writers(traces: Config) -> list[str]:
    """The models that write in a trace set beside the student, which reads all and may write, too."""
    match traces["method"]:
        case "rsd":
            return [traces["teacher"]]
        case "sample" if traces["sampled"] is not None:
            return [traces["sampled"]]
        case _:
            return []


def attempts_of(config: Config, traces: str) -> str:
    """The trace set whose attempts a set selects from: itself, or the one that it is `of`."""
    entry = config["traces"][traces]
    return entry["of"] if entry["method"] in SELECTED else traces


def tokens_of(config: Config, arm: str) -> str | None:
    """The arm whose number of tokens `arm` trains on; None where it keeps to its epochs, or is not trained."""
    entry = config["arms"][arm]
    other = {**config["training"], **entry["training"]}["tokens_of"]
    # What is no name at all is told where the overrides are checked.
    return other if entry["traces"] and isinstance(other, str) else None


def needed(config: Config) -> list[Node]:
    """All arms, models and trace sets that the run's arms and token analyses need, themselves included; what something
    is made of comes before it."""
    seen: set[Node] = set()
    found: list[Node] = []

    def visit(node: Node) -> None:
        if node not in seen:
            seen.add(node)
            for source in _made_of(config, node):
                visit(source)
            found.append(node)

    for arm in _arms(config):
        visit(("arms", arm))
    for pair in config["analysis"]["also"]:
        for node in (("traces", pair["traces"]), ("models", pair["reader"])):
            # Another reader is a model that the run trains anyhow.
            if node[1] in config.get(node[0], {}):
                visit(node)
    return found


def trained(config: Config) -> list[tuple[str, int]]:
    """(arm, training seed) of every model that this run trains: those of its own arms, in their order, then others that
    are used as models."""
    arms = [arm for arm in _arms(config) if config["arms"][arm]["traces"]]
    own = [(arm, seed) for arm in arms for seed in config["run"]["seeds"]]
    sources = [config["models"][name]["source"] for kind, name in needed(config) if kind == "models"]
    return list(dict.fromkeys([*own, *filter(None, map(trained_by, sources))]))


def _arms(config: Config) -> list[str]:
    """The run's arms; a mistyped one is told elsewhere."""
    return [arm for arm in config["run"]["arms"] if arm in config["arms"]]


def _made_of(config: Config, node: Node) -> Iterator[Node]:
    """What something is made of, as far as its names stand for anything."""
    kind, name = node
    entry = config[kind][name]
    names: list[tuple[str, str | None]] = []
    if kind == "arms":
        names += [("models", entry["model"]), ("traces", entry["traces"])]
        if (other := config["arms"].get(tokens_of(config, name))) is not None:
            names.append(("traces", other["traces"]))
    elif kind == "models":
        if (made_by := trained_by(entry["source"])) is not None:
            names.append(("arms", made_by[0]))
    else:
        names += [("models", model) for model in (entry["student"], *writers(entry))]
        if entry["method"] not in ATTEMPTED:
            names.append(("traces", entry["of"]))
    yield from ((kind, name) for kind, name in names if name is not None and name in config.get(kind, {}))


# --- what is wrong ---------------------------------------------------------------------------------------------------


def problems(config: Config, check: Callable[[str, str | None, str], bool]) -> list[str]:
    """Names of what is made in the experiment that cannot be what they are used for, one line each.

    `check(key, name, catalogue)` notes a name that is missing in its catalogue and says whether it is there.
    """
    found = []
    for name, model in config["models"].items():
        found += _trained_problems(f"models.{name}.source", model["source"], config, check)
    for name, dataset in config["datasets"].items():
        if trained_by(dataset["source"]) is not None:
            found.append(f"datasets.{name}.source = {dataset['source']!r}: that is a model, no dataset; name a dataset")
    for name, traces in config["traces"].items():
        found += _source_problems(f"traces.{name}", traces, config["traces"], check)
    for name in config["arms"]:
        found += _tokens_problems(name, config, check)
    return found or list(_circles(config))


def _trained_problems(key: str, source: str, config: Config, check: Callable[..., bool]) -> list[str]:
    made_by = trained_by(source)
    if made_by is None or not check(key, made_by[0], "arms") or config["arms"][made_by[0]]["traces"]:
        return []
    return [
        f"{key} = {source!r}: the arm {made_by[0]} is not trained, it has no traces; name one that is, or its model "
        f"arms.{made_by[0]}.model = {config['arms'][made_by[0]]['model']!r} itself"
    ]


def _source_problems(key: str, traces: Config, others: Config, check: Callable[..., bool]) -> list[str]:
    """Of a trace set that is made of another, or written by another model."""
    found = []
    method = traces["method"]
    if method == "sample":
        check(f"{key}.sampled", traces["sampled"], "models")
    elif traces["sampled"] is not None:
        found.append(f"{key}.sampled = {traces['sampled']!r}: nothing is sampled by method {method}; remove it")
    if method in ATTEMPTED:
        if traces["of"] is not None:
            made = ", ".join((*SELECTED, *DERIVED))
            found.append(f"{key}.of = {traces['of']!r}: only for methods {made}; remove it")
    elif traces["of"] is None:
        what = "attempts" if method in SELECTED else "rows"
        found.append(f"{key}.of: missing; name the trace set whose {what} method {method} takes")
    elif check(f"{key}.of", traces["of"], "traces") and method in SELECTED:
        found += _selected_problems(key, traces, others[traces["of"]])
    return found


def _selected_problems(key: str, traces: Config, of: Config) -> list[str]:
    """Of a trace set that selects from the attempts of the set `of`."""
    if of["method"] not in ATTEMPTED:
        return [
            f"{key}.of = {traces['of']!r}: has no attempts to select from (method {of['method']}); name the trace set "
            f"that it is made of, {of['of']!r}"
        ]
    if of["student"] != traces["student"]:
        return [
            f"{key}.student = {traces['student']!r}: the attempts of {traces['of']!r} are in the tokens of "
            f"{of['student']!r}; write that, and a set of method recode for another student"
        ]
    return []


def _tokens_problems(arm: str, config: Config, check: Callable[..., bool]) -> list[str]:
    other = tokens_of(config, arm)
    key = f"arms.{arm}.training.tokens_of"
    if other is None or not check(key, other, "arms"):
        return []
    if not config["arms"][other]["traces"]:
        return [f"{key} = {other!r}: that arm is not trained, so it sees no tokens; name one that is"]
    if tokens_of(config, other) is not None:
        return [
            f"{key} = {other!r}: that arm takes its own number of tokens from {tokens_of(config, other)!r}; name an "
            "arm that keeps to its epochs (training.tokens_of: null)"
        ]
    return []


def _circles(config: Config) -> Iterator[str]:
    """The first thing that would have to be there before itself."""
    done: set[Node] = set()

    def visit(path: list[Node]) -> list[Node] | None:
        for source in _made_of(config, path[-1]):
            if source in path:
                return [*path[path.index(source) :], source]
            if source not in done and (circle := visit([*path, source])):
                return circle
        done.add(path[-1])
        return None

    for kind in ("traces", "models", "arms"):
        for name in config[kind]:
            if ((kind, name) not in done) and (circle := visit([(kind, name)])):
                names = [".".join(node) for node in circle]
                yield f"{names[0]}: would be made of itself ({' <- '.join(names)}); break the circle"
                return
