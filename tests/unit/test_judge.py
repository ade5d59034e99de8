"""The judge, against a server on 127.0.0.1: what is sent, what a reply means, what a bad server or a kill costs."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluations import END, problem, said, settings_with
from judge_server import FakeJudge
from rsd import judge
from rsd.judge import choose, messages, parse_verdict, reply_of, run_judge_samples
from rsd.records import JUDGEMENTS, SAMPLES, read_provenance, read_table, write_jsonl, write_table
from rsd.samples import grade_samples

KEY = "sk-verySecret/key+with=signs0123456789"
COMPLETION = {"choices": [{"message": {"role": "assistant", "content": "CORRECT"}}]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJudge]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(judge, "RETRY_WAITS_S", (0.01, 0.01))
    with FakeJudge() as fake:
        yield fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of samples: two of each of three problems, the first right and the second wrong."""
    write_jsonl(tmp_path / "pocket.jsonl", [problem(number) for number in (1, 2, 3)])
    for shard, numbers in enumerate(([1, 3], [2])):
        rows = [
            row
            for number in numbers
            for row in grade_samples(
                problem(number)["id"],
                str(number + 1),
                [said(f"</think>\\boxed{{{number + 1 + repeat}}}") for repeat in (0, 1)],
                settings_with()["format"],
            )
        ]
        write_table(tmp_path / f"shard-{shard:03d}.parquet", rows, SAMPLES, {})
    return tmp_path


def by_the_box(asked: str) -> str:
    """A judge that compares the box with the reference."""
    reference = re.search(r"<reference_answer>\n(.*)\n</reference_answer>", asked)
    box = re.search(r"\\boxed\{(.*)\}", asked)
    assert reference
    return "CORRECT" if box and box[1] == reference[1] else "INCORRECT"


def settings_for(server: FakeJudge, **changes: Any) -> dict[str, Any]:
    settings = {
        "task": "pocket",
        "dataset": "pocket",
        "url": server.url,
        "model": "judge-1",
        "key_variable": None,
        "timeout_s": 5,
        "concurrency": 2,
        "samples": None,
        "end_of_turn": END,
        "seed": 0,
    }
    return settings | changes


def ask(folder: Path, server: FakeJudge, **changes: Any) -> list[dict[str, Any]]:
    output = folder / "judge.parquet"
    run_judge_samples(
        benchmark=folder / "pocket.jsonl",
        shards=sorted(folder.glob("shard-*.parquet")),
        settings=settings_for(server, **changes),
        output=output,
        work=folder / "work",
    )
    return read_table(output, JUDGEMENTS).to_pylist()


# --- what is asked, and what comes of it ---------------------------------------------------------------------------


def test_every_sample_of_every_shard_gets_its_verdict(folder: Path, server: FakeJudge) -> None:
    server.reply = by_the_box
    rows = ask(folder, server)
    expected = [
        (problem(n)["id"], repeat, verdict) for n in (1, 2, 3) for repeat, verdict in ((0, "right"), (1, "wrong"))
    ]
    assert [(row["problem_id"], row["repeat"], row["verdict"]) for row in rows] == expected
    assert read_provenance(folder / "judge.parquet")["settings"]["settings"]["model"] == "judge-1"


def test_the_request_is_greedy_and_holds_question_reference_and_response(folder: Path, server: FakeJudge) -> None:
    ask(folder, server, concurrency=1)
    (request,) = [r for r in server.requests if "<question>\n2+1\n" in r["body"]["messages"][1]["content"]][:1]
    assert request["path"] == "/v1/chat/completions"
    assert request["body"]["temperature"] == 0
    assert request["body"]["model"] == "judge-1"
    assert "Authorization" not in request["headers"]
    asked = request["body"]["messages"][1]["content"]
    assert "<reference_answer>\n3\n</reference_answer>" in asked
    assert "\\boxed{3}" in asked
    assert END not in asked


def test_only_the_end_of_a_long_response_is_sent() -> None:
    text = "start " + "x" * 5000 + "\\boxed{4}" + END
    asked = messages(problem(3), text, END)[1]["content"]
    assert "start" not in asked
    assert f"\n[...] {'x' * (judge.RESPONSE_CHARACTERS - 9)}\\boxed{{4}}\n" in asked


@given(st.text(), st.text(), st.text())
def test_braces_in_any_text_are_sent_as_they_are(question: str, answer: str, response: str) -> None:
    asked = messages({"question": question, "answer": answer}, response, END)[1]["content"]
    assert f"<question>\n{question}\n</question>\n<reference_answer>\n{answer}\n</reference_answer>" in asked


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("CORRECT", "right"),
        ("incorrect", "wrong"),
        (" **Correct**.\n", "right"),
        ("<think>It says INCORRECT, or\nnot.</think>\n\nCORRECT", "right"),
        ("", "unparsable"),
        ("CORRECT or INCORRECT", "unparsable"),
        ("The answer is correct", "unparsable"),
        ("NOT CORRECT", "unparsable"),
        ("<think>CORRECT", "unparsable"),
        ("{'verdict': 'CORRECT'}", "unparsable"),
        ("42", "unparsable"),
    ],
)
def test_a_verdict_is_the_one_word_that_was_asked_for_or_none(reply: str, verdict: str) -> None:
    assert parse_verdict(reply) == verdict


def test_replies_that_are_no_verdict_are_counted_as_such_and_kept(folder: Path, server: FakeJudge) -> None:
    answers = iter([None, "I cannot tell", *["CORRECT"] * 4])
    server.reply = lambda _: next(answers)
    rows = ask(folder, server, concurrency=1)
    assert [row["verdict"] for row in rows] == ["unparsable"] * 2 + ["right"] * 4
    assert [row["reply"] for row in rows][:2] == ["", "I cannot tell"]


def test_a_limit_takes_the_same_samples_of_every_model_and_no_problem_before_another() -> None:
    def rows(text: str) -> list[dict[str, Any]]:
        return [{"problem_id": f"p{n}", "repeat": k, "text": text} for n in range(200) for k in range(2)]

    few, others = choose(rows("a"), 100, seed=0), choose(rows("b")[::-1], 100, seed=0)
    assert len(few) == 100
    assert [(row["problem_id"], row["repeat"]) for row in few] == [(row["problem_id"], row["repeat"]) for row in others]
    # More of them begins with the same: nothing is asked twice.
    assert {(row["problem_id"], row["repeat"]) for row in few} <= {
        (row["problem_id"], row["repeat"]) for row in choose(rows("a"), 150, seed=0)
    }
    # 50 of the 100 problems of each half are expected, 5 the standard deviation at most: 6 of them, 1 in 10^8.
    first = sum(int(row["problem_id"][1:]) < 100 for row in few)
    assert abs(first - 50) <= 30
    assert choose(rows("a"), None, seed=0) == sorted(rows("a"), key=lambda row: (row["problem_id"], row["repeat"]))
    assert choose(rows("a"), 100, seed=1) != few


def test_no_more_requests_run_at_once_than_allowed(folder: Path, server: FakeJudge) -> None:
    server.delay_s = 0.1
    ask(folder, server, concurrency=3)
    assert server.most_at_once == 3


# --- bad servers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        [429, 503],
        [500, 408],
        ["cut", 502],
        [b"<html>gateway</html>", b'{"choices": []}'],
        [b'["a list"]', b'{"choices": [{"message": {"content": ["parts"]}}]}'],
    ],
    ids=str,
)
def test_a_server_that_stumbles_is_asked_again(folder: Path, server: FakeJudge, faults: list[Any]) -> None:
    server.faults = list(faults)
    assert [row["verdict"] for row in ask(folder, server, concurrency=1)] == ["right"] * 6
    assert len(server.requests) == 6 + 2


def test_a_server_that_hangs_costs_its_time_limit_and_is_asked_again(folder: Path, server: FakeJudge) -> None:
    server.faults = ["hang"]
    assert [row["verdict"] for row in ask(folder, server, timeout_s=0.2)] == ["right"] * 6


def test_a_server_that_always_hangs_stops_the_stage_with_address_and_remedy(folder: Path, server: FakeJudge) -> None:
    server.faults = ["hang"] * 100
    message = rf"evaluation\.judge\.url = '{server.url}': .* gave no answer within 0\.1 s, 3 times; .*run again"
    with pytest.raises(ConnectionError, match=message):
        ask(folder, server, timeout_s=0.1)
    assert not (folder / "judge.parquet").exists()


def test_a_server_that_says_nonsense_stops_the_stage(folder: Path, server: FakeJudge) -> None:
    server.faults = [b"nonsense"] * 100
    with pytest.raises(ConnectionError, match="it did not answer with a chat completion, 3 times"):
        ask(folder, server)


def test_no_server_at_all_stops_the_stage(folder: Path, server: FakeJudge) -> None:
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        ask(folder, server, url="http://127.0.0.1:9/v1")


class Stop:
    """A stop that never comes, and notes the pauses."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def is_set(self) -> bool:
        return False

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.mark.parametrize(
    ("header", "pause"), [("7", 7.0), ("86400", judge.LONGEST_WAIT_S), ("tomorrow", 0.01), ("0", 0.01)]
)
def test_a_server_may_ask_for_patience(server: FakeJudge, header: str, pause: float) -> None:
    stop: Any = Stop()
    server.faults, server.headers = [429, 429], {"Retry-After": header}
    assert judge.ask_patiently(judge.Server.of(settings_for(server)), messages(problem(1), "", END), stop) == "CORRECT"
    assert stop.waits == [pause, pause]


def test_a_refused_request_stops_at_once_and_says_what_the_server_said(folder: Path, server: FakeJudge) -> None:
    server.faults, server.error_body = [404] * 100, b'{"error": "no model judge-1"}'
    with pytest.raises(ConnectionError, match=r"status 404.*no model judge-1.*check url and model"):
        ask(folder, server, concurrency=1)
    assert len(server.requests) == 1


def test_content_that_the_server_refuses_to_read_is_no_verdict(folder: Path, server: FakeJudge) -> None:
    server.faults, server.error_body = [400], b'{"error": {"code": "content_filter"}}'
    verdicts = [row["verdict"] for row in ask(folder, server, concurrency=1)]
    assert sorted(verdicts) == ["right"] * 5 + ["unparsable"]


# --- a kill --------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_asks_for_the_rest_alone(folder: Path, server: FakeJudge) -> None:
    def third_fails(asked: str) -> str:
        server.faults = [404] * 100 if len(server.requests) == 2 else []
        return by_the_box(asked)

    server.reply = third_fails
    with pytest.raises(ConnectionError):
        ask(folder, server, concurrency=1)
    assert len(server.requests) == 3
    server.faults, server.reply = [], by_the_box
    rows = ask(folder, server, concurrency=1)
    assert [row["verdict"] for row in rows] == ["right", "wrong"] * 3
    assert len(server.requests) == 3 + 4
    assert ask(folder, server) == rows
    assert len(server.requests) == 3 + 4, "nothing is asked twice"


def test_other_samples_another_model_or_address_are_asked_anew(folder: Path, server: FakeJudge) -> None:
    ask(folder, server)
    ask(folder, server, timeout_s=9, concurrency=1)
    assert len(server.requests) == 6
    ask(folder, server, model="judge-2")
    assert len(server.requests) == 12
    ask(folder, server, url=server.url + "/")
    assert len(server.requests) == 18
    rows = [row | {"text": "other"} for row in read_table(folder / "shard-001.parquet", SAMPLES).to_pylist()]
    write_table(folder / "shard-001.parquet", rows, SAMPLES, {})
    ask(folder, server)
    # Both samples have the same text now: one question.
    assert len(server.requests) == 19


def test_a_sample_of_an_unknown_problem_is_named(folder: Path, server: FakeJudge) -> None:
    write_jsonl(folder / "pocket.jsonl", [problem(1), problem(2)])
    with pytest.raises(ValueError, match=f"holds samples of problem {problem(3)['id']}"):
        ask(folder, server)


# --- the key -------------------------------------------------------------------------------------------------------


def test_a_missing_key_stops_the_stage_before_anything_is_sent(
    folder: Path, server: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match=r"key_variable = 'JUDGE_KEY': the environment variable is not set; export"):
        ask(folder, server, key_variable="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "sk-two\nlines")
    with pytest.raises(ValueError, match="holds what cannot be a key") as caught:
        ask(folder, server, key_variable="JUDGE_KEY")
    assert "sk-two" not in str(caught.value)
    assert server.requests == []


def everything_written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("fault", [None, 401, 403, 404, 500, b"nonsense", "hang", "cut"])
def test_the_key_is_sent_and_appears_nowhere_else(
    folder: Path,
    server: FakeJudge,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    fault: Any,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.key, server.reply = KEY, by_the_box
    server.error_body = f"your key {KEY} is not welcome".encode()
    server.faults = [] if fault is None else [fault] * 100
    message = ""
    try:
        ask(folder, server, key_variable="JUDGE_KEY", timeout_s=0.2)
    except OSError as error:
        message = repr(error) + repr(error.__cause__) + repr(error.__context__)
    assert bool(message) == (fault is not None)
    assert {request["headers"]["Authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    said = message + caplog.text + "".join(capfd.readouterr()) + repr(judge.Server.of(settings_for(server)))
    for text in (said.encode(), everything_written(folder)):
        assert KEY.encode() not in text
    assert KEY not in repr(judge.Server("u", "m", 1, KEY))


def test_a_wrong_key_is_told_without_the_key(folder: Path, server: FakeJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.key = "another"
    with pytest.raises(PermissionError, match=r"the server refused the key \(401\); check the variable") as caught:
        ask(folder, server, key_variable="JUDGE_KEY")
    assert KEY not in str(caught.value)


def test_the_key_follows_no_redirect_to_another_server(
    folder: Path, server: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with FakeJudge() as other:
        server.elsewhere, server.faults = f"{other.url}/chat/completions", ["redirect"] * 100
        with pytest.raises(ConnectionError, match="status 302"):
            ask(folder, server, key_variable="JUDGE_KEY")
        assert other.requests == []


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        (json.dumps(COMPLETION).encode(), "CORRECT"),
        (b'{"choices": [{"message": {"content": null}}]}', ""),
        (b'{"choices": [{"message": {}}]}', ""),
        (b'{"choices": [{"message": "x"}]}', None),
        (b'{"choices": [{"text": "CORRECT"}]}', None),
        (b"[]", None),
        (b"", None),
        (b"\xff\xfe", None),
    ],
)
def test_a_chat_completion_is_known_from_anything_else(body: bytes, reply: str | None) -> None:
    assert reply_of(body) == reply
