"""A folder is complete exactly when its manifest exists and matches."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.manifest import verify_manifest, write_manifest


def make(folder: Path, files: dict[str, bytes], **changes: object) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    fields: dict = {
        "kind": "model",
        "source": "path:x",
        "revision": None,
        "licence": "mit",
        "provenance": {"via": "path"},
    }
    write_manifest(folder, **(fields | changes))
    return folder


def test_lists_size_and_sha256_of_every_visible_file(tmp_path: Path) -> None:
    make(tmp_path, {"b.txt": b"two", "sub/a.bin": b"", ".resolved.json": b"{}", ".cache/x": b"x", ".b.txt.tmp": b"y"})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert list(manifest) == ["kind", "source", "revision", "licence", "files", "provenance"]
    assert manifest["files"] == {
        "b.txt": {"size": 3, "sha256": hashlib.sha256(b"two").hexdigest()},
        "sub/a.bin": {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()},
    }


def test_same_content_gives_the_same_bytes_in_any_folder(tmp_path: Path) -> None:
    one = make(tmp_path / "one", {"a": b"1", "b": b"2"})
    two = make(tmp_path / "two", {"b": b"2", "a": b"1"})
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()


def test_rewriting_does_not_list_the_manifest_itself(tmp_path: Path) -> None:
    make(make(tmp_path, {"a": b"1"}), {"a": b"1"})
    assert list(verify_manifest(tmp_path, deep=True)["files"]) == ["a"]


@pytest.mark.parametrize("change", ["kind", "empty"])
def test_a_manifest_of_nothing_or_of_an_unknown_kind_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(ValueError, match="kind 'weights'" if change == "kind" else "holds no files"):
        make(tmp_path, {"a": b"1"} if change == "kind" else {}, **({"kind": "weights"} if change == "kind" else {}))
    assert not (tmp_path / "manifest.json").exists()


def test_missing_manifest_means_incomplete(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json.*run the stage"):
        verify_manifest(tmp_path, deep=False)


def test_missing_file_is_named(tmp_path: Path) -> None:
    (make(tmp_path, {"a": b"1", "sub/b": b"2"}) / "sub/b").unlink()
    with pytest.raises(FileNotFoundError, match=r"sub/b is missing.*delete"):
        verify_manifest(tmp_path, deep=False)


def test_changed_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    (make(tmp_path, {"a": b"123"}) / "a").write_bytes(b"12")
    with pytest.raises(ValueError, match="a has 2 bytes, expected 3"):
        verify_manifest(tmp_path, deep=False)


def test_only_a_deep_check_sees_changed_content_of_the_same_size(tmp_path: Path) -> None:
    (make(tmp_path, {"a": b"123"}) / "a").write_bytes(b"124")
    assert verify_manifest(tmp_path, deep=False)["licence"] == "mit"
    expected = hashlib.sha256(b"123").hexdigest()
    with pytest.raises(ValueError, match=f"a has sha256 [0-9a-f]{{64}}, expected {expected}"):
        verify_manifest(tmp_path, deep=True)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"files": {}}', '{"files": {"a": 3}}', '{"files": {"a": {"size": 1}}}']
)
def test_a_damaged_manifest_is_a_value_error_with_a_remedy(tmp_path: Path, text: str) -> None:
    make(tmp_path, {"a": b"1"})
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"delete .*manifest\.json and run"):
        verify_manifest(tmp_path, deep=False)


@given(content=st.binary(min_size=1, max_size=200), at=st.integers(0), flip=st.integers(1, 255))
def test_any_single_changed_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int, flip: int
) -> None:
    folder = make(tmp_path_factory.mktemp("m"), {"a": content})
    changed = bytearray(content)
    changed[at % len(content)] ^= flip
    (folder / "a").write_bytes(bytes(changed))
    with pytest.raises(ValueError, match="sha256"):
        verify_manifest(folder, deep=True)
