"""Models with random weights in the shapes of public ones, made without any download, to be timed.

How long a forward pass takes depends on the shapes, not on the weights. Needs torch and transformers alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)


def _llama(hidden: int, inner: int, layers: int, heads: int, groups: int, theta: float) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=True,
    )


def _qwen3(hidden: int, inner: int, layers: int, heads: int) -> PreTrainedConfig:
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
    )


def _qwen25(hidden: int, inner: int, layers: int, heads: int, groups: int) -> PreTrainedConfig:
    return Qwen2Config(
        vocab_size=152064,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=False,
    )


# As in the models' public config.json, by hub id.
SHAPES: dict[str, PreTrainedConfig] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _llama(576, 1536, 30, 9, 3, 100_000.0),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _llama(2048, 8192, 24, 32, 32, 130_000.0),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16),
    "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32),
    "Qwen/Qwen2.5-7B-Instruct": _qwen25(3584, 18944, 28, 28, 4),
    "simplescaling/s1.1-7B": _qwen25(3584, 18944, 28, 28, 4),
}


def shape_of(source: str, folder: Path | None = None) -> PreTrainedConfig:
    """The shape of a model: that of its `folder` where it is there, else of the public model that its source names.

    `source` as in a configuration (hf://ORG/NAME@COMMIT, pypi://...GGUF), or a hub id. Raises ValueError with the
    remedy for a source whose shape is not known here.
    """
    if folder is not None and (folder / "config.json").exists():
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    for name, config in SHAPES.items():
        if source.removeprefix("hf://").partition("@")[0] == name or name.rpartition("/")[2] in source:
            return config
    raise ValueError(
        f"{source}: the shape of this model is not known here ({', '.join(SHAPES)} are), and it is not downloaded; "
        "run the downloads first (snakemake --cores 1 downloads)"
    )


def random_model(config: PreTrainedConfig, *, dtype: str, device: str, seed: int = 0) -> PreTrainedModel:
    """A model of that shape with random weights, for inference: weights in `dtype`, made on `device`."""
    torch.manual_seed(seed)
    # Made where and as it shall be: in float32 first, a model of 7 G parameters would need 30 GB of the host's memory.
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    # A trace of a random model must not end before its time.
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model.eval().requires_grad_(False)
