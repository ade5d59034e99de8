"""Pieces are the whole text, each character is where it was completed, whatever the vocabulary is made of."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rsd.pieces import decoder, spell, split_text
from rsd.pocket import make_tokenizer
from tiny import tiny_tokenizer

BYTES = make_tokenizer("student")
ONE_BYTE = [token for token in range(len(BYTES)) if len(BYTES.convert_ids_to_tokens(token)) == 1]


def byte_level(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """One token a byte, and what the merges make; bytes are spelt as GPT-2 spells them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate([*alphabet, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def words() -> PreTrainedTokenizerFast:
    """Whole words whose leading space is a mark, which is dropped at the beginning of a text."""
    texts = ["▁a", "▁bc", "d", "▁", "<unk>"]
    model = models.BPE(vocab={text: index for index, text in enumerate(texts)}, merges=[], unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def whole(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)


@given(st.text())
def test_every_character_of_a_text_is_where_its_last_byte_is(text: str) -> None:
    expected = [part for character in text for part in [*[""] * (len(character.encode()) - 1), character]]
    tokens = BYTES.encode(text, add_special_tokens=False)
    if len(tokens) == len(text.encode()):  # no special token happens to be written in it
        pieces = split_text(decoder(BYTES), tokens)
        # A character that looks like one that is missing goes to the token behind it.
        assert "".join(pieces) == text
        if "�" not in text:
            assert pieces == expected


@given(st.lists(st.sampled_from([*ONE_BYTE, *range(len(BYTES) - 6, len(BYTES))])))
def test_any_bytes_and_special_tokens_are_split_without_loss(tokens: list[int]) -> None:
    pieces = split_text(decoder(BYTES), tokens)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == whole(BYTES, tokens)


@given(st.lists(st.integers(0, 4)))
def test_a_space_that_is_dropped_at_the_beginning_is_kept_within(tokens: list[int]) -> None:
    tokenizer = words()
    pieces = split_text(decoder(tokenizer), tokens)
    assert "".join(pieces) == whole(tokenizer, tokens)


def test_words_with_a_leading_space() -> None:
    assert split_text(decoder(words()), [0, 1, 2, 0]) == ["a", " bc", "d", " a"]


def test_a_character_goes_to_the_token_that_completes_it_and_the_text_before_it_stays() -> None:
    tokenizer = byte_level(("Ġ", "â"), ("Ī", "x"))
    tokens = tokenizer.encode("a ≈x", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(tokens) == ["a", "Ġâ", "ī", "Īx"]
    assert split_text(decoder(tokenizer), tokens) == ["a", " ", "", "≈x"]


def test_bytes_that_are_no_character_go_to_the_next_token_or_the_last() -> None:
    tokenizer = byte_level()
    first, letter = tokenizer.convert_tokens_to_ids("â"), tokenizer.convert_tokens_to_ids("a")
    assert split_text(decoder(tokenizer), [letter, first, letter, first]) == ["a", "", "�a", "�"]
    assert split_text(decoder(tokenizer), [first, first]) == ["", "��"]


def test_special_tokens_are_their_text() -> None:
    tokens = BYTES.encode("1</think>2<|im_end|>", add_special_tokens=False)
    assert split_text(decoder(BYTES), tokens) == ["1", "</think>", "2", "<|im_end|>"]
    tiny = tiny_tokenizer()
    assert split_text(decoder(tiny), tiny.encode("a<|im_end|>b", add_special_tokens=False)) == ["a", "<|im_end|>", "b"]


def test_nothing_has_no_pieces() -> None:
    assert split_text(decoder(BYTES), []) == []


DECODERS = [
    lambda tokens: "",
    lambda tokens: "�" * len(tokens),
    lambda tokens: "same",
    lambda tokens: "".join(map(str, tokens))[::-1],
    lambda tokens: "".join(map(str, tokens)).strip("0"),
    lambda tokens: f"{len(tokens)}:" + ",".join(map(str, tokens)),
]


@given(st.sampled_from(DECODERS), st.lists(st.integers(0, 12), min_size=1))
def test_together_the_pieces_are_the_text_whatever_a_tokenizer_does(decode, tokens) -> None:
    pieces = split_text(decode, tokens)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == decode(tokens)


@pytest.mark.parametrize(("text", "shown"), [("a", "a"), (" ", " "), ("</think>", "</think>"), ("\n", "\n")])
def test_a_token_is_shown_as_its_text(text: str, shown: str) -> None:
    (token,) = BYTES.encode(text, add_special_tokens=False)
    assert spell(BYTES, token) == shown


def test_a_part_of_a_character_is_shown_as_the_vocabulary_spells_it() -> None:
    first, *_ = BYTES.encode("≈", add_special_tokens=False)
    assert spell(BYTES, first) == "â"
