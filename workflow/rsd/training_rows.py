"""Training rows: ROWS Parquet -> checked, cut token ids and what is counted about them.

Works on ids alone: no tokenizer, no chat template, nothing appended. By hand:
`python -c "from rsd.training_rows import read_training_rows; ..."`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rsd.records import ROWS, read_table

# Marks a position without loss, as torch's cross entropy and TRL's collator read it.
IGNORED = -100
KINDS = ("trace", "prefix")


@dataclass(frozen=True)
class TrainingRows:
    """Rows ready for training, and the counts that the report shows.

    `tokens[i]`: [prompt + completion] int64; the first `prompt_lengths[i]` (at least 1) carry no loss, all others do
    (at least 1).
    """

    tokens: list[NDArray[np.int64]]
    prompt_lengths: list[int]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.tokens)

    def labels(self, index: int) -> NDArray[np.int64]:
        """The row's ids where there is loss, IGNORED elsewhere: [prompt + completion] int64."""
        labels = self.tokens[index].copy()
        labels[: self.prompt_lengths[index]] = IGNORED
        return labels

    @property
    def largest_token(self) -> int:
        """The largest id of all rows."""
        return max(int(tokens.max()) for tokens in self.tokens)


def read_training_rows(path: Path, *, block_size: int, overlong: str) -> TrainingRows:
    """Reads and checks every row; what exceeds `block_size` tokens is cut at the end, dropped, or an error.

    A cut row that keeps no completion token is dropped. Counts: `total` = `trace` + `prefix` rows in the file;
    `overlong` of them exceed the block; of these, `truncated` are trained on in part and `dropped` not at all; `used` =
    `total` - `dropped`; `supervised_tokens` (with loss) and `total_tokens` of the used rows; `longest` of them.
    Raises ValueError naming file, row and remedy for a row without prompt or completion, a missing or negative id, an
    unknown kind, and where no row is left.
    """
    table = read_table(path, ROWS)
    prompts = token_lists(path, table, "prompt_tokens")
    completions = token_lists(path, table, "completion_tokens")
    kinds = table.column("kind").to_pylist()
    _check_rows(path, table, kinds, prompts, completions)
    lengths = np.array([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], dtype=np.int64)
    is_overlong = lengths > block_size
    if overlong == "error" and is_overlong.any():
        raise ValueError(
            f"{path}: {is_overlong.sum()} of {len(lengths)} rows exceed training.block_size = {block_size} tokens (the "
            f"longest has {lengths.max()}) and training.overlong is error; raise block_size, or write truncate or drop"
        )
    tokens, prompt_lengths = [], []
    truncated = 0
    for prompt, completion, too_long in zip(prompts, completions, is_overlong, strict=True):
        if too_long and (overlong == "drop" or len(prompt) >= block_size):
            continue
        truncated += bool(too_long)
        tokens.append(np.concatenate([prompt, completion])[:block_size])
        prompt_lengths.append(len(prompt))
    _require_rows(path, len(lengths), len(tokens), block_size, overlong)
    total_tokens = sum(len(row) for row in tokens)
    counts = {
        "total": len(lengths),
        **{kind: kinds.count(kind) for kind in KINDS},
        "overlong": int(is_overlong.sum()),
        "truncated": truncated,
        "dropped": len(lengths) - len(tokens),
        "used": len(tokens),
        "supervised_tokens": total_tokens - sum(prompt_lengths),
        "total_tokens": total_tokens,
        "longest": max(len(row) for row in tokens),
    }
    return TrainingRows(tokens, prompt_lengths, counts)


def token_lists(path: Path, table: pa.Table, name: str) -> list[NDArray[np.int64]]:
    """A column of id lists of the ROWS in `path`, one array a row; ValueError naming it where an id is missing."""
    column = table.column(name).combine_chunks()
    values = column.flatten()
    if column.null_count or values.null_count:
        raise ValueError(f"{path}: {name} holds missing values; delete the file and run select_traces again")
    ids = values.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.split(ids, np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))[:-1]) if len(column) else []


def _check_rows(
    path: Path,
    table: pa.Table,
    kinds: list[Any],
    prompts: list[NDArray[np.int64]],
    completions: list[NDArray[np.int64]],
) -> None:
    for index, (kind, prompt, completion) in enumerate(zip(kinds, prompts, completions, strict=True)):
        if kind not in KINDS:
            fault = f"kind {kind!r}, expected trace or prefix"
        elif not len(completion):
            fault = "no completion tokens, so there would be nothing to learn from it"
        elif not len(prompt):
            fault = "no prompt tokens, so its first completion token could not be predicted from anything"
        elif (lowest := min(prompt.min(), completion.min())) < 0:
            fault = f"the token id {lowest}, expected ids from 0 on"
        else:
            continue
        problem = table.column("problem_id")[index].as_py()
        raise ValueError(
            f"{path}, row {index} (problem {problem}): {fault}; delete the file and run select_traces again"
        )


def _require_rows(path: Path, total: int, used: int, block_size: int, overlong: str) -> None:
    if not total:
        raise ValueError(
            f"{path} holds no training rows: no trace of any problem was kept; see why in selection.json beside it, "
            "then raise the trace set's attempts, relax its select settings, or write select.unsolved: prefix"
        )
    if not used:
        raise ValueError(
            f"{path}: none of the {total} rows is left within training.block_size = {block_size} tokens with "
            f"training.overlong = {overlong}; raise block_size"
        )
