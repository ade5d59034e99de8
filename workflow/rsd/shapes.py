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

from rsd.sizes import PUBLIC, Architecture, public_name


def _transformers_config(sizes: Architecture) -> PreTrainedConfig:
    kind, more = {
        "llama": (LlamaConfig, {"rms_norm_eps": 1e-5}),
        "qwen2": (Qwen2Config, {"rms_norm_eps": 1e-6}),
        "qwen3": (Qwen3Config, {"rms_norm_eps": 1e-6, "head_dim": sizes.head_size}),
    }[sizes.kind]
    return kind(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.groups,
        max_position_embeddings=sizes.positions,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.theta},
        tie_word_embeddings=sizes.tied,
        **more,
    )


# As in the models' public config.json, by hub id.
SHAPES: dict[str, PreTrainedConfig] = {name: _transformers_config(sizes) for name, sizes in PUBLIC.items()}


def shape_of(source: str, folder: Path | None = None) -> PreTrainedConfig:
    """The shape of a model: that of its `folder` where it is there, else of the public model that its source names.

    `source` as in a configuration (hf://ORG/NAME@COMMIT, pypi://...GGUF), or a hub id. Raises ValueError with the
    remedy for a source whose shape is not known here.
    """
    if folder is not None and (folder / "config.json").exists():
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if (name := public_name(source)) is not None:
        return SHAPES[name]
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
