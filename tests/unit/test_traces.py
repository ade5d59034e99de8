"""A shard of traces: complete, exact across restarts, refused with a reason where it cannot be made."""

from __future__ import annotations

import pytest

from rsd import traces
from rsd.models import load_model, load_tokenizer, token_id
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
    "shards": 2,
    "seed": 7,
    "device": "cpu",
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
    assert list((tmp_path / "again-work").iterdir()) == [], "the journal outlived the shard"


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
    settings = {key: value for key, value in SETTINGS.items() if key not in ("law", "teacher")}
    settings |= {"method": "sample", "sampling": SAMPLING}
    rows = generate(folders, problems, tmp_path, settings=settings, teacher=None)
    assert not any(any(row["fallback"]) for row in rows)


def test_an_empty_problem_set_is_refused(folders, problems, tmp_path):
    problems.write_text("")
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
