"""How probable a model finds given tokens, each behind all before it. No files, no tokenizer, no configuration.

Rows (prompt ids, completion ids) -> probability, rank and entropy of every completion token, by transformers' own
forward pass. It agrees with the decoder's `p_student` to rounding, not to the bit: the passes have other shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

# Positions whose softmax is taken at once: 40 MB a copy, for a vocabulary of 150,000 tokens.
_SOFTMAX_ROWS = 64


@dataclass(frozen=True)
class TokenScores:
    """What a model makes of a completion, one entry a token.

    probability  [n] float32, at temperature 1; 0 where it is below the smallest float32
    rank         [n] int32, 1 + the number of tokens of a strictly larger logit; 1 is the most probable
    entropy      [n] float32, of the distribution that the token was one outcome of, in nats
    """

    probability: NDArray[np.float32]
    rank: NDArray[np.int32]
    entropy: NDArray[np.float32]


def score_tokens(
    model: PreTrainedModel,
    rows: Iterable[tuple[Sequence[int], Sequence[int]]],
    *,
    positions: int = 512,
    known: Tensor | None = None,
) -> Iterator[TokenScores]:
    """Scores the completion of every row (prompt ids, completion ids), in order, one row at a time.

    `model` as `models.load_model` gives it; the decoder takes a model over, and one that it has used cannot be scored
    with. The softmax is taken in float32, whatever the weights' dtype. A row is read through a key-value cache in
    pieces of `positions` tokens, so that logits of 150,000 tokens take 0.3 GB in float32, however long the row is.
    `known` [vocab] bool: rows of the output layer that stand for a token (`vocabulary.token_ids`; all by default); the
    others have no share in the distribution, as in the decoder.

    An empty completion gives empty arrays. Raises ValueError naming the row (its number, from 0) for a completion
    without a prompt, whose first token has nothing before it, and for an id that the model does not have;
    FloatingPointError for logits that are no numbers.
    """
    if positions < 1:
        raise ValueError(f"positions = {positions}: expected at least 1 token; choose how many are read at once")
    dead = torch.zeros(0, dtype=torch.int64) if known is None else (~known).nonzero().flatten()
    readable, writable = _vocabulary(model, known)
    for index, (prompt, completion) in enumerate(rows):
        before, tokens = np.asarray(prompt, dtype=np.int64), np.asarray(completion, dtype=np.int64)
        _check(index, before, tokens, readable, writable)
        scores = _score(model, before, tokens, positions, dead.to(model.device))
        bad = np.flatnonzero(~np.isfinite(scores.probability))
        if len(bad):
            raise FloatingPointError(
                f"row {index}: the model gives logits that are no numbers at completion token {bad[0]}; its weights "
                "are damaged, or its dtype is too narrow (float16): load it in float32 or bfloat16"
            )
        yield scores


def _vocabulary(model: PreTrainedModel, known: Tensor | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which ids the model can read, and which of them it can write: [rows of the embedding] bool each."""
    embedding: Any = model.get_input_embeddings()
    readable = np.ones(embedding.num_embeddings, dtype=bool)
    writable = np.zeros_like(readable)
    outputs: Any = model.get_output_embeddings()
    count = outputs.weight.shape[0]
    writable[:count] = True if known is None else known.cpu().numpy()[: len(writable)]
    return readable, writable


def _check(
    index: int,
    prompt: NDArray[np.int64],
    completion: NDArray[np.int64],
    readable: NDArray[np.bool_],
    writable: NDArray[np.bool_],
) -> None:
    """ValueError naming the row where it cannot be scored."""
    if len(completion) and not len(prompt):
        raise ValueError(f"row {index}: no prompt tokens, so nothing can predict its first completion token; add one")
    for name, tokens, allowed in (("prompt", prompt, readable), ("completion", completion, writable)):
        outside = (tokens < 0) | (tokens >= len(allowed))
        wrong = np.flatnonzero(outside | ~allowed[np.where(outside, 0, tokens)])
        if len(wrong):
            raise ValueError(
                f"row {index}: {name} token {wrong[0]} is the id {tokens[wrong[0]]}, which is none of the model's "
                f"{allowed.sum()} tokens; score with a model of the rows' own vocabulary"
            )


@torch.inference_mode()
def _score(
    model: PreTrainedModel,
    prompt: NDArray[np.int64],
    completion: NDArray[np.int64],
    positions: int,
    dead: Tensor,
) -> TokenScores:
    """One checked row."""
    cache: Any = None
    if len(completion):
        # Nothing is asked about the prompt's own tokens, so they need no logits.
        for piece in _pieces(prompt[:-1], positions, model.device):
            cache = model.base_model(input_ids=piece, past_key_values=cache, use_cache=True).past_key_values
    found = []
    read = np.concatenate((prompt[-1:], completion[:-1])) if len(completion) else completion
    targets = _pieces(completion, positions, model.device)
    for piece, target in zip(_pieces(read, positions, model.device), targets, strict=True):
        output = model(input_ids=piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits, target = output.logits[0], target[0].to(output.logits.device)
        for start in range(0, len(target), _SOFTMAX_ROWS):
            part = slice(start, start + _SOFTMAX_ROWS)
            found.append(_statistics(logits[part], target[part], dead.to(logits.device)))
    probability, rank, entropy = (torch.cat(parts).cpu() for parts in zip(*found, strict=True)) if found else _NOTHING
    return TokenScores(probability.numpy(), rank.int().numpy(), entropy.numpy())


_NOTHING = (torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0))


def _pieces(tokens: NDArray[np.int64], length: int, device: torch.device) -> list[Tensor]:
    """The ids as batches of one row [1, up to `length`] int64."""
    return [
        torch.from_numpy(tokens[start : start + length])[None].to(device) for start in range(0, len(tokens), length)
    ]


def _statistics(logits: Tensor, tokens: Tensor, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of `logits` [rows, vocab] and the token that came at each: probability, rank, entropy, each [rows]."""
    values = logits.float()
    if len(dead):
        values = values.index_fill(-1, dead, float("-inf"))
    taken = tokens[:, None]
    # By logits: two that differ may have the same probability after rounding.
    rank = (values > values.gather(-1, taken)).sum(dim=-1) + 1
    probabilities = torch.softmax(values, dim=-1)
    # entr(0) is 0, where p * log p would be no number.
    entropy = torch.special.entr(probabilities).sum(dim=-1).clamp(min=0)
    return probabilities.gather(-1, taken).squeeze(-1), rank, entropy
