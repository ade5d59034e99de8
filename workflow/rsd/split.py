"""A model whose layers are spread over several GPUs of one machine: which layer goes where.

Made before anything is loaded, of the shapes in the model's folder, by accelerate's own function. The decoder's pass
(`fused`, `lanes`) then goes from device to device; transformers' own passes are led there by accelerate's hooks.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import infer_auto_device_map, init_empty_weights
from accelerate.utils import compute_module_sizes
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


def plan_layers(folder: Path, dtype: str, gpus: int) -> dict[str, int]:
    """Module -> number of the GPU, for the model in `folder`; errors as `spread`."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return spread(config, dtype, gpus)


def spread(config: PreTrainedConfig, dtype: str, gpus: int) -> dict[str, int]:
    """Layers in their order, about as many bytes on each of `gpus` GPUs; no layer is cut, and the first reads.

    Raises ValueError where there are fewer layers than GPUs.
    """
    kind = getattr(torch, dtype)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=False)
    model.tie_weights()
    layers = config.get_text_config().num_hidden_layers
    if layers < gpus:
        raise ValueError(f"models.NAME.gpus = {gpus}, but {config.model_type} has {layers} layers; lower gpus")
    sizes: dict[str, int] = compute_module_sizes(model, dtype=kind)
    blocks = sorted(size for name, size in sizes.items() if name.rpartition(".")[0].endswith("layers"))
    # The least room on each GPU with which all of it finds a place, block by block.
    for share in range(math.ceil(sizes[""] / gpus), sizes[""] + 1, max(1, blocks[0] // 4)):
        plan = infer_auto_device_map(
            model,
            max_memory=dict.fromkeys(range(gpus), share) | {"cpu": 0},
            no_split_module_classes=sorted(model._no_split_modules or ()),
            dtype=kind,
        )
        if set(plan.values()) == set(range(gpus)):
            return plan
    raise ValueError(f"models.NAME.gpus = {gpus}: {config.model_type} cannot be spread so far; lower gpus")


def layer_devices(model: PreTrainedModel) -> list[torch.device]:
    """Where each layer is, in their order."""
    count = model.config.get_text_config().num_hidden_layers
    plan: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    if len(set(plan.values())) < 2:
        return [model.device] * count
    return [_device(plan, f"{model.base_model_prefix}.layers.{number}") for number in range(count)]


def is_split(model: PreTrainedModel) -> bool:
    """Is it on more than one device?"""
    return len(set(layer_devices(model))) > 1


def _device(plan: dict[str, Any], name: str) -> torch.device:
    """That of a module, or of what it is a part of."""
    while name not in plan and name:
        name = name.rpartition(".")[0]
    found = plan[name]
    return torch.device("cuda", found) if isinstance(found, int) else torch.device(found)
