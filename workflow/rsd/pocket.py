"""The tiny models and problems of the pocket experiment, made from nothing.

The problems are sums of three two-digit numbers, reasoned in two styles. The terse one adds whole numbers
(`17+58=75;75+36=111`), the wordy one adds tens and units apart (`10+50=60;7+8=15;60+15=75;...`). The student learns the
terse style from problems with small sums; the teacher learns both styles from all, as a large model knows more and
writes in more ways. Both are Qwen3 models with a token a byte. As in the paper's pair the two vocabularies agree but
for `<think>` and `</think>`, which the student alone has as single tokens, and for the padding of the embeddings. A
second student, student-b, is of the first one's kind and vocabulary: of another width, trained on other batches.

Settings of one of these things (config.pocket_settings) -> a model folder or a dataset folder, manifest.json last.
By hand: `rsd make-pocket-model --help`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rsd.checksums import checked_path, remove, verify
from rsd.manifest import MANIFEST, write_manifest
from rsd.provenance import code_digest, settings_digest, stamp
from rsd.records import write_jsonl
from rsd.runtime import explained_writes, set_threads

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

LOG = logging.getLogger(__name__)

# What the models are trained to read and write; experiments/pocket.yaml repeats it as its prompt and format.
PROMPT = "{question}<think>"
THINK_CLOSE = "</think>"
END_OF_TURN = "<|im_end|>"

SPECIAL = ("<|endoftext|>", "<|im_start|>", END_OF_TURN)
# Only the students have these as tokens; the teacher writes them character by character.
STUDENT_ONLY = ("<think>", THINK_CLOSE)
# The models; a model's place in this list is a part of its random streams.
MODELS = ("student", "teacher", "student-b")
# Embeddings are padded to different sizes, as those of the paper's pair are (151936 and 152064).
VOCABULARY_MULTIPLE = {"student": 8, "teacher": 32, "student-b": 8}

# What nobody needs to change.
OPERANDS = 3
HEAD_WIDTH = 16
MLP_RATIO = 3
WARMUP_STEPS = 50
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0

CHECKPOINT_S = 30.0
PROGRESS_S = 5.0
# One number a purpose, so that no two random streams coincide.
SPLIT_STREAM, STYLE_STREAM, BATCH_STREAM = range(3)


def run_make_pocket(*, settings: Mapping[str, Any], threads: int, output: Path, work: Path) -> None:
    """Makes the model (`make` one of MODELS) or dataset (train | test) of `settings` in the folder `output`.

    A training interrupted by a kill goes on from its checkpoint in `work` with the same settings, code and threads.
    """
    make = settings["make"]
    (output / MANIFEST).unlink(missing_ok=True)  # the folder is not complete while it is made
    if make in MODELS:
        make_model(settings=settings, threads=threads, output=output, work=work)
        kind = "model"
    elif make in ("train", "test"):
        write_jsonl(output / f"{make}.jsonl", problems(settings, make), checksum=False)
        kind = "dataset"
    else:
        known = ", ".join(f"pocket://{name}" for name in (*MODELS, "train", "test"))
        raise ValueError(f"source pocket://{make}: expected one of {known}; correct it")
    write_manifest(
        output,
        kind=kind,
        source=f"pocket://{make}",
        revision=None,
        licence="CC0-1.0",
        # Only what follows from the settings: the same content has the same manifest on every machine.
        provenance=stamp(settings, {}, settings["seed"])["settings"],
    )


# --- problems and their solutions ----------------------------------------------------------------------------------


def split_problems(settings: Mapping[str, Any], split: str) -> np.ndarray:
    """The operands of one split, [problems, operands] int64; `split` is train, test or pretraining.

    A seeded order of every possible problem is cut into three, so that no problem is in two splits.
    """
    order = np.random.default_rng([settings["seed"], SPLIT_STREAM]).permutation(90**OPERANDS)
    test, train, rest = np.split(order, np.cumsum([settings["test_problems"], settings["train_problems"]]))
    index = {"test": test, "train": train, "pretraining": rest}[split][:, None]
    return 10 + index // 90 ** np.arange(OPERANDS) % 90


def question(numbers: Sequence[int]) -> str:
    """`17+58+36`."""
    return "+".join(map(str, numbers))


def terse_steps(numbers: Sequence[int]) -> str:
    """The student's own style, one sum a step: `17+58=75;75+36=111`."""
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    return ";".join(steps)


def wordy_steps(numbers: Sequence[int]) -> str:
    """The wordy style, tens and units apart: `10+50=60;7+8=15;60+15=75;70+30=100;5+6=11;100+11=111`."""
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        tens = total // 10 * 10 + number // 10 * 10
        units = total % 10 + number % 10
        steps.append(f"{total // 10 * 10}+{number // 10 * 10}={tens}")
        steps.append(f"{total % 10}+{number % 10}={units}")
        steps.append(f"{tens}+{units}={tens + units}")
        total += number
    return ";".join(steps)


def problems(settings: Mapping[str, Any], split: str) -> list[dict[str, str]]:
    """The dataset's rows: question, answer, solution and, as its own trace, thinking and response.

    The traces are of the kind that the teacher was trained on, as s1K-1.1's are of the kind of the paper's teacher.
    """
    numbers = split_problems(settings, split)
    wordy = styles(settings, split, len(numbers), 0)
    return [
        {
            "question": question(row),
            "answer": str(sum(row)),
            "solution": f"{question(row)}={sum(row)}",
            "thinking": wordy_steps(row) if is_wordy else terse_steps(row),
            "response": str(sum(row)),
        }
        for row, is_wordy in zip(numbers.tolist(), wordy, strict=True)
    ]


def styles(settings: Mapping[str, Any], purpose: str, count: int, step: int) -> np.ndarray:
    """Which of `count` traces are wordy, [count] bool; drawn anew for every purpose and step."""
    key = [settings["seed"], STYLE_STREAM, ("train", "test", "teacher").index(purpose), step]
    return np.random.default_rng(key).random(count) < settings["wordy_share"]


# --- vocabularies --------------------------------------------------------------------------------------------------


def make_tokenizer(make: str) -> PreTrainedTokenizerFast:
    """Qwen's kind of tokenizer without its merges: one token a byte, and the special ones; `make` is one of MODELS."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text: index for index, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    if make != "teacher":
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in STUDENT_ONLY])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token=END_OF_TURN,
        clean_up_tokenization_spaces=False,
    )


def embedding_size(make: str, tokens: int) -> int:
    """The number of tokens, rounded up to the model's multiple."""
    multiple = VOCABULARY_MULTIPLE[make]
    return math.ceil(tokens / multiple) * multiple


# --- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Rows of one length class: ids [rows, length] int64, labels with -100 on prompt and padding."""

    ids: torch.Tensor
    labels: torch.Tensor


def make_model(*, settings: Mapping[str, Any], threads: int, output: Path, work: Path) -> None:
    """Trains one of MODELS and saves weights and tokenizer in `output`."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    set_threads(threads)
    make = settings["make"]
    recipe = settings[make]
    tokenizer = make_tokenizer(make)
    model = new_model(make, recipe, tokenizer, settings["seed"])
    LOG.info("pocket %s: %d parameters, %d steps", make, model.num_parameters(), recipe["steps"])
    # Bit-exact only with the same code, library and thread count: another checkpoint is not continued.
    key = settings_digest([dict(settings), threads, code_digest(["pocket"]), torch.__version__])
    train(model, tokenizer, settings, checkpoint=work / f"{make}-{key}.pt")
    output.mkdir(parents=True, exist_ok=True)
    with explained_writes(output / "model.safetensors", 4 * model.num_parameters()):
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)


def new_model(make: str, recipe: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 model with random weights, float32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=embedding_size(make, len(tokenizer)),
        hidden_size=recipe["width"],
        intermediate_size=MLP_RATIO * recipe["width"],
        num_hidden_layers=recipe["layers"],
        num_attention_heads=recipe["heads"],
        num_key_value_heads=recipe["heads"],
        head_dim=HEAD_WIDTH,
        max_position_embeddings=256,
        initializer_range=recipe["initial_std"],
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config).float().train()


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: Mapping[str, Any],
    *,
    checkpoint: Path,
) -> None:
    """Trains `model` in place; goes on from `checkpoint` if it exists, and removes it at the end.

    AdamW on the completion tokens, linear warm-up, then linear decay to zero: the accuracy settles before the
    end instead of depending on the last step. The batch of a step follows from the seed and the step alone.
    """
    import torch

    make = settings["make"]
    recipe = settings[make]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe["learning_rate"], betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    first = load_checkpoint(checkpoint, model, optimizer)
    batches = training_batches(settings, tokenizer, first)
    started = logged = saved = time.monotonic()
    for step, parts in enumerate(batches, start=first):
        for group in optimizer.param_groups:
            group["lr"] = recipe["learning_rate"] * schedule(step, recipe["steps"])
        loss = training_step(model, optimizer, parts)
        if not math.isfinite(loss):
            raise ValueError(
                f"pocket {make}: the loss is {loss} at step {step}, expected a finite number; lower "
                f"pocket.{make}.learning_rate = {recipe['learning_rate']}"
            )
        now = time.monotonic()
        done = step + 1
        if now - logged >= PROGRESS_S or done == recipe["steps"]:
            rate = (done - first) / (now - started)
            left = (recipe["steps"] - done) / rate
            LOG.info("step %d/%d loss %.4f, %.1f steps/s, %.0f s left", done, recipe["steps"], loss, rate, left)
            logged = now
        if now - saved >= CHECKPOINT_S:
            save_checkpoint(checkpoint, model, optimizer, done)
            saved = now
    remove(checkpoint)


def schedule(step: int, steps: int) -> float:
    """The factor of the learning rate: linear up, then linear down to zero."""
    return min((step + 1) / WARMUP_STEPS, (steps - step) / max(steps - WARMUP_STEPS, 1))


def training_step(model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer, parts: Sequence[Batch]) -> float:
    """One step over the parts of a batch; the mean loss a completion token."""
    import torch

    tokens = sum(int((part.labels != -100).sum()) for part in parts)
    total = 0.0
    for part in parts:
        logits = model(input_ids=part.ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), part.labels[:, 1:].flatten(), reduction="sum"
        )
        (loss / tokens).backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()
    return total / tokens


def training_batches(
    settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, first: int
) -> Iterator[list[Batch]]:
    """The batches of the steps from `first` on, each cut into one part a style, since their lengths differ."""
    make = settings["make"]
    recipe = settings[make]
    numbers = split_problems(settings, "pretraining")
    numbers = numbers[numbers.sum(1) <= recipe["largest_sum"]]
    if not len(numbers):
        raise ValueError(
            f"pocket.{make}.largest_sum = {recipe['largest_sum']}: no problem is left to train on; expected a value "
            "between 30 and 297, raise it"
        )
    for step in range(first, recipe["steps"]):
        rng = np.random.default_rng([settings["seed"], BATCH_STREAM, MODELS.index(make), step])
        rows = numbers[rng.integers(len(numbers), size=recipe["batch_size"])].tolist()
        wordy = [False] * len(rows)
        if make == "teacher":
            wordy = styles(settings, make, len(rows), step).tolist()
        yield [
            encode(tokenizer, [row for row, is_wordy in zip(rows, wordy, strict=True) if is_wordy is style], style)
            for style in (False, True)
            if style in wordy
        ]


def encode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]], wordy: bool) -> Batch:
    """Problems of one style as a padded batch."""
    import torch

    prompts = [PROMPT.format(question=question(row)) for row in rows]
    steps = wordy_steps if wordy else terse_steps
    completions = [f"{steps(row)}{THINK_CLOSE}{sum(row)}{END_OF_TURN}" for row in rows]
    heads = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    tails = tokenizer(completions, add_special_tokens=False)["input_ids"]
    length = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
    ids = np.full((len(rows), length), tokenizer.pad_token_id)
    labels = np.full((len(rows), length), -100)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        end = len(head) + len(tail)
        ids[row, :end] = head + tail
        labels[row, len(head) : end] = tail
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels))


def save_checkpoint(path: Path, model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Weights, optimizer state and the number of steps done, by one rename."""
    import torch

    with checked_path(path) as temporary, explained_writes(path, 12 * model.num_parameters()):
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)


def load_checkpoint(path: Path, model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Restores `model` and `optimizer` from `path`; the number of steps done, 0 where there is no checkpoint.

    A damaged one is set aside with a warning.
    """
    import torch

    if not path.exists():
        return 0
    # torch itself does not see flipped bytes.
    try:
        verify(path)
    except ValueError as error:
        LOG.warning("%s; training begins anew", str(error).partition(";")[0])
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    LOG.info("going on from step %d (%s)", state["step"], path)
    return state["step"]
