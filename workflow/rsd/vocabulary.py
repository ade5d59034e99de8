"""Alignment of the two vocabularies, token by token, with substitutes for tokens that one side lacks.

The one place that knows how one model reads what the other wrote. A trace is a sequence of the student's token ids;
the teacher reads it as its own ids, a token that it lacks (`</think>` for Qwen2.5) as several pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# Qwen2.5 and Qwen3 differ in 4 of 151,669 tokens; a pair with more than this share is not the same vocabulary.
LARGEST_DIFFERENCE = 0.01


@dataclass(frozen=True)
class Alignment:
    """How the teacher reads the student's tokens.

    `to_teacher` [student vocab] int64: the teacher's id of each of the student's tokens, -1 where it has none.
    `pieces`: student's id -> the teacher's ids that spell a token which the teacher lacks.
    `to_student` [teacher vocab] int64: the inverse, -1 for a token that the student lacks.
    """

    to_teacher: Tensor
    pieces: dict[int, list[int]]
    to_student: Tensor

    @classmethod
    def of(cls, to_teacher: Tensor, pieces: dict[int, list[int]], teacher_size: int) -> Alignment:
        """The alignment with its inverse; of the student's tokens that read alike, the lowest id."""
        to_student = torch.full((teacher_size,), -1, dtype=torch.int64)
        known = (to_teacher >= 0).nonzero().flatten().flip(0)
        to_student[to_teacher[known]] = known
        return cls(to_teacher, pieces, to_student)

    @property
    def longest_piece(self) -> int:
        """Most teacher's tokens that one of the student's may be."""
        return max(map(len, self.pieces.values()), default=1)

    def to(self, device: torch.device) -> Alignment:
        """The same on another device."""
        return Alignment(self.to_teacher.to(device), self.pieces, self.to_student.to(device))

    def read_by_teacher(self, token: int) -> list[int]:
        """The teacher's ids for one of the student's tokens."""
        return self.pieces[token] if token in self.pieces else [int(self.to_teacher[token])]


def align(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    *,
    student_size: int,
    teacher_size: int,
    probes: Iterable[str] = (),
) -> Alignment:
    """Aligns by token text.

    `student_size`, `teacher_size`: rows of the models' output layers, at least as many as there are tokens; rows
    without a token align with nothing. `probes`: texts that both tokenizers must split alike.

    Raises ValueError where more than 1 % of the student's tokens are unknown to the teacher, or a probe is split
    differently: such a pair needs another teacher, of the student's own vocabulary.
    """
    theirs = {token: index for token, index in teacher.get_vocab().items() if index < teacher_size}
    mine = {token: index for token, index in student.get_vocab().items() if index < student_size}
    missing = [token for token in mine if token not in theirs]
    if len(missing) > LARGEST_DIFFERENCE * len(mine):
        raise ValueError(
            f"the vocabularies cannot be aligned: {len(missing)} of the student's {len(mine)} tokens are unknown to "
            f"the teacher (at most {LARGEST_DIFFERENCE:.0%} may be); choose a teacher and a student with one vocabulary"
        )
    for probe in probes:
        _check_split(student, teacher, probe)
    to_teacher = torch.full((student_size,), -1, dtype=torch.int64)
    for token, index in mine.items():
        to_teacher[index] = theirs.get(token, -1)
    pieces = {mine[token]: teacher.encode(student.decode([mine[token]]), add_special_tokens=False) for token in missing}
    unreadable = [token for token in missing if not pieces[mine[token]]]
    if unreadable:
        raise ValueError(
            f"the vocabularies cannot be aligned: the teacher cannot read the student's token {unreadable[0]!r}; "
            "choose a teacher and a student with one vocabulary"
        )
    return Alignment.of(to_teacher, pieces, teacher_size)


def _check_split(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, text: str) -> None:
    splits = [
        tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
        for tokenizer in (student, teacher)
    ]
    if splits[0] != splits[1]:
        raise ValueError(
            f"the vocabularies cannot be aligned: the tokenizers split {text[:60]!r} differently "
            f"({_first_difference(*splits)}); choose a teacher and a student with one tokenizer"
        )


def _first_difference(left: Sequence[str], right: Sequence[str]) -> str:
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return f"token {index}: student {one!r}, teacher {other!r}"
    return f"student {len(left)} tokens, teacher {len(right)}"


def token_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """[size] bool: does the row of the output layer stand for a token? Padding rows must never be emitted."""
    known = torch.zeros(size, dtype=torch.bool)
    known[[index for index in tokenizer.get_vocab().values() if index < size]] = True
    return known
