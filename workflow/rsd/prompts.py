"""What the models read, and where the answer stands in what they write.

The only copy: traces, training and evaluation build their prompts and find their answers here. A prompt is literal
text up to the first generated token; no chat template is applied. `format` is the configuration's block of that name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Format = Mapping[str, Any]

# What matters to a box: its start, an escaped character (`\{` is no brace), a brace.
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# 1,234.5 and 3/4 are one number; the minus of 75-36 belongs to the sum.
_NUMBER = re.compile(r"(?<![\d.)])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?")
_HASHES = "####"


# --- what a model reads ----------------------------------------------------------------------------------------------


def render(template: str, question: str, solution: str = "") -> str:
    """The template with {question} and {solution} replaced, in one pass: braces in a question stay as they are."""
    return _fill(template, {"question": question, "solution": solution})


def encode_prompt(tokenizer: PreTrainedTokenizerBase, template: str, question: str, solution: str = "") -> list[int]:
    """The rendered prompt as token ids; special tokens written in it are read as such, none is added."""
    return list(tokenizer.encode(render(template, question, solution), add_special_tokens=False))


def dataset_trace(problem: Mapping[str, Any], format: Format) -> str:
    """A dataset's own trace as one assistant turn, without the end of turn.

    Raises ValueError where the format wants {thinking} and the problem has none.
    """
    template = format["dataset_trace"]
    if problem["thinking"] is None and "{thinking}" in template:
        raise ValueError(
            f"format.dataset_trace = {template!r} wants {{thinking}}, but problem {problem['id']} has none; name the "
            "column in datasets.<name>.columns.thinking, or write a format without it"
        )
    return _fill(template, {"thinking": problem["thinking"] or "", "response": problem["response"] or ""})


def _fill(template: str, values: Mapping[str, str]) -> str:
    names = "|".join(values)
    return re.sub(r"\{(" + names + r")\}", lambda match: values[match[1]], template)


# --- what a model wrote ----------------------------------------------------------------------------------------------


def count_think_close(text: str, format: Format) -> int:
    """How often the end of the reasoning is marked; 0 where the format has no such mark."""
    return text.count(format["think_close"]) if format["think_close"] else 0


def think_closed(text: str, format: Format) -> bool:
    """Whether the reasoning is over; always, where the format does not mark its end."""
    return not format["think_close"] or format["think_close"] in text


def split_trace(text: str, format: Format) -> tuple[str, str]:
    """(reasoning, response), cut at the last end mark; all is reasoning where the mark is missing.

    All is response where the format has no mark.
    """
    if not format["think_close"]:
        return "", text
    if not think_closed(text, format):
        return text, ""
    thinking, _, response = text.rpartition(format["think_close"])
    return thinking, response


def extract_answer(text: str, format: Format) -> str | None:
    """The final answer in a decoded completion, None where there is none.

    Looks only after the last think_close, and finds nothing where that is missing. boxed: the last closed, non-empty
    \\boxed{...} or \\fbox{...}; last_number: the last number; hashes: the rest of the line after the last "####".
    """
    if not think_closed(text, format):
        return None
    _, response = split_trace(text, format)
    return find_answer(response.removesuffix(format["end_of_turn"]), format["answer"])


def find_answer(text: str, kind: str) -> str | None:
    """The answer of a text by `kind` (boxed | last_number | hashes), None where there is none."""
    match kind:
        case "boxed":
            return _last_box(text)
        case "last_number":
            numbers = _NUMBER.findall(text)
            return numbers[-1] if numbers else None
        case "hashes":
            _, mark, rest = text.rpartition(_HASHES)
            line = rest.strip().partition("\n")[0].strip()
            return line if mark and line else None
        case _:
            raise ValueError(f"format.answer = {kind!r}: expected boxed, last_number or hashes; correct it")


def _last_box(text: str) -> str | None:
    """Content of the box that closes last, which is the outer one of two nested; one pass whatever the text."""
    answer = None
    # Where the content of each open brace starts; None for a brace that is no box.
    opened: list[int | None] = []
    for match in _BRACES.finditer(text):
        if match[0] == "}":
            start = opened.pop() if opened else None
            if start is not None:
                answer = text[start : match.start()].strip() or answer
        elif match[0].endswith("{") and match[0] != r"\{":
            opened.append(None if match[0] == "{" else match.end())
    return answer
