"""Digests follow content and nothing else; a stamp separates what must be equal from what may differ."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd import provenance


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans(), max_size=6))
def test_settings_digest_does_not_depend_on_the_order_of_keys(settings):
    backwards = dict(reversed(settings.items()))
    assert provenance.settings_digest(settings) == provenance.settings_digest(backwards)


def test_settings_digest_tells_numbers_from_their_text():
    digests = {provenance.settings_digest({"x": value}) for value in (1, "1", 1.5, True, None)}
    assert len(digests) == 5


def test_file_digest_is_the_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert provenance.file_digest(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_a_module_that_is_gone_cannot_go_unnoticed():
    with pytest.raises(FileNotFoundError):
        provenance.code_digest(["law", "no_such_module"])


def test_a_folder_stands_for_its_manifest_and_only_run_may_differ(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    one, two = (provenance.stamp({"a": 1}, {"model": tmp_path}, seed=3) for _ in range(2))
    assert one["settings"] == two["settings"]
    assert one["settings"]["inputs"] == {"model": hashlib.sha256(b"{}").hexdigest()}
    assert one["settings"]["seed"] == 3
    assert one["run"]["packages"]["torch"]


def test_what_snakemake_imports_while_parsing_loads_nothing_heavy():
    code = (
        "import sys, rsd.config, rsd.stages, rsd.cli; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
