"""What differs from the paper in this run, said from its configuration alone. A configuration in, sentences out.

`docs/method.md` gives the reasons; here stands only what the run actually used.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsd.config import Config, trace_sets, used_models
from rsd.lineage import DERIVED, origin

# The sources of the paper's experiment, without their revisions (paper, sections on set-up; authors' code).
PAPER_TEACHER = "hf://simplescaling/s1.1-7B"
PAPER_STUDENT = "hf://Qwen/Qwen3-0.6B"
PAPER_PROBLEMS = "hf://simplescaling/s1K-1.1"
PAPER_TASKS = {
    "AIME 2024": "hf://HuggingFaceH4/aime_2024",
    "AIME 2025": "hf://opencompass/AIME2025",
    "GPQA-Diamond": "hf://Idavidrein/gpqa",
    "MATH-500": "hf://HuggingFaceH4/MATH-500",
}
# Settings of the paper or of the authors' code, by the keys of config.yaml.
PAPER_TRACES = {"threshold": 0.01, "attempts": 16, "context": 8192, "max_new_tokens": 7168}
PAPER_SELECTION = {
    "require_correct": True,
    "require_finished": True,
    "require_think_close": True,
    "max_fallback_rate": 0.5,
    "pick": "shortest",
    "solved": "trace",
    "unsolved": "prefix",
    "prefix_tokens": 128,
}
PAPER_TRAINING = {
    "epochs": 15,
    "learning_rate": 1e-5,
    "batch_size": 16,
    "block_size": 8192,
    "overlong": "truncate",
    "warmup_ratio": 0.05,
    "schedule": "cosine",
    "weight_decay": 1e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "dtype": "bfloat16",
    "drop_last": True,
}
PAPER_SAMPLING = {"temperature": 0.7, "top_p": 0.95, "top_k": 0, "context": 16384}


@dataclass(frozen=True)
class Note:
    """One difference: what it is about, and what was done."""

    title: str
    text: str


def unlike_paper(config: Config) -> list[str]:
    """Which models and data are not the paper's; empty for the paper's experiment."""
    found = []
    # A model that is trained here is what it was made of.
    for model in dict.fromkeys(origin(config, model) for model in used_models(config, "student")):
        found += _unlike(f"student {model}", _source(config, "models", model), PAPER_STUDENT)
    for model in dict.fromkeys(origin(config, model) for model in used_models(config, "teacher")):
        found += _unlike(f"teacher {model}", _source(config, "models", model), PAPER_TEACHER)
    problems = config["problems"]["dataset"]
    found += _unlike(f"training problems {problems}", _source(config, "datasets", problems), PAPER_PROBLEMS)
    run = {_source(config, "datasets", config["tasks"][task]["dataset"]): task for task in config["run"]["tasks"]}
    found += [f"task {task}: {source}" for source, task in run.items() if source not in PAPER_TASKS.values()]
    found += [f"no task {name} ({source})" for name, source in PAPER_TASKS.items() if source not in run]
    return found


def law_text(traces: str, config: Config) -> str | None:
    """The law that a trace set ran, in words; None where it was not made by RSD."""
    entry = config["traces"].get(traces, {})
    if entry.get("method") != "rsd":
        return None
    law = config["laws"][entry["law"]]
    draws = law["draws"] if entry["draws"] is None else entry["draws"]
    accepted = f"a proposal is accepted if the student gives it at least {_per_cent(entry['threshold'])}"
    if law["accept_top_k"]:
        accepted += f" and has it among its {law['accept_top_k']} most probable tokens"
    return (
        f"{entry['law']}: up to {draws} {'proposal' if draws == 1 else 'proposals'} of the teacher "
        f"({_sampling(law['proposal'])}); {accepted}; else the student's own token ({_sampling(law['fallback'])})"
    )


def method_notes(config: Config) -> list[Note]:
    """The known differences from the paper that this run has, and what the paper leaves open."""
    return [
        *_general_notes(config),
        *_trace_notes(config),
        *_training_notes(config),
        *_evaluation_notes(config),
    ]


def _general_notes(config: Config) -> list[Note]:
    if unlike_paper(config):
        prompts = "The prompts are this experiment's own; the configuration below shows them."
    else:
        prompts = "Their content follows the authors' prompt; the wording is ours, since the original is not published."
    return [
        Note("Prompts", prompts),
        Note(
            "Grading",
            "Answers are compared by rules (math-verify, and a plain string comparison beside it), and only the marked "
            "final answer of a finished sample counts. The authors let GPT-4o-mini judge the whole text, so absolute "
            "accuracies are not comparable with theirs; differences between models graded alike are.",
        ),
    ]


def _trace_notes(config: Config) -> list[Note]:
    notes = []
    for name in trace_sets(config):
        entry = config["traces"][name]
        select = entry["select"]
        if entry["method"] == "rsd":
            notes.append(Note(f"Law of {name}", _law_note(name, config)))
            notes += _changed(f"Traces {name}", entry, PAPER_TRACES)
            notes += _changed(f"Selection of {name}", select, PAPER_SELECTION)
        if entry["of"] is not None or entry["sampled"] is not None:
            notes.append(Note(f"Traces {name}", _origin_note(entry)))
        if entry["method"] in DERIVED:
            continue
        if select["solved"] == "prefix":
            text = f"They contribute the first {select['prefix_tokens']} tokens of their kept attempt, and no more."
            notes.append(Note(f"Solved problems of {name}", text))
        if entry["method"] != "dataset" and select["unsolved"] == "prefix":
            notes.append(
                Note(
                    f"Unsolved problems of {name}",
                    f"They contribute the first {select['prefix_tokens']} tokens of one attempt. Which attempt the "
                    f"paper takes is not known; here it is the {select['prefix_attempt']} one.",
                )
            )
    return notes


def _origin_note(entry: Config) -> str:
    """Where the rows of a set come from that the student did not write."""
    match entry["method"]:
        case "filter":
            wanted = {
                "improbable_share": f"share of tokens that the student gives less than {_per_cent(entry['threshold'])}",
                "mean_surprisal": "mean surprisal under the student",
            }[entry["filter"]["by"]]
            return (
                f"The {_per_cent(entry['filter']['keep'])} of the rows of {entry['of']} with the lowest {wanted}. They "
                "are kept or left out as a whole, after they were written: this is no RSD, where no improbable token "
                "comes about in the first place."
            )
        case "select":
            return f"Selected anew from the attempts of {entry['of']}."
        case "recode":
            return (
                f"The rows of {entry['of']}, made for another student, behind the prompt and in the tokens of "
                f"{entry['student']}."
            )
        case _:
            return (
                f"Written by {entry['sampled']} alone ({_sampling(entry['sampling'])}), behind its own prompt, and "
                f"read in the tokens of {entry['student']}."
            )


def _law_note(name: str, config: Config) -> str:
    law = config["traces"][name]["law"]
    text = f"{law_text(name, config)}. "
    match law:
        case "authors-code":
            return text + (
                "This is what the authors' earlier code does. The paper's text describes one proposal at temperature "
                "0.7 and top-p 0.95; whether its final code still drew five is not known."
            )
        case "paper-text":
            return text + (
                "This is a plain reading of the paper's text; the authors' earlier code draws up to five times from "
                "raw top-20 probabilities."
            )
        case _:
            return text + "This law is neither the authors' code nor the paper's text."


def _training_notes(config: Config) -> list[Note]:
    notes = []
    for arm in config["run"]["arms"]:
        entry = config["arms"][arm]
        if entry["traces"] is None:
            continue
        training = {**config["training"], **entry["training"]}
        paper = PAPER_TRAINING
        if training["tokens_of"] is not None:
            paper = {key: value for key, value in paper.items() if key != "epochs"}
            text = f"As many steps as come nearest to the tokens that {training['tokens_of']} sees in all its epochs."
            notes.append(Note(f"Steps of {arm}", text))
        notes += _changed(f"Training of {arm}", training, paper)
        if config["traces"][entry["traces"]]["method"] == "dataset" and training["overlong"] != "error":
            fate = {"truncate": "cut there, so that they lose their answer", "drop": "left out"}[training["overlong"]]
            notes.append(
                Note(
                    f"Long traces of {arm}",
                    f"Rows longer than {training['block_size']} tokens are {fate}. This can weaken direct distillation "
                    "for reasons other than its style; the share is in the section on training.",
                )
            )
    return notes


def _evaluation_notes(config: Config) -> list[Note]:
    profile = config["profiles"][config["evaluation"]["profile"]]
    repeats = ", ".join(f"{task} {config['tasks'][task]['repeats']}" for task in config["run"]["tasks"])
    notes = [
        Note("Samples", f"How many samples a problem the paper took is not known; here: {repeats}."),
        *_changed(f"Evaluation profile {config['evaluation']['profile']}", profile, PAPER_SAMPLING),
    ]
    limits = [
        f"{task} {config['tasks'][task]['limit']}" for task in config["run"]["tasks"] if config["tasks"][task]["limit"]
    ]
    if config["problems"]["limit"]:
        limits.insert(0, f"training {config['problems']['limit']}")
    if limits:
        notes.append(Note("Cut-down data", f"Only this many problems are used: {', '.join(limits)}."))
    return notes


def _changed(title: str, found: Config, paper: Config) -> list[Note]:
    """One note that lists the settings which differ from the paper's; none where all are the same."""
    changed = [f"{key} {found[key]} (paper: {value})" for key, value in paper.items() if found[key] != value]
    return [Note(title, "; ".join(changed) + ".")] if changed else []


def _source(config: Config, kind: str, name: str) -> str:
    """A source without its revision."""
    return str(config[kind][name]["source"]).split("@")[0]


def _unlike(what: str, source: str, paper: str) -> list[str]:
    return [] if source == paper else [f"{what}: {source} (paper: {paper})"]


def _sampling(sampling: Config) -> str:
    if sampling["temperature"] == 0:
        return "greedy"
    parts = [f"temperature {sampling['temperature']:g}"]
    parts += [f"top {sampling['top_k']}"] if sampling["top_k"] else []
    parts += [f"top-p {sampling['top_p']:g}"] if sampling["top_p"] < 1 else []
    return ", ".join(parts)


def _per_cent(share: float) -> str:
    return f"{100 * share:g} %"
