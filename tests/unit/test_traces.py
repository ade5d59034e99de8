"""A shard of traces: complete, exact across restarts, refused with a reason where it cannot be made."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsd import progress, traces
from rsd.journal import Journal, remove_journals
from rsd.models import load_model, load_tokenizer, token_id
from rsd.pocket import make_tokenizer
from rsd.records import ATTEMPTS, read_provenance, read_table, write_jsonl
from rsd.traces import run_generate_traces
from tiny import tiny_model_folder

SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
SIDE = {"name": "x", "dtype": "float32", "prompt": "<|im_start|>{question}<think>"}
SETTINGS = {
    "method": "rsd",
    "format": {
        "think_close": "</think>",
        "end_of_turn": "<|im_end|>",
        "answer": "boxed",
        "dataset_trace": "{response}",
    },
    "student": SIDE,
    "teacher": SIDE | {"prompt": "<|im_start|>{question} {solution}<think>"},
    "law": {
        "name": "authors-code",
        "draws": 2,
        "proposal": SAMPLING,
        "accept_top_k": 0,
        "fallback": SAMPLING,
        "threshold": 0.01,
    },
    "attempts": 3,
    "context": 64,
    "max_new_tokens": 24,
    "lanes": 4,
    "jobs_at_once": 1,
    "schedule": "lock-step",
    "block_length": None,
    "shards": 2,
    "seed": 7,
    "device": "cpu",
    "gpus": {"student": 1, "teacher": 1, "sampled": 1},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {side: tiny_model_folder(tmp_path_factory.mktemp(side)) for side in ("student", "teacher")}


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    write_jsonl(path, [{"id": f"p{n}", "question": f"{n}+1", "answer": str(n + 1), "solution": "s"} for n in range(5)])
    return path


def generate(folders, problems, tmp_path, name="out", settings=SETTINGS, shard=0, **overrides):
    output = tmp_path / f"{name}.parquet"
    arguments = {"teacher": folders["teacher"], "student": folders["student"], "problems": problems} | overrides
    run_generate_traces(
        **arguments, settings=settings, shard=shard, threads=1, output=output, work=tmp_path / f"{name}-work"
    )
    return read_table(output, ATTEMPTS).to_pylist()


def comparable(rows):
    return [{key: repr(value) for key, value in row.items()} for row in rows]


def test_every_problem_of_the_shards_has_all_its_attempts_in_order(folders, problems, tmp_path):
    rows = [generate(folders, problems, tmp_path, f"s{shard}", shard=shard) for shard in range(2)]
    assert [(row["problem_id"], row["attempt"]) for row in rows[0]] == [
        (p, n) for p in ("p0", "p2", "p4") for n in range(3)
    ]
    assert {row["problem_id"] for row in rows[1]} == {"p1", "p3"}
    for row in rows[0] + rows[1]:
        lengths = {len(row[name]) for name in ("tokens", "fallback", "p_student", "p_teacher")}
        assert len(lengths) == 1
        assert 0 < lengths.pop() <= 24
        assert row["finish"] in ("end_of_turn", "length")


def test_text_is_the_decoded_ids(folders, problems, tmp_path):
    tokenizer = load_tokenizer(folders["student"])
    for row in generate(folders, problems, tmp_path):
        assert row["text"] == tokenizer.decode(row["tokens"])


def test_an_attempt_does_not_depend_on_shards_lanes_or_other_attempts(folders, problems, tmp_path):
    reference = {(row["problem_id"], row["attempt"]): row for row in generate(folders, problems, tmp_path)}
    other = SETTINGS | {"shards": 1, "lanes": 7, "attempts": 2}
    for row in generate(folders, problems, tmp_path, "other", settings=other):
        if (row["problem_id"], row["attempt"]) in reference:
            assert comparable([row]) == comparable([reference[row["problem_id"], row["attempt"]]])


def test_a_run_killed_in_the_middle_goes_on_and_ends_the_same(folders, problems, tmp_path, monkeypatch):
    reference = generate(folders, problems, tmp_path)
    append, seen = traces.Journal.append, []

    def fail_after_four(self, key, item):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(key)
        append(self, key, item)

    monkeypatch.setattr(traces.Journal, "append", fail_after_four)
    with pytest.raises(KeyboardInterrupt):
        generate(folders, problems, tmp_path, "again")
    assert not (tmp_path / "again.parquet").exists()

    def remember(self, key, item):
        seen.append(key)
        append(self, key, item)

    monkeypatch.setattr(traces.Journal, "append", remember)
    assert comparable(generate(folders, problems, tmp_path, "again")) == comparable(reference)
    assert len(seen) == len(set(seen)) == 9, "an attempt was made twice"


def test_a_shard_lost_after_it_was_written_comes_from_its_journal_until_that_is_removed(folders, problems, tmp_path):
    """Snakemake removes what a job has written that is ended between its last file and its own end."""

    def again(**change):
        (tmp_path / "out.parquet").unlink()
        emitted = []
        with pytest.MonkeyPatch.context() as patch:
            signal_at(patch, signal.SIGTERM, 0, emitted)
            rows = generate(folders, problems, tmp_path, settings=SETTINGS | change)
        return rows, sum(emitted), read_provenance(tmp_path / "out.parquet")["resumed"]

    first = generate(folders, problems, tmp_path)
    assert read_provenance(tmp_path / "out.parquet")["resumed"] == 0
    rows, made, resumed = again(lanes=2)
    assert (comparable(rows), made, resumed) == (comparable(first), 0, 9)
    (journal,) = (tmp_path / "out-work").iterdir()
    made = again(seed=8)[1]
    assert made > 0
    assert journal not in (tmp_path / "out-work").iterdir(), "one of other settings stayed"
    remove_journals(tmp_path / "out-work")
    assert again(seed=8)[1:] == (made, 0)


# --- stopped and gone on ---------------------------------------------------------------------------------------------


def signal_at(patch, number, rounds, emitted=None):
    """Sends the signal in the round of that number; the tokens of every round go to the list `emitted`."""
    original, calls = progress.Recorder.round, []

    def counted(self, tokens):
        if emitted is not None:
            emitted.append(tokens)
        calls.append(tokens)
        due = original(self, tokens)
        if len(calls) == rounds:
            os.kill(os.getpid(), number)
        return due or self.interruption.received is not None

    patch.setattr(progress.Recorder, "round", counted)


def stop(number, rounds, *arguments, emitted=None, **options):
    """Runs until the signal; returns the status that it ends with."""
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, number, rounds, emitted)
        with pytest.raises((SystemExit, KeyboardInterrupt)) as stopped:
            generate(*arguments, **options)
    return getattr(stopped.value, "code", "Ctrl-C")


PLAIN = {key: value for key, value in SETTINGS.items() if key not in ("law", "teacher", "schedule", "block_length")}
PLAIN |= {"method": "sample", "sampling": SAMPLING, "sampled": None}
# Other lanes and schedules after every stop, so that what was begun together goes on apart.
STOPS = [
    (1, {"lanes": 4}),
    (3, {"lanes": 1, "schedule": "student-drafts", "block_length": 3}),
    (2, {"lanes": 7, "schedule": "teacher-drafts", "block_length": 4}),
    (2, {"lanes": 3, "schedule": "auto"}),
    (12, {"lanes": 2}),
]


@pytest.mark.parametrize(("settings", "options"), [(SETTINGS, {}), (PLAIN, {"teacher": None})], ids=["rsd", "sample"])
def test_stopped_again_and_again_it_ends_as_undisturbed_and_no_token_is_made_twice(
    folders, problems, tmp_path, settings, options, caplog
):
    caplog.set_level(logging.INFO)
    reference = generate(folders, problems, tmp_path, settings=settings, **options)
    emitted = []
    for rounds, change in STOPS:
        arguments = (folders, problems, tmp_path, "again", settings | change)
        assert stop(signal.SIGTERM, rounds, *arguments, emitted=emitted, **options) == 143
    assert not (tmp_path / "again.parquet").exists()
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, signal.SIGTERM, 0, emitted)
        again = generate(folders, problems, tmp_path, "again", settings, **options)
    assert comparable(again) == comparable(reference)
    assert sum(emitted) == sum(len(row["tokens"]) for row in reference)
    assert re.search(r"[1-9] attempts go on where they were, behind [1-9]\d* tokens", caplog.text)


@pytest.mark.parametrize("rounds", range(1, 24))
def test_wherever_it_is_stopped_it_ends_as_undisturbed(folders, problems, tmp_path, rounds):
    write_jsonl(problems, [{"id": "p", "question": "1+1", "answer": "2", "solution": "s"}])
    settings = SETTINGS | {"shards": 1, "attempts": 6, "lanes": 6}
    reference = generate(folders, problems, tmp_path, settings=settings)
    assert stop(signal.SIGTERM, rounds, folders, problems, tmp_path, "again", settings) == 143
    assert comparable(generate(folders, problems, tmp_path, "again", settings)) == comparable(reference)


def test_ctrl_c_saves_as_sigterm_does(folders, problems, tmp_path, caplog):
    reference = generate(folders, problems, tmp_path)
    emitted = []
    assert stop(signal.SIGINT, 9, folders, problems, tmp_path, "again", emitted=emitted) == "Ctrl-C"
    assert "run the same command again to go on" in caplog.text
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, signal.SIGINT, 0, emitted)
        assert comparable(generate(folders, problems, tmp_path, "again")) == comparable(reference)
    assert sum(emitted) == sum(len(row["tokens"]) for row in reference)


def test_lanes_device_and_schedule_go_on_with_what_is_there(folders, problems, tmp_path):
    """And what decides a token does not."""
    stop(signal.SIGTERM, 5, folders, problems, tmp_path)
    (journal,) = (tmp_path / "out-work").iterdir()
    for change in ({"lanes": 2}, {"device": "auto"}, {"schedule": "auto"}, {"block_length": 1}, {"seed": 8}):
        stop(signal.SIGTERM, 1, folders, problems, tmp_path, settings=SETTINGS | change)
        assert ([journal] == list((tmp_path / "out-work").iterdir())) == ("seed" not in change)


def test_a_journal_damaged_anywhere_costs_only_its_tail(folders, problems, tmp_path, caplog):
    reference = generate(folders, problems, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "FLUSH_SECONDS", 0)
        stop(signal.SIGTERM, 30, folders, problems, tmp_path, "stopped")
    (journal,) = (tmp_path / "stopped-work").iterdir()
    content, choose = journal.read_bytes(), random.Random(1)
    assert content.count(b'"part"') > 20
    assert content.count(b'"item"') > 2
    for number in range(8):
        name, damaged = f"damaged-{number}", bytearray(content)
        place = choose.randrange(len(content))
        if number % 2:
            del damaged[place:]
        else:
            damaged[place] ^= choose.randrange(1, 256)
        (tmp_path / f"{name}-work").mkdir()
        (tmp_path / f"{name}-work" / journal.name).write_bytes(damaged)
        caplog.clear()
        emitted = []
        with pytest.MonkeyPatch.context() as patch:
            signal_at(patch, signal.SIGTERM, 0, emitted)
            assert comparable(generate(folders, problems, tmp_path, name)) == comparable(reference)
        assert ("dropped a damaged tail" in caplog.text) == (content[:place][-1:] != b"\n" or not number % 2)
        assert sum(emitted) < sum(len(row["tokens"]) for row in reference) or not content[:place].count(b"\n")


def test_the_progress_line_tells_rate_solved_share_fallback_rate_and_remaining_time(
    folders, problems, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0)
    rows = generate(folders, problems, tmp_path)
    lines = [record.message for record in caplog.records if "tokens/s" in record.message]
    pattern = (
        r"(\d+) of 9 attempts, [\d.]+ tokens/s, solved (-|[\d.]+ %) \(\d+ graded\), "
        r"fallback (unknown|on [\d.]+ % of tokens), (time to go unknown|about [\d hmins]+ to go)"
    )
    assert all(re.fullmatch(pattern, line) for line in lines), lines
    assert "time to go unknown" in lines[0]
    flags = [flag for row in rows for flag in row["fallback"]]
    assert lines[-1].startswith("9 of 9 attempts, ")
    assert lines[-1].endswith(
        f"solved 0.0 % (9 graded), fallback on {100 * sum(flags) / len(flags):.2f} % of tokens, about 0 s to go"
    )


def test_what_earlier_runs_made_is_counted_as_made(folders, problems, tmp_path, monkeypatch):
    stop(signal.SIGTERM, 20, folders, problems, tmp_path)
    made = []
    monkeypatch.setattr(traces, "Progress", lambda *arguments: made.append(progress.Progress(*arguments)) or made[0])
    rows = generate(folders, problems, tmp_path)
    lengths = [len(row["tokens"]) for row in rows]
    assert (made[0].finished, made[0].finished_tokens, made[0].tokens_in_flight) == (len(rows), sum(lengths), 0)
    assert 0 < made[0].emitted < sum(lengths)


def test_a_right_answer_is_counted_as_solved_also_when_an_earlier_run_made_it(
    folders, problems, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "extract_answer", lambda text, _: "1" if "a" in text else "no")
    stop(signal.SIGTERM, 40, folders, problems, tmp_path)
    rows = generate(folders, problems, tmp_path)
    right = sum("a" in row["text"] and row["problem_id"] == "p0" for row in rows)
    assert right > 0
    last = [record.message for record in caplog.records if "tokens/s" in record.message][-1]
    assert f"solved {100 * right / 9:.1f} % (9 graded)" in last


# The stage in a process of its own, slowed so that it can be hit in the middle. Every round and every snapshot leave a
# line in `events`; `-` is the stage's process.
SLOW_STAGE = """
import json, os, sys, time
from pathlib import Path
from rsd import progress, runtime
from rsd.supervise import supervised
options = json.loads(sys.argv[1])
folder = Path(options.pop("folder"))
progress.FLUSH_SECONDS = options.pop("flush_seconds")
events = os.open(folder / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
round_, take = progress.Recorder.round, progress.Recorder.take
def slow_round(self, emitted):
    os.write(events, b"emitted %d\\n" % emitted)
    time.sleep(0.01)
    return round_(self, emitted)
def told_take(self, lanes):
    try:
        take(self, lanes)
    finally:
        os.write(events, b"taken\\n")
progress.Recorder.round, progress.Recorder.take = slow_round, told_take
def stage():
    from rsd.traces import run_generate_traces
    runtime.setup_logging()
    os.write(events, b"- %d\\n" % os.getpid())
    paths = {key: Path(options.pop(key)) for key in ("problems", "student", "teacher")}
    run_generate_traces(**paths, **options, shard=0, threads=1, output=folder / "out.parquet", work=folder / "work")
    return 0
sys.exit(supervised(folder / "log", stage))
"""
LONG = SETTINGS | {"shards": 1, "attempts": 4, "context": 300, "max_new_tokens": 250}


class SlowStage:
    """A run of SLOW_STAGE, and what it has told."""

    def __init__(self, folders, problems, folder: Path, *, flush_seconds: float) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        (folder / "events").unlink(missing_ok=True)
        options = {"folder": folder, "problems": problems, "settings": LONG, "flush_seconds": flush_seconds}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLOW_STAGE, json.dumps(options | folders, default=str)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def events(self) -> list[str]:
        path = self.folder / "events"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, rounds: int) -> None:
        deadline = time.monotonic() + 120
        while sum(line.startswith("emitted") for line in self.events()) < rounds:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "too slow"
            time.sleep(0.005)

    @property
    def stage(self) -> int:
        return int(self.events()[0].split()[1])

    def saved_tokens(self) -> int:
        """Tokens that the journal has, finished and begun."""
        (path,) = (self.folder / "work").iterdir()
        # A copy: reading cuts a damaged tail off.
        copy = Path(shutil.copy(path, self.folder / "copy"))
        found = Journal(copy).load()
        finished = sum(len(progress.unpack(item)["tokens"]) for item in found.items.values())
        return finished + sum(parts[-1].stop for parts in found.parts.values())

    def emitted(self) -> tuple[int, int]:
        """Tokens that this run made, and how many of them after the last snapshot."""
        events = self.events()
        counts = [int(line.split()[1]) if line.startswith("emitted") else 0 for line in events]
        last = max((number for number, line in enumerate(events) if line == "taken"), default=-1)
        return sum(counts), sum(counts[last + 1 :])


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_at_most_what_was_not_saved_and_ends_as_undisturbed(folders, problems, tmp_path):
    reference = generate(folders, problems, tmp_path, settings=LONG)
    choose, known = random.Random(os.urandom(8)), 0
    for _ in range(2):
        run = SlowStage(folders, problems, tmp_path / "killed", flush_seconds=0.1)
        run.wait_for(choose.randrange(10, 25))
        time.sleep(choose.random() * 0.15)
        os.kill(run.stage, signal.SIGKILL)
        assert run.process.wait(timeout=60) == 128 + signal.SIGKILL
        made, unsaved = run.emitted()
        saved = run.saved_tokens()
        assert known + made - unsaved <= saved <= known + made
        assert saved > known
        known = saved
    assert not (tmp_path / "killed" / "out.parquet").exists(), "it was killed too late to prove anything"
    run = SlowStage(folders, problems, tmp_path / "killed", flush_seconds=30)
    assert run.process.wait(timeout=120) == 0
    assert run.emitted()[0] == sum(len(row["tokens"]) for row in reference) - known
    assert comparable(read_table(tmp_path / "killed" / "out.parquet", ATTEMPTS).to_pylist()) == comparable(reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whom", "words"),
    [
        (signal.SIGTERM, "supervisor", "what is written of the others is saved; run the same command again to go on"),
        # As a cluster does: the stage hears it twice, once from its supervisor.
        (signal.SIGTERM, "everybody", "what is written of the others is saved; run the same command again to go on"),
        (signal.SIGINT, "everybody", "stopped by Ctrl-C; run the same command again to go on"),
    ],
    ids=["SIGTERM", "SIGTERM to all", "Ctrl-C"],
)
def test_a_stage_that_is_told_to_stop_saves_everything_and_says_how_to_go_on(
    folders, problems, tmp_path, number, whom, words
):
    run = SlowStage(folders, problems, tmp_path / "stopped", flush_seconds=30)
    run.wait_for(20)
    (os.kill if whom == "supervisor" else os.killpg)(run.process.pid, number)
    assert run.process.wait(timeout=30) == 128 + number
    log = (tmp_path / "stopped" / "log").read_text()
    assert log.splitlines()[-1].endswith(words)
    assert "Traceback" not in log
    assert run.saved_tokens() == run.emitted()[0] > 0


@pytest.mark.slow
def test_sigterm_before_the_first_round_ends_at_once(folders, problems, tmp_path):
    run = SlowStage(folders, problems, tmp_path / "early", flush_seconds=30)
    deadline = time.monotonic() + 60
    while not run.events() and time.monotonic() < deadline:
        time.sleep(0.01)
    run.process.terminate()
    assert run.process.wait(timeout=30) == 143
    assert run.emitted() == (0, 0)
    assert "run the same command again" in (tmp_path / "early" / "log").read_text()


# --- another model, sampled for the student --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A model with a vocabulary of its own: bytes, and no token for `</think>`."""
    return tiny_model_folder(tmp_path_factory.mktemp("writer"), tokenizer=make_tokenizer("teacher"), seed=5)


SAMPLED = PLAIN | {"sampled": SIDE | {"prompt": "{question} {solution}:"}, "max_new_tokens": 40}


def test_what_another_model_writes_is_what_it_writes_alone_in_the_students_tokens(folders, problems, tmp_path, writer):
    rows = generate(folders, problems, tmp_path, settings=SAMPLED, teacher=None, sampled=writer)
    alone = SAMPLED | {"student": SAMPLED["sampled"], "sampled": None}
    expected = generate(folders, problems, tmp_path, "alone", settings=alone, teacher=None, student=writer)
    student = load_tokenizer(folders["student"])
    assert [(row["problem_id"], row["attempt"]) for row in rows] == [
        (p, n) for p in ("p0", "p2", "p4") for n in range(3)
    ]
    for row, written in zip(rows, expected, strict=True):
        end = "<|im_end|>" if written["finish"] == "end_of_turn" else ""
        said = written["text"].removesuffix(end) if end else written["text"].rstrip("\ufffd")
        assert row["tokens"] == student.encode(said, add_special_tokens=False) + [
            token_id(student, "<|im_end|>")
        ] * bool(end)
        assert row["text"] == student.decode(row["tokens"])
        assert row["finish"] == written["finish"]
        assert row["fallback"] == [False] * len(row["tokens"])
        assert row["p_student"] == row["p_teacher"] == []
    assert len({row["finish"] for row in rows}) == 2, "both endings, or one is not tested"


def test_what_the_students_tokens_change_is_counted_and_told(folders, problems, tmp_path, writer, caplog):
    rows = generate(folders, problems, tmp_path, settings=SAMPLED, teacher=None, sampled=writer)
    alone = SAMPLED | {"student": SAMPLED["sampled"], "sampled": None}
    expected = generate(folders, problems, tmp_path, "alone", settings=alone, teacher=None, student=writer)
    altered = sum(row["text"] != written["text"].rstrip("\ufffd") for row, written in zip(rows, expected, strict=True))
    assert altered > 0, "random bytes are mostly no ASCII"
    provenance = read_provenance(tmp_path / "out.parquet")
    assert provenance["altered"] == altered
    assert f"{altered} of 9 attempts do not say" in caplog.text
    assert "altered" not in read_provenance(tmp_path / "alone.parquet")
    assert set(provenance["settings"]["inputs"]) == {"problems", "student", "sampled"}


def test_a_stopped_sampling_of_another_model_goes_on_in_that_models_tokens(folders, problems, tmp_path, writer):
    options = {"teacher": None, "sampled": writer}
    reference = generate(folders, problems, tmp_path, settings=SAMPLED, **options)
    for rounds in (2, 7):
        assert stop(signal.SIGTERM, rounds, folders, problems, tmp_path, "again", SAMPLED, **options) == 143
    assert comparable(generate(folders, problems, tmp_path, "again", SAMPLED, **options)) == comparable(reference)


# --- what is refused, and what is stamped ----------------------------------------------------------------------------


def test_a_changed_setting_does_not_pick_up_old_progress(folders, problems, tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "write_table", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    for threshold in (0.01, 0.5):
        changed = SETTINGS | {"law": SETTINGS["law"] | {"threshold": threshold}}
        with pytest.raises(KeyboardInterrupt):
            generate(folders, problems, tmp_path, settings=changed)
    assert len(list((tmp_path / "out-work").iterdir())) == 2


def test_provenance_separates_what_must_be_equal_from_what_may_differ(folders, problems, tmp_path):
    for name in ("one", "two"):
        generate(folders, problems, tmp_path, name)
    one, two = (read_provenance(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    assert one["settings"] == two["settings"]
    assert one["settings"]["settings"]["law"]["threshold"] == 0.01
    assert set(one["settings"]["inputs"]) == {"problems", "student", "teacher"}
    assert one["run"]["finished_unix"] != two["run"]["finished_unix"]


def test_plain_sampling_needs_no_teacher(folders, problems, tmp_path):
    rows = generate(folders, problems, tmp_path, settings=PLAIN, teacher=None)
    assert not any(any(row["fallback"]) for row in rows)


def test_an_empty_problem_set_is_refused(folders, problems, tmp_path):
    write_jsonl(problems, [])
    with pytest.raises(ValueError, match=r"holds no problems; check problems\.dataset and problems\.limit"):
        generate(folders, problems, tmp_path)


def test_a_prompt_longer_than_the_context_is_refused(folders, problems, tmp_path):
    write_jsonl(problems, [{"id": "p0", "question": "1" * 80, "answer": "1", "solution": ""}])
    with pytest.raises(ValueError, match=r"its prompt has \d+ tokens for the student, expected 1 to 63"):
        generate(folders, problems, tmp_path)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", r"has no model configuration \(config\.json\); delete the folder"),
        ("model.safetensors", r"holds no weights \(\*\.safetensors\); delete the folder"),
        ("tokenizer.json", r"has no tokenizer \(tokenizer\.json\); delete the folder"),
    ],
)
def test_an_incomplete_model_folder_is_refused(tmp_path, missing, message):
    folder = tiny_model_folder(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_tokenizer(folder), load_model(folder, "float32", "cpu")


def test_an_end_of_turn_of_several_tokens_is_refused(folders):
    tokenizer = load_tokenizer(folders["student"])
    assert tokenizer.decode([token_id(tokenizer, "<|im_end|>")]) == "<|im_end|>"
    with pytest.raises(
        ValueError, match=r"format\.end_of_turn = '12': expected a single token .* reads it as 2 tokens; correct"
    ):
        token_id(tokenizer, "12")
