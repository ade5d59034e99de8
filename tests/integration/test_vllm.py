"""The backend vllm with vLLM itself, where there is one: on a CPU it gives what our decoder gives."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from evaluations import END, facts, requests_for
from rsd.lm import RsdLM
from tiny import decided_model_folder

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("RSD_TEST_VLLM")
NUMBERS = [3, 12, 120, 4567, *range(20, 40)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None, reason="needs an environment with vLLM (envs/vllm.yaml); name its Python in RSD_TEST_VLLM"
    ),
]


def test_greedy_outputs_are_those_of_our_decoder_and_samples_are_distinct_and_come_again(tmp_path: Path) -> None:
    # vLLM's attention wants heads of at least 32.
    folder = decided_model_folder(tmp_path / "model", head=64)
    sampled = {"numbers": [3, 12], "repeats": 8, "wishes": {"temperature": 1.0, "top_p": 0.95, "top_k": 20}}
    wanted = [{"numbers": NUMBERS, "repeats": 1, "wishes": {"temperature": 0.0}}, sampled, sampled]
    assert PYTHON is not None
    result = subprocess.run(
        [PYTHON, ROOT / "tests" / "vllm_side.py", folder, json.dumps(wanted)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'workflow'}{os.pathsep}{ROOT / 'tests'}",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    lines = [line for line in result.stdout.splitlines() if line.startswith("[[[")]
    greedy, first, again = ([tuple(fact) for fact in facts] for facts in json.loads(lines[-1]))
    options = {"dtype": "float32", "device": "cpu", "batch_size": 4, "max_length": 64}
    ours = RsdLM(folder, **options, end_of_turn=END, seed=0)
    assert greedy == facts(ours.generate_until(requests_for(NUMBERS, 1, temperature=0.0)))
    assert {finish for _, _, finish in greedy} == {"end_of_turn", "length"}
    assert len({text for text, _, _ in first}) > len(first) / 2
    assert again == first
