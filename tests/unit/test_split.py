"""A model spread over several GPUs. None is here: where every tensor is, is followed on fake devices (`two_devices`);
the numbers come from accelerate's hooks on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from pipelines import ROOT
from rsd import config as c
from rsd import lanes, planning
from rsd.backends import VllmLM
from rsd.config_schema import merge
from rsd.decode import Request, sample
from rsd.law import Sampling
from rsd.models import load_model
from rsd.planning import LaneBytes
from rsd.scoring import score_tokens
from rsd.shapes import shape_of
from rsd.split import spread
from tiny import decided_model_folder, tiny_tokenizer

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


def size_of(plan: dict[str, int], gpu: int, sizes: dict[str, int]) -> int:
    return sum(size for name, size in sizes.items() if plan_of(plan, name) == gpu)


def plan_of(plan: dict[str, int], name: str) -> int:
    while name not in plan:
        name = name.rpartition(".")[0]
    return plan[name]


@pytest.mark.parametrize("gpus", [2, 4])
def test_the_papers_teacher_is_spread_in_equal_parts_and_in_order(gpus: int) -> None:
    shape = shape_of("hf://simplescaling/s1.1-7B", Path("/nowhere"))
    plan = spread(shape, "bfloat16", gpus)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    sizes = {name: 2 * parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(sizes.values())
    assert total == pytest.approx(15.2e9, rel=0.01)
    block = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    shares = [size_of(plan, gpu, sizes) for gpu in range(gpus)]
    assert sum(shares) == total
    assert max(shares) - total / gpus < 2 * block
    layers = [plan[f"model.layers.{number}"] for number in range(28)]
    assert layers == sorted(layers)
    assert (plan["model.embed_tokens"], plan["lm_head"]) == (0, gpus - 1)


def test_a_model_of_fewer_layers_than_gpus_is_not_spread() -> None:
    with pytest.raises(ValueError, match="gpus = 3, but qwen3 has 2 layers; lower gpus"):
        spread(small(), "float32", 3)


def small(tied: bool = False) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
    )


# --- every tensor is where its layer is ------------------------------------------------------------------------------


def test_a_pass_goes_from_device_to_device_and_comes_back() -> None:
    """Ours and transformers', with an output layer of its own and with a tied one."""
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT / "workflow"), str(ROOT / "tests")))}
    command = [sys.executable, ROOT / "tests" / "two_devices.py"]
    result = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("fine") == 4


# --- the same numbers ------------------------------------------------------------------------------------------------


def with_hooks(folder: Path) -> Any:
    """The model with accelerate's hooks on every part, all of it on the CPU."""
    model = load_model(folder, "float32", "cpu")
    parts = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    dispatch_model(model, dict.fromkeys(parts, "cpu"), force_hooks=True)
    assert isinstance(model.model.layers[1]._hf_hook, AlignDevicesHook)
    return model


def test_behind_hooks_a_model_writes_and_reads_the_same_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    folder = decided_model_folder(tmp_path / "model")
    end = tiny_tokenizer().eos_token_id

    def written(model: Any) -> list[list[Any]]:
        requests = [Request(n, [5 + n, 7, 9], [], ("test", n)) for n in range(3)]
        limits = {"context": 40, "max_new_tokens": 30, "lanes": 2}
        completions = sample(model, requests, sampling=Sampling(1.0, 0, 1.0), end_of_turn=end, **limits)
        return sorted([done.index, done.tokens.tolist(), done.p_student.tolist()] for done in completions)

    def scored(model: Any) -> list[float]:
        (scores,) = score_tokens(model, [([5, 7], [9, 11, 13, 15])], positions=2)
        return scores.probability.tolist()

    assert scored(with_hooks(folder)) == scored(load_model(folder, "float32", "cpu"))
    for ours in (True, False):
        monkeypatch.setattr(lanes, "can_fuse", lambda _, ours=ours: ours)
        assert written(with_hooks(folder)) == written(load_model(folder, "float32", "cpu"))


# --- memory, backends ------------------------------------------------------------------------------------------------


def test_the_tightest_gpu_decides_how_many_lanes_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the keys and values on each of two; the rest of a lane is on the first."""
    free = {FIRST: 1000, SECOND: 400}
    monkeypatch.setattr(planning, "free_bytes", free.__getitem__)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(small())
    each = LaneBytes(cache=80, written=10, logits=10)
    monkeypatch.setattr(planning, "layer_devices", lambda _: [FIRST, SECOND])
    monkeypatch.setattr(planning, "is_split", lambda _: True)
    monkeypatch.setattr(type(model), "device", FIRST)
    # Of 100 bytes a lane 60 are on the first, 40 on the second: 16 and 10 lanes.
    assert planning._free([(model, 256)], each) // each.total == 10
    free[SECOND] = 4000
    assert planning._free([(model, 256)], each) // each.total == 16


def test_backends_split_a_model_or_say_that_they_do_not(tmp_path: Path) -> None:
    folder = decided_model_folder(tmp_path / "model")
    more: dict[str, Any] = {"batch_size": None, "max_length": 64, "end_of_turn": "<|im_end|>", "seed": 0}
    lm = VllmLM(folder, dtype="bfloat16", device="cuda", gpus=2, **more)
    assert lm.engine_arguments()["tensor_parallel_size"] == 2
    paper = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    change = {"models": {"student": {"gpus": 2}}, "evaluation": {"backend": "transformers"}}
    with pytest.raises(ValueError, match=r"models.student.gpus = 2: evaluation.backend = 'transformers' uses one GPU"):
        c.validate(merge(paper, change))
    # The teacher is not measured.
    c.validate(merge(paper, {"models": {"teacher": {"gpus": 2}}, "evaluation": {"backend": "transformers"}}))
