"""Full fine-tuning of a model on training rows, with TRL's SFTTrainer; the loss is on the completion alone.

A model folder and ROWS Parquet -> a model folder of the same kind with training.json (loss curve, counts) beside the
weights. The rows' exact ids are trained on: no chat template, no tokenizer, no packing, nothing appended, and nothing
cut but by `training_rows`. The recipe is the paper's (section on training; authors' code): AdamW, cosine with warm-up,
whole batches only. Weights, gradients and moments are float32; `dtype: bfloat16` computes in bfloat16 (autocast) and
saves bfloat16 weights, since at a learning rate of 1e-5 most updates of bfloat16 weights would round to nothing.

On the CPU in float32 a run is bit-exact for a given number of threads, killed and resumed or not.
By hand: `rsd train --help`.
"""

from __future__ import annotations

import copy
import errno
import inspect
import logging
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import trl
from datasets import Dataset
from safetensors import SafetensorError
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rsd import sharded
from rsd.checkpoints import (
    KEPT_CHECKPOINTS,
    checkpoint_folders,
    keep_finished,
    newest_checkpoint,
    restore_finished,
    seal_checkpoint,
    step_of,
)
from rsd.interruption import Interruption
from rsd.manifest import verify_manifest, write_manifest
from rsd.models import load_model, load_tokenizer, vocabulary_digest
from rsd.provenance import settings_digest, stamp
from rsd.records import read_provenance, write_record
from rsd.runtime import choose_device, explain_os_error, set_threads
from rsd.stages import stage_code
from rsd.training_rows import IGNORED, TrainingRows, read_training_rows
from rsd.training_steps import EpochOrder, Plan, plan_steps, plan_tokens, tokens_seen

LOG = logging.getLogger(__name__)
PROGRESS_SECONDS = 10.0
WEIGHTS = "model.safetensors"
# On the CPU, logits of up to this many numbers (256 MB) are made at once; see CompletionTrainer.compute_loss.
DIRECT_LOGITS = 2**26
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
# What makes a tokenizer, and the licence of the weights.
COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
)


def run_train(
    *,
    model: Path,
    rows: Path,
    tokens_of: Path | None = None,
    settings: Mapping[str, Any],
    seed: int,
    threads: int,
    output: Path,
    work: Path,
) -> None:
    """Trains `model` on `rows` and writes the folder `output`, complete when its manifest.json is there.

    `settings` is `config.training_settings`; `seed` decides the order of the rows (and dropout). `tokens_of`: the rows
    of the arm that settings.tokens_of names, which with the settings there decide the number of steps. Checkpoints go
    to `work`, in a folder named by a digest of settings, seed, inputs and code; a later call goes on from the newest,
    or takes the finished model that is there, without training.
    SIGTERM and Ctrl-C save one and end the process (SystemExit 143, KeyboardInterrupt).

    training.json: `curve` (one entry a step: step, epoch, loss, learning_rate, grad_norm before clipping, tokens with
    loss), `rows` (see read_training_rows; `left_out_each_epoch` by drop_last), `supervised_tokens` (those with loss:
    `seen` in all steps; `wanted`, and the arm that this is the number `of`, null without tokens_of), steps, epochs
    (passes over the used rows; with tokens_of the last may be a part of one), seconds, parameters, precision, device,
    resumed_from_step, provenance.

    Raises ValueError (rows that cannot be trained on, too few of them, a model that they do not fit),
    FileNotFoundError (incomplete model folder), FloatingPointError (loss or gradient not finite), OSError (disk).
    """
    set_threads(threads)
    disable_progress_bar()
    device = choose_device(settings["device"])
    base = verify_manifest(model, deep=False)
    data = read_training_rows(rows, block_size=settings["block_size"], overlong=settings["overlong"])
    wanted = None if tokens_of is None else tokens_seen(tokens_of, settings["tokens_of"], seed)
    plan = plan_steps(len(data), settings) if wanted is None else plan_tokens(data, settings, seed, wanted)
    inputs = {"model": model, "rows": rows} | ({"tokens_of": tokens_of} if tokens_of else {})
    provenance = stamp(settings, inputs, seed)
    checkpoints = work / settings_digest([provenance["settings"], stage_code("train")])
    network = load_model(model, "float32", sharded.loading_device(device)).requires_grad_(True)
    tokenizer = load_tokenizer(model)
    require_fit(data, network, rows, model)
    require_vocabulary(rows, tokenizer, model)
    # The trainer edits both (cache, special tokens); what is saved must be the base model's.
    configs = copy.deepcopy((network.config, network.generation_config))
    _require_disk_space(network, plan, settings, checkpoints, output)

    trainer = make_trainer(network, data, plan, settings, seed, device, tokenizer, checkpoints)
    require_labels(trainer, data)
    if sharded.from_main(lambda: restore_finished(checkpoints, output)):
        LOG.info("had been trained to the end: %s is in its place again; to train anew, delete %s", output, checkpoints)
        return
    resumed = sharded.from_main(lambda: newest_checkpoint(checkpoints))
    _announce(data, plan, trainer, settings, device, resumed)
    if wanted is not None:
        LOG.info("as many steps as come nearest to the %d tokens that %s sees", wanted, settings["tokens_of"]["arm"])
    with Interruption() as interruption:
        trainer.add_callback(Conductor(plan, settings["checkpoint_steps"], settings["batch_size"], interruption))
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if trainer.state.global_step < plan.steps:
        _stop(interruption, trainer.state.global_step, plan.steps)
    if sharded.count() > 1:
        gathered = sharded.whole_weights(trainer.model)
        if not sharded.is_main():
            return
        # The base model again, with what was learnt; the shards are of no more use.
        network = load_model(model, "float32", "cpu")
        network.load_state_dict(gathered)
    require_finite_weights(network, plan.steps)

    losses = curve(trainer.state)
    record = {
        "curve": losses,
        "rows": {**data.counts, "left_out_each_epoch": plan.left_out},
        "supervised_tokens": {
            "seen": sum(int(entry["tokens"]) for entry in losses),
            "wanted": wanted,
            "of": None if wanted is None else settings["tokens_of"]["arm"],
        },
        "steps": plan.steps,
        "epochs": plan.steps / plan.steps_per_epoch,
        "seconds": round(trainer.seconds, 3),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "precision": {"weights": "float32", "compute": settings["dtype"], "saved": settings["dtype"]},
        "device": device,
        "resumed_from_step": step_of(resumed) if resumed else None,
        "provenance": {**provenance, "run": {**provenance["run"], "finished_unix": round(time.time(), 3)}},
    }
    network.config, network.generation_config = configs
    write_trained_model(network, settings["dtype"], model, base, record, output)
    keep_finished(output, checkpoints)
    LOG.info("trained %d steps in %.1f s, last loss %.4g", plan.steps, trainer.seconds, losses[-1]["loss"])


# --- the trainer -----------------------------------------------------------------------------------------------------


def make_trainer(
    network: PreTrainedModel,
    data: TrainingRows,
    plan: Plan,
    settings: Mapping[str, Any],
    seed: int,
    device: str,
    tokenizer: Any,
    checkpoints: Path,
) -> CompletionTrainer:
    """TRL's trainer with everything that it could do to rows, logs or the network by itself switched off."""
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        # Rows: as they are. TRL's preparation is skipped, which is where it would append, mask and cut.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        padding_free=False,
        # Recipe. transformers reads a warm-up below 1 as a share, 1 as one step: only a number of steps is unambiguous.
        max_steps=plan.steps,
        per_device_train_batch_size=settings["micro_batch_size"],
        # Each process reads its share of a batch.
        gradient_accumulation_steps=settings["batch_size"] // (settings["micro_batch_size"] * settings["gpus"]),
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=SCHEDULES[settings["schedule"]],
        warmup_steps=plan.warmup_steps,
        optim="adamw_torch_fused",
        weight_decay=settings["weight_decay"],
        adam_beta1=settings["adam_beta1"],
        adam_beta2=settings["adam_beta2"],
        max_grad_norm=settings["max_grad_norm"],
        seed=seed,
        # Precision and memory. TRL's own default is bfloat16 whatever the device.
        bf16=settings["dtype"] == "bfloat16",
        use_cpu=device == "cpu",
        activation_checkpointing=settings["gradient_checkpointing"],
        # One log entry a step, kept in the checkpoints; a loss that is not finite must be seen, not averaged away.
        logging_steps=1,
        logging_nan_inf_filter=False,
        log_level="warning",
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        dataloader_num_workers=0,
        dataloader_pin_memory=device != "cpu",
    )
    # TRL refuses to start where it sees several GPUs; this job uses one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if settings["gpus"] > 1:
        sharded.prepare(arguments, data, settings, plan.left_out)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    trainer = CompletionTrainer(
        order=EpochOrder(len(data), plan.left_out, seed),
        network=network,
        args=arguments,
        train_dataset=Dataset.from_dict(
            {"input_ids": data.tokens, "labels": [data.labels(index) for index in range(len(data))]}
        ),
        # Given, so that TRL does not write a pad token into the model's config. Padding is masked: any id will do.
        data_collator=DataCollatorForLanguageModeling(pad_token_id=pad),
        processing_class=tokenizer,
    )
    # It has served TRL's checks; kept, the trainer would write the tokenizer's special tokens into the model's config.
    trainer.processing_class = None
    if settings["gpus"] > 1:
        sharded.set_precision(trainer, settings["dtype"])
    trainer.remove_callback(PrinterCallback)
    return trainer


class CompletionTrainer(SFTTrainer):
    """SFTTrainer with our order of rows, a lean loss on the CPU, checkpoints that are whole or absent, no network."""

    # compute_loss divides by the tokens of the whole batch, so the micro-batches' losses add up.
    loss_is_scaled_for_ga = True  # type: ignore[assignment]

    def __init__(self, *, order: EpochOrder, network: PreTrainedModel, **arguments: Any) -> None:
        self.order, self.network = order, network
        self.step_tokens = 0
        self.seconds = 0.0
        super().__init__(model=network, **arguments)
        self.batch_size = self.get_total_train_batch_size(self.args)
        self.vocabulary = network.get_output_embeddings().weight.shape[0]
        chooses_logits = "logits_to_keep" in inspect.signature(type(network).forward).parameters
        self.direct = self.args.device.type == "cpu" and chooses_logits

    def train(self, *arguments: Any, **more: Any) -> Any:
        """Trains, and starts the clock."""
        self.clock = time.monotonic()
        return super().train(*arguments, **more)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return self.order

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], torch.Tensor]:
        """The micro-batches of one step, and the number of their tokens with loss."""
        # In several processes accelerate does not reach the order of an epoch that is gone on in.
        self.order.set_epoch(self.state.global_step // math.ceil(len(self.order) / self.batch_size))
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = torch.stack([(batch["labels"][:, 1:] != IGNORED).sum() for batch in batches]).sum().to(device)
        tokens = sharded.total(tokens)
        self.step_tokens = int(tokens)
        return batches, tokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropies of the completion tokens of `inputs`, summed, over the tokens with loss in the whole batch.

        TRL projects onto the vocabulary in tiles of 4096 tokens x 32768 entries, twice, and measures entropy and
        accuracy. That saves memory, but on a CPU it costs a quarter of a tiny model's time and projects the prompts,
        too. So where the logits are small they are made directly, from the first completion token on.
        """
        labels = inputs["labels"]
        if not self.direct or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        first = int((labels != IGNORED).any(dim=0).nonzero()[0, 0])
        keep = labels.shape[1] - first + 1
        # Processes must take the same way, since TRL's has collective operations in it.
        if len(labels) * keep * self.vocabulary > DIRECT_LOGITS and sharded.count() == 1:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
        total = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, first:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        # Gradients and losses of several processes are averaged, and here they are to be added up.
        return total / num_items_in_batch * sharded.count()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keeps a step's numbers in the state; FloatingPointError where loss or gradient is not finite.

        Comes after the optimizer's step and before a checkpoint, so no checkpoint holds what this stops.
        """
        if "loss" in logs:
            require_finite(self.state.global_step, logs)
            logs["tokens"] = self.step_tokens
            # Of the training alone, over all runs: a resumed one continues its predecessor's last entry.
            now = time.monotonic()
            before = self.state.log_history[-1]["seconds"] if self.state.log_history else 0.0
            self.seconds = logs["seconds"] = before + now - self.clock
            self.clock = now
        super().log(logs, start_time)

    def _get_output_dir(self, trial: Any) -> str:
        # Checkpoints are written below this folder and moved when complete.
        return str(Path(str(self.args.output_dir)) / "partial")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        final = Path(str(self.args.output_dir))
        partial = Path(self._get_output_dir(trial))
        if sharded.is_main():
            shutil.rmtree(partial, ignore_errors=True)
            for old in checkpoint_folders(final)[: 1 - KEPT_CHECKPOINTS]:
                shutil.rmtree(old)
        sharded.wait_for_all()
        try:
            super()._save_checkpoint(model, trial)
            # Each process has put something into it.
            sharded.wait_for_all()
            if sharded.is_main():
                (written,) = checkpoint_folders(partial)
                seal_checkpoint(written)
                shutil.rmtree(final / written.name, ignore_errors=True)
                written.replace(final / written.name)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise _explain_write_error(error, final, 12 * self.network.num_parameters()) from error
        finally:
            if sharded.is_main():
                shutil.rmtree(partial, ignore_errors=True)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Bare weights under the names of this run, so that resuming can be strict about them.
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if sharded.count() == 1:
            safetensors.torch.save_model(self.network, str(folder / WEIGHTS))
        elif sharded.is_main():
            sharded.save_weights(state_dict or {}, folder / WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if sharded.count() == 1:
            super()._save_optimizer_and_scheduler(output_dir)
        else:
            sharded.save_optimizer(self, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if sharded.count() == 1 or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            sharded.load_optimizer(self, Path(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if sharded.count() == 1:
            safetensors.torch.load_model(self.network, Path(resume_from_checkpoint) / WEIGHTS, strict=True)
        else:
            sharded.load_weights(model, Path(resume_from_checkpoint) / WEIGHTS)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it walks over all modules at every micro-batch."""
        return 0

    def create_model_card(self, *arguments: Any, **more: Any) -> None:
        """None: training.json says what was done."""

    def _send_telemetry(self) -> None:
        """Never."""


class Conductor(TrainerCallback):
    """Decides when to save and stop, and writes a progress line every few seconds."""

    def __init__(self, plan: Plan, checkpoint_steps: int, batch_size: int, interruption: Interruption) -> None:
        self.plan, self.checkpoint_steps, self.batch_size = plan, checkpoint_steps, batch_size
        self.interruption = interruption

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Notes where this run starts, for its speed."""
        if sharded.count() > 1:
            held, whole = sharded.require_shards(more["model"])
            LOG.info("%d processes, this one holds %d of %d weights", sharded.count(), held, whole)
        self.first_step = state.global_step
        self.started = self.reported = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """A checkpoint every `checkpoint_steps` and on a signal; not after the last step, when the model is saved."""
        if state.global_step >= self.plan.steps:
            return
        if sharded.any_says(self.interruption.received is not None):
            control.should_save = control.should_training_stop = True
        elif state.global_step % self.checkpoint_steps == 0:
            control.should_save = True

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """One line every PROGRESS_SECONDS: step, loss, rows a second, time left."""
        logs, now = more["logs"], time.monotonic()
        if "loss" not in logs or now - self.reported < PROGRESS_SECONDS:
            return
        self.reported = now
        speed = (state.global_step - self.first_step) / (now - self.started)
        LOG.info(
            "step %d of %d, loss %.4g, %.3g rows/s, %s left",
            state.global_step,
            self.plan.steps,
            logs["loss"],
            speed * self.batch_size,
            _duration((self.plan.steps - state.global_step) / speed),
        )


def _stop(interruption: Interruption, step: int, steps: int) -> None:
    """Ends the process after a signal, not as a success."""
    LOG.warning("stopped after step %d of %d, which is saved; run the same command again to go on", step, steps)
    interruption.end()


# --- checks ----------------------------------------------------------------------------------------------------------


def require_fit(data: TrainingRows, network: PreTrainedModel, rows: Path, model: Path) -> None:
    """ValueError where an id is outside the model's vocabulary, or a row longer than its context."""
    vocabulary: Any = network.get_input_embeddings().num_embeddings
    if data.largest_token >= vocabulary:
        raise ValueError(
            f"{rows} holds the token id {data.largest_token}, but {model} has {vocabulary} tokens; train the model "
            "whose tokenizer the rows were made with (the trace set's student)"
        )
    context = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and data.counts["longest"] > context:
        raise ValueError(
            f"{rows} holds a row of {data.counts['longest']} tokens, but {model} reads at most {context}; lower "
            f"training.block_size to {context}"
        )


def require_vocabulary(rows: Path, tokenizer: Any, model: Path) -> None:
    """ValueError where the rows' ids are another tokenizer's: they would be read as other words.

    Rows that say nothing of their vocabulary (written by hand) are taken as they are.
    """
    theirs = read_provenance(rows).get("vocabulary")
    if theirs is not None and theirs != vocabulary_digest(tokenizer):
        raise ValueError(
            f"{rows} holds token ids of another vocabulary than that of {model}; name the trace set's student as the "
            "arm's model, or train on a trace set of method recode (`of` this one, with the arm's model as its student)"
        )


def require_labels(trainer: Any, data: TrainingRows) -> None:
    """Every row as the trainer's own collator yields it: the row's ids, and labels on the completion alone.

    Raises RuntimeError, since only another version of a library can do that.
    """
    for index in range(len(data)):
        batch = trainer.data_collator([trainer.train_dataset[index]])
        ids, labels = batch["input_ids"][0].numpy(), batch["labels"][0].numpy()
        if not (np.array_equal(ids, data.tokens[index]) and np.array_equal(labels, data.labels(index))):
            raise RuntimeError(
                f"row {index}: TRL {trl.__version__} would not train on exactly the completion of the row's ids; "
                "install the locked versions"
            )


def require_finite(step: int, logs: Mapping[str, float]) -> None:
    """FloatingPointError naming the step where its loss or gradient norm is not finite."""
    for name in ("loss", "grad_norm"):
        value = logs.get(name, 0.0)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"step {step}: {name} is {value}, so training has diverged and nothing is written; lower "
                "training.learning_rate, lengthen training.warmup_ratio, or write training.dtype: float32"
            )


def require_finite_weights(network: PreTrainedModel, step: int) -> None:
    """FloatingPointError where the last update left a weight that is not finite (its own loss was still fine)."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        require_finite(step, {"loss": math.nan})


def _require_disk_space(
    network: PreTrainedModel, plan: Plan, settings: Mapping[str, Any], checkpoints: Path, output: Path
) -> None:
    """OSError before hours of training where the disk cannot hold its checkpoints and the model."""
    parameters = network.num_parameters()
    coming = min(KEPT_CHECKPOINTS, (plan.steps - 1) // settings["checkpoint_steps"])
    # A checkpoint: the weights and AdamW's two moments, 4 bytes each.
    missing = 12 * parameters * max(coming - len(checkpoint_folders(checkpoints)), 0)
    saved = parameters * (2 if settings["dtype"] == "bfloat16" else 4)
    for folder, needed in ((checkpoints, missing + saved), (output.parent, saved)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, folder) from error
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{folder} has {free / 1e9:.1f} GB free, but training needs about {needed / 1e9:.1f} GB for up to "
                f"{KEPT_CHECKPOINTS} checkpoints and the trained model; free some space there and run again",
            )


def _explain_write_error(error: Exception, folder: Path, needed: int) -> Exception:
    """torch and safetensors report a full disk in words of their own."""
    if not isinstance(error, OSError) and shutil.disk_usage(folder).free < needed:
        return explain_os_error(OSError(errno.ENOSPC, str(error)), folder)
    return explain_os_error(error, folder) if isinstance(error, OSError) else error


# --- what is written and said ----------------------------------------------------------------------------------------


def curve(state: TrainerState) -> list[dict[str, float]]:
    """One entry a step, those before a resume included."""
    keys = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens")
    return [{key: entry[key] for key in keys} for entry in state.log_history if "loss" in entry]


def write_trained_model(
    network: PreTrainedModel, dtype: str, model: Path, base: Mapping[str, Any], record: Mapping[str, Any], output: Path
) -> None:
    """The folder `output`: weights in `dtype`, the base model's tokenizer and origin, training.json; in one rename."""
    temporary = output.parent / f".{output.name}.partial"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        network.to(getattr(torch, dtype)).save_pretrained(temporary)
        # safetensors makes files that only their owner can read.
        for path in temporary.glob("*.safetensors"):
            shutil.copymode(temporary / "config.json", path)
        for path in sorted(path for pattern in COPIED for path in model.glob(pattern) if path.is_file()):
            shutil.copyfile(path, temporary / path.name)
        write_manifest(
            temporary,
            kind="trained-model",
            source=base["source"],
            revision=base["revision"],
            licence=base["licence"],
            provenance=record["provenance"]["settings"],
        )
        # After the manifest: it holds times, and equal models must have equal manifests. The rename makes both final.
        write_record(temporary / "training.json", record)
        if output.exists():
            shutil.rmtree(output)
        temporary.replace(output)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _explain_write_error(error, output.parent, 4 * network.num_parameters()) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _announce(
    data: TrainingRows,
    plan: Plan,
    trainer: SFTTrainer,
    settings: Mapping[str, Any],
    device: str,
    resumed: Path | None,
) -> None:
    counts = data.counts
    LOG.info(
        "%d rows (%d prefixes), %d truncated, %d dropped, %d left out of each epoch; %d of %d tokens have loss",
        counts["used"],
        counts["prefix"],
        counts["truncated"],
        counts["dropped"],
        plan.left_out,
        counts["supervised_tokens"],
        counts["total_tokens"],
    )
    LOG.info("%d steps of %d rows, %s on %s", plan.steps, settings["batch_size"], settings["dtype"], device)
    if resumed is not None:
        LOG.info("going on after step %d", step_of(resumed))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
