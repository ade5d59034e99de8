"""The commands of `rsd` for people: what a configuration says, what an experiment will take, and its result.

Each prints its answer, and ends with a message where something is wrong; the stages are in `cli`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rsd import config, lease, runtime
from rsd.gpus import most_gpus

Arguments = argparse.Namespace


def add_commands(commands: Any, stages: Iterable[str]) -> None:
    """Adds them to argparse's subcommands; `stages` are the names of those that have settings."""
    command = commands.add_parser("config", help="merge and check config files, print the result")
    command.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    command.add_argument("--output", type=Path)
    command.set_defaults(run=_config, for_people=True)
    command = commands.add_parser("settings", help="print the slice of the configuration that a stage gets")
    command.add_argument("stage", choices=sorted({*stages} - {"measure-overlap", "write-config"}))
    command.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    command.add_argument(
        "--name",
        help="which model, dataset, task, trace set or arm (evaluate: ARM/TASK; analyse-tokens: TRACES/READER)",
    )
    command.set_defaults(run=_settings, for_people=True)
    text = "say whether gated datasets may be downloaded, and whether the judge's key is there"
    command = commands.add_parser("check-access", help=text, description=text)
    command.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    command.add_argument("--datasets", type=Path, default=Path("results/datasets"), help="where downloads are")
    command.set_defaults(run=_check_access, for_people=True)
    command = commands.add_parser("show", help="print an experiment's main table and where its report is")
    command.add_argument("folder", type=Path, metavar="results/EXPERIMENT")
    command.set_defaults(run=_show, for_people=True)
    _add_bench(commands)
    _add_power(commands)
    _add_estimate(commands)


# --- what they do, each with its module when it runs, so that `rsd --help` starts at once ---------------------------


def _config(a: Arguments) -> None:
    text = config.as_yaml(config.load(a.configs))
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


# --- flags ---------------------------------------------------------------------------------------------------------


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
