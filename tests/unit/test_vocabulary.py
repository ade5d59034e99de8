"""Two vocabularies are aligned token by token, or refused with the number of tokens that differ."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rsd.vocabulary import align, token_ids

CHARACTERS = "abcdefghijklmnopqrstuvwxyz<>/"


def tokenizer(characters: str, special: tuple[str, ...], merges: tuple[tuple[str, str], ...] = ()):
    vocabulary = {character: index for index, character in enumerate(characters)}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocabulary, list(merges)))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner)
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


MANY = "".join(chr(0x4E00 + index) for index in range(500))  # so that two missing tokens are under 1 %
STUDENT = tokenizer(CHARACTERS + MANY, ("<|end|>", "<think>", "</think>"))
TEACHER = tokenizer(MANY + CHARACTERS, ("<|end|>",))


def aligned(**options):
    sizes = {"student_size": len(STUDENT) + 3, "teacher_size": len(TEACHER) + 9}
    return align(STUDENT, TEACHER, **(sizes | options))


def test_shared_tokens_meet_by_text_whatever_their_ids():
    alignment = aligned()
    for token in "ab/":
        mine, theirs = STUDENT.convert_tokens_to_ids(token), TEACHER.convert_tokens_to_ids(token)
        assert int(alignment.to_teacher[mine]) == theirs != mine
        assert alignment.read_by_teacher(mine) == [theirs]


def test_a_token_that_the_teacher_lacks_is_read_as_its_pieces():
    alignment = aligned()
    think = STUDENT.convert_tokens_to_ids("</think>")
    assert set(alignment.pieces) == {think, STUDENT.convert_tokens_to_ids("<think>")}
    assert TEACHER.convert_ids_to_tokens(alignment.read_by_teacher(think)) == list("</think>")
    assert int(alignment.to_teacher[think]) == -1


def test_rows_without_a_token_align_with_nothing():
    alignment = aligned()
    assert alignment.to_teacher[len(STUDENT) :].tolist() == [-1, -1, -1]
    known = token_ids(STUDENT, len(STUDENT) + 3)
    assert known[: len(STUDENT)].all()
    assert not known[len(STUDENT) :].any()


def test_the_way_back_leads_to_the_same_token_and_lacking_ones_lead_nowhere():
    alignment = aligned()
    assert alignment.to_student.shape == (len(TEACHER) + 9,)
    a = STUDENT.convert_tokens_to_ids("a")
    assert int(alignment.to_student[TEACHER.convert_tokens_to_ids("a")]) == a
    shared = (alignment.to_teacher >= 0).nonzero().flatten()
    assert torch.equal(alignment.to_student[alignment.to_teacher[shared]], shared)
    assert int((alignment.to_student >= 0).sum()) == len(shared)


def test_other_vocabularies_are_refused_with_the_number_of_tokens():
    other = tokenizer(CHARACTERS, ("<|end|>",))
    with pytest.raises(ValueError, match=r"502 of the student's 532 tokens are unknown to the teacher \(at most 1%"):
        align(STUDENT, other, student_size=len(STUDENT), teacher_size=len(other))


def test_tokenizers_that_split_differently_are_refused():
    merging = tokenizer(CHARACTERS + MANY, ("<|end|>", "<think>", "</think>"), merges=(("a", "b"),))
    with pytest.raises(ValueError, match=r"split 'cab' differently \(token 1: student 'a', teacher 'ab'\)"):
        align(STUDENT, merging, student_size=len(STUDENT), teacher_size=len(merging), probes=["abc"[:1], "cab"])
