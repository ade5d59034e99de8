"""The text of every single token of a sequence, so that the pieces together are the text of the whole.

Tokens of a byte-level vocabulary may hold parts of a character, which have no text of their own. A character belongs to
the token that completes it; the tokens that hold its first parts get the text before it, or none. Bytes that never
become a character (shown as U+FFFD) go to the next token that has a text, or to the last one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

Decode = Callable[[Sequence[int]], str]

# What stands for bytes that are no character, or not yet.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Windows of up to this many tokens, nearly all of them, are remembered: so many of the most recent.
_SHORT, _REMEMBERED = 2, 1 << 17


def decoder(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Token ids -> their text as it is, special tokens included, for `split_text`."""

    def decode(tokens: Sequence[int]) -> str:
        text = tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    remembered = functools.lru_cache(maxsize=_REMEMBERED)(decode)
    return lambda tokens: remembered(tuple(tokens)) if len(tokens) <= _SHORT else decode(tokens)


def split_text(decode: Decode, tokens: Sequence[int]) -> list[str]:
    """One piece a token; together they are `decode(tokens)`, whatever `decode` does.

    Only a few tokens are decoded at a time, each behind the one before it, since some vocabularies drop a space at the
    beginning. Where a tokenizer writes a part otherwise than within the whole, pieces may be a character off.
    """
    whole = decode(tokens)
    ends: list[int] = []  # of each piece, in characters of the whole
    # The window is tokens[start:]; the text of tokens[start:read] is `before`, and ends at character `done`.
    start = read = done = 0
    before = ""
    for index in range(len(tokens)):
        text = decode(tokens[start : index + 1])
        sure = len(text.rstrip(REPLACEMENT))
        ends.append(done + max(0, sure - len(before)))
        if sure == len(text):
            done = ends[-1]
            start, read = read, index + 1
            before = decode(tokens[start:read])
    bounds = [0]
    for end in ends[:-1]:
        bounds.append(min(max(end, bounds[-1]), len(whole)))
    if ends:
        bounds.append(len(whole))
    return [whole[left:right] for left, right in itertools.pairwise(bounds)]


def spell(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A single token for people: its text, or the vocabulary's own spelling where it holds a part of a character."""
    text = decoder(tokenizer)([token])
    if text and REPLACEMENT not in text:
        return text
    return str(tokenizer.convert_ids_to_tokens(token)) or text
