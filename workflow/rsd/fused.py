"""The forward pass of Llama-like models written out: the same numbers as transformers' to rounding, in half the calls.

A step of a small model is over before the interpreter has called a thousand small operations, and many narrow products
read memory slower than a few wide ones. So projections that read the same input are one product, and what stands
between products is as few operations as it takes. Llama, Qwen2 and Qwen3 are known here; any other model is run by
transformers' own code (`lanes`).
"""

from __future__ import annotations

from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm
from transformers import PreTrainedModel

from rsd.attention import ATTENTION
from rsd.packing import PackedLinear, SteadySiLU, can_pack

KINDS = ("llama", "qwen2", "qwen3")
_FUSED = "_rsd_fused"


def _joined(layers: list[torch.nn.Linear], packed: bool) -> torch.nn.Module:
    """Some linear layers that read the same input, as one: input [..., in] -> outputs beside each other."""
    weights = [layer.weight.detach() for layer in layers]
    # A layer alone is not copied: an output layer tied to the embedding stays the same memory.
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    whole = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=layers[0].bias is not None, device="meta")
    whole.weight = torch.nn.Parameter(weight, requires_grad=False)
    if layers[0].bias is not None:
        whole.bias = torch.nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]), requires_grad=False)
    return PackedLinear(whole) if packed else whole


class _Layer:
    """One transformer layer's weights; the model's own are let go of, but for their shapes."""

    def __init__(self, layer: Any, packed: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.device = attention.q_proj.weight.device
        self.first, self.second = layer.input_layernorm, layer.post_attention_layernorm
        self.norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self.scaling, self.size = attention.scaling, attention.head_dim
        groups = [
            [attention.q_proj, attention.k_proj, attention.v_proj],
            [attention.o_proj],
            [mlp.gate_proj, mlp.up_proj],
            [mlp.down_proj],
        ]
        self.qkv, self.out, self.gate_up, self.down = (_joined(group, packed) for group in groups)
        for group in groups:
            for entry in group:
                _let_go(entry)


class _Fused:
    """What a model has become."""

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        base: Any = model.base_model
        self.packed = can_pack(model)
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.embedding, self.rotary, self.norm = base.embed_tokens, base.rotary_emb, base.norm
        self.layers = [_Layer(layer, self.packed) for layer in base.layers]
        head = model.get_output_embeddings()
        self.head_device = head.weight.device
        self.head = _joined([head], self.packed)
        if not config.tie_word_embeddings:
            _let_go(head)
        # On the CPU in float32 it must not matter where in a tensor a number stands.
        exact = self.packed and model.dtype == torch.float32
        self.silu = SteadySiLU() if exact else torch.nn.SiLU()

    def hidden(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any, attention: str) -> Tensor:
        """The last hidden states [rows, width, hidden] of `tokens`, `positions` [rows, width]."""
        values = self.embedding(tokens)
        turns = (entry.to(values.device) for entry in self.rotary(values, positions))
        cosine, sine = (entry[:, :, None] for entry in turns)  # [rows, width, 1, size]
        half = sine.shape[-1] // 2
        # Turned by half its length a head stands as the rotation needs it, but for the sign of its first half.
        sine = torch.cat((-sine[..., :half], sine[..., half:]), dim=-1)
        for number, layer in enumerate(self.layers):
            if values.device != layer.device:
                values, cosine, sine, mask = (entry.to(layer.device) for entry in (values, cosine, sine, mask))
            query, key, value = self._projections(layer, _normed(values, layer.first), cosine, sine, half)
            keys, stored = cache.update(key.transpose(1, 2), value.transpose(1, 2), number)
            mixed, _ = ATTENTION[attention](None, query.transpose(1, 2), keys, stored, mask, scaling=layer.scaling)
            values = values + layer.out(mixed.flatten(2))
            gate, up = layer.gate_up(_normed(values, layer.second)).chunk(2, dim=-1)
            values = values + layer.down(self.silu(gate).mul_(up))
        return _normed(values.to(self.norm.weight.device), self.norm)

    def _projections(
        self, layer: _Layer, values: Tensor, cosine: Tensor, sine: Tensor, half: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [rows, width, heads, size], the first two rotated."""
        rows, width, _ = values.shape
        wide = layer.qkv(values).view(rows, width, -1, layer.size)
        turned, value = wide[:, :, : self.heads + self.groups], wide[:, :, self.heads + self.groups :]
        if layer.norms is not None:
            query, key = turned[:, :, : self.heads], turned[:, :, self.heads :]
            turned = torch.cat((_normed(query, layer.norms[0]), _normed(key, layer.norms[1])), dim=2)
        # Product and sum apart: one operation for both rounds differently at the end of a tensor.
        turned = (turned * cosine).add_(turned.roll(half, dims=-1).mul_(sine))
        return turned[:, :, : self.heads], turned[:, :, self.heads :], value


def can_fuse(model: PreTrainedModel) -> bool:
    """Is it a kind of model that is written out here?"""
    config = model.config
    plain = getattr(config, "hidden_act", "") == "silu" and not getattr(config, "mlp_bias", False)
    return getattr(model, _FUSED, None) is not None or (config.model_type in KINDS and plain)


def fuse(model: PreTrainedModel) -> None:
    """Gives a model the pass written out here, for inference with a cache of `lanes` only; done once."""
    if getattr(model, _FUSED, None) is None:
        object.__setattr__(model, _FUSED, _Fused(model))
        model.forward = MethodType(_logits, model)
        model.base_model.forward = MethodType(_states, model.base_model)
        object.__setattr__(model.base_model, _FUSED, getattr(model, _FUSED))


def _states(model: Any, *, input_ids: Tensor, position_ids: Tensor, **inputs: Any) -> Any:
    fused, attention = getattr(model, _FUSED), model.config._attn_implementation
    mask, cache = inputs["attention_mask"], inputs["past_key_values"]
    return SimpleNamespace(last_hidden_state=fused.hidden(input_ids, position_ids, mask, cache, attention))


def _logits(model: Any, **inputs: Any) -> Any:
    hidden = _states(model.base_model, **inputs).last_hidden_state
    fused = getattr(model, _FUSED)
    # Who asks is on the first device of a model that is spread over several.
    logits = fused.head(hidden.to(fused.head_device))
    return SimpleNamespace(logits=logits.to(inputs["input_ids"].device))


def _normed(values: Tensor, norm: Any) -> Tensor:
    return rms_norm(values, (values.shape[-1],), norm.weight, norm.variance_epsilon)


def _let_go(layer: torch.nn.Linear) -> None:
    layer.weight = torch.nn.Parameter(layer.weight.detach().to("meta"), requires_grad=False)
