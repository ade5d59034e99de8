"""Before the first job: can everything that needs a permission be had? Configuration -> nothing, or what is missing.

A gated dataset needs accepted terms and a token, and its benchmark comes last, after all GPU hours are spent; so the
hub is asked at once. Snakemake calls this in its own process (`onstart:`), where the packages of the pipeline may be
missing: standard library alone. By hand: `rsd check-access config.yaml`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rsd.config import dataset_key, judged_tasks, used_datasets
from rsd.web import Answer, ask, host

LOG = logging.getLogger(__name__)
DATASETS = Path("results/datasets")
TIMEOUT_S = 20.0
# Pauses before the second and third try.
WAITS_S = (2, 5)


def check_access(config: Mapping[str, Any], datasets: Path = DATASETS) -> None:
    """Nothing where every gated dataset of the run is in the folder `datasets`, in the mirror, or may be read at the
    hub, and where the judge's key is set.

    Raises PermissionError with one line for each that is not, and what to do about it.
    """
    problems = [*_dataset_problems(dict(config), datasets), *_judge_problems(dict(config))]
    if problems:
        raise PermissionError("nothing was started, for this would fail later:\n  " + "\n  ".join(problems))


# --- gated datasets ------------------------------------------------------------------------------------------------


def _dataset_problems(config: dict[str, Any], datasets: Path) -> Iterator[str]:
    for name in used_datasets(config):
        entry = config["datasets"][name]
        if not (entry["gated"] and entry["source"].startswith("hf://")):
            continue
        if (datasets / dataset_key(config, name) / "manifest.json").exists():
            LOG.info("datasets.%s is gated, and already downloaded", name)
            continue
        repository = entry["source"].removeprefix("hf://").partition("@")[0]
        problem = _in_mirror(config["mirror"], repository) if config["mirror"] else _at_hub(repository)
        if problem is None:
            LOG.info("datasets.%s is gated, and may be read", name)
            continue
        yield f"datasets.{name}.source = {entry['source']!r} is gated, and {problem}{_or_skip(config, name)}"


def _in_mirror(mirror: str, repository: str) -> str | None:
    folder = Path(mirror).expanduser() / repository
    return None if folder.is_dir() else f"the mirror has no folder {folder}; put its files there"


def _at_hub(repository: str) -> str | None:
    """What keeps `repository` from being downloaded, and the remedy; None where nothing does."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    accept = f"accept its terms at {host(endpoint)}/datasets/{repository}"
    if _is_true(os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE")):
        return "not downloaded yet, while the hub is switched off; unset HF_HUB_OFFLINE"
    token = hub_token()
    if token is None:
        return f"there is no token for it: {accept}, then export HF_TOKEN=..."
    url = f"{endpoint}/api/datasets/{quote(repository)}/auth-check"
    try:
        answer = _ask_patiently(url, {"Authorization": f"Bearer {token}"})
    except ConnectionError as error:
        return f"{error}; check the network and HF_ENDPOINT, or copy its files into a mirror and set `mirror`"
    if answer.status == 200:
        return None
    if answer.status == 401 and answer.headers.get("x-error-code") != "GatedRepo":
        return f"the hub refused the token (401): export an HF_TOKEN that is valid, and {accept}"
    if answer.status in (401, 403):
        return f"the hub refused it to this token ({answer.status}): {accept}, or export another HF_TOKEN"
    if answer.status == 404:
        return f"the hub knows no such dataset, or hides it from this token (404): correct the id, or {accept}"
    return f"{host(endpoint)} did not say whether it may be read (status {answer.status}); check HF_ENDPOINT"


def _ask_patiently(url: str, headers: Mapping[str, str]) -> Answer:
    for wait in (*WAITS_S, None):
        try:
            answer = ask(url, headers=headers, timeout_s=TIMEOUT_S)
            if wait is None or (answer.status != 429 and answer.status < 500):
                return answer
        except ConnectionError:
            if wait is None:
                raise
        time.sleep(wait)
    raise AssertionError("unreachable")


def hub_token() -> str | None:
    """The token that a download would send: HF_TOKEN, or the file that `hf auth login` writes."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := _cleaned(os.environ.get(name)):
            return token
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    path = os.environ.get("HF_TOKEN_PATH", os.path.join(home, "token"))
    try:
        return _cleaned(Path(os.path.expandvars(os.path.expanduser(path))).read_text(encoding="utf-8"))
    except OSError:
        return None


def _cleaned(token: str | None) -> str | None:
    return (token or "").replace("\r", "").replace("\n", "").strip() or None


def _is_true(value: str | None) -> bool:
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")


def _or_skip(config: dict[str, Any], name: str) -> str:
    tasks = [task for task in config["run"]["tasks"] if config["tasks"][task]["dataset"] == name]
    return f"; or leave {', '.join(tasks)} out with `run: {{gated: skip}}`" if tasks else ""


# --- the judge's key -----------------------------------------------------------------------------------------------


def _judge_problems(config: dict[str, Any]) -> Iterator[str]:
    judge = config["evaluation"]["judge"]
    name = judge and judge["key_variable"]
    if name and judged_tasks(config) and not os.environ.get(name):
        yield (
            f"evaluation.judge.key_variable = {name!r}: there is no environment variable of that name; export it, or "
            "set `evaluation: {judge: null}`"
        )
