"""How fast a pair decodes on this machine: each model alone, every schedule, prediction beside measurement.

Works on any pair of models, real or random (`shapes`, `emulation`); needs torch and transformers alone. Prompts are
read before the clock starts, rounds are timed as the decoder makes them, medians are of several runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rsd.costs import measure_costs
from rsd.decode import Completion, Request, Unfinished, generate_rsd, sample, teacher_context
from rsd.lanes import ModelLanes, cache_bytes_per_token
from rsd.law import Law, Sampling
from rsd.packing import PackedLinear
from rsd.schedule import BLOCKS, Costs, Schedule, Scheduler, candidates, tokens_per_second
from rsd.vocabulary import Alignment

# A token id that random or emulated models never write.
NEVER = 0


@dataclass(frozen=True)
class Workload:
    """What is decoded: so many lanes, each with a context of `prompt` tokens to which `new` are written."""

    lanes: int
    prompt: int
    new: int

    @property
    def context(self) -> int:
        """Longest context."""
        return self.prompt + self.new + 1


@dataclass(frozen=True)
class Timing:
    """Tokens a second of several runs, all lanes together."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """The one to report."""
        return statistics.median(self.runs)

    @property
    def spread(self) -> float:
        """Largest less smallest run, as a share of the median."""
        return (max(self.runs) - min(self.runs)) / self.median


@dataclass(frozen=True)
class ScheduleTiming:
    """One schedule: what was predicted from costs and agreement, what was measured."""

    schedule: Schedule
    predicted: float  # tokens/s
    measured: Timing
    agreement: float  # share of drafts that were right
    tokens_per_round: float  # of all lanes together
    bare: Timing  # the same number of tokens by the forward passes alone, without law and bookkeeping


class Stopwatch:
    """Listens to the decoder: when its first round was over, and what came after it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = self.end = 0.0
        self.tokens = self.rounds = 0

    def round(self, emitted: int) -> bool:
        """Counts; the first round warms up and starts the clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.end = time.perf_counter()
        if not self.start:
            self.start = self.end
        else:
            self.tokens, self.rounds = self.tokens + emitted, self.rounds + 1
        return False

    def take(self, lanes: list[Unfinished]) -> None:
        """Never asked for."""

    @property
    def speed(self) -> float:
        """Tokens a second since the first round; ValueError where there was no other."""
        if not self.rounds:
            raise ValueError(
                f"all lanes were done in the first round, which is not timed; write at least {2 * max(BLOCKS)} tokens"
            )
        return self.tokens / (self.end - self.start)


def requests(work: Workload, vocab: int, seed: int = 0) -> list[Request]:
    """A request a lane: one random prompt, read once, of which only the last token differs."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(1, vocab, (work.prompt - 1,), generator=generator).tolist()
    made = []
    for lane in range(work.lanes):
        own = [*prompt, 1 + lane % (vocab - 1)]
        made.append(Request(lane, own, own, ("bench", seed, lane)))
    return made


def time_alone(model: PreTrainedModel, work: Workload, sampling: Sampling, runs: int) -> Timing:
    """One model sampled by itself."""

    def run(seed: int) -> float:
        clock = Stopwatch(model.device)
        wanted = requests(work, _vocab(model), seed)
        exhaust(
            sample(
                model, wanted, sampling=sampling, end_of_turn=NEVER, context=work.context, max_new_tokens=work.new,
                lanes=work.lanes, snapshots=clock,
            )
        )  # fmt: skip
        return clock.speed

    return _repeated(run, runs)


def time_schedule(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    alignment: Alignment,
    law: Law,
    work: Workload,
    schedule: Schedule,
    costs: Costs,
    runs: int,
) -> ScheduleTiming:
    """RSD by one schedule, beside its prediction and beside the bare forward passes of as many rounds."""
    scheduler = Scheduler.fixed(schedule)
    clocks = [time_rsd(student, teacher, alignment, law, work, scheduler, seed) for seed in range(runs)]
    speeds = [clock.speed for clock in clocks]
    bare = [clock.tokens / bare_rounds(student, teacher, alignment, work, schedule, clock.rounds) for clock in clocks]
    length = work.prompt + work.new / 2
    predicted = tokens_per_second(costs, scheduler.agreement, schedule, work.lanes, length)
    rate = scheduler.agreement[schedule.drafter].rate if schedule.block > 1 else float("nan")
    yielded = sum(clock.tokens for clock in clocks) / sum(clock.rounds for clock in clocks)
    return ScheduleTiming(schedule, predicted, Timing(tuple(speeds)), rate, yielded, Timing(tuple(bare)))


def time_rsd(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    alignment: Alignment,
    law: Law,
    work: Workload,
    scheduler: Scheduler,
    seed: int = 0,
) -> Stopwatch:
    """The clock of one run of RSD, schedules as `scheduler` chooses them."""
    clock = Stopwatch(student.device)
    exhaust(
        generate_rsd(
            student,
            teacher,
            alignment,
            requests(work, min(_vocab(student), _vocab(teacher)), seed),
            law=law,
            end_of_turn=NEVER,
            context=work.context,
            max_new_tokens=work.new,
            lanes=work.lanes,
            scheduler=scheduler,
            snapshots=clock,
        )
    )
    return clock


def bare_rounds(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    alignment: Alignment,
    work: Workload,
    schedule: Schedule,
    rounds: int,
) -> float:
    """Seconds of the forward passes that so many rounds need, and of nothing else: the limit of this design.

    The lanes grow from the prompt's length to the full context, as they do while decoding.
    """
    sides = [
        ModelLanes(student, work.lanes, work.context),
        ModelLanes(teacher, work.lanes, teacher_context(teacher, alignment, work.context)),
    ]
    drafter, reader = sides if schedule.drafter == "student" else sides[::-1]
    token = torch.ones(work.lanes, 1, dtype=torch.int64, device=student.device)
    block = token.expand(-1, schedule.block).contiguous()
    start = 0.0
    for number in range(rounds + 1):
        held = work.prompt + work.new * number // (rounds + 1) - int(drafter.known_lengths[0])
        for side in sides:
            step = torch.full((work.lanes,), held, dtype=torch.int64, device=student.device)
            side.advance(step, step.cpu().numpy())
        for ahead in range(schedule.block):
            drafter.forward(token, ahead)
        reader.forward(block)
        if number == 0:
            # As in the decoder's clock, the first round warms up.
            _wait(student.device)
            start = time.perf_counter()
    _wait(student.device)
    return time.perf_counter() - start


def bench_pair(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    alignment: Alignment,
    law: Law,
    work: Workload,
    *,
    runs: int = 3,
    blocks: Sequence[int] = (2, 4, 6, 8),
) -> tuple[Timing, Timing, list[ScheduleTiming], Costs]:
    """Teacher alone, student alone, each schedule (both drafters with several blocks), and the costs that were used."""
    costs = measure_costs(
        student, teacher, alignment, law, context=work.context, tokens=min(work.lanes * max(blocks), 1024)
    )
    alone = [time_alone(model, work, law.proposal, runs) for model in (teacher, student)]
    wanted = [entry for entry in candidates("auto", None) if entry.block == 1 or entry.block in blocks]
    timings = [time_schedule(student, teacher, alignment, law, work, entry, costs, runs) for entry in wanted]
    return alone[0], alone[1], timings, costs


# --- the limit of the memory's bandwidth -----------------------------------------------------------------------------


def copy_bandwidth(device: torch.device, size: int = 1 << 30) -> float:
    """Bytes a second of a large copy, read and written bytes counted."""
    source = torch.empty(size // 4, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size / statistics.median(seconds[1:])


def bytes_of_round(student: PreTrainedModel, teacher: PreTrainedModel, work: Workload, schedule: Schedule) -> float:
    """Bytes of weights and live caches that a round must read: the drafter's once a token, the other's once."""
    drafter, reader = (student, teacher)[:: 1 if schedule.drafter == "student" else -1]
    return schedule.block * pass_bytes(drafter, work) + pass_bytes(reader, work)


def pass_bytes(model: PreTrainedModel, work: Workload) -> float:
    """Bytes that one pass of a model must read: its weights, and each lane's keys and values."""
    config = model.config.get_text_config()
    total = parameter_count(model)
    # Of an input embedding that is no output layer too only some rows are read.
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    weights = (total - looked_up) * model.dtype.itemsize
    return weights + work.lanes * (work.prompt + work.new / 2) * cache_bytes_per_token(model)


def parameter_count(model: PreTrainedModel) -> int:
    """Parameters of a model, tied ones once."""
    config = model.config.get_text_config()
    total = sum(parameter.numel() for parameter in model.parameters())
    # A tied output layer that is packed has become a layer of its own.
    packed = config.tie_word_embeddings and model.get_output_embeddings() is not None
    packed = packed and isinstance(model.get_output_embeddings(), PackedLinear)
    return total - (config.vocab_size * config.hidden_size if packed else 0)


# --- helpers ---------------------------------------------------------------------------------------------------------


def exhaust(completions: Iterator[Completion]) -> None:
    """Runs a decoding to its end."""
    for _ in completions:
        pass


def _repeated(run: Callable[[int], float], runs: int) -> Timing:
    return Timing(tuple(run(seed) for seed in range(runs)))


def _vocab(model: PreTrainedModel) -> int:
    return model.config.get_text_config().vocab_size


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
