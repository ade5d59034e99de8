"""The decoder: teacher and student over many lanes. No files, no tokenizer, no configuration.

Requests (prompt ids, a random stream) -> completions (token ids with who wrote each and how probable it was). Lanes
are refilled as soon as one ends.

One model drafts some tokens, one after the other; the other reads all of them in one pass; then the law of every
position is known, its token is drawn, and what was drafted beyond the first position where draft and token differ is
forgotten (`_rsd_round`). A draft decides nothing but how many tokens a round yields: the token of a position is drawn
from the law there on the noise of (stream, position), as if nobody had drafted. So every schedule gives the same
tokens, on the CPU in float32 to the bit, and elsewhere as far as the logits are equal (docs/method.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from rsd.lanes import ModelLanes
from rsd.law import Law, Parts, Sampling, draw, guess_of_student, guess_of_teacher, plain_parts, rsd_parts, softmax
from rsd.schedule import LOCK_STEP, Schedule, Scheduler
from rsd.streams import states, stream_key
from rsd.vocabulary import Alignment


@dataclass(frozen=True)
class Unfinished:
    """What an attempt has so far; every array has one entry a token, as in `Completion`."""

    index: int
    tokens: NDArray[np.int32]
    fallback: NDArray[np.bool_]
    p_student: NDArray[np.float32]
    p_teacher: NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """One sequence to generate.

    `teacher_prompt` is empty for plain sampling; `stream` keys its randomness; `begun` is what an earlier run had of
    it.
    """

    index: int
    student_prompt: list[int]
    teacher_prompt: list[int]
    stream: tuple[int | str, ...]
    begun: Unfinished | None = None


@dataclass(frozen=True)
class Completion:
    """What came of a request; every array has one entry a token, the end of turn included.

    `p_student`, `p_teacher`: the models' raw probabilities of the token at temperature 1, float32; NaN where the
    teacher lacks the token or there is no teacher.
    """

    index: int
    tokens: NDArray[np.int32]
    fallback: NDArray[np.bool_]
    p_student: NDArray[np.float32]
    p_teacher: NDArray[np.float32]
    finish: str  # end_of_turn | length


class Snapshots(Protocol):
    """Who keeps what the lanes have written so far."""

    def round(self, emitted: int) -> bool:
        """Told of every round's tokens, all lanes together; says whether it wants to see the lanes now."""

    def take(self, lanes: list[Unfinished]) -> None:
        """Gets every lane in flight; may raise to stop the decoding."""


@dataclass(frozen=True)
class Pair:
    """The two models and how they read each other."""

    student: ModelLanes
    teacher: ModelLanes
    alignment: Alignment
    law: Law


@dataclass(frozen=True)
class Drawn:
    """What a round drew, every tensor [lanes, block]; of a lane only what comes before the first wrong draft counts.

    `agreed` [lanes, block - 1] bool: was the draft of the next position the token of this one, so that the next counts?
    """

    tokens: Tensor
    fallback: Tensor
    p_student: Tensor
    p_teacher: Tensor
    agreed: Tensor


# Tokens that the teacher lacks and a trace may hold before its context is full on the teacher's side; one such token
# (`</think>`) is what a kept trace has. A lane that meets the limit ends with `length`.
PIECES_ROOM = 16


def generate_rsd(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    alignment: Alignment,
    requests: Iterable[Request],
    *,
    law: Law,
    end_of_turn: int,
    context: int,
    max_new_tokens: int,
    lanes: int,
    scheduler: Scheduler | None = None,
    emittable: Tensor | None = None,
    snapshots: Snapshots | None = None,
) -> Iterator[Completion]:
    """Reverse Speculative Decoding of every request, in the order in which they end.

    `context`: longest prompt and trace together, in each side's own tokens. `scheduler` chooses each round's schedule
    (lock-step by default), which changes the speed and never the tokens. `emittable` [student vocab] bool: rows of the
    output layer that are tokens (all by default). Raises ValueError for a prompt that leaves no room, and
    FloatingPointError where a model gives logits that are no numbers.
    """
    scheduler = scheduler or Scheduler.fixed(LOCK_STEP)
    alignment = alignment.to(student.device)
    pair = Pair(
        ModelLanes(student, lanes, context),
        ModelLanes(teacher, lanes, teacher_context(teacher, alignment, context)),
        alignment,
        law,
    )
    dead = _dead_tokens(student, emittable)

    def round_(state: _State) -> Drawn:
        return _rsd_round(pair, state, scheduler.choose(state.count, state.mean_length), dead)

    state = _State([pair.student, pair.teacher], lanes, max_new_tokens, scheduler)
    return _decode(state, round_, requests, alignment, end_of_turn, context, snapshots)


def sample(
    model: PreTrainedModel,
    requests: Iterable[Request],
    *,
    sampling: Sampling,
    end_of_turn: int,
    context: int,
    max_new_tokens: int,
    lanes: int,
    emittable: Tensor | None = None,
    snapshots: Snapshots | None = None,
) -> Iterator[Completion]:
    """Plain sampling of one model: the same decoder, with a law that asks nobody else."""
    only = ModelLanes(model, lanes, context)
    dead = _dead_tokens(model, emittable)

    def round_(state: _State) -> Drawn:
        return _plain_round(only, state, sampling, dead)

    state = _State([only], lanes, max_new_tokens, Scheduler.fixed(LOCK_STEP))
    return _decode(state, round_, requests, None, end_of_turn, context, snapshots)


def teacher_context(teacher: PreTrainedModel, alignment: Alignment, context: int) -> int:
    """The teacher's context in its own tokens: more than the student's where one of the student's tokens is
    several of the teacher's, as far as the teacher has positions."""
    wanted = context + PIECES_ROOM * (alignment.longest_piece - 1)
    positions = getattr(teacher.config.get_text_config(), "max_position_embeddings", None) or wanted
    return max(context, min(wanted, positions))


def _dead_tokens(model: PreTrainedModel, emittable: Tensor | None) -> Tensor:
    """The ids of output rows that stand for no token."""
    none = torch.zeros(0, dtype=torch.int64) if emittable is None else (~emittable).nonzero().flatten()
    return none.to(model.device)


# --- rounds --------------------------------------------------------------------------------------------------------


def _plain_round(model: ModelLanes, state: _State, sampling: Sampling, dead: Tensor) -> Drawn:
    """One token in every active lane."""
    logits = _live_logits(model.forward(state.next[0][: state.count, None]), dead).flatten(0, 1)
    noise = state.noise(1).flatten()

    def parts(rows: Tensor | slice, whole: bool) -> Parts:
        return plain_parts(logits[rows], sampling, whole=whole)

    tokens, fallback = _draw(parts, noise)
    p_student = _taken(softmax(logits), tokens)
    p_teacher = torch.full_like(p_student, float("nan"))
    no_drafts = torch.ones(state.count, 0, dtype=torch.bool, device=model.device)
    return Drawn(tokens[:, None], fallback[:, None], p_student[:, None], p_teacher[:, None], no_drafts)


def _rsd_round(pair: Pair, state: _State, schedule: Schedule, dead: Tensor) -> Drawn:
    """Up to `schedule.block` tokens in every active lane: one model drafts, the other reads, the law decides."""
    count, to_teacher = state.count, pair.alignment.to_teacher
    student_next, teacher_next = (following[:count, None] for following in state.next)
    noise = state.noise(schedule.block)
    if schedule.drafter == "student":
        student_logits, drafts = _student_drafts(pair, student_next[:, 0], noise, dead)
        teacher_logits = pair.teacher.forward(torch.cat((teacher_next, to_teacher[drafts].clamp(min=0)), dim=1))
    else:
        teacher_logits, drafts = _teacher_drafts(pair, teacher_next[:, 0], noise)
        student_logits = _live_logits(pair.student.forward(torch.cat((student_next, drafts), dim=1)), dead)
    return decide(pair, student_logits, teacher_logits, drafts, noise.flatten())


def _student_drafts(pair: Pair, following: Tensor, noise: Tensor, dead: Tensor) -> tuple[Tensor, Tensor]:
    """The student alone, token by token, from `following` [count] on, with `noise` [count, block]: its logits
    [count, block, vocab] and its guesses [count, block - 1]."""
    count, block = noise.shape
    drafts, logits = following.new_empty(count, block - 1), []
    for ahead in range(block):
        logits.append(_live_logits(pair.student.forward(following[:, None], ahead), dead))
        if ahead < block - 1:
            following = guess_of_student(logits[-1][:, 0], pair.law, noise[:, ahead])
            drafts[:, ahead] = following
    return _joined(logits), drafts


def _teacher_drafts(pair: Pair, following: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher alone, likewise: its logits [count, block, vocab] in its own ids, its guesses [count, block - 1] in
    the student's."""
    count, block = noise.shape
    alignment = pair.alignment
    drafts, logits = following.new_empty(count, block - 1), []
    for ahead in range(block):
        logits.append(pair.teacher.forward(following[:, None], ahead))
        if ahead < block - 1:
            drafts[:, ahead] = guess_of_teacher(logits[-1][:, 0], alignment.to_student, pair.law, noise[:, ahead])
            # A teacher that can propose nothing guesses a token that it may lack: wrong, but readable.
            following = alignment.to_teacher[drafts[:, ahead]].clamp(min=0)
    return _joined(logits), drafts


def decide(pair: Pair, student_logits: Tensor, teacher_logits: Tensor, drafts: Tensor, noise: Tensor) -> Drawn:
    """The law at every position of the block: `student_logits` and `teacher_logits` [count, block, vocab], `drafts`
    [count, block - 1], `noise` [count * block]."""
    shape = student_logits.shape[:2]
    student_logits, teacher_logits = student_logits.flatten(0, 1), teacher_logits.flatten(0, 1)
    probabilities, to_student = softmax(student_logits), pair.alignment.to_student

    def parts(rows: Tensor | slice, whole: bool) -> Parts:
        student, teacher = student_logits[rows], teacher_logits[rows]
        return rsd_parts(student, probabilities[rows], teacher, to_student, pair.law, whole=whole)

    tokens, fallback = _draw(parts, noise)
    theirs = pair.alignment.to_teacher[tokens]
    p_student = _taken(probabilities, tokens)
    p_teacher = _taken(softmax(teacher_logits), theirs.clamp(min=0)).masked_fill(theirs < 0, float("nan"))
    tokens = tokens.view(shape)
    # The teacher has not read a token that it lacks, so nothing behind one counts.
    agreed = (tokens[:, :-1] == drafts) & (theirs.view(shape)[:, :-1] >= 0)
    return Drawn(tokens, fallback.view(shape), p_student.view(shape), p_teacher.view(shape), agreed)


def _draw(parts: Callable[[Tensor | slice, bool], Parts], noise: Tensor) -> tuple[Tensor, Tensor]:
    """A token a row and whether it came by fallback; rows whose shortlist was too short are asked for again, whole."""
    # Two rows at least: sums over one long row alone are split among threads, in another order.
    every = torch.zeros(2, dtype=torch.int64, device=noise.device) if len(noise) == 1 else slice(None)
    tokens, fallback, complete = draw(parts(every, False), noise[every])
    if not bool(complete.all()):
        rows = (~complete[: len(noise)]).nonzero().flatten()
        rows = rows.repeat(2) if len(rows) == 1 else rows
        tokens[rows], fallback[rows], _ = draw(parts(rows, True), noise[rows])
    return tokens[: len(noise)], fallback[: len(noise)]


def _live_logits(logits: Tensor, dead: Tensor) -> Tensor:
    """Logits [count, width, vocab] as float32, -inf for rows of the output layer that stand for no token."""
    logits = logits.float()
    return logits.index_fill_(-1, dead, float("-inf")) if len(dead) else logits


def _joined(logits: list[Tensor]) -> Tensor:
    return logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)


def _taken(probabilities: Tensor, tokens: Tensor) -> Tensor:
    """The probability [rows] float32 of one token a row."""
    return probabilities.gather(-1, tokens[:, None]).squeeze(-1)


# --- lanes ---------------------------------------------------------------------------------------------------------


class _State:
    """What the active lanes have written and read next, kept as the first `count` rows of every tensor."""

    def __init__(self, models: list[ModelLanes], lanes: int, max_new_tokens: int, scheduler: Scheduler) -> None:
        device = models[0].device
        self.models, self.lanes, self.scheduler = models, lanes, scheduler
        self.count = 0
        self.requests: list[Request] = []
        width = max_new_tokens + scheduler.longest_block
        self.keys = torch.zeros(lanes, dtype=torch.int64, device=device)
        self.position = torch.zeros(lanes, dtype=torch.int64, device=device)
        self.limit = torch.zeros(lanes, dtype=torch.int64, device=device)
        # What each model reads next, in its own ids.
        self.next = [torch.zeros(lanes, dtype=torch.int64, device=model.device) for model in models]
        self.tokens = torch.zeros(lanes, width, dtype=torch.int32, device=device)
        self.fallback = torch.zeros(lanes, width, dtype=torch.bool, device=device)
        self.p_student = torch.zeros(lanes, width, dtype=torch.float32, device=device)
        self.p_teacher = torch.zeros(lanes, width, dtype=torch.float32, device=device)

    @property
    def mean_length(self) -> float:
        """Mean context of the active lanes, in the student's tokens."""
        return float(self.models[0].known_lengths[: self.count].mean())

    def noise(self, block: int) -> Tensor:
        """The noise states [count, block] of the next positions of each lane."""
        ahead = torch.arange(block, device=self.keys.device)
        return states(self.keys[: self.count, None], self.position[: self.count, None] + ahead)

    def write(self, drawn: Drawn) -> None:
        """Stores a whole block at each lane's position; what does not count is written over by the next."""
        block = drawn.tokens.shape[1]
        rows = torch.arange(self.count, device=self.position.device)[:, None]
        columns = self.position[: self.count, None] + torch.arange(block, device=self.position.device)
        self.tokens[rows, columns] = drawn.tokens.int()
        self.fallback[rows, columns] = drawn.fallback
        self.p_student[rows, columns] = drawn.p_student
        self.p_teacher[rows, columns] = drawn.p_teacher

    def arrays(self, lane: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Copies of what a lane has written."""
        written = int(self.position[lane])
        wanted = (self.tokens, self.fallback, self.p_student, self.p_teacher)
        tokens, fallback, p_student, p_teacher = (tensor[lane, :written].cpu().numpy().copy() for tensor in wanted)
        return tokens, fallback, p_student, p_teacher

    def move(self, source: int, target: int) -> None:
        """Moves a lane over another."""
        for tensor in (*self.next, *(value for value in vars(self).values() if isinstance(value, Tensor))):
            tensor[target] = tensor[source]
        for model in self.models:
            model.move(source, target)
        self.requests[target] = self.requests[source]


def _decode(
    state: _State,
    round_: Callable[[_State], Drawn],
    requests: Iterable[Request],
    alignment: Alignment | None,
    end_of_turn: int,
    context: int,
    snapshots: Snapshots | None,
) -> Iterator[Completion]:
    waiting = iter(requests)
    while True:
        for request in itertools.islice(waiting, state.lanes - state.count):
            _fill(state, request, alignment, context)
        if not state.count:
            return
        with torch.inference_mode():
            emitted, finished = _advance(state, round_(state), alignment, end_of_turn)
        # From the last row on, so that the row moved into a gap is one that stays.
        for lane in reversed(finished):
            yield _completion(state, lane, end_of_turn)
            _remove(state, lane)
        if snapshots is not None and snapshots.round(emitted):
            snapshots.take([Unfinished(state.requests[n].index, *state.arrays(n)) for n in range(state.count)])


def _advance(state: _State, drawn: Drawn, alignment: Alignment | None, end_of_turn: int) -> tuple[int, list[int]]:
    """Takes over what counts of a round; returns how many tokens that was, and the lanes that have ended."""
    count = state.count
    state.write(drawn)
    goes_on = drawn.agreed & (drawn.tokens[:, :-1] != end_of_turn)
    emitted = 1 + goes_on.long().cumprod(dim=1).sum(dim=1)
    emitted = torch.minimum(emitted, state.limit[:count] - state.position[:count])
    last = drawn.tokens.gather(1, emitted[:, None] - 1).squeeze(1)
    state.position[:count] += emitted
    finished = (last == end_of_turn) | (state.position[:count] >= state.limit[:count])
    theirs = last if alignment is None else alignment.to_teacher[last]
    numbers = drawn.p_student.isfinite().all(dim=1)
    if alignment is not None:
        numbers &= (drawn.p_teacher.isfinite() | (alignment.to_teacher[drawn.tokens] < 0)).all(dim=1)
    # The one look at the device in a round.
    known = torch.stack((emitted, finished.long(), (theirs < 0).long(), numbers.long())).cpu().numpy()
    if not known[3].all():
        raise FloatingPointError(
            "a model gave logits that are no numbers (nan or inf); its weights are broken, or its dtype is too narrow: "
            "use bfloat16 or float32"
        )
    for model in state.models:
        model.advance(emitted, known[0])
    state.next[0][:count] = last
    ends = known[1].astype(bool)
    if alignment is not None:
        state.next[1][:count] = theirs
        for lane in np.flatnonzero((known[2] == 1) & ~ends):
            ends[lane] = not _read_pieces(state, int(lane), alignment.pieces[int(last[lane])])
    state.scheduler.observe(known[0], drawn.agreed.shape[1])
    return int(known[0].sum()), np.flatnonzero(ends).tolist()


def _read_pieces(state: _State, lane: int, pieces: list[int]) -> bool:
    """Lets the teacher read a token that it lacks; False where its context has no room left for what may follow."""
    teacher = state.models[1]
    left = int(state.limit[lane] - state.position[lane])
    if teacher.room(lane) < len(pieces) + left:
        return False
    teacher.read(lane, pieces[:-1])
    state.next[1][lane] = pieces[-1]
    return True


def _fill(state: _State, request: Request, alignment: Alignment | None, context: int) -> None:
    """Puts a request into the first free lane; the last token of its context is left for the next round."""
    prompts = [request.student_prompt, request.teacher_prompt][: len(state.models)]
    for side, prompt in zip(("student", "teacher"), prompts, strict=False):
        if not 0 < len(prompt) < context:
            raise ValueError(
                f"request {request.index}: its prompt has {len(prompt)} tokens for the {side}, expected 1 to "
                f"{context - 1} (context = {context}); raise context or leave the problem out"
            )
    lane, room = state.count, state.tokens.shape[1] - state.scheduler.longest_block
    state.keys[lane] = stream_key(request.stream)
    state.limit[lane] = min(room, context - max(map(len, prompts)))
    state.position[lane] = 0
    written: list[int] = []
    if request.begun is not None:
        written = request.begun.tokens.tolist()
        state.position[lane] = len(written)
        for name in ("tokens", "fallback", "p_student", "p_teacher"):
            target = getattr(state, name)
            target[lane, : len(written)] = torch.from_numpy(getattr(request.begun, name)).to(target.device)
    readings = [written]
    if alignment is not None:
        readings.append([piece for token in written for piece in alignment.read_by_teacher(token)])
    for model, following, prompt, reading in zip(state.models, state.next, prompts, readings, strict=True):
        # Attempts at one problem stand next to each other: what one lane has read, another need not read again.
        side = "student_prompt" if model is state.models[0] else "teacher_prompt"
        twins = (n for n, other in enumerate(state.requests) if getattr(other, side)[:-1] == prompt[:-1])
        tokens = prompt + reading
        model.fill(lane, tokens[:-1], twin=next(twins, None) if not reading else None)
        following[lane] = tokens[-1]
    state.requests.append(request)
    state.count += 1


def _completion(state: _State, lane: int, end_of_turn: int) -> Completion:
    arrays = state.arrays(lane)
    finish = "end_of_turn" if arrays[0][-1] == end_of_turn else "length"
    return Completion(state.requests[lane].index, *arrays, finish)


def _remove(state: _State, lane: int) -> None:
    """Frees a lane and moves the last active one into the gap."""
    last = state.count - 1
    if lane != last:
        state.move(last, lane)
    for model in state.models:
        model.clear(last)
    state.requests.pop()
    state.count = last
