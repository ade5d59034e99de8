"""Gated datasets and the judge's key, before the first job: against a hub on 127.0.0.1."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hub_server import FakeHub, Repository
from rsd import access, config
from rsd.access import check_access, hub_token
from rsd.cli import main

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config.yaml"
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HF_TOKEN_PATH")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    for name in (*VARIABLES, "XDG_CACHE_HOME", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # A developer's own token must not decide a test, nor be sent anywhere.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(access, "WAITS_S", (0, 0))
    with FakeHub() as fake:
        fake.repositories["datasets/Idavidrein/gpqa"] = Repository({}, gated=True)
        monkeypatch.setenv("HF_ENDPOINT", fake.address)
        yield fake


def paper(**changes: Any) -> config.Config:
    return config.validate(config.merge(yaml.safe_load(PAPER.read_text(encoding="utf-8")), changes))


def test_a_token_that_may_read_it_is_enough_and_is_sent_to_the_hub_alone(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f" {hub.token}\n")
    check_access(paper(), tmp_path)
    (request,) = hub.requests
    assert request["path"] == "/api/datasets/Idavidrein/gpqa/auth-check"
    assert request["authorization"] == f"Bearer {hub.token}"


def test_without_a_token_the_message_says_all_that_can_be_done(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(PermissionError) as caught:
        check_access(paper(), tmp_path)
    message = str(caught.value)
    assert "nothing was started" in message
    assert "datasets.gpqa_diamond.source = 'hf://Idavidrein/gpqa' is gated, and there is no token for it" in message
    assert f"accept its terms at {hub.address}/datasets/Idavidrein/gpqa, then export HF_TOKEN=..." in message
    assert "or leave gpqa_diamond out with `run: {gated: skip}`" in message
    assert hub.requests == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terms_accepted": False}, r"the hub refused it to this token \(403\): accept its terms at"),
        ({"token": "hf_other"}, r"the hub refused the token \(401\): export an HF_TOKEN that is valid"),
        ({"gone": True}, r"the hub knows no such dataset, or hides it from this token \(404\)"),
        ({"status": 418}, r"did not say whether it may be read \(status 418\); check HF_ENDPOINT"),
        ({"status": 503}, r"did not say whether it may be read \(status 503\)"),
    ],
    ids=str,
)
def test_a_refusal_says_why_and_never_the_token(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    token = change.get("token", hub.token)
    monkeypatch.setenv("HF_TOKEN", token)
    hub.repositories["datasets/Idavidrein/gpqa"].terms_accepted = change.get("terms_accepted", True)
    hub.fail_with = [change["status"]] * 3 if "status" in change else []
    if change.get("gone"):
        hub.repositories.clear()
    with pytest.raises(PermissionError, match=message) as caught:
        check_access(paper(), tmp_path)
    assert token not in str(caught.value)


def test_a_hub_that_stumbles_is_asked_again(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.fail_with = [503, 429]
    check_access(paper(), tmp_path)
    assert len(hub.requests) == 3


def test_no_network_is_told_with_the_remedies(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("HF_ENDPOINT", "http://user:password@127.0.0.1:9")
    with pytest.raises(PermissionError, match=r"127\.0\.0\.1:9 cannot be reached .*; check the network") as caught:
        check_access(paper(), tmp_path)
    assert "password" not in str(caught.value)


def test_a_hub_that_is_switched_off_is_not_asked(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PermissionError, match="not downloaded yet, while the hub is switched off; unset"):
        check_access(paper(), tmp_path)
    assert hub.requests == []


def test_what_is_downloaded_needs_neither_token_nor_network(hub: FakeHub, tmp_path: Path) -> None:
    settings = paper()
    folder = tmp_path / config.dataset_key(settings, "gpqa_diamond")
    folder.mkdir()
    with pytest.raises(PermissionError):
        check_access(settings, tmp_path)  # not complete without its manifest
    (folder / "manifest.json").write_text("{}")
    check_access(settings, tmp_path)
    assert hub.requests == []


def test_a_mirror_is_looked_into_instead(hub: FakeHub, tmp_path: Path) -> None:
    settings = paper(mirror=str(tmp_path / "mirror"))
    with pytest.raises(PermissionError, match=rf"the mirror has no folder {tmp_path}/mirror/Idavidrein/gpqa"):
        check_access(settings, tmp_path)
    (tmp_path / "mirror" / "Idavidrein" / "gpqa").mkdir(parents=True)
    check_access(settings, tmp_path)
    assert hub.requests == []


def test_only_datasets_of_the_run_that_come_from_the_hub_are_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    check_access(paper(run={"tasks": ["math500"]}), tmp_path)
    check_access(paper(run={"gated": "skip"}), tmp_path)
    check_access(paper(datasets={"gpqa_diamond": {"source": "path:/somewhere"}}), tmp_path)
    assert hub.requests == []


def test_gated_training_problems_are_checked_whatever_becomes_of_benchmarks(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match=r"datasets\.s1k\.source .* is gated") as caught:
        check_access(paper(datasets={"s1k": {"gated": True}}, run={"gated": "skip"}), tmp_path)
    assert "gated: skip" not in str(caught.value), "it would not help"


def test_the_judges_key_must_be_there(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    judge = {"url": "https://judge/v1", "model": "m", "key_variable": "JUDGE_KEY"}
    settings = paper(evaluation={"judge": judge}, run={"gated": "skip"})
    with pytest.raises(PermissionError, match=r"key_variable = 'JUDGE_KEY': there is no environment variable"):
        check_access(settings, tmp_path)
    monkeypatch.setenv("JUDGE_KEY", "k")
    check_access(settings, tmp_path)
    monkeypatch.delenv("JUDGE_KEY")
    check_access(paper(evaluation={"judge": {**judge, "key_variable": None}}, run={"gated": "skip"}), tmp_path)


# --- the token -----------------------------------------------------------------------------------------------------

PLACES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "nowhere": ({}, {}),
    "the variable": ({"HF_TOKEN": "one"}, {}),
    "the old variable": ({"HUGGING_FACE_HUB_TOKEN": "two"}, {}),
    "both variables": ({"HF_TOKEN": "one", "HUGGING_FACE_HUB_TOKEN": "two"}, {}),
    "an empty variable": ({"HF_TOKEN": "  \n"}, {}),
    "a file": ({}, {".cache/huggingface/token": "three\n"}),
    "variable and file": ({"HF_TOKEN": "one"}, {".cache/huggingface/token": "three\n"}),
    "an empty file": ({}, {".cache/huggingface/token": "\n"}),
    "another cache": ({"XDG_CACHE_HOME": "{home}/cache"}, {"cache/huggingface/token": "four"}),
    "another home": ({"HF_HOME": "~/hf"}, {"hf/token": "five"}),
    "another file": ({"HF_TOKEN_PATH": "$HOME/secret"}, {"secret": "six"}),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_token_is_the_one_that_a_download_would_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    variables, files = PLACES[place]
    environment = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "XDG_CACHE_HOME")}
    environment |= {"HOME": str(tmp_path)}
    environment |= {name: value.replace("{home}", str(tmp_path)) for name, value in variables.items()}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    code = "import json, huggingface_hub; print(json.dumps(huggingface_hub.get_token()))"
    theirs = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for name in os.environ.keys() - environment.keys():
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hub_token() == json.loads(theirs.stdout)


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_missing_without_a_traceback(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    command = ["check-access", str(PAPER), "--datasets", str(tmp_path)]
    assert main(command) == 1
    assert "there is no token for it: accept its terms" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert main(command) == 0
    assert "everything that needs a permission is there, or may be had" in capsys.readouterr().out
    assert hub.token not in caplog.text


def test_the_check_needs_nothing_beyond_snakemakes_own_packages() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import rsd.access; "
        "print(sorted({'torch', 'huggingface_hub', 'requests', 'httpx', 'pyarrow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "workflow")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
