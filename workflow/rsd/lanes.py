"""One model over many lanes: a key-value cache with a length of its own for each lane.

A lane is a row of the cache. Lanes are filled by a prompt, read further by one token or several, moved to close gaps.
The two models of a pair have a `ModelLanes` each, since their contexts differ in length and content.

On the CPU in float32 a lane's numbers do not depend on its neighbours, on how many tokens are read at once, or on the
number of threads, bit for bit: linear layers are packed and activations steady (`packing`), attention is written out in
products that keep their order of summation (`attention.exact_attention`). Elsewhere numbers differ by rounding.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from rsd.attention import EXACT, LENGTH_MULTIPLE, TRITON, choose_attention, exact_mask, round_up, visibility
from rsd.fused import can_fuse, fuse
from rsd.graphs import WIDEST, GraphedForward, bucket
from rsd.packing import LEAST_ROWS, can_pack, pack, steady
from rsd.split import is_split, layer_devices

# A prompt is read in pieces of at most this many tokens, so that a long one needs no more memory than a short one.
READ_TOKENS = 512


class LaneCache:
    """Keys and values of every layer, on its device, allocated once: values [lanes, key-value heads, length, head size]
    a layer, keys likewise, or with the last two exchanged (`transposed`).

    transformers calls `update` from each attention layer; `aim` says beforehand which lanes and positions are meant.
    """

    def __init__(self, model: PreTrainedModel, lanes: int, length: int, *, transposed: bool) -> None:
        _, heads, width = cache_shape(model)
        self.length, self.transposed, self.devices = length, transposed, layer_devices(model)
        size = (length, width)
        self.keys: tuple[Tensor, ...] = ()
        self.values: tuple[Tensor, ...] = ()
        try:
            for device, group in itertools.groupby(self.devices):
                shape = (len(list(group)), lanes, heads)
                values = torch.zeros((*shape, *size), dtype=model.dtype, device=device)
                keys = torch.zeros((*shape, *(size[::-1] if transposed else size)), dtype=model.dtype, device=device)
                # One view a layer, since an index costs as much as a small product.
                self.keys += keys.unbind(0)
                self.values += values.unbind(0)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            gigabytes = lanes * length * cache_bytes_per_token(model) / 1e9
            raise MemoryError(
                f"no memory for {lanes} lanes of {length} tokens ({gigabytes:.1f} GB of keys and values); lower lanes "
                "(of the trace set, or evaluation.lanes) or context"
            ) from error

    def aim(self, rows: int, positions: Tensor, live: int) -> None:
        """The next forward pass writes to the first `rows` lanes at `positions` [rows, width] and reads their first
        `live` entries."""
        self._rows, self._live = rows, live
        self._index = {
            device: (torch.arange(rows, device=device)[:, None], positions.to(device))
            for device in dict.fromkeys(self.devices)
        }

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Stores [rows, heads, width, size] and returns the live part of the rows."""
        rows, positions = self._index[self.devices[layer]]
        mine, theirs = self.keys[layer], self.values[layer]
        theirs[rows, :, positions] = values.transpose(1, 2)
        if self.transposed:
            mine[rows, :, :, positions] = keys.transpose(1, 2)
            return mine[: self._rows, :, :, : self._live], theirs[: self._rows, :, : self._live]
        mine[rows, :, positions] = keys.transpose(1, 2)
        return mine[: self._rows, :, : self._live], theirs[: self._rows, :, : self._live]

    def get_seq_length(self, layer: int = 0) -> int:
        """Unused by the forward pass, which is given its positions."""
        return self._live

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` entries of one lane over another's."""
        for keys, values in zip(self.keys, self.values, strict=True):
            values[target, :, :length] = values[source, :, :length]
            if self.transposed:
                keys[target, :, :, :length] = keys[source, :, :, :length]
            else:
                keys[target, :, :length] = keys[source, :, :length]


def cache_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Layers, key-value heads, head size."""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, config.num_key_value_heads, width


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of keys and values that one token of one lane takes."""
    return 2 * math.prod(cache_shape(model)) * model.dtype.itemsize


class ModelLanes:
    """A model, its cache, and how much of each lane it has read."""

    def __init__(self, model: PreTrainedModel, lanes: int, length: int) -> None:
        """Takes the model over (attention and linear layers are exchanged); `length`: the longest context in tokens.

        Raises ValueError for a model whose attention is not all full or whose positions end before `length`, and
        MemoryError where the cache does not fit.
        """
        _check(model, length)
        attention = choose_attention(model.device, model.dtype)
        if can_fuse(model):
            fuse(model)
        elif can_pack(model):
            pack(model)
            if attention == EXACT:
                steady(model)
        model.set_attn_implementation(attention)
        self.model, self.device = model, model.device
        self.exact, self.in_kernel = attention == EXACT, attention == TRITON
        config = model.config.get_text_config()
        self.shared = config.num_attention_heads // config.num_key_value_heads
        rows = bucket(lanes) if self.in_kernel else lanes
        spare = WIDEST if self.in_kernel else 0
        self.cache = LaneCache(model, rows, round_up(length + spare, LENGTH_MULTIPLE), transposed=self.exact)
        # How much each lane holds: for the model, and the same numbers where looking at them costs nothing.
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.known_lengths: NDArray[np.int64] = np.zeros(rows, dtype=np.int64)
        self.graphed = None
        # A graph is captured on one device.
        if self.in_kernel and not is_split(model):
            # Weakly: a cycle would keep gigabytes of cache until Python happens to look for cycles.
            forward = weakref.WeakMethod(self._model_forward)
            self.graphed = GraphedForward(
                lambda tokens, starts: forward()(tokens, starts),  # type: ignore[misc]
                self.device,
                self.cache.length - WIDEST,
            )

    @torch.inference_mode()
    def forward(self, tokens: Tensor, ahead: int = 0) -> Tensor:
        """Reads `tokens` [n, width] int64 in the first n lanes, behind their lengths and `ahead` tokens more; returns
        the logits after each, [n, width, vocab] in the model's dtype.

        The lengths stay: what was read counts when `advance` says so, and is overwritten otherwise.
        """
        count, width = tokens.shape
        # A few lanes read some tokens too many where fewer rows would be summed in another order; like drafts that come
        # to nothing, these are overwritten by what is read next.
        spare = -(-LEAST_ROWS // count) - width
        if self.exact and spare > 0:
            tokens = torch.nn.functional.pad(tokens, (0, spare))
        return self._forward(self.lengths[:count] + ahead, self.known_lengths[:count] + ahead, tokens)[:, :width]

    def advance(self, emitted: Tensor, known: NDArray[np.int64]) -> None:
        """Lets the first n lanes hold `emitted` [n] more tokens; `known` are the same numbers."""
        self.lengths[: len(emitted)] += emitted
        self.known_lengths[: len(known)] += known

    @torch.inference_mode()
    def read(self, lane: int, tokens: Sequence[int]) -> None:
        """Appends tokens to one lane's context, without looking at what the model makes of them."""
        for start in range(0, len(tokens), READ_TOKENS):
            piece = list(tokens[start : start + READ_TOKENS])
            # As in `forward`.
            padded = piece + [0] * (LEAST_ROWS - len(piece))
            self._read_piece(lane, torch.tensor([padded], device=self.device))
            self.lengths[lane] += len(piece)
            self.known_lengths[lane] += len(piece)

    def _read_piece(self, lane: int, tokens: Tensor) -> None:
        view = _OneLane(self.cache, lane)
        known = int(self.known_lengths[lane])
        positions = (known + torch.arange(tokens.shape[1], device=self.device))[None].clamp(max=self.cache.length - 1)
        live = self._live(known + tokens.shape[1])
        view.aim(1, positions, live)
        mask = self._mask(self.lengths[lane : lane + 1], tokens.shape[1], live)
        self.model.base_model(
            input_ids=tokens, position_ids=positions, attention_mask=mask, past_key_values=view, use_cache=True
        )

    def fill(self, lane: int, tokens: Sequence[int], twin: int | None = None) -> None:
        """Starts a lane's context anew with these tokens; `twin`: an active lane whose context begins with them."""
        self.clear(lane)
        if twin is None:
            self.read(lane, tokens)
        else:
            self.cache.move(twin, lane, len(tokens))
            self.lengths[lane] = len(tokens)
            self.known_lengths[lane] = len(tokens)

    def move(self, source: int, target: int) -> None:
        """Moves a lane over another."""
        self.cache.move(source, target, int(self.known_lengths[source]))
        self.lengths[target] = self.lengths[source]
        self.known_lengths[target] = self.known_lengths[source]

    def clear(self, lane: int) -> None:
        """Forgets a lane's context."""
        self.lengths[lane] = 0
        self.known_lengths[lane] = 0

    def room(self, lane: int) -> int:
        """How many more tokens a lane can take."""
        return self.cache.length - int(self.known_lengths[lane])

    def _forward(self, starts: Tensor, known: NDArray[np.int64], tokens: Tensor) -> Tensor:
        if self.graphed is not None:
            return self.graphed(tokens, starts)
        return self._model_forward(tokens, starts, self._live(int(known.max()) + tokens.shape[1]))

    def _model_forward(self, tokens: Tensor, starts: Tensor, live: int | None = None) -> Tensor:
        """The pass itself; without `live` nothing in it depends on numbers that only the host knows."""
        rows, width = tokens.shape
        live = self.cache.length if live is None else live
        positions = starts[:, None] + torch.arange(width, device=self.device)  # [rows, width]
        # What is drafted behind the end of a context goes to the last entry, which nothing that counts ever reads: the
        # last token of a full context is written, but no model reads it.
        positions = positions.clamp(max=self.cache.length - 1)
        self.cache.aim(rows, positions, live)
        return self.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=self._mask(starts, width, live),
            past_key_values=self.cache,
            use_cache=True,
        ).logits

    def _live(self, length: int) -> int:
        return self.cache.length if self.in_kernel else min(round_up(length, LENGTH_MULTIPLE), self.cache.length)

    def _mask(self, starts: Tensor, width: int, live: int) -> Tensor:
        if self.in_kernel:
            return starts[:, None, None, None]
        visible = visibility(starts, width, live)
        return exact_mask(visible, self.shared) if self.exact else visible


class _OneLane(LaneCache):
    """One lane of a cache as a cache of its own."""

    def __init__(self, cache: LaneCache, lane: int) -> None:
        self.length, self.transposed, self.devices = cache.length, cache.transposed, cache.devices
        self.keys = tuple(keys[lane : lane + 1] for keys in cache.keys)
        self.values = tuple(values[lane : lane + 1] for values in cache.values)


def _check(model: PreTrainedModel, length: int) -> None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    # Some families name the kinds of their layers, the others have a window in all of them or in none.
    if getattr(config, "layer_types", None) is None and window is not None and window < length:
        kinds = {"sliding_attention"}
    if kinds != {"full_attention"}:
        raise ValueError(
            f"{model.config.model_type}: layers of the kinds {sorted(kinds)} are not supported; "
            "choose a model in which every layer attends to everything before it"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise ValueError(
            f"{model.config.model_type}: positions of the kind {rope!r} depend on the longest context beside a lane, "
            "so lanes would change each other; choose a model with another kind of positions"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(
            f"a context of {length} tokens is asked for, but {model.config.model_type} was made for {positions}; "
            "lower context (of the trace set, or of the evaluation profile)"
        )
