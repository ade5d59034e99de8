"""How fast vLLM generates on this machine's CPU, and how fast the authors' way is with vLLM as the engine.

A model folder (safetensors, no tokenizer needed: prompts are random token ids) -> one JSON line on standard output;
everything else that vLLM says goes to standard error. Runs in a virtual environment of its own (README.md beside this
file) and imports nothing of this project. By hand:

    /tmp/vllm-venv/bin/python tests/benchmarks/vllm_side.py FOLDER --dtype float32 --lanes 1 8 32 \
        --prompt-tokens 64 --new-tokens 128 --runs 3 --authors-way 128 512 1024
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

# For best performance vLLM's documentation asks for these two in LD_PRELOAD; README.md says how they get there.
PRELOADED = ("libtcmalloc_minimal.so.4", "libiomp5.so")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_PLUGINS": "",  # no package that happens to be installed there changes what is measured
    "VLLM_CPU_OMP_THREADS_BIND": "auto",  # a thread a core, bound to it
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # by default one of few cores would be kept free for the scheduler
    # Engine and worker are processes of their own, as by default: only so are the threads bound.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_CACHE_ROOT": f"{sys.prefix}/cache",  # compiled code
}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
WARM_UP_TOKENS = 8
# Where in a block of the prefix cache the authors' way is timed: in the middle of each eighth.
EIGHTHS = [(2 * part + 1) / 16 for part in range(8)]
UNCACHED_REQUESTS = 3
SPARE_BYTES = 256 << 20


def set_environment() -> None:
    """Starts this program again with vLLM's environment: libraries cannot be preloaded into a running process."""
    libraries = [str(Path(sys.prefix) / "lib" / name) for name in PRELOADED]
    if missing := [library for library in libraries if not Path(library).exists()]:
        raise FileNotFoundError(f"{', '.join(missing)}: build the environment as tests/benchmarks/README.md says")
    wanted = {**ENVIRONMENT, "LD_PRELOAD": ":".join(libraries)}
    # What is set already stays, so that a variant can be tried from the shell.
    changes = {name: value for name, value in wanted.items() if name not in os.environ}
    if changes:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **changes})


def divert_output() -> int:
    """Sends what this process and its children write on standard output to standard error; returns the real one."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    return real


def load(folder: Path, dtype: str, *, length: int, lanes: int, prefix_caching: bool, eager: bool) -> LLM:
    """An engine for `lanes` sequences of `length` tokens, otherwise as vLLM has it by default."""
    from vllm import LLM

    return LLM(
        str(folder),
        skip_tokenizer_init=True,
        dtype=dtype,
        max_model_len=length,
        max_num_seqs=lanes,
        kv_cache_memory_bytes=cache_bytes(folder, dtype, length, max(lanes, 4)),
        enable_prefix_caching=prefix_caching,
        enforce_eager=eager,
        seed=0,
    )


def cache_bytes(folder: Path, dtype: str, length: int, lanes: int) -> int:
    """Memory for the keys and values of that many sequences, rounded up to blocks, and some to spare."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * width * DTYPE_BYTES[dtype]
    return token * lanes * (math.ceil(length / 128) + 1) * 128 + SPARE_BYTES


def random_prompts(llm: LLM, lanes: int, length: int, rng: random.Random) -> list[list[int]]:
    """New ones for each run, so that no run finds the prompts of another in the prefix cache."""
    vocabulary = llm.llm_engine.vllm_config.model_config.get_vocab_size()
    return [[rng.randrange(vocabulary) for _ in range(length)] for _ in range(lanes)]


def seconds_to_generate(llm: LLM, prompts: Sequence[list[int]], sampling: SamplingParams) -> float:
    """Time of one call with all prompts at once; RuntimeError where an answer is shorter than asked for."""
    requests: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
    start = time.perf_counter()
    answers = llm.generate(requests, sampling, use_tqdm=False)
    seconds = time.perf_counter() - start
    lengths = {len(answer.outputs[0].token_ids) for answer in answers}
    if lengths != {sampling.max_tokens}:
        raise RuntimeError(f"answers of {sorted(lengths)} tokens, expected {sampling.max_tokens}")
    return seconds


def throughput(llm: LLM, lanes: int, prompt_tokens: int, new_tokens: int, runs: int) -> list[float]:
    """Tokens a second of each run, the reading of the prompts included in the time."""
    from vllm import SamplingParams

    rng = random.Random(lanes)
    times = []
    for run in range(-1, runs):
        tokens = WARM_UP_TOKENS if run < 0 else new_tokens
        sampling = SamplingParams(temperature=1.0, top_k=20, max_tokens=tokens, ignore_eos=True, detokenize=False)
        times.append(seconds_to_generate(llm, random_prompts(llm, lanes, prompt_tokens, rng), sampling))
        say(f"{lanes} lanes, run {run}: {lanes * tokens / times[-1]:.1f} tokens/s")
    return [lanes * new_tokens / seconds for seconds in times[1:]]


def authors_way(llm: LLM, length: int, runs: int) -> list[float]:
    """Seconds a token of one model, at a context of `length` tokens: each token is a request of its own, with the whole
    context as its prompt, for one token and its 20 most probable alternatives.

    With the prefix cache, which keeps whole blocks, a request reads what is behind the last whole block anew. So the
    mean over requests spread evenly over the block in which `length` lies is taken, after one that fills the cache.
    """
    rng = random.Random(length)
    caching = llm.llm_engine.vllm_config.cache_config.enable_prefix_caching
    block = llm.llm_engine.vllm_config.cache_config.block_size
    values = []
    for run in range(-1, runs):
        if caching:
            whole = length // block * block
            context = random_prompts(llm, 1, whole + block, rng)[0]
            ask(llm, context[: whole + 1])
            times = [ask(llm, context[: whole + round(part * block)]) for part in EIGHTHS]
        else:
            times = [ask(llm, random_prompts(llm, 1, length, rng)[0]) for _ in range(UNCACHED_REQUESTS)]
        values.append(sum(times) / len(times))
        say(f"the authors' way at {length} tokens, caching {caching}, run {run}: {values[-1]:.4f} s/token")
    return values[1:]


def ask(llm: LLM, context: list[int]) -> float:
    """Seconds of one request of the authors': temperature and top-p as in their code, which uses the alternatives."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=1, logprobs=20, ignore_eos=True, detokenize=False)
    return seconds_to_generate(llm, [context], sampling)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for; an engine at a time."""
    import torch
    import vllm

    lanes = max(arguments.lanes)
    # The authors' way looks at one block of 128 tokens behind the longest context.
    length = max(arguments.prompt_tokens + arguments.new_tokens, *(n + 128 for n in arguments.authors_way), 1) + 1
    result: dict[str, Any] = {
        "model": str(arguments.folder),
        "dtype": arguments.dtype,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
        "eager": arguments.eager,
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
        "environment": {name: os.environ[name] for name in (*ENVIRONMENT, "LD_PRELOAD")},
        "load_seconds": {},
        "tokens_per_second": {},
        "authors_way_seconds_per_token": {},
    }
    for caching in (True, False) if arguments.authors_way else (True,):
        name = "prefix_caching" if caching else "no_prefix_caching"
        start = time.perf_counter()
        llm = load(
            arguments.folder,
            arguments.dtype,
            length=length,
            lanes=lanes,
            prefix_caching=caching,
            eager=arguments.eager,
        )
        result["load_seconds"][name] = time.perf_counter() - start
        if caching:
            for count in arguments.lanes:
                values = throughput(llm, count, arguments.prompt_tokens, arguments.new_tokens, arguments.runs)
                result["tokens_per_second"][str(count)] = values
        if arguments.authors_way:
            result["authors_way_seconds_per_token"][name] = {
                str(n): authors_way(llm, n, arguments.runs) for n in arguments.authors_way
            }
        # The engine's processes end with it; two at once would share the cores.
        llm.llm_engine.engine_core.shutdown()
        del llm
    return result


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="model folder")
    parser.add_argument("--dtype", choices=DTYPE_BYTES, required=True)
    parser.add_argument("--lanes", type=int, nargs="+", required=True, metavar="N", help="prompts at once")
    parser.add_argument("--prompt-tokens", type=int, required=True, metavar="N")
    parser.add_argument("--new-tokens", type=int, required=True, metavar="N")
    parser.add_argument("--runs", type=int, required=True, metavar="N", help="timed runs, after one that is not")
    parser.add_argument("--authors-way", type=int, nargs="+", default=[], metavar="TOKENS", help="context lengths")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measures and prints one JSON line."""
    arguments = parse(argv)
    set_environment()
    real = divert_output()
    line = json.dumps(measure(arguments)) + "\n"
    os.write(real, line.encode())


# vLLM's processes are spawned, and import this file.
if __name__ == "__main__":
    main()
