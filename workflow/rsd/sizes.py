"""How large a model is, before it is downloaded: parameters, and the shape that its memory and time follow from.

An entry of `models` -> a Shape, by the first of these that is there: `models.NAME.parameters`, the downloaded folder,
the public shapes below, a size in the source's name (7B, 0.6B, 135M), a cautious default. Imports nothing heavy, since
it is called while the workflow is parsed.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rsd import config as settings_of
from rsd import lineage
from rsd.config import Config

# Of a model about which nothing is known.
UNKNOWN_PARAMETERS = 8_000_000_000
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# A size as names of models give it, such as 7B, 0.6B, 1_7b or 135M; not the 4 of Q4, not the 1 of v1.1.
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z0-9])")
_UNITS = {"b": 1e9, "m": 1e6}


@dataclass(frozen=True)
class Shape:
    """A model's parameters (embeddings once where tied), and the sizes of its layers.

    `queries` and `keys` are heads times head size; `found` says where the number of parameters comes from.
    """

    parameters: int
    layers: int
    width: int
    queries: int
    keys: int
    vocabulary: int
    positions: int
    tied: bool
    found: str

    def cache_bytes(self, dtype: str) -> int:
        """Keys and values that one token of one lane takes."""
        return 2 * self.layers * self.keys * ITEM_BYTES[dtype]


@dataclass(frozen=True)
class Architecture:
    """The sizes of a public model as its config.json has them; `kind` is llama, qwen2 or qwen3."""

    kind: str
    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    groups: int
    head_size: int
    positions: int
    theta: float
    tied: bool = True

    @property
    def parameters(self) -> int:
        """How many there are, tied ones once."""
        queries, keys = self.heads * self.head_size, self.groups * self.head_size
        layer = 2 * self.width * (queries + keys) + 3 * self.width * self.inner + 2 * self.width
        layer += {"llama": 0, "qwen2": queries + 2 * keys, "qwen3": 2 * self.head_size}[self.kind]
        return self.layers * layer + self.width + self.vocabulary * self.width * (1 if self.tied else 2)

    def shape(self, found: str) -> Shape:
        """The same as a Shape."""
        return Shape(
            parameters=self.parameters,
            layers=self.layers,
            width=self.width,
            queries=self.heads * self.head_size,
            keys=self.groups * self.head_size,
            vocabulary=self.vocabulary,
            positions=self.positions,
            tied=self.tied,
            found=found,
        )


def _smollm2(width: int, inner: int, layers: int, heads: int, groups: int, theta: float) -> Architecture:
    return Architecture("llama", 49152, width, inner, layers, heads, groups, 64, 8192, theta)


def _qwen3(width: int, inner: int, layers: int, heads: int) -> Architecture:
    return Architecture("qwen3", 151936, width, inner, layers, heads, 8, 128, 40960, 1_000_000.0)


_QWEN25_7B = Architecture("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, 32768, 1_000_000.0, tied=False)

# As in the models' public config.json, by hub id.
PUBLIC: dict[str, Architecture] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(576, 1536, 30, 9, 3, 100_000.0),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(2048, 8192, 24, 32, 32, 130_000.0),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16),
    "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32),
    "Qwen/Qwen2.5-7B-Instruct": _QWEN25_7B,
    "simplescaling/s1.1-7B": _QWEN25_7B,
}


def public_name(source: str) -> str | None:
    """The public model that a source (hf://ORG/NAME@COMMIT, pypi://...GGUF, a hub id) names, if its shape is known."""
    for name in PUBLIC:
        if source.removeprefix("hf://").partition("@")[0] == name or name.rpartition("/")[2] in source:
            return name
    return None


def shape_of_model(config: Config, model: str, models: Path) -> Shape:
    """The shape of an entry of `models`; of one that this run trains, that of the model which training began with.

    `models`: the folder that downloads are in.
    """
    name = lineage.origin(config, model)
    entry = config["models"][name]
    source, stated = entry["source"], entry["parameters"]
    if source.startswith("pocket://"):
        shape = pocket_shape(config["pocket"][source.removeprefix("pocket://")])
    else:
        shape = _found(source, models / settings_of.model_key(config, name))
    if stated is None:
        return shape
    known = source.startswith("pocket://") or shape.found in ("downloaded", "public")
    stated_shape = shape if known else guessed_shape(stated, "")
    return replace(stated_shape, parameters=stated, found=f"models.{name}.parameters")


@functools.cache
def _found(source: str, folder: Path) -> Shape:
    """Looked up once a process: a plan of a thousand jobs reads a folder once."""
    if (shape := _downloaded(folder)) is not None:
        return shape
    if (public := public_name(source)) is not None:
        return PUBLIC[public].shape("public")
    if (named := named_parameters(source)) is not None:
        return guessed_shape(named, "its name")
    return guessed_shape(UNKNOWN_PARAMETERS, "nothing is known: a cautious default")


def _downloaded(folder: Path) -> Shape | None:
    """From the config.json and the manifest of a complete folder; None where it has not all that is needed."""
    try:
        manifest, facts = (json.loads((folder / name).read_text("utf-8")) for name in ("manifest.json", "config.json"))
        facts = {**facts, **facts.get("text_config", {})}
        stored = facts.get("dtype") or facts.get("torch_dtype") or "float32"
        size = sum(entry["size"] for name, entry in manifest["files"].items() if name.endswith(".safetensors"))
        heads, width = facts["num_attention_heads"], facts["hidden_size"]
        head_size = facts.get("head_dim") or width // heads
        shape = Shape(
            parameters=size // ITEM_BYTES[stored],
            layers=facts["num_hidden_layers"],
            width=width,
            queries=heads * head_size,
            keys=(facts.get("num_key_value_heads") or heads) * head_size,
            vocabulary=facts["vocab_size"],
            positions=facts.get("max_position_embeddings") or 32768,
            tied=bool(facts.get("tie_word_embeddings", True)),
            found="downloaded",
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Not there, or not of the usual form: then the name must do.
        return None
    return shape if shape.parameters else None


def named_parameters(source: str) -> int | None:
    """The number of parameters that a source's name gives, the last that is there; None where it gives none."""
    found = _SIZE.findall(source.partition("@")[0].replace("_", "-"))
    return round(float(found[-1][0]) * _UNITS[found[-1][1].lower()]) if found else None


def guessed_shape(parameters: int, found: str) -> Shape:
    """A shape for so many parameters that asks for rather too much: every head with keys of its own.

    Layers of 12 width^2 parameters, 128 times as wide as there are layers, as large models are.
    """
    depth = (parameters / (12 * 128**2)) ** (1 / 3)
    layers, width = math.ceil(depth), max(64, math.ceil(128 * depth))
    return Shape(
        parameters=parameters,
        layers=layers,
        width=width,
        queries=width,
        keys=width,
        vocabulary=152064,
        positions=32768,
        tied=True,
        found=found,
    )


def pocket_shape(recipe: Mapping[str, Any]) -> Shape:
    """Of a model that the pipeline makes itself, as `pocket` makes it, with the larger vocabulary of its two."""
    width, layers, heads = (recipe[name] for name in ("width", "layers", "heads"))
    made = Architecture("qwen3", 288, width, 3 * width, layers, heads, heads, 16, 256, 10_000.0)
    return made.shape("its recipe")
