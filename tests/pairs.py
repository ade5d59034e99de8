"""Tiny model pairs with random weights, made in milliseconds: a student with two tokens that the teacher lacks."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from rsd.vocabulary import Alignment

STUDENT_SIZE, TEACHER_SIZE = 24, 30
END, THINK = 1, 22  # the student's end of turn (shared), and a token that the teacher spells in three


def tiny_model(seed: int, vocab: int, *, width: int = 32, layers: int = 2, scale: float = 1.0) -> PreTrainedModel:
    """A Qwen3 with random weights; `scale` sharpens its output."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    model.lm_head.weight.mul_(scale / model.lm_head.weight.std() / width**0.5)
    return model


def tiny_alignment() -> Alignment:
    """Ids 0..21 are shared but shifted by two; 22 and 23 are the student's alone."""
    to_teacher = torch.full((STUDENT_SIZE,), -1, dtype=torch.int64)
    to_teacher[:22] = torch.arange(22) + 2
    return Alignment.of(to_teacher, {22: [3, 4, 5], 23: [6, 7]}, TEACHER_SIZE)
