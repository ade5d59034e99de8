"""The explorer's data: the attempts at every problem, and for a sample of problems the traces token by token.

The page holds it as JSON and shows it by its script as text. Its size is bounded: attempts are given problem by problem
until three fifths of the budget are spent, token views until all of it is; the page says how far it came. Training
problems alone are shown, never a benchmark's. Nothing is shown of a gated dataset, nor of a training problem that is
(nearly) a gated benchmark's.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsd.checksums import verify
from rsd.records import REMEDY, TOKENS, read_table
from rsd.report_traces import METHODS, REASONS, TraceFiles, root_of

Record = dict[str, Any]
# A trace set, and the model that read it.
Pair = tuple[str, str]

# Longest text of a question, and of an answer, in characters.
QUESTION, ANSWER = 3000, 120
ATTEMPTS_SHARE = 0.6
FINISHES = {"end_of_turn": "ended its turn", "length": "cut at the limit"}


def hidden_reason(config: Record, overlap: Record) -> str | None:
    """Why no problem may be shown at all; None where the explorer may be there."""
    name = config["problems"]["dataset"]
    if config["datasets"][name]["gated"]:
        return f"the training problems come from {name}, which is gated: its terms do not allow to show them"
    unmeasured = [task for task in gated_tasks(config) if task not in overlap.get("tasks", {})]
    if unmeasured:
        return (
            f"it is not known which training problems are problems of {', '.join(unmeasured)}, which may not be shown "
            "(the record of the overlap is missing)"
        )
    return None


def gated_tasks(config: Record) -> list[str]:
    """The tasks of this run whose dataset is gated."""
    return [task for task in config["run"]["tasks"] if config["datasets"][config["tasks"][task]["dataset"]]["gated"]]


def hidden_problems(config: Record, overlap: Record) -> set[str]:
    """The ids of training problems that are, word for word or nearly, problems of a gated benchmark."""
    found = [overlap.get("tasks", {}).get(task, {}) for task in gated_tasks(config)]
    return {pair[0] for task in found for kind in ("exact", "near") for pair in task.get(kind, [])}


def explorer_view(
    problems: Sequence[Record],
    traces: Mapping[str, TraceFiles],
    tokens: Mapping[Pair, Path],
    thresholds: Mapping[Pair, float],
    limits: Record,
    config: Record,
    overlap: Record,
) -> Record:
    """`data` (what the page's script gets; None where there is nothing to show), and what the page says of it.

    `problems`: records of problems.jsonl; `tokens`: (trace set, reader) -> its file of TOKENS; `thresholds`: likewise
    -> the probability below which a token is improbable; `limits`: problems, tokens (of a trace) and megabytes.
    """
    reason = hidden_reason(config, overlap)
    if reason is None and not problems:
        reason = "the training problems are missing"
    if reason is not None:
        return {"data": None, "reason": reason}
    budget = limits["megabytes"] * 1_000_000
    hidden = hidden_problems(config, overlap)
    open_problems = [problem for problem in problems if problem["id"] not in hidden]
    sets = [_set(name, files, config) for name, files in traces.items()]
    outcomes = Outcomes()
    shown = _fill(open_problems, traces, sets, outcomes, ATTEMPTS_SHARE * budget)
    spent = json_size({"sets": sets, "problems": shown})
    views, sampled = token_views([problem["id"] for problem in shown], tokens, thresholds, limits, budget - spent)
    data = {
        "sets": sets,
        "outcomes": outcomes.described(),
        "problems": shown,
        "views": views,
    }
    return {
        "data": data,
        "reason": None,
        "problems": len(problems),
        "shown": len(shown),
        "hidden": len(hidden & {problem["id"] for problem in problems}),
        "sampled": len(views),
        "sample": sampled,
        "longest": limits["tokens"],
        "budget": limits["megabytes"],
    }


# --- attempts ------------------------------------------------------------------------------------------------------


def _set(name: str, files: TraceFiles, config: Record) -> Record:
    """A trace set without its attempts: how it is called, and who wrote its tokens."""
    method = config["traces"].get(name, {}).get("method")
    # Its tokens were written by whoever wrote those of the set that it was made of.
    root = config["traces"].get(root_of(name, config), {})
    return {
        "name": name,
        "made": METHODS.get(method, str(method)),
        "method": root.get("method"),
        "attempted": files.verdicts is not None,
        "writers": writers_of(root),
    }


def writers_of(traces: Record) -> tuple[str, str]:
    """Who wrote a token that did not come by fallback, and one that did, by the settings of a trace set."""
    match traces.get("method"):
        case "rsd":
            return "proposed by the teacher, accepted by the student", "the student's own (fallback)"
        case "sample":
            model = f"sampled from {traces.get('sampled') or traces.get('student')}"
            return model, model
        case "dataset":
            return "from the dataset", "from the dataset"
        case _:
            return "not known by whom", "not known by whom"


class Outcomes:
    """What can become of an attempt: each combination of right, finish and reason once, by its number."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[bool, str, str], int] = {}

    def number(self, right: bool, finish: str, reason: str) -> int:
        """The number of an outcome."""
        return self.numbers.setdefault((right, finish, reason), len(self.numbers))

    def described(self) -> list[Record]:
        """Each outcome in words, in the order of the numbers."""
        return [
            {"right": right, "finish": FINISHES.get(finish, finish), "reason": REASONS.get(reason, reason)}
            for right, finish, reason in self.numbers
        ]


def _fill(
    problems: Sequence[Record],
    traces: Mapping[str, TraceFiles],
    sets: Sequence[Record],
    outcomes: Outcomes,
    budget: float,
) -> list[Record]:
    """The problems with their attempts in every set, as many as the budget (bytes) holds.

    A problem has `id`, `question`, `answer`, `sets`: a list with one entry a set, {"attempts": [[outcome, tokens,
    answer, fallback rate in per mille]...], "row": [attempt, kind] | null}. Where the attempts are not number 0, 1, ...
    the entry has their `numbers`, too.
    """
    attempts = {name: _attempts(files, outcomes) for name, files in traces.items()}
    rows = {name: _rows(files) for name, files in traces.items()}
    shown: list[Record] = []
    spent = 0
    for problem in problems:
        entry = {
            "id": problem["id"],
            "question": cut(str(problem.get("question") or ""), QUESTION),
            "answer": cut(str(problem.get("answer") or ""), ANSWER),
            "sets": [
                attempts[record["name"]].get(problem["id"], {"attempts": []})
                | {"row": rows[record["name"]].get(problem["id"])}
                for record in sets
            ],
        }
        spent += json_size(entry)
        if spent > budget:
            break
        shown.append(entry)
    return shown


def _attempts(files: TraceFiles, outcomes: Outcomes) -> dict[str, Record]:
    """Problem id -> its attempts in their order."""
    found: dict[str, list[Record]] = defaultdict(list)
    for row in [] if files.verdicts is None else files.verdicts.to_pylist():
        found[row["problem_id"]].append(row)
    entries = {}
    for problem, rows in found.items():
        rows.sort(key=lambda row: row["attempt"])
        numbers = [row["attempt"] for row in rows]
        entries[problem] = {"attempts": [_attempt(row, outcomes) for row in rows]}
        if numbers != list(range(len(rows))):
            entries[problem]["numbers"] = numbers
    return entries


def _attempt(row: Record, outcomes: Outcomes) -> list[Any]:
    outcome = outcomes.number(bool(row["correct"]), row["finish"], row["reason"])
    answer = None if row["answer"] is None else cut(row["answer"], ANSWER)
    rate = row["fallback_rate"]
    return [outcome, row["n_tokens"], answer, None if rate is None or math.isnan(rate) else round(1000 * rate)]


def _rows(files: TraceFiles) -> dict[str, list[Any]]:
    """Problem id -> [attempt, kind] of its training row."""
    if files.rows is None:
        return {}
    return {row["problem_id"]: [row["attempt"], row["kind"]] for row in files.rows.to_pylist()}


def cut(text: str, length: int) -> str:
    """Text of at most `length` characters; an ellipsis says that it was longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


# --- tokens --------------------------------------------------------------------------------------------------------


def token_views(
    shown: Sequence[str],
    tokens: Mapping[Pair, Path],
    thresholds: Mapping[Pair, float],
    limits: Record,
    budget: float,
) -> tuple[dict[str, Record], int]:
    """(problem id -> trace set -> its training row token by token, how many problems were to be shown).

    The sample are the first `problems` of those that were analysed, the ones with a whole trace in most sets first; it
    ends early where the budget (bytes) is spent. A view has attempt, kind, total (tokens of the row), pieces, fallback
    (places), readers: reader -> {threshold, surprisal (1/100 nats; -1 for a probability of 0), rank, improbable (places
    of the tokens below the threshold)}.
    """
    kinds = {pair: read_kinds(path) for pair, path in tokens.items()}
    whole = Counter(problem for _, kind in _by_set(kinds) for problem in kind if kind[problem] == "trace")
    analysed = {problem for kind in kinds.values() for problem in kind}
    # Sorting keeps the order of the problems among equals.
    sample = sorted((problem for problem in shown if problem in analysed), key=lambda problem: -whole[problem])
    sample = sample[: limits["problems"]]
    views: dict[str, dict[str, Record]] = {problem: {} for problem in sample}
    for (traces, reader), path in tokens.items():
        for row in read_rows(path, sample, limits["tokens"]):
            view = views[row["problem_id"]].setdefault(traces, _row_view(row))
            view["readers"][reader] = _reading(row, thresholds.get((traces, reader)))
    fitting: dict[str, Record] = {}
    for problem, view in views.items():
        budget -= json_size(view)
        if budget < 0:
            break
        fitting[problem] = view
    return fitting, len(sample)


def _by_set(kinds: Mapping[Pair, dict[str, str]]) -> Iterable[tuple[str, dict[str, str]]]:
    """Each trace set once, with the kinds of its rows: they are the same for every reader."""
    return {traces: kind for (traces, _), kind in kinds.items()}.items()


def read_kinds(path: Path) -> dict[str, str]:
    """Problem id -> kind of its row, of a TOKENS file; ValueError naming it where it is damaged."""
    verify(path)
    try:
        table = pq.read_table(path, columns=["problem_id", "kind"], page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}); {REMEDY}") from error
    return dict(zip(table["problem_id"].to_pylist(), table["kind"].to_pylist(), strict=True))


def read_rows(path: Path, problems: Sequence[str], longest: int) -> list[Record]:
    """The TOKENS rows of some problems, with `total` tokens, of which the first `longest` are in the lists."""
    table = read_table(path, TOKENS)
    table = table.filter(pc.is_in(table["problem_id"], pa.array(problems, pa.string())))
    total = pc.list_value_length(table["pieces"])
    for name in ("pieces", "fallback", "probability", "rank"):
        table = table.set_column(table.column_names.index(name), name, pc.list_slice(table[name], 0, longest))
    return table.drop_columns(["tokens"]).append_column("total", total).to_pylist()


def _row_view(row: Record) -> Record:
    """A row without its readers."""
    same = {key: row[key] for key in ("attempt", "kind", "total", "pieces")}
    return same | {"fallback": places(row["fallback"]), "readers": {}}


def _reading(row: Record, threshold: float | None) -> Record:
    # In float32, as RSD accepts and the analysis counts.
    least = 0.0 if threshold is None else float(np.float32(threshold))
    below = [p is not None and p < least for p in row["probability"]]
    return {
        "threshold": threshold,
        "surprisal": [surprisal(p) for p in row["probability"]],
        "rank": row["rank"],
        "improbable": places(below),
    }


def surprisal(probability: float | None) -> int | None:
    """-log p in hundredths of a nat, rounded; -1 for a probability of 0, None for one that is not known."""
    if probability is None or math.isnan(probability):
        return None
    return -1 if probability <= 0 else max(0, round(-100 * math.log(probability)))


def places(flags: Iterable[bool]) -> list[int]:
    """Where the flags are set."""
    return [place for place, flag in enumerate(flags) if flag]


# --- JSON in a page ------------------------------------------------------------------------------------------------


def embedded_json(value: Any) -> str:
    """JSON that is safe inside a script element: nothing in it can end the element or open another one."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    # Half a surrogate pair is no UTF-8, but may stand in JSON by its escape.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def json_size(value: Any) -> int:
    """Bytes of `embedded_json`."""
    return len(embedded_json(value).encode("utf-8"))
