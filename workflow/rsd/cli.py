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

from rsd import __version__, config, launch, lease, runtime
from rsd.exclusive import PATIENCE_S, alone
from rsd.gpus import gpus_wanted, most_gpus
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
    runtime.write_text(a.output, _as_yaml(a.settings))


def _config(a: Arguments) -> None:
    text = _as_yaml(config.load(a.configs))
    if a.output is None:
        print(text, end="")
    else:
        runtime.write_text(a.output, text)


def _settings(a: Arguments) -> None:
    slices = {
        "prefetch-model": lambda c: config.prefetch_settings(c, "models", a.name),
        "prefetch-dataset": lambda c: config.prefetch_settings(c, "datasets", a.name),
        "prepare-problems": config.problems_settings,
        "prepare-benchmark": lambda c: config.benchmark_settings(c, a.name),
        "generate-traces": lambda c: config.traces_settings(c, a.name),
        "convert-traces": lambda c: config.traces_settings(c, a.name),
        "select-traces": lambda c: config.select_settings(c, a.name),
        "derive-traces": lambda c: config.derive_settings(c, a.name),
        "train": lambda c: config.training_settings(c, a.name),
        "evaluate": lambda c: config.evaluation_settings(c, *a.name.split("/", 1)),
        "judge-samples": lambda c: config.judge_settings(c, a.name),
        "collect-scores": lambda c: config.evaluation_settings(c, *a.name.split("/", 1)),
        "make-pocket-model": lambda c: config.pocket_settings(c, f"pocket://{a.name}"),
        "make-pocket-dataset": lambda c: config.pocket_settings(c, f"pocket://{a.name}"),
        "analyse-tokens": lambda c: config.analysis_settings(c, *a.name.split("/", 1)),
        "compare": config.compare_settings,
        "report": config.report_settings,
    }
    try:
        print(json.dumps(slices[a.stage](config.load(a.configs)), ensure_ascii=False))
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"--name {a.name!r} names nothing that {a.stage} works on; give an entry of the configuration: a model, "
            "dataset, task, trace set or arm (evaluate, collect-scores: ARM/TASK; judge-samples: TASK, with a judge; "
            "analyse-tokens: TRACES/READER)"
        ) from error


def _check_access(a: Arguments) -> None:
    from rsd.access import check_access

    check_access(config.load(a.configs), a.datasets)
    print("everything that needs a permission is there, or may be had")


def _show(a: Arguments) -> int:
    from rsd.report_result import terminal_table

    comparison, page = a.folder / "report" / "comparison.csv", a.folder / "report" / "report.html"
    if not (comparison.exists() and page.exists()):
        raise FileNotFoundError(f"{a.folder} holds no report yet; run snakemake for this experiment first")
    print(terminal_table(comparison))
    print(f"\nreport: {page.resolve()}")
    return 0


def _bench(a: Arguments) -> None:
    settings = config.load(a.configs)
    # Before torch is loaded, and before the pair that is measured is looked for.
    names = [a.traces] if a.traces in settings["traces"] else settings["traces"]
    lease.take(settings["device"], max(1, most_gpus(settings, [("generate_traces", name) for name in names])))
    from rsd.bench_command import run_bench
    from rsd.emulation import Emulation

    print(
        run_bench(
            settings,
            traces=a.traces,
            emulation=Emulation(a.agreement, a.fallback) if a.random_weights else None,
            lanes=a.lanes,
            length=a.length,
            new=a.new,
            runs=a.runs,
            threads=a.threads,
            output=a.json,
        )
    )


def _power(a: Arguments) -> None:
    from rsd.power import run_power

    text = run_power(
        config.load(a.configs),
        accuracy=dict(a.accuracy),
        between={None: 0.5, **dict(a.between)},
        correlation=a.correlation,
        power=a.power,
        output=a.json,
    )
    print(text)


def _estimate(a: Arguments) -> None:
    from rsd.estimate import run_estimate

    text = run_estimate(
        config.load(a.configs), speeds=a.speeds, by_hand=dict(a.speed), typical=dict(a.tokens), output=a.json
    )
    print(text)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=120)


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


def _number_by_task(text: str) -> tuple[str | None, float]:
    """(task, number) of TASK=NUMBER, (None, number) of NUMBER."""
    task, _, value = text.rpartition("=")
    try:
        return task or None, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NUMBER or TASK=NUMBER, found {text!r}") from None


def _named_number(text: str) -> tuple[str, float]:
    name, value = _number_by_task(text)
    if name is None:
        raise argparse.ArgumentTypeError(f"expected KIND=NUMBER, found {text!r}")
    return name, value


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
    people = commands.add_parser("config", help="merge and check config files, print the result")
    people.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    people.add_argument("--output", type=Path)
    people.set_defaults(run=_config, for_people=True)
    people = commands.add_parser("settings", help="print the slice of the configuration that a stage gets")
    people.add_argument("stage", choices=sorted(STAGES.keys() - {"measure-overlap", "write-config"}))
    people.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    people.add_argument(
        "--name",
        help="which model, dataset, task, trace set or arm (evaluate: ARM/TASK; analyse-tokens: TRACES/READER)",
    )
    people.set_defaults(run=_settings, for_people=True)
    text = "say whether gated datasets may be downloaded, and whether the judge's key is there"
    people = commands.add_parser("check-access", help=text, description=text)
    people.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    people.add_argument("--datasets", type=Path, default=Path("results/datasets"), help="where downloads are")
    people.set_defaults(run=_check_access, for_people=True)
    people = commands.add_parser("show", help="print an experiment's main table and where its report is")
    people.add_argument("folder", type=Path, metavar="results/EXPERIMENT")
    people.set_defaults(run=_show, for_people=True)
    _add_bench(commands)
    _add_power(commands)
    _add_estimate(commands)
    return parser


def _add_bench(commands: Any) -> None:
    text = "measure how fast the pair of a configuration decodes here, and what the experiment would take"
    bench = commands.add_parser("bench", help=text, description=text)
    bench.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    bench.add_argument("--traces", help="trace set whose pair is measured (default: the first of method rsd)")
    bench.add_argument(
        "--random-weights", action="store_true", help="time random weights of the same shapes; downloads nothing"
    )
    bench.add_argument(
        "--agreement", type=float, default=0.85, help="with them: share of the student's drafts that are right (0.85)"
    )
    bench.add_argument(
        "--fallback", type=float, default=0.007, help="with them: share of tokens by fallback (0.007, as in the paper)"
    )
    bench.add_argument("--lanes", type=int, help="lanes (default: what fits and pays)")
    bench.add_argument("--length", type=int, help="context in tokens (default: half of the trace set's)")
    bench.add_argument("--new", type=int, default=64, help="tokens written in each lane a run (64)")
    bench.add_argument("--runs", type=int, default=3, help="runs of each; medians are printed (3)")
    bench.add_argument("--threads", type=int, help="CPU threads (default: all)")
    bench.add_argument("--json", type=Path, help="also write the numbers to this file")
    bench.set_defaults(run=_bench, for_people=True)


def _add_power(commands: Any) -> None:
    text = "say how small a difference the experiment of a configuration can see, before it is run"
    power = commands.add_parser("power", help=text, description=text)
    power.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    by_task: dict[str, Any] = {"type": _number_by_task, "action": "append", "default": [], "metavar": "[TASK=]NUMBER"}
    power.add_argument(
        "--accuracy", **by_task, help="assumed accuracy, per cent (reference.accuracy of the base, else 50)"
    )
    power.add_argument(
        "--between", **by_task, help="share of a sample's variance that lies between problems, 0 to 1 (0.5)"
    )
    power.add_argument(
        "--correlation", type=float, default=0.8, help="of the chances of two models on the same problem (0.8)"
    )
    power.add_argument("--power", type=float, default=0.8, help="probability of seeing the difference (0.8)")
    power.add_argument("--json", type=Path, help="also write the numbers to this file")
    power.set_defaults(run=_power, for_people=True)


def _add_estimate(commands: Any) -> None:
    text = "say what the experiment of a configuration will take: jobs, hours, memory, disk; nothing is run"
    estimate = commands.add_parser("estimate", help=text, description=text)
    estimate.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    estimate.add_argument(
        "--speeds", type=Path, help="speeds as `rsd bench --json FILE` measured them (else stated ones)"
    )
    estimate.add_argument(
        "--speed", type=_named_number, action="append", default=[], metavar="KIND=NUMBER",
        help="tokens a second, before these: rsd, student, teacher (each writing alone), reading",
    )  # fmt: skip
    estimate.add_argument(
        "--tokens", type=_number_by_task, action="append", default=[], metavar="[NAME=]NUMBER",
        help="typical tokens of an attempt, row or sample; of a trace set or task, or of all others",
    )  # fmt: skip
    estimate.add_argument("--json", type=Path, help="also write the numbers to this file")
    estimate.set_defaults(run=_estimate, for_people=True)


if __name__ == "__main__":
    sys.exit(main())
