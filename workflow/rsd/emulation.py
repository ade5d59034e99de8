"""Two random models made to agree as a real pair does, so that its speed can be measured without its weights.

Each model runs its whole forward pass; then the logits of a few tokens are overwritten by what both models derive from
the same hash of (token read, position). The law, the drafts and the noise work on those logits as on any others. At a
position, with the stated probabilities,

    fallback      the teacher wants a token that the student gives no chance: rejected, the student's own is taken
    disagreement  the teacher wants a token of which the student thinks possible (about 5 %), not likely
    agreement     both want the same token

so that the student's drafts are right with probability `agreement` and the teacher's with 1 - `fallback`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rsd.streams import states, uniforms

# Tokens that are planted: ids that every vocabulary has, away from its special ones; small vocabularies use all but 0.
FIRST, LAST = 1000, 20_000
PEAK, POSSIBLE = 60.0, 57.0  # logits; e^-3 is 5 %


@dataclass(frozen=True)
class Emulation:
    """`agreement`: probability that the student's draft is the token; `fallback`: that the student's own is taken."""

    agreement: float
    fallback: float


def emulate(student: PreTrainedModel, teacher: PreTrainedModel, emulation: Emulation) -> None:
    """Lets the pair agree as `emulation` says, from now on.

    Raises ValueError for probabilities that do not fit: agreement and fallback together can be at most 1, since where
    the student's own token is taken its draft was right.
    """
    if not 0 <= emulation.fallback <= emulation.agreement <= 1:
        raise ValueError(
            f"agreement {emulation.agreement}, fallback {emulation.fallback}: expected 0 <= fallback <= agreement <= 1 "
            "(where the student's own token is taken, its draft was right)"
        )
    vocab = min(model.config.get_text_config().vocab_size for model in (student, teacher))
    for model, is_teacher in ((student, False), (teacher, True)):
        model.register_forward_hook(partial(_plant, emulation, vocab, is_teacher), with_kwargs=True)


def _plant(
    emulation: Emulation,
    vocab: int,
    is_teacher: bool,
    module: torch.nn.Module,
    _: Any,
    given: dict[str, Any],
    output: Any,
) -> Any:
    noise = states(given["input_ids"], given["position_ids"])  # [rows, width]
    chance = uniforms(noise, 0)
    shared, other = _token(noise, 1, vocab), _token(noise, 2, vocab)
    # A share of the disagreements is drafted right by luck: where the race picks the possible token.
    luck = 1 / (1 + torch.exp(torch.tensor(PEAK - POSSIBLE)).item())
    disagree = (1 - emulation.agreement) / (1 - luck)
    falls_back = chance < emulation.fallback
    differs = chance < emulation.fallback + disagree
    logits = output.logits
    if is_teacher:
        _set(logits, torch.where(differs, other, shared), PEAK)
    else:
        possible = torch.where(differs & ~falls_back, POSSIBLE, logits.float().gather(-1, other[..., None]).squeeze(-1))
        _set(logits, other, possible)
        _set(logits, shared, PEAK)
    return output


def _token(noise: Tensor, number: int, vocab: int) -> Tensor:
    first, last = (FIRST, LAST) if vocab > LAST else (1, vocab)
    return first + (uniforms(noise, number) * (last - first)).long()


def _set(logits: Tensor, tokens: Tensor, values: Tensor | float) -> None:
    values = torch.as_tensor(values, device=logits.device).to(logits.dtype).expand(tokens.shape)
    logits.scatter_(-1, tokens[..., None], values[..., None])
