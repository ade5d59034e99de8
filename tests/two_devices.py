"""A pass of a model on two devices that are not there, followed by torch's fake tensors: they have a device and no
numbers, and refuse to be mixed with those of another device. Run as a script by test_split, since the stand-in for a
kind of device that it registers stays for the life of a process."""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import Qwen3Config, Qwen3ForCausalLM

from rsd import lanes
from rsd.attention import FUSED
from rsd.split import is_split, layer_devices

KIND = "standin"


class LeadingHook(AlignDevicesHook):
    """accelerate's hook, for modules whose tensors are in their places: fake ones it cannot move itself."""

    def init_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        return module


def put(model: Any, plan: dict[str, torch.device]) -> None:
    """What `from_pretrained` does by a plan."""
    for name, device in plan.items():
        for part in model.get_submodule(name).modules():
            for values in (part._parameters, part._buffers):
                for key, value in [item for item in values.items() if item[1] is not None]:
                    moved = torch.empty_like(value, device=device)
                    values[key] = torch.nn.Parameter(moved) if values is part._parameters else moved
        add_hook_to_module(model.get_submodule(name), LeadingHook(device))
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    add_hook_to_module(model, LeadingHook(plan["model.embed_tokens"], io_same_device=True), append=True)
    model.hf_device_map = plan


def run(*, ours: bool, tied: bool) -> None:
    first, second = torch.device(KIND, 0), torch.device(KIND, 1)
    lanes.choose_attention = lambda *_: FUSED  # type: ignore[assignment]
    can_fuse = lanes.can_fuse
    lanes.can_fuse = lambda model: ours and can_fuse(model)  # type: ignore[assignment]
    plan = dict.fromkeys(("model.embed_tokens", "model.layers.0"), first)
    plan |= dict.fromkeys(("model.layers.1", "model.norm", "model.rotary_emb"), second)
    plan["lm_head"] = first if tied else second
    config = Qwen3Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
    )
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model = Qwen3ForCausalLM(config).eval()
        put(model, plan)
        read = lanes.ModelLanes(model, 4, 40)
        assert layer_devices(model) == [first, second]
        assert is_split(model)
        assert read.graphed is None
        assert [keys.device for keys in read.cache.keys] == [first, second]
        tokens = torch.zeros(3, 2, dtype=torch.int64, device=first)
        logits = read._model_forward(tokens, read.lengths[:3], 256)
        assert logits.device == first, logits.device
        assert logits.shape == (3, 2, 96)


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend(KIND)
    for ours in (True, False):
        for tied in (False, True):
            run(ours=ours, tied=tied)
            print(f"ours={ours} tied={tied}: fine")
    sys.exit(0)
