"""One model over many lanes: a key-value cache with a length of its own for each lane.

A lane is a row of the cache. Lanes are filled by a prompt, advanced by one token a step, moved to close gaps. The two
models of a pair have a `ModelLanes` each, since their contexts differ in length and content.

On the CPU in float32 a lane's numbers do not depend on its neighbours, bit for bit: prompts are read one at a time,
rows come in multiples of ROW_MULTIPLE and cache lengths in multiples of LENGTH_MULTIPLE, where matrix products keep
their order of summation, and attention is written out in such products. Elsewhere it is torch's own attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

ROW_MULTIPLE = 4
LENGTH_MULTIPLE = 128


class LaneCache:
    """Keys and values of every layer, [lanes, key-value heads, length, head size], allocated once.

    transformers calls `update` from each attention layer; `aim` says beforehand which lanes and positions are meant.
    """

    def __init__(self, model: PreTrainedModel, lanes: int, length: int) -> None:
        config = model.config.get_text_config()
        heads = config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, lanes, heads, length, width)
        try:
            self.keys = torch.zeros(shape, dtype=model.dtype, device=model.device)
            self.values = torch.zeros_like(self.keys)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            size = 2 * math.prod(shape) * model.dtype.itemsize / 1e9
            raise MemoryError(
                f"no memory for {lanes} lanes of {length} tokens ({size:.1f} GB of keys and values); lower lanes (of "
                "the trace set, or evaluation.lanes) or context"
            ) from error

    def aim(self, rows: slice, positions: Tensor, live: int) -> None:
        """The next forward pass writes to `rows` at `positions` [rows, width] and reads the first `live` entries."""
        self._rows, self._live = rows, live
        self._index = torch.arange(rows.start, rows.stop, device=positions.device)[:, None], positions

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Stores [rows, heads, width, size] and returns the live part of the rows."""
        rows, positions = self._index
        self.keys[layer][rows, :, positions] = keys.transpose(1, 2)
        self.values[layer][rows, :, positions] = values.transpose(1, 2)
        return self.keys[layer, self._rows, :, : self._live], self.values[layer, self._rows, :, : self._live]

    def get_seq_length(self, layer: int = 0) -> int:
        """Unused by the forward pass, which is given its positions."""
        return self._live

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` entries of one lane over another's."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


class ModelLanes:
    """A model, its cache, and how much of each lane it has read."""

    def __init__(self, model: PreTrainedModel, lanes: int, length: int) -> None:
        """Takes the model over (its attention implementation changes); `length`: the longest context in tokens.

        Raises ValueError for a model whose attention is not all full or whose positions end before `length`, and
        MemoryError where the cache does not fit.
        """
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ValueError(
                f"{model.config.model_type}: layers of the kinds {sorted(kinds)} are not supported; "
                "choose a model in which every layer attends to everything before it"
            )
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and length > positions:
            raise ValueError(
                f"a context of {length} tokens is asked for, but {model.config.model_type} was made for {positions}; "
                "lower context (of the trace set, or of the evaluation profile)"
            )
        exact = model.dtype == torch.float32 and model.device.type == "cpu"
        model.set_attn_implementation(LANE_ATTENTION if exact else "sdpa")
        self.model = model
        rows = round_up(lanes, ROW_MULTIPLE)
        self.cache = LaneCache(model, rows, round_up(length, LENGTH_MULTIPLE))
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self.device = model.device

    @torch.inference_mode()
    def read(self, lane: int, tokens: Sequence[int]) -> None:
        """Appends tokens to one lane's context, without looking at what the model makes of them."""
        if tokens:
            self._forward(slice(lane, lane + 1), torch.tensor([list(tokens)], device=self.device), heads=False)
            self.lengths[lane] += len(tokens)

    def fill(self, lane: int, tokens: Sequence[int], twin: int | None = None) -> None:
        """Starts a lane's context anew with these tokens; `twin`: an active lane whose context begins with them."""
        self.clear(lane)
        if twin is None:
            self.read(lane, tokens)
        else:
            self.cache.move(twin, lane, len(tokens))
            self.lengths[lane] = len(tokens)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Appends one token [n] to each of the first n lanes; returns the logits after it, [n, vocab] in the model's
        dtype."""
        count = len(tokens)
        rows = round_up(count, ROW_MULTIPLE)
        padded = torch.nn.functional.pad(tokens, (0, rows - count))
        logits = self._forward(slice(0, rows), padded[:, None], heads=True)
        self.lengths[:count] += 1
        return logits[:count, -1]

    def move(self, source: int, target: int) -> None:
        """Moves a lane over another."""
        self.cache.move(source, target, int(self.lengths[source]))
        self.lengths[target] = self.lengths[source]

    def clear(self, lane: int) -> None:
        """Forgets a lane's context."""
        self.lengths[lane] = 0

    def _forward(self, rows: slice, tokens: Tensor, heads: bool) -> Tensor:
        start = self.lengths[rows]
        positions = start[:, None] + torch.arange(tokens.shape[1], device=self.device)  # [rows, width]
        # Rows beyond the active lanes hold a dead lane's length; they must not write past the end.
        positions = positions.clamp(max=self.cache.keys.shape[3] - 1)
        live = min(round_up(int(positions.max()) + 1, LENGTH_MULTIPLE), self.cache.keys.shape[3])
        mask = torch.arange(live, device=self.device) <= positions[:, None, :, None]  # [rows, 1, width, live]
        self.cache.aim(rows, positions, live)
        arguments = {
            "input_ids": tokens,
            "position_ids": positions,
            "attention_mask": mask,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if heads:
            return self.model(**arguments, logits_to_keep=1).logits
        return self.model.base_model(**arguments).last_hidden_state


def lane_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention in plain matrix products, so that a row's sums do not depend on the padding behind it.

    `query` [rows, heads, width, size], `key`, `value` [rows, key-value heads, live, size], `attention_mask` bool
    [rows, 1, width, live] -> [rows, width, heads, size].
    """
    rows, heads, width, size = query.shape
    groups = key.shape[1]
    # The heads that share keys are laid side by side as more queries: [rows, groups, heads/groups * width, size].
    query = query.reshape(rows, groups, heads // groups * width, size) * scaling
    scores = torch.matmul(query, key.transpose(-1, -2))
    hidden = ~attention_mask[:, :, None].expand(-1, -1, heads // groups, -1, -1).reshape(rows, 1, -1, key.shape[2])
    scores = scores.masked_fill_(hidden, float("-inf"))
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp_()
    # Summing by a product keeps the order of summation of the numerator; 16 columns, since one takes another path.
    total = torch.matmul(weights, weights.new_ones(key.shape[2], 16))[..., :1]
    out = torch.matmul(weights, value) / total
    return out.view(rows, heads, width, size).transpose(1, 2).contiguous(), None


LANE_ATTENTION = "rsd_lanes"
AttentionInterface.register(LANE_ATTENTION, lane_attention)


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below `value`."""
    return -(-value // multiple) * multiple
