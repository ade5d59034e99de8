"""Models and tokenizers from local folders: safetensors only, no code from the folder is run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rsd.provenance import settings_digest
from rsd.split import layer_devices, plan_layers

LOG = logging.getLogger(__name__)


def load_model(folder: Path, dtype: str, device: str, gpus: int = 1) -> PreTrainedModel:
    """A causal language model for inference: weights in `dtype` (float32 | bfloat16 | float16) on `device`.

    On a GPU its layers may be spread over the first `gpus` that this process sees; a CPU holds all of them.

    Raises FileNotFoundError where the folder has no config or no safetensors weights.
    """
    _require(folder, "config.json", "model configuration")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} holds no weights (*.safetensors); delete the folder and run its prefetch again, "
            "or point the model's `source` to one that holds them"
        )
    plan = plan_layers(folder, dtype, gpus) if gpus > 1 and device == "cuda" else None
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        device_map=plan,
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    LOG.info("loaded %s: %.4g M parameters, %s, %s", folder.name, parameters / 1e6, dtype, device)
    if plan is None:
        # `nn.Module.to` does not go through transformers' annotated wrapper.
        torch.nn.Module.to(model, device)
    else:
        LOG.info("its layers are on GPUs %s", [where.index for where in layer_devices(model)])
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer; FileNotFoundError where it has none."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        _require(folder, "tokenizer.json", "tokenizer")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The id of a text that must be a single token; ValueError where it is not."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(
            f"format.end_of_turn = {text!r}: expected a single token of the model, but its tokenizer reads it as "
            f"{len(ids)} tokens; correct format.end_of_turn, or choose another model"
        )
    return ids[0]


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over which id stands for which token; equal for tokenizers that can read each other's ids."""
    return settings_digest(tokenizer.get_vocab())


def _require(folder: Path, name: str, what: str) -> None:
    if not (folder / name).exists():
        raise FileNotFoundError(
            f"{folder} has no {what} ({name}); delete the folder and run its prefetch again, "
            "or point the model's `source` to a complete one"
        )
