"""The tiny models and problems of the pocket experiment, made from nothing.

Sums of a few two-digit numbers, reasoned in two styles. The student's own style adds whole numbers
("17+58=75;75+36=111"); the wordy style adds tens and units apart ("10+50=60;7+8=15;60+15=75;..."). The student learns its own
style from few problems; the teacher learns a mixture of both from many, as a large model writes in more ways than a
small one. Both are Qwen3 models with character tokens. As in the paper's pair, the two vocabularies agree
but for `<think>` and `</think>`, which are single tokens of the student alone, and for the padding of the embeddings.

Settings of one of the four things (config.pocket_settings) -> a model folder, or a dataset folder; manifest.json last.
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

from rsd.manifest import write_manifest
from rsd.provenance import code_digest, settings_digest, stamp
from rsd.records import write_jsonl
from rsd.runtime import atomic_path, set_threads

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

LOG = logging.getLogger(__name__)

# What the models are trained to read and write; experiments/pocket.yaml repeats it as its prompt and format.
PROMPT = "{question}<think>"
THINK_CLOSE = "</think>"
END_OF_TURN = "<|im_end|>"

CHARACTERS = "0123456789+=;<>/think"
SPECIAL = ("<|endoftext|>", END_OF_TURN, "<|unk|>")
# Only the student has these as tokens; the teacher writes them character by character.
STUDENT_ONLY = ("<think>", THINK_CLOSE)
# Embeddings are padded to different sizes, as those of the paper's pair are (151936 and 152064).
VOCABULARY_PADDING = {"student": 4, "teacher": 32}

CHECKPOINT_S = 30.0
PROGRESS_S = 5.0
# One number a purpose, so that no two random streams coincide.
SPLIT_STREAM, STYLE_STREAM, BATCH_STREAM, ORDER_STREAM = range(4)


def run_make_pocket(*, settings: Mapping[str, Any], threads: int, output: Path, work: Path) -> None:
    """Makes the model (`make` student | teacher) or dataset (train | test) of `settings` in the folder `output`.

    A training interrupted by a kill goes on from its checkpoint in `work` with the same settings, code and threads.
    """
    make = settings["make"]
    if make in ("student", "teacher"):
        make_model(settings=settings, threads=threads, output=output, work=work)
        kind = "model"
    elif make in ("train", "test"):
        write_jsonl(output / f"{make}.jsonl", problems(settings, make))
        kind = "dataset"
    else:
        raise ValueError(f"source pocket://{make}: expected pocket://student, teacher, train or test; correct it")
    write_manifest(
        output,
        kind=kind,
        source=f"pocket://{make}",
        revision=None,
        licence="CC0-1.0",
        provenance=stamp({**settings, "threads": threads}, {}, settings["seed"]),
    )


# --- problems and their solutions ----------------------------------------------------------------------------------


def split_problems(settings: Mapping[str, Any], split: str) -> np.ndarray:
    """The operands of one split, [problems, operands] int64; `split` is train, test or pretraining.

    A seeded order of every possible problem is cut into three, so that no problem is in two splits.
    """
    operands = settings["operands"]
    order = np.random.default_rng([settings["seed"], SPLIT_STREAM]).permutation(90**operands)
    ends = np.cumsum([0, settings["test_problems"], settings["train_problems"]])
    start, end = {"test": ends[:2], "train": ends[1:], "pretraining": (ends[2], len(order))}[split]
    index = order[start:end, None]
    return 10 + index // 90 ** np.arange(operands) % 90


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
    """Character tokens and the special ones; `make` is student or teacher."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text: index for index, text in enumerate([*CHARACTERS, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<|unk|>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    if make == "student":
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in STUDENT_ONLY])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token=END_OF_TURN,
        unk_token="<|unk|>",
        clean_up_tokenization_spaces=False,
    )


def embedding_size(make: str, tokens: int) -> int:
    """The tokens rounded up to the model's padding."""
    multiple = VOCABULARY_PADDING[make]
    return math.ceil(tokens / multiple) * multiple


# --- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Rows of one length class: ids [rows, length] int64, labels with -100 on prompt and padding."""

    ids: torch.Tensor
    labels: torch.Tensor


def make_model(*, settings: Mapping[str, Any], threads: int, output: Path, work: Path) -> None:
    """Trains the student or the teacher and saves weights and tokenizer in `output`."""
    import torch

    set_threads(threads)
    torch.use_deterministic_algorithms(True)
    make = settings["make"]
    recipe = settings[make]
    tokenizer = make_tokenizer(make)
    model = new_model(make, recipe, tokenizer, settings["seed"])
    LOG.info("pocket %s: %d parameters, %d steps", make, model.num_parameters(), recipe["steps"])
    # Bit-exact only with the same code, library and thread count: another checkpoint is not continued.
    key = settings_digest([dict(settings), threads, code_digest(["pocket"]), torch.__version__])
    train(model, tokenizer, settings, checkpoint=work / f"{make}-{key}.pt")
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def new_model(make: str, recipe: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 model with random weights, float32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=embedding_size(make, len(tokenizer)),
        hidden_size=recipe["width"],
        intermediate_size=recipe["mlp_width"],
        num_hidden_layers=recipe["layers"],
        num_attention_heads=recipe["heads"],
        num_key_value_heads=recipe["heads"],
        head_dim=recipe["head_width"],
        max_position_embeddings=256,
        initializer_range=recipe["initial_std"],
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": recipe["rope_theta"]},
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
    checkpoint_s: float = CHECKPOINT_S,
) -> None:
    """Trains `model` in place; goes on from `checkpoint` if it exists, and removes it at the end.

    AdamW on the completion tokens, linear warm-up, then linear decay to zero: the accuracy settles before the
    end instead of depending on the last step. The batch of a step follows from the seed and the step alone.
    """
    import torch

    recipe = settings[settings["make"]]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe["learning_rate"], betas=(0.9, 0.98), weight_decay=recipe["weight_decay"]
    )
    first = load_checkpoint(checkpoint, model, optimizer)
    batches = training_batches(settings, tokenizer, first)
    started = logged = saved = time.monotonic()
    for step, parts in enumerate(batches, start=first):
        for group in optimizer.param_groups:
            group["lr"] = recipe["learning_rate"] * schedule(step, recipe["steps"], recipe["warmup_steps"])
        loss = training_step(model, optimizer, parts)
        now = time.monotonic()
        done = step + 1
        if now - logged >= PROGRESS_S or done == recipe["steps"]:
            if not math.isfinite(loss):
                raise ValueError(
                    f"pocket {settings['make']}: the loss is {loss} at step {done}; lower "
                    f"pocket.{settings['make']}.learning_rate = {recipe['learning_rate']}"
                )
            rate = (done - first) / (now - started)
            left = (recipe["steps"] - done) / rate
            LOG.info("step %d/%d loss %.4f, %.1f steps/s, %.0f s left", done, recipe["steps"], loss, rate, left)
            logged = now
        if now - saved >= checkpoint_s:
            save_checkpoint(checkpoint, model, optimizer, done)
            saved = now
    checkpoint.unlink(missing_ok=True)


def schedule(step: int, steps: int, warmup: int) -> float:
    """The factor of the learning rate: linear up, then linear down to zero."""
    return min((step + 1) / max(warmup, 1), (steps - step) / max(steps - warmup, 1))


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
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total / tokens


def training_batches(
    settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, first: int
) -> Iterator[list[Batch]]:
    """The batches of the steps from `first` on, each cut into one part a style, since their lengths differ."""
    make = settings["make"]
    recipe = settings[make]
    numbers = split_problems(settings, "pretraining")[: recipe["problems"]]
    for step in range(first, recipe["steps"]):
        rng = np.random.default_rng([settings["seed"], BATCH_STREAM, ("student", "teacher").index(make), step])
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
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        end = len(head) + len(tail)
        ids[row, :end] = torch.tensor(head + tail)
        labels[row, len(head) : end] = ids[row, len(head) : end]
    return Batch(ids, labels)


def save_checkpoint(path: Path, model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Weights, optimizer state and the number of steps done, by one rename."""
    import torch

    with atomic_path(path) as temporary:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)


def load_checkpoint(path: Path, model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Restores `model` and `optimizer` from `path`; the number of steps done, 0 where there is no checkpoint."""
    import torch

    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    LOG.info("going on from step %d (%s)", state["step"], path)
    return state["step"]
