"""Linear layers for a CPU: the weights of a model laid out once for the vector units, by oneDNN through torch.

torch's own `linear` lays a weight out anew at every call, which for few rows costs several times the product itself.
Packed products also have the property that exact decoding rests on: in float32 a row's result is the same bits whatever
the number of rows beside it, from LEAST_ROWS on, and whatever the number of threads (tests/unit/test_packing.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

# A single row takes another path, with another order of summation.
LEAST_ROWS = 4
# The layout is made for about this many rows and works for any number.
_TYPICAL_ROWS = 32


class PackedLinear(torch.nn.Module):
    """A linear layer for inference: input [..., in] -> output [..., out], in the weight's dtype."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Only the shape and dtype of the original are kept; what asks a layer for its size finds it here.
        self.weight = torch.nn.Parameter(linear.weight.detach().to("meta"), requires_grad=False)
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), _TYPICAL_ROWS)

    def forward(self, values: Tensor) -> Tensor:
        """Values times the transposed weight, plus the bias if there is one."""
        return torch.ops.mkldnn._linear_pointwise(values, self.packed, self.bias, "none", [], "")


class SteadySiLU(torch.nn.Module):
    """x * sigmoid(x), of operations that give a number the same bits wherever in a tensor it stands.

    torch's own computes the last numbers of every thread's share by another exponential function.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Elementwise, float32."""
        return values / torch.exp(-values).add_(1)


def steady(model: PreTrainedModel) -> None:
    """Replaces every SiLU of a model by a steady one."""
    _replace(model, (torch.nn.SiLU, SiLUActivation), lambda _: SteadySiLU())


def can_pack(model: PreTrainedModel) -> bool:
    """Is this a model, and this a build of torch, that can be packed?"""
    return (
        model.device.type == "cpu"
        and model.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        # oneDNN has no bfloat16 for a CPU with AVX2 alone.
        and (model.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def pack(model: PreTrainedModel) -> None:
    """Replaces every linear layer of a model on the CPU, for inference only; the original weights are let go of.

    A model that is packed already stays as it is.
    """
    _replace(model, (torch.nn.Linear,), PackedLinear)


def _replace(model: PreTrainedModel, kinds: tuple[type, ...], make: Callable[[Any], torch.nn.Module]) -> None:
    layers = [(name, layer) for name, layer in model.named_modules() if type(layer) in kinds]
    for name, layer in layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(layer))
