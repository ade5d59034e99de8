"""Models with random weights by a short name, and their folders for engines that want one; nothing is downloaded.

How long a forward pass takes depends on the shapes, not on the weights. What tokens come out does depend on them: a
random model's distribution is nearly flat, no token of it has 1 %, and every token of an RSD trace is a fallback,
unless `rsd.emulation` makes a pair agree. By hand:

    PYTHONPATH=workflow:tests python tests/benchmarks/models.py smollm2-135m FOLDER --dtype float32
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from rsd.shapes import SHAPES, random_model

PUBLIC = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen2.5-7b": "simplescaling/s1.1-7B",
}
POCKET = ("pocket-student", "pocket-teacher")
NAMES = (*PUBLIC, *POCKET)


def shape(name: str) -> PreTrainedConfig:
    """The shape of that name; ValueError for one that is not known."""
    if name in PUBLIC:
        return SHAPES[PUBLIC[name]]
    if name not in POCKET:
        raise ValueError(f"{name}: expected one of {', '.join(NAMES)}")
    # The demo's own recipe; only here, since a bare machine has not what reads the schema.
    from rsd.config_schema import fill_defaults, load_schema
    from rsd.pocket import make_tokenizer, new_model

    make = name.removeprefix("pocket-")
    return new_model(make, fill_defaults(load_schema(), {})["pocket"][make], make_tokenizer(make), seed=0).config


def make_model(name: str, *, dtype: str = "float32", device: str = "cpu", seed: int = 0) -> PreTrainedModel:
    """A random model of that name's shape, for inference: weights in `dtype`, made on `device`."""
    return random_model(shape(name), dtype=dtype, device=device, seed=seed)


def write_model(folder: Path, name: str, *, dtype: str = "float32", seed: int = 0) -> Path:
    """Writes config and safetensors weights of a random model into `folder`, if they are not there already.

    No tokenizer: prompts are token ids, and vLLM is asked to skip its own (`skip_tokenizer_init`).
    """
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        make_model(name, dtype=dtype, seed=seed).save_pretrained(partial)
        partial.rename(folder)
    return folder


def random_prompts(vocabulary: int, lanes: int, length: int, seed: int = 0) -> list[list[int]]:
    """`lanes` prompts of `length` random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (lanes, length), generator=generator).tolist()


def main(argv: list[str] | None = None) -> None:
    """Writes one model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=NAMES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), required=True)
    arguments = parser.parse_args(argv)
    print(write_model(arguments.folder, arguments.shape, dtype=arguments.dtype))


if __name__ == "__main__":
    main()
