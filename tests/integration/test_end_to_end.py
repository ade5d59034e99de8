"""The shrunk demo through the real Snakemake and the real stages: everything is there, nothing runs twice, kills and
damaged files cost no result."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines import Pipeline, shell_commands
from rsd.config import load
from rsd.records import ATTEMPTS, ROWS, SAMPLES, VERDICTS, read_jsonl, read_table

pytestmark = pytest.mark.slow

RUN = Path("results/pocket-tiny")
SHARDS = [RUN / f"traces/rsd/shard-00{number}.parquet" for number in (0, 1)]
WANTED = [str(shard) for shard in SHARDS]


def rsd(pipeline: Pipeline, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["rsd", *map(str, words)], cwd=pipeline.folder, env=pipeline.variables(), capture_output=True, text=True
    )


def test_every_stage_leaves_what_it_promises(tiny: Pipeline) -> None:
    folder = tiny.folder / RUN
    problems = read_jsonl(folder / "data" / "problems.jsonl")
    benchmark = read_jsonl(folder / "data" / "benchmarks" / "pocket.jsonl")
    assert (len(problems), len(benchmark)) == (24, 24)
    for traces, attempts in (("rsd", 2), ("direct", 1)):
        shards = [read_table(path, ATTEMPTS) for path in sorted((folder / "traces" / traces).glob("shard-*.parquet"))]
        assert sum(shard.num_rows for shard in shards) == attempts * len(problems)
        assert read_table(folder / "traces" / traces / "verdicts.parquet", VERDICTS).num_rows == attempts * len(
            problems
        )
        assert read_table(folder / "traces" / traces / "rows.parquet", ROWS).num_rows > 0
    for arm in ("base", "direct", "rsd"):
        rows = read_table(folder / "scores" / f"{arm}-seed0" / "pocket.parquet", SAMPLES).to_pylist()
        assert [(row["problem_id"], row["repeat"]) for row in rows] == [(p["id"], k) for p in benchmark for k in (0, 1)]
    for name in ("report.html", "comparison.csv", "comparison.json", "comparison.md"):
        assert (folder / "report" / name).stat().st_size > 100
    assert list((folder / "report" / "figures").glob("*.svg"))


def test_everything_was_made_without_a_network(tiny: Pipeline) -> None:
    if not tiny.inside:
        pytest.skip("a network namespace of one's own is not permitted here")
    reach = [*tiny.inside, "python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)"]
    assert "unreachable" in subprocess.run(reach, capture_output=True, text=True).stderr


def test_the_configuration_beside_the_results_is_the_merged_one(tiny: Pipeline) -> None:
    merged = load([tiny.tree / "config.yaml", *(tiny.tree / name for name in tiny.experiments)])
    assert yaml.safe_load((tiny.folder / RUN / "config.yaml").read_text(encoding="utf-8")) == merged


def test_progress_is_seen_at_the_terminal_and_in_the_logs(tiny: Pipeline) -> None:
    output = (tiny.folder.parent / "output.txt").read_text(encoding="utf-8")
    logs = [path for path in (tiny.folder / RUN / "logs").rglob("*.log") if "write_config" not in path.parts]
    assert len(logs) >= 15
    for stage in ("make_pocket_model", "generate_traces", "train", "evaluate"):
        lines = [line for log in (tiny.folder / RUN / "logs" / stage).rglob("*.log") for line in log.open()]
        progress = [line.strip() for line in lines if " INFO " in line]
        assert progress, f"{stage} says nothing of its progress"
        assert all(line in output for line in progress)


def test_the_second_run_has_nothing_to_do_and_says_so_quickly(tiny: Pipeline) -> None:
    start = time.monotonic()
    assert "Nothing to be done" in tiny.run("--cores", "2").stdout
    assert time.monotonic() - start < 30


def test_show_prints_the_table_and_where_the_report_is(tiny: Pipeline) -> None:
    result = rsd(tiny, "show", RUN)
    assert result.returncode == 0, result.stderr
    assert str(tiny.folder / RUN / "report" / "report.html") in result.stdout
    for label in ("Untrained student", "SFT on RSD traces"):
        assert label in result.stdout


def test_show_before_there_is_a_report_says_what_to_do(tiny: Pipeline) -> None:
    result = rsd(tiny, "show", "results/nothing")
    assert result.returncode == 1
    assert "run snakemake" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_command_that_snakemake_prints_works_by_hand_and_gives_the_same(copied: Pipeline) -> None:
    table = copied.folder / RUN / "report" / "comparison.csv"
    before = table.read_bytes()
    output = copied.run("--dry-run", "--printshellcmds", "--forcerun", "compare").stdout
    (command,) = [command for command in shell_commands(output) if command.startswith("rsd compare ")]
    table.unlink()
    result = rsd(copied, *shlex.split(command)[1:])
    assert result.returncode == 0, result.stderr
    assert table.read_bytes() == before


def test_snakemakes_own_report_is_built(copied: Pipeline) -> None:
    copied.run("--report", "page.html")
    text = (copied.folder / "page.html").read_text(encoding="utf-8")
    assert "SFT on RSD traces" in text or "comparison.csv" in text


def wait_for(path: Path, pattern: str, deadline_s: float = 180) -> None:
    """Until a file matches `pattern` below `path` and holds something."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if any(file.stat().st_size > 0 for file in path.glob(pattern)):
            return
        time.sleep(0.01)
    raise TimeoutError(f"nothing at {path}/{pattern} after {deadline_s} s")


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def wait_until_gone(session: int, deadline_s: float = 60) -> None:
    """Until nothing of a session that a test started is left."""
    deadline = time.monotonic() + deadline_s
    while any(session_of(pid) == session for pid in psutil.pids()):
        assert time.monotonic() < deadline, "a stage outlived its Snakemake"
        time.sleep(0.1)


def rows_of(folder: Path) -> list[list[dict[str, object]]]:
    """The shards' content; repr makes NaN equal to NaN."""
    return [
        [{key: repr(row[key]) for key in row} for row in read_table(folder / path, ATTEMPTS).to_pylist()]
        for path in SHARDS
    ]


def test_a_killed_snakemake_ends_its_stages_and_the_next_one_goes_on(tiny: Pipeline, prepared: Pipeline) -> None:
    # Other lanes, too: a trace must not depend on its neighbours.
    config = {"traces": {"rsd": {"lanes": 3}}}
    with subprocess.Popen(
        prepared.command("--cores", "1", *WANTED, config=config),
        env=prepared.variables(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        wait_for(prepared.folder / RUN / "work" / "generate_traces", "**/*.journal")
        os.killpg(process.pid, signal.SIGSTOP)  # it holds the folder, and comes no further meanwhile
        second = prepared.run("--cores", "1", *WANTED, config=config, ok=False).stdout
        assert "no other Snakemake process is trying to create the same files" in second
        assert "It can be removed with the --unlock argument" in second
        process.kill()
        os.killpg(process.pid, signal.SIGCONT)
    wait_until_gone(process.pid)
    assert not all((prepared.folder / shard).exists() for shard in SHARDS), "it was killed too late to prove anything"
    logs = [path.read_text() for path in (prepared.folder / RUN / "logs" / "generate_traces" / "rsd").glob("*.log")]
    assert any("error: Snakemake has ended; run the same command again to go on" in log for log in logs)
    prepared.run("--unlock", config=config)
    prepared.run("--cores", "2", *WANTED, config=config)
    logs = [path.read_text() for path in (prepared.folder / RUN / "logs" / "generate_traces" / "rsd").glob("*.log")]
    assert any(re.search(r"attempts, [1-9]\d* of them done before", log) for log in logs), "it began anew"
    assert rows_of(prepared.folder) == rows_of(tiny.folder)


def is_traces(process: psutil.Process) -> bool:
    return process.cmdline()[2:4] == ["rsd.cli", "generate-traces"]


def test_a_stage_killed_by_the_system_says_so_and_the_next_run_goes_on(prepared: Pipeline) -> None:
    with subprocess.Popen(
        prepared.command("--cores", "1", *WANTED),
        env=prepared.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        wait_for(prepared.folder / RUN / "work" / "generate_traces", "**/*.journal")
        jobs = [child for child in psutil.Process(process.pid).children(recursive=True) if is_traces(child)]
        # A stage's parent copies what it prints; the stage is the one without children of its own kind.
        (stage,) = [job for job in jobs if not any(map(is_traces, job.children()))]
        stage.kill()
        output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "error: killed by signal 9" in output
    assert "run the same command again to go on" in output
    prepared.run("--cores", "2", *WANTED)


def test_a_folder_that_cannot_be_written_is_named(copied: Pipeline) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = copied.folder / RUN / "traces" / "rsd"
    (copied.folder / SHARDS[0]).unlink()
    folder.chmod(0o555)
    try:
        assert "make its folder writable" in copied.run("--cores", "1", "traces", ok=False).stdout
    finally:
        folder.chmod(0o755)
