"""`rsd STAGE ...`: every stage of the pipeline as a command of its own, for Snakemake's rules and for people.

Parses, sets up the log, calls the stage's function. `--settings` takes the stage's slice of the configuration as JSON,
or @FILE with it (JSON or YAML); `rsd settings` prints the slice for any stage of a configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rsd import __version__, config, launch, lease, people, runtime
from rsd.exclusive import PATIENCE_S, alone
from rsd.gpus import gpus_wanted
from rsd.supervise import supervised

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    arguments = build_parser().parse_args(argv)
    # A mistake of the user's needs no traceback.
    if arguments.for_people:
        try:
            return arguments.run(arguments) or 0
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    if launch.is_worker():
        launch.join()

    def stage() -> int:
        runtime.setup_logging(quiet=launch.is_worker() and not launch.is_first())
        if not arguments.network:
            runtime.switch_hub_off()
        with contextlib.ExitStack() as stack:
            for place in _made(arguments):
                # What is fetched is shared by experiments, and kept: there is no hurry.
                arguments.waited = stack.enter_context(alone(place, None if arguments.network else PATIENCE_S))
            lend_gpus(arguments.command, vars(arguments).get("settings", {}))
            try:
                arguments.run(arguments)
            except Exception as error:
                launch.leave_reason(error)
                raise
        return 0

    if arguments.log is None:
        return stage()
    return supervised(arguments.log, stage)


def _made(arguments: Arguments) -> list[Path]:
    """What no other process may write while this stage runs: of several outputs the first stands for all.

    A work folder stands for itself where it holds checkpoints; journals have locks of their own. The processes of one
    training have what their launcher holds.
    """
    if launch.is_worker():
        return []
    flags = next(flags for _, run, flags in STAGES.values() if run is arguments.run)
    output = next(flag for flag in ("output", "html", "samples", "tokens", "verdicts", "rows") if flag in flags)
    return [getattr(arguments, output), *([arguments.work] if arguments.run in (_train, _make_pocket) else [])]


def _made_meanwhile(a: Arguments) -> bool:
    """Whether another experiment has just finished this shared folder; made again, it would be incomplete meanwhile."""
    from rsd.manifest import verify_manifest

    if not a.waited:
        return False
    try:
        verify_manifest(a.output, deep=False)
    except (OSError, ValueError):
        return False
    print(f"{a.output} was made meanwhile", file=sys.stderr)
    return True


def lend_gpus(command: str, settings: dict[str, Any]) -> None:
    """Takes the GPUs that a command needs, for as long as this process lives; waits where others have them."""
    if not launch.is_worker() and (count := gpus_wanted(command, settings)):
        lease.take(settings["device"], count)


# --- the stages: each imports its module when it runs, so that `rsd --help` and Snakemake start at once -------------


def _prefetch(kind: str) -> Callable[[Arguments], None]:
    def run(a: Arguments) -> None:
        from rsd.hub import run_prefetch

        if _made_meanwhile(a):
            return
        run_prefetch(kind=kind, name=a.name, settings=a.settings, output=a.output)

    return run


def _make_pocket(a: Arguments) -> None:
    from rsd.pocket import run_make_pocket

    if _made_meanwhile(a):
        return
    run_make_pocket(settings=a.settings, threads=a.threads, output=a.output, work=a.work)


def _prepare_problems(a: Arguments) -> None:
    from rsd.data import run_prepare_problems

    run_prepare_problems(dataset=a.dataset, settings=a.settings, output=a.output, report=a.report)


def _prepare_benchmark(a: Arguments) -> None:
    from rsd.data import run_prepare_benchmark

    run_prepare_benchmark(dataset=a.dataset, settings=a.settings, output=a.output)


def _measure_overlap(a: Arguments) -> None:
    from rsd.overlap import run_measure_overlap

    run_measure_overlap(problems=a.problems, benchmarks=dict(a.benchmark), settings=a.settings, output=a.output)


def _generate_traces(a: Arguments) -> None:
    from rsd.traces import run_generate_traces

    run_generate_traces(
        problems=a.problems,
        student=a.student,
        teacher=a.teacher,
        sampled=a.sampled,
        settings=a.settings,
        shard=a.shard,
        threads=a.threads,
        output=a.output,
        work=a.work,
    )


def _convert_traces(a: Arguments) -> None:
    from rsd.data import run_convert_traces

    run_convert_traces(problems=a.problems, student=a.student, settings=a.settings, output=a.output)


def _select_traces(a: Arguments) -> None:
    from rsd.selection import run_select_traces

    run_select_traces(
        problems=a.problems,
        shards=a.shards,
        student=a.student,
        settings=a.settings,
        verdicts=a.verdicts,
        rows=a.rows,
        summary=a.summary,
        work=a.work,
    )


def _derive_traces(a: Arguments) -> None:
    from rsd.derived import run_derive_traces

    run_derive_traces(
        problems=a.problems,
        of=a.of,
        student=a.student,
        source=a.source,
        settings=a.settings,
        threads=a.threads,
        rows=a.rows,
        summary=a.summary,
        work=a.work,
    )


def _train(a: Arguments) -> None:
    processes = a.settings["gpus"]
    if processes > 1 and not launch.is_worker():
        a.threads = max(1, a.threads // processes)
        launch.launch(processes, _words_of("train", a), a.threads)
        return
    from rsd.train import run_train

    run_train(
        model=a.model,
        rows=a.rows,
        tokens_of=a.tokens_of,
        settings=a.settings,
        seed=a.seed,
        threads=a.threads,
        output=a.output,
        work=a.work,
    )


def _words_of(command: str, a: Arguments) -> list[str]:
    """The command line that gives these arguments, without the log."""
    words = [command]
    for flag in STAGES[command][2]:
        value = getattr(a, flag.replace("-", "_"))
        if value is not None:
            words += [f"--{flag}", json.dumps(value) if flag == "settings" else str(value)]
    return words


def _evaluate(a: Arguments) -> None:
    from rsd.evaluate import run_evaluate

    run_evaluate(
        model=a.model,
        benchmark=a.benchmark,
        settings=a.settings,
        shard=a.shard,
        threads=a.threads,
        samples=a.samples,
        work=a.work,
    )


def _analyse_tokens(a: Arguments) -> None:
    from rsd.tokens import run_analyse_tokens

    run_analyse_tokens(
        rows=a.rows,
        shards=a.shards,
        problems=a.problems,
        reader=a.reader,
        settings=a.settings,
        threads=a.threads,
        tokens=a.tokens,
        summary=a.summary,
        work=a.work,
    )


def _judge_samples(a: Arguments) -> None:
    from rsd.judge import run_judge_samples

    run_judge_samples(benchmark=a.benchmark, shards=a.shards, settings=a.settings, output=a.output, work=a.work)


def _collect_scores(a: Arguments) -> None:
    from rsd.collect import run_collect_scores

    run_collect_scores(
        benchmark=a.benchmark,
        shards=a.shards,
        judge=a.judge,
        settings=a.settings,
        samples=a.samples,
        scores=a.scores,
    )


def _compare(a: Arguments) -> None:
    from rsd.compare import run_compare

    run_compare(scores=a.scores, settings=a.settings, output=a.output, summary=a.summary)


def _report(a: Arguments) -> None:
    from rsd.report import run_report

    run_report(
        comparison=a.comparison,
        summary=a.summary,
        problems=a.problems,
        traces=a.traces,
        tokens=a.tokens,
        trainings=dict(a.training),
        problems_report=a.problems_report,
        overlap=a.overlap,
        manifests=dict(a.manifest),
        scores=a.scores,
        benchmarks=a.benchmarks,
        settings=a.settings,
        html=a.html,
        markdown=a.markdown,
        figures=a.figures,
        tables=a.tables,
    )


def _write_config(a: Arguments) -> None:
    runtime.write_text(a.output, config.as_yaml(a.settings))


# --- the parser -----------------------------------------------------------------------------------------------------


def _settings_value(text: str) -> dict[str, Any]:
    if text.startswith("@"):
        text = Path(text[1:]).read_text(encoding="utf-8")
    try:
        # Not YAML straight away: it reads JSON's 1e-05 as a string.
        value = json.loads(text)
    except json.JSONDecodeError:
        value = yaml.safe_load(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object, or @FILE with one")
    return value


def _named_path(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, found {text!r}")
    return name, Path(path)


_KINDS: dict[str, dict[str, Any]] = {
    "path": {"type": Path, "required": True},
    "optional-path": {"type": Path, "default": None},
    "paths": {"type": Path, "required": True, "nargs": "+"},
    "optional-paths": {"type": Path, "default": [], "nargs": "*"},
    "named": {"type": _named_path, "action": "append", "default": [], "metavar": "NAME=PATH"},
    "settings": {"type": _settings_value, "required": True, "metavar": "JSON|@FILE"},
    "int": {"type": int, "required": True},
    "str": {"required": True},
}

# Command -> (what it does, what runs it, its flags).
STAGES: dict[str, tuple[str, Callable[[Arguments], None], dict[str, str]]] = {
    "prefetch-model": (
        "download a model",
        _prefetch("models"),
        {"name": "str", "settings": "settings", "output": "path"},
    ),
    "prefetch-dataset": (
        "download a dataset",
        _prefetch("datasets"),
        {"name": "str", "settings": "settings", "output": "path"},
    ),
    "make-pocket-model": (
        "train a tiny model from nothing",
        _make_pocket,
        {"settings": "settings", "threads": "int", "output": "path", "work": "path"},
    ),
    "make-pocket-dataset": (
        "make arithmetic problems",
        _make_pocket,
        {"settings": "settings", "threads": "int", "output": "path", "work": "path"},
    ),
    "prepare-problems": (
        "dataset -> training problems",
        _prepare_problems,
        {"dataset": "path", "settings": "settings", "output": "path", "report": "path"},
    ),
    "prepare-benchmark": (
        "dataset -> benchmark problems",
        _prepare_benchmark,
        {"dataset": "path", "settings": "settings", "output": "path"},
    ),
    "measure-overlap": (
        "training problems that stand in a benchmark",
        _measure_overlap,
        {"problems": "path", "benchmark": "named", "settings": "settings", "output": "path"},
    ),
    "generate-traces": (
        "problems -> attempts, by RSD or by sampling",
        _generate_traces,
        {
            "problems": "path",
            "student": "path",
            "teacher": "optional-path",
            "sampled": "optional-path",
            "settings": "settings",
            "shard": "int",
            "threads": "int",
            "output": "path",
            "work": "path",
        },
    ),
    "convert-traces": (
        "a dataset's own traces -> attempts",
        _convert_traces,
        {"problems": "path", "student": "path", "settings": "settings", "output": "path"},
    ),
    "select-traces": (
        "attempts -> training rows",
        _select_traces,
        {
            "problems": "path",
            "shards": "paths",
            "student": "path",
            "settings": "settings",
            "verdicts": "path",
            "rows": "path",
            "summary": "path",
            "work": "path",
        },
    ),
    "derive-traces": (
        "training rows of a trace set -> those of another",
        _derive_traces,
        {
            "problems": "path",
            "of": "path",
            "student": "path",
            "source": "optional-path",
            "settings": "settings",
            "threads": "int",
            "rows": "path",
            "summary": "path",
            "work": "path",
        },
    ),
    "train": (
        "fine-tune a model on training rows",
        _train,
        {
            "model": "path",
            "rows": "path",
            "tokens-of": "optional-path",
            "settings": "settings",
            "seed": "int",
            "threads": "int",
            "output": "path",
            "work": "path",
        },
    ),
    "evaluate": (
        "measure a model on a share of a benchmark, through lm-eval",
        _evaluate,
        {
            "model": "path",
            "benchmark": "path",
            "settings": "settings",
            "shard": "int",
            "threads": "int",
            "samples": "path",
            "work": "path",
        },
    ),
    "analyse-tokens": (
        "training rows -> how probable a model finds every token of them",
        _analyse_tokens,
        {
            "rows": "path",
            "shards": "optional-paths",
            "problems": "path",
            "reader": "path",
            "settings": "settings",
            "threads": "int",
            "tokens": "path",
            "summary": "path",
            "work": "path",
        },
    ),
    "judge-samples": (
        "ask an LLM for a second opinion on samples",
        _judge_samples,
        {"benchmark": "path", "shards": "paths", "settings": "settings", "output": "path", "work": "path"},
    ),
    "collect-scores": (
        "join the shards of a benchmark, and score them",
        _collect_scores,
        {
            "benchmark": "path",
            "shards": "paths",
            "judge": "optional-path",
            "settings": "settings",
            "samples": "path",
            "scores": "path",
        },
    ),
    "compare": (
        "scores -> one table",
        _compare,
        {"scores": "path", "settings": "settings", "output": "path", "summary": "path"},
    ),
    "report": (
        "table and records -> report",
        _report,
        {
            "comparison": "path",
            "summary": "path",
            "problems": "path",
            "traces": "path",
            "tokens": "path",
            "training": "named",
            "problems-report": "path",
            "overlap": "path",
            "manifest": "named",
            "scores": "path",
            "benchmarks": "path",
            "settings": "settings",
            "html": "path",
            "markdown": "path",
            "figures": "path",
            "tables": "path",
        },
    ),
    "write-config": (
        "write the merged configuration",
        _write_config,
        {"settings": "settings", "output": "path"},
    ),
}

# The stages that need a network.
NETWORK = ("prefetch-model", "prefetch-dataset", "judge-samples")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="rsd", description="Reverse Speculative Decoding, stage by stage.")
    parser.add_argument("--version", action="version", version=f"rsd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (description, run, flags) in STAGES.items():
        command = commands.add_parser(name, help=description, description=description)
        for flag, kind in flags.items():
            command.add_argument(f"--{flag}", **_KINDS[kind])
        command.add_argument("--log", type=Path, help="also write everything that is printed to this file")
        command.set_defaults(run=run, command=name, for_people=False, network=name in NETWORK)
    people.add_commands(commands, STAGES.keys())
    return parser


if __name__ == "__main__":
    sys.exit(main())
