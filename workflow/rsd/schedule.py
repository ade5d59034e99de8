"""Which model drafts how many tokens before the other reads them: the schedules, their predicted speed, the choice.

    lock-step        a block of one token: a step of each model
    student-drafts   the student writes a block, the teacher reads it in one pass: best while weights dominate, that is
                     with few lanes
    teacher-drafts   the teacher writes, the student reads: best while the student's cache dominates, with many lanes

A schedule changes how fast tokens come and never which (see `decode`), so a choice may be made while decoding, from
clocks and counts. Pure Python and numpy; costs are measured in `costs`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAFTERS = ("student", "teacher")
BLOCKS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
# The longest block that a configuration may name.
LONGEST_BLOCK = 64
# Rounds that each drafter is tried at the start, the block then, and the rounds between two choices.
TRIAL_ROUNDS, TRIAL_BLOCK, ROUNDS_BETWEEN = 3, 5, 32
# Counts of agreement are halved when they reach this, so that they follow the work.
MEMORY = 20_000


@dataclass(frozen=True)
class Schedule:
    """`drafter` (student | teacher) writes `block` tokens a round; a block of 1 is lock-step whoever is named."""

    drafter: str
    block: int

    @property
    def name(self) -> str:
        """lock-step | student-drafts | teacher-drafts."""
        return "lock-step" if self.block == 1 else f"{self.drafter}-drafts"


LOCK_STEP = Schedule("student", 1)


def describe(schedule: Schedule) -> str:
    """A schedule in words."""
    return schedule.name if schedule.block == 1 else f"{schedule.name} in blocks of {schedule.block}"


@dataclass(frozen=True)
class PassCost:
    """Seconds of a forward pass over so many `tokens` (of all lanes together) with short contexts, measured at some
    numbers, and `cache_seconds`: what each lane's each token of context adds."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    cache_seconds: float = 0.0

    def predict(self, lanes: int, width: int, length: float) -> float:
        """Seconds of a pass of `width` tokens in each of `lanes` lanes with contexts of `length` tokens."""
        count = lanes * width
        seconds = float(np.interp(count, self.tokens, self.seconds))
        if count > self.tokens[-1]:
            seconds *= count / self.tokens[-1]
        return seconds + self.cache_seconds * lanes * length


@dataclass(frozen=True)
class Costs:
    """What the parts of a round cost on this machine: a pass of either model, and the law over so many positions."""

    student: PassCost
    teacher: PassCost
    law: PassCost

    def round_seconds(self, schedule: Schedule, lanes: int, length: float) -> float:
        """Seconds of a round: the drafter's steps, the other's pass, the law at every position."""
        drafter, reader = (self.student, self.teacher)[:: 1 if schedule.drafter == "student" else -1]
        return (
            schedule.block * drafter.predict(lanes, 1, length)
            + reader.predict(lanes, schedule.block, length)
            + self.law.predict(lanes, schedule.block, 0)
        )


class Agreement:
    """How often a drafter's guess was the token, by its place in the block: what a block yields can be told from it."""

    # Before anything is known: half a dozen guesses, most of them right.
    PRIOR = (0.85 * 6, 6.0)

    def __init__(self) -> None:
        self.right = np.zeros(LONGEST_BLOCK)
        self.tried = np.zeros(LONGEST_BLOCK)

    def observe(self, emitted: NDArray[np.int64], drafts: int) -> None:
        """`emitted` [lanes]: tokens that each lane got of a round with so many `drafts`."""
        for place in range(drafts):
            self.tried[place] += np.count_nonzero(emitted > place)
            self.right[place] += np.count_nonzero(emitted > place + 1)
        if self.tried[0] > MEMORY:
            self.right /= 2
            self.tried /= 2

    @property
    def rate(self) -> float:
        """Share of right guesses, wherever they stood."""
        return (self.right.sum() + self.PRIOR[0]) / (self.tried.sum() + self.PRIOR[1])

    def expected_tokens(self, block: int) -> float:
        """Tokens that a round with this block yields a lane on average: 1 + a_1 + a_1 a_2 + ..., where a_j is the share
        of right guesses at place j among the rounds that got there."""
        shares = (self.right + self.rate * self.PRIOR[1]) / (self.tried + self.PRIOR[1])
        return 1 + float(np.cumprod(shares[: block - 1]).sum())


def tokens_per_second(
    costs: Costs, agreement: dict[str, Agreement], schedule: Schedule, lanes: int, length: float
) -> float:
    """The predicted speed of a schedule, all lanes together."""
    expected = agreement[schedule.drafter].expected_tokens(schedule.block)
    return lanes * expected / costs.round_seconds(schedule, lanes, length)


class Scheduler:
    """Chooses the schedule of every round among `candidates`.

    Without `costs` it is the first of them for ever. With costs, each drafter is tried for some rounds, then the
    candidate with the best predicted speed is taken, from the costs and from how often the guesses were right so far;
    the choice is made again as contexts grow and lanes empty.
    """

    def __init__(self, candidates: tuple[Schedule, ...], costs: Costs | None = None) -> None:
        self.candidates, self.costs = candidates, costs
        self.agreement = {drafter: Agreement() for drafter in DRAFTERS}
        self.rounds: dict[Schedule, int] = {}
        self.current, self.age = candidates[0], 0
        self.trials = self._trials() if costs is not None and len(candidates) > 1 else []

    @classmethod
    def fixed(cls, schedule: Schedule) -> Scheduler:
        """The same schedule in every round."""
        return cls((schedule,))

    @property
    def longest_block(self) -> int:
        """The most tokens that a round can draft."""
        return max(schedule.block for schedule in self.candidates)

    def choose(self, lanes: int, length: float) -> Schedule:
        """The schedule of the next round of so many `lanes` with contexts of `length` tokens on average."""
        if self.trials:
            self.current = self.trials.pop()
        else:
            if self.costs is not None and self.age % ROUNDS_BETWEEN == 0:
                self.current = best_schedule(self.costs, self.agreement, self.candidates, lanes, length)
            self.age += 1
        self.rounds[self.current] = self.rounds.get(self.current, 0) + 1
        return self.current

    def observe(self, emitted: NDArray[np.int64], drafts: int) -> None:
        """Told after each round how many tokens each lane got of it, and how many were drafted."""
        self.agreement[self.current.drafter].observe(emitted, drafts)

    def preview(self, lanes: int, length: float) -> str:
        """The schedule that would be chosen now, in words."""
        if self.costs is None:
            return describe(self.candidates[0])
        return describe(best_schedule(self.costs, self.agreement, self.candidates, lanes, length))

    def summary(self) -> str:
        """What was chosen how often, and how often guesses were right, in words."""
        total = sum(self.rounds.values())
        shares = [f"{describe(entry)} in {count / total:.0%} of rounds" for entry, count in self._common()]
        rates = [
            f"{100 * entry.rate:.1f} % of the {who}'s drafts right"
            for who, entry in self.agreement.items()
            if entry.tried[0]
        ]
        return ", ".join([*shares, *rates])

    def _common(self) -> list[tuple[Schedule, int]]:
        return sorted(self.rounds.items(), key=lambda item: -item[1])[:2]

    def _trials(self) -> list[Schedule]:
        """The first rounds: for each drafter the candidate whose block is nearest to TRIAL_BLOCK, some times."""
        rounds = []
        for drafter in DRAFTERS:
            drafting = [entry for entry in self.candidates if entry.drafter == drafter and entry.block > 1]
            if drafting:
                rounds += [min(drafting, key=lambda entry: abs(entry.block - TRIAL_BLOCK))] * TRIAL_ROUNDS
        return rounds


def best_schedule(
    costs: Costs, agreement: dict[str, Agreement], candidates: tuple[Schedule, ...], lanes: int, length: float
) -> Schedule:
    """The candidate with the best predicted speed."""
    return max(candidates, key=lambda schedule: tokens_per_second(costs, agreement, schedule, lanes, length))


def candidates(schedule: str, block: int | None) -> tuple[Schedule, ...]:
    """What a configuration leaves to choose from.

    `schedule`: auto | lock-step | student-drafts | teacher-drafts; `block`: None for any, without a say in lock-step.
    """
    if schedule == "lock-step":
        return (LOCK_STEP,)
    drafters = DRAFTERS if schedule == "auto" else (schedule.removesuffix("-drafts"),)
    blocks = [entry for entry in BLOCKS if entry > 1] if block is None else [block]
    drafting = tuple(Schedule(drafter, length) for drafter in drafters for length in blocks)
    return (LOCK_STEP, *drafting) if schedule == "auto" and block is None else drafting
