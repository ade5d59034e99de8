"""Model folders with random weights in the shapes of public models, made without any download.

How long a forward pass takes depends on the shapes, not on the weights. What tokens come out does depend on them: a
random model's distribution is nearly flat, no token of it has 1 %, and every token of an RSD trace is a fallback.
By hand: `.venv/bin/python tests/benchmarks/models.py smollm2-135m /tmp/smollm2-135m --dtype float32`.
"""

from __future__ import annotations

import argparse
import copy
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from rsd.config import fill_defaults, load_schema
from rsd.pocket import make_tokenizer, new_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# As in the models' public config.json.
PUBLIC: dict[str, PreTrainedConfig] = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    ),
    "smollm2-1.7b": LlamaConfig(
        vocab_size=49152,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 130_000.0},
        tie_word_embeddings=True,
    ),
    "qwen3-0.6b": Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=False,
    ),
}
POCKET = ("pocket-student", "pocket-teacher")
SHAPES = (*PUBLIC, *POCKET)


def make_model(shape: str, *, dtype: str = "float32", device: str = "cpu", seed: int = 0) -> PreTrainedModel:
    """A model of that shape with random weights, for inference: weights in `dtype`, made on `device`.

    Raises ValueError for a shape or dtype that is not known.
    """
    if shape not in SHAPES or dtype not in DTYPES:
        raise ValueError(f"{shape}, {dtype}: expected one of {', '.join(SHAPES)} and one of {', '.join(DTYPES)}")
    torch.manual_seed(seed)
    if shape in POCKET:
        model = _pocket(shape.removeprefix("pocket-"), seed).to(DTYPES[dtype]).to(device)
    else:
        # Made where and as it shall be: in float32 first, the 7B model would need 30 GB of the host's memory.
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(PUBLIC[shape]), dtype=DTYPES[dtype])
    # A trace of a random model must not end before its time.
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model.eval().requires_grad_(False)


def _pocket(make: str, seed: int) -> PreTrainedModel:
    """The demo's model before its training, by the schema's own recipe."""
    recipe = fill_defaults(load_schema(), {})["pocket"][make]
    return new_model(make, recipe, make_tokenizer(make), seed)


def write_model(folder: Path, shape: str, *, dtype: str = "float32", seed: int = 0) -> Path:
    """Writes config and safetensors weights of a random model into `folder`, if they are not there already.

    No tokenizer: prompts are token ids, and vLLM is asked to skip its own (`skip_tokenizer_init`).
    """
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        make_model(shape, dtype=dtype, seed=seed).save_pretrained(partial)
        partial.rename(folder)
    return folder


def random_prompts(vocabulary: int, lanes: int, length: int, seed: int = 0) -> list[list[int]]:
    """`lanes` prompts of `length` random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (lanes, length), generator=generator).tolist()


def main(argv: list[str] | None = None) -> None:
    """Writes one model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, required=True)
    arguments = parser.parse_args(argv)
    print(write_model(arguments.folder, arguments.shape, dtype=arguments.dtype))


if __name__ == "__main__":
    main()
