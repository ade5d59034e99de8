"""Everything that docs/performance.md says of the decoder, measured in one run: ratios of ways on the same machine.

Random weights in the shapes of public models, made to agree as stated (`rsd.emulation`); nothing is downloaded. Needs
torch, transformers and this repository's files alone. On two CPU cores, and on a GPU:

    PYTHONPATH=workflow:tests python tests/benchmarks/performance.py --pair smollm2 --json cpu.json
    PYTHONPATH=workflow:tests python tests/benchmarks/performance.py --pair paper --lanes 1 32 128 \\
        --prompt 4000 --new 32 --blocks 4 8 --runs 2 --growing-lengths 1024 4096 --growing-lanes 1 8 64 --json gpu.json

Every table is printed as it is made, and `--json` is written after each part, so that a run that is cut short leaves
what it had measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel

from benchmarks.baselines import authors_way_sampled, transformers_generate
from benchmarks.models import shape
from rsd.bench import (
    NEVER,
    Workload,
    bytes_of_round,
    copy_bandwidth,
    exhaust,
    time_alone,
    time_rsd,
    time_schedule,
)
from rsd.costs import measure_costs
from rsd.decode import Request, generate_rsd
from rsd.emulation import Emulation, emulate
from rsd.law import Law, Sampling
from rsd.memory import free_bytes
from rsd.planning import lanes_that_fit, pair_lane_bytes
from rsd.schedule import LOCK_STEP, Costs, Schedule, Scheduler, candidates, describe
from rsd.shapes import random_model
from rsd.vocabulary import Alignment

# As in config.yaml: the paper's law, by the authors' code.
LAW = Law(0.01, 5, Sampling(1.0, 20, 1.0), 20, Sampling(1.0, 20, 1.0))
AUTHORS_TOKENS, AUTHORS_PROMPT = 512, 64
PAPER_ATTEMPTS, PAPER_TOKENS = 16_000, 7168


# Student, teacher, dtype; and a pair so small that all but the models shows.
PAIRS = {
    "smollm2": ("smollm2-135m", "smollm2-1.7b", "float32"),
    "paper": ("qwen3-0.6b", "qwen2.5-7b", "bfloat16"),
    "twins": ("smollm2-135m", "smollm2-135m", "float32"),
    "pocket": ("pocket-student", "pocket-teacher", "float32"),
    "tiny": ("tiny", "tiny", "float32"),
}


def config_of(name: str) -> PreTrainedConfig:
    """The shape of a name of PAIRS."""
    if name != "tiny":
        return shape(name)
    return LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )


@dataclass(frozen=True)
class Bench:
    """What is measured: the pair, on what, how often."""

    pair: str
    device: str
    runs: int
    emulation: Emulation
    prompt: int
    new: int

    def models(self, *, emulated: bool = True) -> tuple[PreTrainedModel, PreTrainedModel, Alignment]:
        """A new pair, since the decoder takes its models over; for other ways without the emulation."""
        *names, dtype = PAIRS[self.pair]
        student, teacher = (config_of(name) for name in names)
        made = [random_model(config, dtype=dtype, device=self.device) for config in (student, teacher)]
        if emulated:
            emulate(*made, self.emulation)
        to_teacher = torch.arange(student.vocab_size)
        to_teacher[teacher.vocab_size :] = -1
        return made[0], made[1], Alignment.of(to_teacher, {}, teacher.vocab_size)


# --- the parts -------------------------------------------------------------------------------------------------------


def against_other_ways(bench: Bench, lanes: list[int]) -> Iterator[dict[str, Any]]:
    """Parts 1 and 2, the other side: the authors' way, and transformers' batched generate of the teacher alone."""
    student, teacher, _ = bench.models(emulated=False)
    prompt = list(range(1, AUTHORS_PROMPT + 1))
    lengths = [round(AUTHORS_TOKENS * part / 7) for part in range(8)]
    authors_way_sampled(student, teacher, prompt, prompt, 8, LAW, [0, 8])
    # Once: it is a sum over eight timed points, and takes as long as all the rest together.
    seconds = authors_way_sampled(student, teacher, prompt, prompt, AUTHORS_TOKENS, LAW, lengths)
    yield {"way": "authors", "lanes": 1, "tokens_per_second": [AUTHORS_TOKENS / seconds], "tokens": AUTHORS_TOKENS}
    for count in lanes:
        prompts = [prompt[: bench.prompt] or [1]] * count
        transformers_generate(teacher, prompts, 4)
        times = [transformers_generate(teacher, prompts, bench.new) for _ in range(bench.runs)]
        yield {"way": "generate", "lanes": count, "tokens_per_second": [count * bench.new / value for value in times]}


def rsd_at(bench: Bench, pair: tuple, costs: Costs, count: int, blocks: list[int]) -> Iterator[dict[str, Any]]:
    """Part 3 and our side of 1 and 2: each model alone, each schedule beside its forward passes, and `auto`."""
    student, teacher, alignment = pair
    work = Workload(count, bench.prompt, bench.new)
    for side, model in (("teacher", teacher), ("student", student)):
        timing = time_alone(model, work, LAW.proposal, bench.runs)
        yield {"way": f"{side} alone", "lanes": count, "tokens_per_second": timing.runs}
    for schedule in [LOCK_STEP, *(Schedule(who, block) for who in ("student", "teacher") for block in blocks)]:
        timing_ = time_schedule(student, teacher, alignment, LAW, work, schedule, costs, bench.runs)
        yield {
            "way": describe(schedule),
            "lanes": count,
            "tokens_per_second": timing_.measured.runs,
            "predicted": timing_.predicted,
            "bare": timing_.bare.runs,
            "drafts_right": timing_.agreement,
            "bytes_per_token": bytes_of_round(student, teacher, work, schedule) / timing_.tokens_per_round,
        }
    # One scheduler for all runs, the first of which is not counted: it is where both drafters are tried.
    scheduler = Scheduler(candidates("auto", None), costs)
    auto = [time_rsd(student, teacher, alignment, LAW, work, scheduler, seed).speed for seed in range(bench.runs + 1)][
        1:
    ]
    yield {"way": "auto", "lanes": count, "tokens_per_second": auto, "chosen": scheduler.summary()}


def growth(bench: Bench, pair: tuple, costs: Costs, lanes: list[int], lengths: list[int]) -> Iterator[dict[str, Any]]:
    """Part 5: the speed as lanes and contexts grow."""
    student, teacher, alignment = pair
    for count in lanes:
        clock = time_rsd(
            student, teacher, alignment, LAW, Workload(count, bench.prompt, bench.new),
            Scheduler(candidates("auto", None), costs),
        )  # fmt: skip
        yield {"grows": "lanes", "at": count, "tokens_per_second": [clock.speed]}
    for length in lengths:
        clock = time_rsd(
            student, teacher, alignment, LAW, Workload(4, length - 16, 16), Scheduler(candidates("auto", None), costs)
        )
        yield {"grows": "context", "at": length, "tokens_per_second": [clock.speed]}


def many_problems(counts: list[int], device: str) -> Iterator[dict[str, Any]]:
    """Part 5: memory and time as the number of requests grows, with models so small that all else shows."""
    bench = Bench("tiny", device, 1, Emulation(0.85, 0.007), 8, 8)
    student, teacher, alignment = bench.models()
    for count in counts:
        wanted = (Request(n, [1, 2, 3, n % 500], [1, 2, 3, n % 500], ("many", n)) for n in range(count))
        start = time.perf_counter()
        exhaust(
            generate_rsd(
                student, teacher, alignment, wanted, law=LAW, end_of_turn=NEVER, context=16, max_new_tokens=8, lanes=32
            )
        )
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        yield {"grows": "requests", "at": count, "tokens_per_second": [8 * count / seconds], "peak_bytes": peak}


# --- tables ----------------------------------------------------------------------------------------------------------


def row(entry: dict[str, Any], bandwidth: float) -> str:
    """A line of the table that is printed as the numbers come."""
    middle = statistics.median(entry["tokens_per_second"])
    cells = [entry.get("way") or f"{entry['grows']} {entry['at']}", str(entry.get("lanes", ""))]
    spread = (max(entry["tokens_per_second"]) - min(entry["tokens_per_second"])) / middle
    cells += [f"{middle:.4g}", f"{100 * spread:.0f} %"]
    cells.append(f"{entry['predicted']:.4g}" if "predicted" in entry else "")
    cells.append(f"{middle / statistics.median(entry['bare']):.2f}" if "bare" in entry else "")
    limit = bandwidth / entry["bytes_per_token"] if "bytes_per_token" in entry else None
    cells.append(f"{middle / limit:.2f}" if limit else "")
    cells.append(f"{100 * entry['drafts_right']:.0f} %" if entry.get("drafts_right", 2) <= 1 else "")
    cells.append(f"{entry['peak_bytes'] / 1e6:.0f} MB" if "peak_bytes" in entry else entry.get("chosen", ""))
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| | lanes | tokens/s | spread | predicted | of bare passes | of bandwidth | drafts right | |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def summary(entries: list[dict[str, Any]]) -> list[str]:
    """The ratios that matter, each within this run."""

    def speed(way: str, lanes: int) -> float | None:
        found = [entry for entry in entries if entry.get("way") == way and entry.get("lanes") == lanes]
        return statistics.median(found[0]["tokens_per_second"]) if found else None

    lines = []
    lanes = sorted({entry["lanes"] for entry in entries if entry.get("way") == "auto"})
    if authors := speed("authors", 1):
        lines += [f"RSD at {n} lanes / the authors' way: {speed('auto', n) / authors:.1f}" for n in lanes]
    for count in lanes:
        if generate := speed("generate", count):
            lines.append(f"RSD at {count} lanes / generate of the teacher alone: {speed('auto', count) / generate:.2f}")
    return lines


def measure(bench: Bench, arguments: argparse.Namespace, show: Callable[[str], None]) -> dict[str, Any]:
    """All parts in order; what is measured so far is written after each entry."""
    device = torch.device(bench.device)
    bandwidth = copy_bandwidth(device, 1 << (31 if device.type == "cuda" else 28))
    facts: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **vars(bench),
        "emulation": vars(bench.emulation),
        "copy_bandwidth": bandwidth,
        "entries": [],
    }

    def take(entries: Iterator[dict[str, Any]]) -> None:
        for entry in entries:
            facts["entries"].append(entry)
            show(row(entry, bandwidth))
            if arguments.json:
                arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    show(f"{bench.pair} on {facts['machine']}, copies {bandwidth / 1e9:.0f} GB/s\n\n{HEAD}")
    if "others" in arguments.parts:
        take(against_other_ways(bench, arguments.lanes))
        _forget()
    pair = bench.models()
    tokens = min(max(arguments.lanes) * max(arguments.blocks), 1024)
    costs = measure_costs(*pair, LAW, context=bench.prompt + bench.new, tokens=tokens)
    if "rsd" in arguments.parts:
        each = pair_lane_bytes(
            *pair, context=bench.prompt + bench.new, max_new_tokens=bench.new, block=max(arguments.blocks)
        )
        for count in arguments.lanes:
            try:
                lanes_that_fit(count, each, free_bytes(device), most=count)
            except MemoryError as error:
                show(f"{count} lanes: {error}")
                continue
            take(rsd_at(bench, pair, costs, count, arguments.blocks))
    if "growth" in arguments.parts:
        take(growth(bench, pair, costs, arguments.growing_lanes, arguments.growing_lengths))
    if "requests" in arguments.parts:
        take(many_problems(arguments.requests, bench.device))
    for line in summary(facts["entries"]):
        show(line)
    fastest = max(
        (statistics.median(e["tokens_per_second"]) for e in facts["entries"] if e.get("way") == "auto"), default=None
    )
    if fastest:
        hours = PAPER_ATTEMPTS * PAPER_TOKENS / fastest / 3600
        show(f"{PAPER_ATTEMPTS} attempts of {PAPER_TOKENS} tokens each, at the fastest of these: {hours:.3g} h at most")
    return facts


def _forget() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", default=["others", "rsd", "growth", "requests"])
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--prompt", type=int, default=64, help="context before the first new token")
    parser.add_argument("--new", type=int, default=64, help="new tokens of each lane")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--agreement", type=float, default=0.85)
    parser.add_argument("--fallback", type=float, default=0.007)
    parser.add_argument("--growing-lanes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--growing-lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--requests", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs what the command line asks for."""
    arguments = parse(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    bench = Bench(
        arguments.pair,
        arguments.device,
        arguments.runs,
        Emulation(arguments.agreement, arguments.fallback),
        arguments.prompt,
        arguments.new,
    )
    measure(bench, arguments, lambda text: print(text, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
