"""The measurements run from end to end at small sizes; what they measure here means nothing."""

from __future__ import annotations

import json

import pytest

from benchmarks import performance


@pytest.mark.parametrize("pair", ["tiny", "pocket"])
def test_every_part_runs_and_is_written(pair, tmp_path, capsys):
    path = tmp_path / "facts.json"
    performance.main(
        f"--pair {pair} --device cpu --threads 1 --runs 1 --lanes 1 3 --blocks 4 --prompt 8 --new 30 --growing-lanes 2 "
        f"--growing-lengths 64 --requests 5 40 --json {path}".split()
    )
    entries = json.loads(path.read_text())["entries"]
    ways = {entry.get("way") for entry in entries}
    assert {"authors", "generate", "teacher alone", "student alone", "lock-step", "auto"} <= ways
    assert {"student-drafts in blocks of 4", "teacher-drafts in blocks of 4"} <= ways
    assert {entry.get("grows") for entry in entries} == {None, "lanes", "context", "requests"}
    assert all(speed > 0 for entry in entries for speed in entry["tokens_per_second"])
    text = capsys.readouterr().out
    assert "RSD at 1 lanes / the authors' way:" in text
    assert "RSD at 3 lanes / generate of the teacher alone:" in text
    assert "h at most" in text


def test_lanes_that_do_not_fit_are_said_and_the_rest_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(performance, "free_bytes", lambda _: 3_000_000)
    flags = "--pair tiny --device cpu --threads 1 --parts rsd --runs 1 --blocks 2 --prompt 8 --new 30"
    performance.main([*flags.split(), "--lanes", "1", "4000"])
    text = capsys.readouterr().out
    assert "4000 lanes: no memory for 4000 lanes" in text
    assert "| lock-step | 1 |" in text
