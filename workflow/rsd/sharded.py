"""A training in several processes: weights, gradients and moments in shards (FSDP2), a share of each batch for each.

What `train` needs to be right in one process as in many; in one, all of it does nothing. Every process calls every
function that says "together", in the same order. Checkpoints and models are whole: the first process gathers them, in
the machine's memory, in the names and types of a training in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from rsd.launch import is_worker
from rsd.training_rows import TrainingRows

T = TypeVar("T")
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_FROM_FIRST = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True)


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Is this the first of them, which writes?"""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait_for_all() -> None:
    """Together: nobody goes on before all are here."""
    if count() > 1:
        dist.barrier()


def from_main(function: Callable[[], T]) -> T:
    """Together: what `function` gives in the first process."""
    if count() == 1:
        return function()
    box: list[Any] = [function() if is_main() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def total(number: Tensor) -> Tensor:
    """Together: the sum of the processes' numbers."""
    if count() > 1:
        dist.all_reduce(number)
    return number


def any_says(said: bool) -> bool:
    """Together: does any of the processes say so? A signal reaches them at different steps, or one of them alone."""
    if count() == 1:
        return said
    answer = torch.tensor(int(said), device=_device())
    dist.all_reduce(answer, op=dist.ReduceOp.MAX)
    return bool(answer)


def _device() -> torch.device:
    on_gpus = "nccl" in dist.get_backend_config()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpus else torch.device("cpu")


# --- the trainer -----------------------------------------------------------------------------------------------------


def loading_device(device: str) -> str:
    """Where the whole model is loaded: sharding brings its parts to the GPUs."""
    return "cpu" if is_worker() else device


def prepare(arguments: Any, data: TrainingRows, settings: Mapping[str, Any], left_out: int) -> None:
    """To be called between making the trainer's `arguments` and the trainer.

    Raises ValueError where there are not as many processes as `training.gpus` says, and where the last batch of an
    epoch cannot be shared out: accelerate would fill it up with rows that were seen before.
    """
    gpus, micro = settings["gpus"], settings["micro_batch_size"]
    if arguments.world_size != gpus:
        raise ValueError(
            f"training.gpus = {gpus}, but {arguments.world_size} processes train; start it by `rsd train`, "
            "which starts as many by accelerate's launcher"
        )
    rest = (len(data) - left_out) % settings["batch_size"]
    if rest % (micro * gpus):
        raise ValueError(
            f"training.drop_last = false leaves a last batch of {rest} rows, which training.gpus = {gpus} times "
            f"training.micro_batch_size = {micro} does not divide; write drop_last: true, or choose others"
        )
    if arguments.device.type == "cpu":
        # accelerate shards on GPUs alone. Told that these are some, it shards on CPUs just so.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def set_precision(trainer: Any, dtype: str) -> None:
    """Before the model is sharded: what is computed in, and that gradients are added up in float32 in any case."""
    compute = None if dtype == "float32" else getattr(torch, dtype)
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = policy


def require_shards(model: Any) -> tuple[int, int]:
    """How many weights this process holds, and how many there are.

    RuntimeError where it holds more than its share, which only another version of a library can do.
    """
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    whole = sum(parameter.numel() for parameter in model.parameters())
    # A tensor is split by its first dimension, so that shares differ by a row of each.
    if not isinstance(model, FSDPModule) or held > 0.75 * whole:
        raise RuntimeError(f"{held} of {whole} weights are held by one process; install the locked versions")
    return held, whole


# --- whole again -----------------------------------------------------------------------------------------------------


def whole_weights(model: Any) -> dict[str, Tensor]:
    """Together: the weights, float32 in the machine's memory, in the first process; nothing in the others."""
    weights: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
    return weights


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Weights that some names share are written once."""
    seen: dict[int, str] = {}
    for name, tensor in weights.items():
        seen.setdefault(tensor.data_ptr(), name)
    safetensors.torch.save_file({name: weights[name].contiguous() for name in seen.values()}, path)


def load_weights(model: Any, path: Path) -> None:
    """Together: what `save_weights` has written, to each process its shards."""
    weights: dict[str, Any] = safetensors.torch.load_file(path) if is_main() else {}
    tied = getattr(model, "all_tied_weights_keys", {})
    weights |= {name: weights[source] for name, source in tied.items() if source in weights and name not in weights}
    set_model_state_dict(model, weights, options=_FROM_FIRST)


def save_optimizer(trainer: Any, folder: Path) -> None:
    """Together: moments and schedule, into the folder of a checkpoint."""
    moments = get_optimizer_state_dict(trainer.model, trainer.optimizer, options=_WHOLE)
    if is_main():
        torch.save(moments, folder / OPTIMIZER)
        torch.save(trainer.lr_scheduler.state_dict(), folder / SCHEDULER)


def load_optimizer(trainer: Any, folder: Path) -> None:
    """Together: what `save_optimizer` has written."""
    moments = torch.load(folder / OPTIMIZER, weights_only=True, mmap=True) if is_main() else {}
    set_optimizer_state_dict(trainer.model, trainer.optimizer, moments, options=_FROM_FIRST)
    trainer.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))
