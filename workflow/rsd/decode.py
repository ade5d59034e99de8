"""The decoder: teacher and student in step over many lanes. No files, no tokenizer, no configuration.

Requests (prompt ids, a random stream) -> completions (token ids with who wrote each and how probable it was). Lanes
are refilled as soon as one ends. Plain sampling is the same loop with a law that needs no teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from rsd.lanes import ModelLanes
from rsd.law import Law, Parts, Sampling, draw, plain_parts, rsd_parts, sharpened, softmax
from rsd.streams import uniforms
from rsd.vocabulary import Alignment


@dataclass(frozen=True)
class Request:
    """One sequence to generate. `teacher_prompt` is empty for plain sampling; `stream` keys its randomness."""

    index: int
    student_prompt: list[int]
    teacher_prompt: list[int]
    stream: tuple[int | str, ...]


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


# Raw logits of a step, student's and (aligned by the rule itself) teacher's -> the law's parts.
StepLaw = Callable[[Tensor, Tensor | None], Parts]


@dataclass
class _Pair:
    """The two models and how they read each other."""

    student: ModelLanes
    teacher: ModelLanes | None
    alignment: Alignment | None
    emittable: Tensor  # [student vocab] bool


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
    emittable: Tensor | None = None,
) -> Iterator[Completion]:
    """Reverse Speculative Decoding of every request, in the order in which they end.

    `context`: longest prompt and trace together, in each side's own tokens. `emittable` [student vocab] bool: rows of
    the output layer that are tokens (all by default). Raises ValueError for a prompt that leaves no room.
    """
    alignment = Alignment(alignment.to_teacher.to(student.device), alignment.pieces)

    def step_law(student_logits: Tensor, teacher_logits: Tensor | None) -> Parts:
        assert teacher_logits is not None
        proposal = alignment.for_student(sharpened(teacher_logits, law.proposal).to(student_logits.device))
        return rsd_parts(student_logits, proposal, law)

    # A token of the student's may be several of the teacher's, so the teacher's context gets some more room.
    longest_piece = max((len(pieces) for pieces in alignment.pieces.values()), default=1)
    pair = _Pair(
        ModelLanes(student, lanes, context),
        ModelLanes(teacher, lanes, context + PIECES_ROOM * longest_piece),
        alignment,
        _emittable(student, emittable),
    )
    return _decode(pair, requests, step_law, end_of_turn, context, max_new_tokens, lanes)


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
) -> Iterator[Completion]:
    """Plain sampling of one model: the same decoder, with a law that asks nobody else."""

    def step_law(student_logits: Tensor, _: Tensor | None) -> Parts:
        return plain_parts(sharpened(student_logits, sampling))

    pair = _Pair(ModelLanes(model, lanes, context), None, None, _emittable(model, emittable))
    return _decode(pair, requests, step_law, end_of_turn, context, max_new_tokens, lanes)


# Tokens that the teacher lacks and a trace may hold before its context is full on the teacher's side; one such token
# (`</think>`) is what a kept trace has. A lane that meets the limit ends with `length`.
PIECES_ROOM = 16


def _emittable(model: PreTrainedModel, emittable: Tensor | None) -> Tensor:
    size = model.get_output_embeddings().weight.shape[0]
    return (torch.ones(size, dtype=torch.bool) if emittable is None else emittable).to(model.device)


class _Lanes:
    """The state of the active lanes, kept as the first `count` rows of every tensor."""

    def __init__(self, pair: _Pair, lanes: int, max_new_tokens: int) -> None:
        device = pair.student.device
        self.count = 0
        self.requests: list[Request] = []
        self.position = torch.zeros(lanes, dtype=torch.int64, device=device)
        self.limit = torch.zeros(lanes, dtype=torch.int64, device=device)
        self.next_student = torch.zeros(lanes, dtype=torch.int64, device=device)
        self.next_teacher = torch.zeros(lanes, dtype=torch.int64, device=device)
        self.uniforms = torch.zeros(lanes, max_new_tokens, 2, dtype=torch.float64, device=device)
        self.tokens = torch.zeros(lanes, max_new_tokens, dtype=torch.int32, device=device)
        self.fallback = torch.zeros(lanes, max_new_tokens, dtype=torch.bool, device=device)
        self.p_student = torch.zeros(lanes, max_new_tokens, dtype=torch.float32, device=device)
        self.p_teacher = torch.full((lanes, max_new_tokens), float("nan"), dtype=torch.float32, device=device)

    def tensors(self) -> list[Tensor]:
        return [value for value in vars(self).values() if isinstance(value, Tensor)]


def _decode(
    pair: _Pair,
    requests: Iterable[Request],
    step_law: StepLaw,
    end_of_turn: int,
    context: int,
    max_new_tokens: int,
    lanes: int,
) -> Iterator[Completion]:
    state = _Lanes(pair, lanes, max_new_tokens)
    waiting = iter(requests)
    while True:
        while state.count < lanes and (request := next(waiting, None)) is not None:
            _fill(pair, state, request, context, max_new_tokens)
        if not state.count:
            return
        tokens = _step(pair, state, step_law)
        count = state.count
        finished = (tokens == end_of_turn) | (state.position[:count] >= state.limit[:count])
        _translate(pair, state, tokens, finished)
        if finished.any():
            # From the last row on, so that the row moved into a gap is one that stays.
            for lane in reversed(finished.nonzero().flatten().tolist()):
                yield _completion(state, lane, end_of_turn)
                _remove(pair, state, lane)


def _fill(pair: _Pair, state: _Lanes, request: Request, context: int, max_new_tokens: int) -> None:
    """Puts a request into the first free lane; the last token of its prompt is left for the next step."""
    lane = state.count
    for side, prompt in (("student", request.student_prompt), ("teacher", request.teacher_prompt)):
        if getattr(pair, side) is not None and not 0 < len(prompt) < context:
            raise ValueError(
                f"request {request.index}: its prompt has {len(prompt)} tokens for the {side}, expected 1 to "
                f"{context - 1} (context = {context}); raise context or leave the problem out"
            )
    longest = max(len(request.student_prompt), len(request.teacher_prompt))
    limit = min(max_new_tokens, context - longest)
    # Attempts at one problem stand next to each other: what one lane has read, another need not read again.
    twins = {tuple(other.student_prompt): index for index, other in enumerate(state.requests)}
    pair.student.fill(lane, request.student_prompt[:-1], twin=twins.get(tuple(request.student_prompt)))
    state.next_student[lane] = request.student_prompt[-1]
    if pair.teacher is not None:
        twins = {tuple(other.teacher_prompt): index for index, other in enumerate(state.requests)}
        pair.teacher.fill(lane, request.teacher_prompt[:-1], twin=twins.get(tuple(request.teacher_prompt)))
        state.next_teacher[lane] = request.teacher_prompt[-1]
    state.position[lane] = 0
    state.limit[lane] = limit
    state.uniforms[lane, :limit] = torch.from_numpy(uniforms(request.stream, limit)).to(state.uniforms.device)
    state.requests.append(request)
    state.count += 1


@torch.inference_mode()
def _step(pair: _Pair, state: _Lanes, step_law: StepLaw) -> Tensor:
    """One token in every active lane; records it and returns the ids [count]."""
    count = state.count
    rows, position = torch.arange(count, device=state.position.device), state.position[:count]
    student_logits = pair.student.step(state.next_student[:count])
    student_logits = student_logits.float().masked_fill(~pair.emittable, float("-inf"))
    teacher_logits = None if pair.teacher is None else pair.teacher.step(state.next_teacher[:count])
    parts = step_law(student_logits, teacher_logits)
    tokens, fallback = draw(parts, state.uniforms[rows, position])
    state.tokens[rows, position] = tokens.int()
    state.fallback[rows, position] = fallback
    state.p_student[rows, position] = _probability(student_logits, tokens)
    if teacher_logits is not None and pair.alignment is not None:
        theirs = pair.alignment.to_teacher[tokens]
        known = _probability(teacher_logits, theirs.clamp(min=0)).to(state.p_teacher.device)
        state.p_teacher[rows, position] = known.masked_fill(theirs < 0, float("nan"))
    state.position[:count] += 1
    return tokens


def _probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """The raw probability [batch] float32 of one token a row."""
    return softmax(logits).gather(-1, tokens.to(logits.device)[:, None]).squeeze(-1).float()


def _translate(pair: _Pair, state: _Lanes, tokens: Tensor, finished: Tensor) -> None:
    """What each side reads next. Of a token that the teacher lacks, it reads all pieces but the last at once.

    A lane whose teacher context has no room left for the pieces is marked as finished.
    """
    state.next_student[: state.count] = tokens
    if pair.teacher is None or pair.alignment is None:
        return
    theirs = pair.alignment.to_teacher[tokens]
    for lane in ((theirs < 0) & ~finished).nonzero().flatten().tolist():
        pieces = pair.alignment.read_by_teacher(int(tokens[lane]))
        room = pair.teacher.cache.keys.shape[3] - int(pair.teacher.lengths[lane])
        left = int(state.limit[lane] - state.position[lane])
        if room < len(pieces) + left:
            finished[lane] = True
            continue
        pair.teacher.read(lane, pieces[:-1])
        theirs[lane] = pieces[-1]
    state.next_teacher[: state.count] = theirs


def _completion(state: _Lanes, lane: int, end_of_turn: int) -> Completion:
    length = int(state.position[lane])
    tokens = state.tokens[lane, :length].cpu().numpy().copy()
    return Completion(
        index=state.requests[lane].index,
        tokens=tokens,
        fallback=state.fallback[lane, :length].cpu().numpy().copy(),
        p_student=state.p_student[lane, :length].cpu().numpy().copy(),
        p_teacher=state.p_teacher[lane, :length].cpu().numpy().copy(),
        finish="end_of_turn" if tokens[-1] == end_of_turn else "length",
    )


def _remove(pair: _Pair, state: _Lanes, lane: int) -> None:
    """Frees a lane and moves the last active one into the gap."""
    last = state.count - 1
    if lane != last:
        for tensor in state.tensors():
            tensor[lane] = tensor[last]
        pair.student.move(last, lane)
        if pair.teacher is not None:
            pair.teacher.move(last, lane)
        state.requests[lane] = state.requests[last]
    pair.student.clear(last)
    if pair.teacher is not None:
        pair.teacher.clear(last)
    state.requests.pop()
    state.count = last
