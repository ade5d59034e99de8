"""What one model wrote, in another's tokens: the same text, one end of a turn, and no silent change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rsd.pocket import make_tokenizer
from rsd.recoding import Recoder
from tiny import tiny_tokenizer

END = "<|im_end|>"
THINK_CLOSE = "</think>"


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, some pairs of them as one token, `</think>` and the special ones."""
    vocabulary = {text: index for index, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("a", "b"), ("1", "2"), ("ab", "ab"), ("Ã", "©")]
    vocabulary |= {left + right: len(vocabulary) + n for n, (left, right) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(THINK_CLOSE, special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False)


TEACHER, STUDENT, MERGING = make_tokenizer("teacher"), make_tokenizer("student"), merging_tokenizer()


def recoder(writer: PreTrainedTokenizerBase, reader: PreTrainedTokenizerBase) -> Recoder:
    ends = [tokenizer.convert_tokens_to_ids(END) for tokenizer in (writer, reader)]
    return Recoder(writer, reader, end_of_turn=END, writer_end=ends[0], reader_end=ends[1])


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("reader", [STUDENT, MERGING], ids=["student", "merging"])
def test_the_end_of_reasoning_becomes_the_one_token_that_the_reader_has(reader: PreTrainedTokenizerBase) -> None:
    written = [*ids(TEACHER, f"1+1=2{THINK_CLOSE}2"), TEACHER.convert_tokens_to_ids(END)]
    assert len(ids(TEACHER, THINK_CLOSE)) == 8
    reading = recoder(TEACHER, reader).read(written)
    assert (reading.ends, reading.exact, reading.text) == (True, True, f"1+1=2{THINK_CLOSE}2{END}")
    assert reading.tokens == ids(reader, reading.text)
    assert reading.tokens.count(reader.convert_tokens_to_ids(THINK_CLOSE)) == 1
    assert reading.tokens[-1] == reader.convert_tokens_to_ids(END)
    assert reading.tokens.count(reader.convert_tokens_to_ids(END)) == 1


def test_what_stops_at_a_limit_has_no_end() -> None:
    reading = recoder(TEACHER, STUDENT).read(ids(TEACHER, "1+1"))
    assert (reading.tokens, reading.text, reading.ends, reading.exact) == (ids(STUDENT, "1+1"), "1+1", False, True)


def test_the_rest_of_a_character_that_was_cut_is_left_out() -> None:
    whole = ids(TEACHER, "aé")
    assert recoder(TEACHER, STUDENT).read(whole).text == "aé"
    reading = recoder(TEACHER, STUDENT).read(whole[:-1])
    assert (reading.text, reading.ends, reading.exact) == ("a", False, True)


def test_bytes_that_are_no_text_within_a_completion_are_told() -> None:
    broken = [*ids(TEACHER, "aé")[:-1], *ids(TEACHER, "b")]
    reading = recoder(TEACHER, STUDENT).read(broken)
    assert not reading.exact
    assert reading.text == "a\ufffdb"


def test_an_end_that_was_spelled_out_ends_the_turn_for_the_reader_and_is_told() -> None:
    # In the writer's plain bytes, not its one token.
    spelled = [token for piece in ("a<|im", "_end|>b") for token in ids(TEACHER, piece)]
    assert TEACHER.convert_tokens_to_ids(END) not in spelled
    reading = recoder(TEACHER, STUDENT).read(spelled)
    assert (reading.text, reading.ends, reading.exact) == (f"a{END}", True, False)
    assert reading.tokens == ids(STUDENT, f"a{END}")


def test_nothing_is_read_as_nothing_and_an_end_alone_as_an_end() -> None:
    reading = recoder(TEACHER, MERGING).read([])
    assert (reading.tokens, reading.text, reading.ends, reading.exact) == ([], "", False, True)
    reading = recoder(TEACHER, MERGING).read([TEACHER.convert_tokens_to_ids(END)])
    assert (reading.tokens, reading.text, reading.ends, reading.exact) == (ids(MERGING, END), END, True, True)


def test_text_that_the_reader_has_no_tokens_for_is_told() -> None:
    reading = recoder(STUDENT, tiny_tokenizer()).read(ids(STUDENT, "aéb"))
    assert not reading.exact
    assert reading.text == "a<|unk|>b"


TEXTS = st.text(alphabet=st.sampled_from("ab12é=<|/>think_m \n€"), max_size=40)


@given(TEXTS.map(lambda text: text.replace(END, "")), st.booleans(), st.sampled_from([STUDENT, MERGING, TEACHER]))
def test_any_text_comes_through_and_back_again(text: str, ends: bool, reader: PreTrainedTokenizerBase) -> None:
    written = ids(MERGING, text) + [MERGING.convert_tokens_to_ids(END)] * ends
    there = recoder(MERGING, reader).read(written)
    assert there.exact
    assert there.ends == ends
    assert there.text == text + END * ends
    assert reader.decode(there.tokens) == there.text
    back = recoder(reader, MERGING).read(there.tokens)
    assert back.tokens == written
    assert back.exact


@given(st.lists(st.integers(0, len(TEACHER) - 1), max_size=30))
def test_any_ids_at_all_are_read_as_what_the_reader_says_of_them(written: list[int]) -> None:
    reading = recoder(TEACHER, STUDENT).read(written)
    end = STUDENT.convert_tokens_to_ids(END)
    assert STUDENT.decode(reading.tokens) == reading.text
    assert reading.ends == (reading.tokens[-1:] == [end])
    assert reading.tokens.count(end) == reading.ends
    if reading.exact:
        said = TEACHER.decode(written)
        assert reading.text == (said if reading.ends else said.rstrip("\ufffd"))
