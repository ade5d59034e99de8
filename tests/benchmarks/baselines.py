"""Other ways of generating, to time the project's decoder against. Each is one run; a warm-up is the caller's business.

They are given models as transformers loads them. A model that `ModelLanes` has taken over is another thing: its
attention and linear layers are exchanged, so each way needs a model of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rsd.law import Law, Sampling

# --- the authors' way ----------------------------------------------------------------------------------------------


def authors_way(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompt_ids_student: Sequence[int],
    prompt_ids_teacher: Sequence[int],
    new_tokens: int,
    law: Law,
) -> float:
    """Seconds that Reverse Speculative Decoding of one attempt takes the authors' way (`authors_tokens`)."""
    require_plain(student, teacher)
    start = time.perf_counter()
    authors_tokens(student, teacher, prompt_ids_student, prompt_ids_teacher, new_tokens, law)
    return seconds_since(start, student.device)


def authors_way_sampled(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompt_ids_student: Sequence[int],
    prompt_ids_teacher: Sequence[int],
    new_tokens: int,
    law: Law,
    lengths: Sequence[int],
) -> float:
    """An estimate of `authors_way` for traces too long to be made: a sum over the time of single tokens.

    `lengths`: numbers of trace tokens behind the prompt, ascending, from 0 to `new_tokens`; 8 are plenty. At each, one
    token is timed with contexts of that length (of random tokens: time does not depend on them), both forward passes
    over the whole contexts and the retry loop. In between, the time of a token is taken as linear, which is the
    trapezoidal rule; since it grows faster than linearly in the context, the sum is a little too large, not too small.
    """
    require_plain(student, teacher)
    if list(lengths) != sorted(lengths) or lengths[0] != 0 or lengths[-1] != new_tokens:
        raise ValueError(f"lengths {list(lengths)}: expected ascending numbers from 0 to new_tokens = {new_tokens}")
    generator = torch.Generator(student.device).manual_seed(0)
    # Ids that both models have.
    shared = min(student.config.vocab_size, teacher.config.vocab_size)
    trace = torch.randint(shared, (new_tokens,), generator=generator, device=student.device).tolist()
    seconds = []
    for length in lengths:
        start = time.perf_counter()
        authors_token(
            student,
            teacher,
            [*prompt_ids_student, *trace[:length]],
            [*prompt_ids_teacher, *trace[:length]],
            law,
            generator,
        )
        seconds.append(seconds_since(start, student.device))
    return float(np.interp(np.arange(new_tokens), lengths, seconds).sum())


def authors_tokens(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompt_ids_student: Sequence[int],
    prompt_ids_teacher: Sequence[int],
    new_tokens: int,
    law: Law,
    seed: int = 0,
) -> list[int]:
    """The trace itself, `new_tokens` ids: one attempt at a time, and no cache between tokens.

    Both models must have the same ids; one that the student lacks is never proposed, and the teacher must lack none.
    """
    generator = torch.Generator(student.device).manual_seed(seed)
    trace: list[int] = []
    for _ in range(new_tokens):
        contexts = [*prompt_ids_student, *trace], [*prompt_ids_teacher, *trace]
        trace.append(authors_token(student, teacher, *contexts, law, generator))
    return trace


def authors_token(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    student_context: Sequence[int],
    teacher_context: Sequence[int],
    law: Law,
    generator: torch.Generator,
) -> int:
    """One token: both models read their whole context anew, then the retry loop."""
    student_logits, teacher_logits = last_logits(student, student_context), last_logits(teacher, teacher_context)
    return retry_loop(student_logits, teacher_logits, law, generator)


@torch.inference_mode()
def last_logits(model: PreTrainedModel, context: Sequence[int]) -> Tensor:
    """Raw logits [vocab] float32 behind the context; the output layer is computed at its last position alone."""
    tokens = torch.tensor([context], device=model.device)
    return model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[0, -1].float()


def retry_loop(student_logits: Tensor, teacher_logits: Tensor, law: Law, generator: torch.Generator) -> int:
    """Up to `law.draws` proposals of the teacher's; the first that the student accepts, or else its own token."""
    probabilities = torch.softmax(student_logits, dim=-1)
    acceptable = set(student_logits.topk(law.accept_top_k).indices.tolist()) if law.accept_top_k else None
    candidates, weights = top(teacher_logits, law.proposal)
    weights = weights * (candidates < len(student_logits))
    for _ in range(law.draws if weights.any() else 0):
        token = int(candidates[torch.multinomial(weights, 1, generator=generator)])
        if probabilities[token] >= law.threshold and (acceptable is None or token in acceptable):
            return token
    candidates, weights = top(student_logits, law.fallback)
    return int(candidates[torch.multinomial(weights, 1, generator=generator)])


def top(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The `top_k` most probable tokens and their probabilities, [k] each."""
    if sampling.temperature <= 0 or sampling.top_p < 1:
        raise ValueError(f"{sampling}: expected a temperature above 0 and top_p = 1, as in the authors' code")
    values, tokens = logits.topk(min(sampling.top_k or len(logits), len(logits)))
    return tokens, torch.softmax(values / sampling.temperature, dim=-1)


# --- transformers --------------------------------------------------------------------------------------------------


def transformers_generate(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
    """Seconds that transformers' own `generate` takes for all prompts at once (`generate_tokens`)."""
    require_plain(model)
    start = time.perf_counter()
    generate_tokens(model, prompts, new_tokens)
    return seconds_since(start, model.device)


@torch.inference_mode()
def generate_tokens(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> Tensor:
    """Plain sampling, temperature 1 and top-k 20: `new_tokens` ids of each prompt, [prompts, new_tokens] int64.

    The configuration is the fastest that needs no compilation: attention by torch (`sdpa`), the default cache.
    """
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    made = model.generate(  # type: ignore[operator]
        input_ids=tokens,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=20,
        top_p=1.0,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        # Given here, None counts: there is no end of turn, whatever the model's own generation config says.
        eos_token_id=None,
        pad_token_id=0,
    )
    return made[:, longest:]


# --- both ----------------------------------------------------------------------------------------------------------


def require_plain(*models: PreTrainedModel) -> None:
    """ValueError for a model whose attention is not torch's: it would not be timed as its users have it."""
    for model in models:
        if (attention := model.config._attn_implementation) != "sdpa":
            raise ValueError(
                f"{model.config.model_type}: its attention is {attention!r}, expected 'sdpa'; load the model anew, not "
                "one that ModelLanes has taken over"
            )


def seconds_since(start: float, device: torch.device) -> float:
    """Seconds since `start` (time.perf_counter) till the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
