"""What one model wrote, in the tokens of another: ids -> text -> ids.

Only for traces that are taken over from another model; what a student writes itself keeps its exact ids. A text can be
spelled by many sequences of ids, and comes back as the one that the reader's tokenizer makes of it. The end of a turn
is no text here but a token of its own on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

# What a decoder writes for bytes that are no text: the rest of a character that was cut, say.
NO_TEXT = "\ufffd"


@dataclass(frozen=True)
class Reading:
    """A completion in a reader's tokens.

    `tokens`: its ids, the end of the turn included; `text`: what they say; `ends`: whether the turn ends; `exact`:
    whether the text is just what was written.
    """

    tokens: list[int]
    text: str
    ends: bool
    exact: bool


class Recoder:
    """Reads the completions of one tokenizer, the writer's, in the tokens of another, the reader's.

    `end_of_turn` is the text of the token that ends a turn, `writer_end` and `reader_end` its ids. The tokenizers may
    be the same one; ids then still come back as the canonical spelling of their text.
    """

    def __init__(
        self,
        writer: PreTrainedTokenizerBase,
        reader: PreTrainedTokenizerBase,
        *,
        end_of_turn: str,
        writer_end: int,
        reader_end: int,
    ) -> None:
        self.writer, self.reader, self.end_of_turn = writer, reader, end_of_turn
        self.writer_end, self.reader_end = writer_end, reader_end

    def read(self, tokens: Sequence[int]) -> Reading:
        """The completion `tokens` (the writer's ids, the end of the turn last where it came) in the reader's tokens.

        A completion that stops without an end may stop within a character; its first bytes alone say nothing, and are
        left out. Where the writer spelled the mark of the end out, in other tokens, the reader's tokenizer would take
        it for the end, so the turn ends there: such a reading is not exact.
        """
        ends = len(tokens) > 0 and tokens[-1] == self.writer_end
        written = _decode(self.writer, tokens[:-1] if ends else tokens)
        if not ends:
            written = written.rstrip(NO_TEXT)
        kept, spelled, _ = written.partition(self.end_of_turn)
        ids: list[int] = self.reader.encode(kept, add_special_tokens=False) if kept else []
        said = _decode(self.reader, ids)
        exact = not spelled and said == written and NO_TEXT not in written
        if ends or spelled:
            ids = [*ids, self.reader_end]
        return Reading(ids, _decode(self.reader, ids), ends or bool(spelled), exact)


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    text = tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
