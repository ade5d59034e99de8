"""Which attempt of a problem becomes a training row, and why the others did not.

Problems, shards of attempts -> a verdict an attempt, at most one training row a problem, and a summary of both.
Shards are read in small batches, and of the attempts only the tokens of the best so far of each problem are kept, so
memory grows with the rows, not with the attempts. By hand: `rsd select-traces --help`.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rsd.checksums import verify
from rsd.counting import count_kinds, lengths, over_block, quantiles, share
from rsd.grading import grade, is_gradable
from rsd.journal import remove_journals
from rsd.models import load_tokenizer, vocabulary_digest
from rsd.prompts import count_think_close, encode_prompt, extract_answer
from rsd.provenance import stamp
from rsd.records import ATTEMPTS, REMEDY, ROWS, VERDICTS, read_jsonl, read_provenance, write_record, write_table

LOG = logging.getLogger(__name__)
PROGRESS_SECONDS = 10.0
BATCH = 32  # attempts in memory at once
COLUMNS = ["problem_id", "attempt", "tokens", "fallback", "finish", "text"]
# In this order: the first rule that an attempt breaks is its reason.
RULES = ("unfinished", "think_markers", "no_answer", "no_reference", "wrong_answer", "fallback_rate")
NOT_PICKED = {"shortest": "not_shortest", "first": "not_first", "random": "not_picked"}

# Smaller is better; the attempt's number decides between equals, so that the order of reading does not matter.
Rank = tuple[Any, int]


@dataclass(frozen=True)
class Candidate:
    """An attempt that may become a row."""

    rank: Rank
    attempt: int
    tokens: NDArray[np.int32]


@dataclass
class Tally:
    """Everything known of one problem's attempts so far."""

    attempts: set[int] = field(default_factory=set)
    kept: Candidate | None = None
    prefix: Candidate | None = None


def run_select_traces(
    *,
    problems: Path,
    shards: Sequence[Path],
    student: Path,
    settings: Mapping[str, Any],
    verdicts: Path,
    rows: Path,
    summary: Path,
    work: Path,
) -> None:
    """Writes `verdicts` (VERDICTS), `rows` (ROWS, in the order of the problems) and `summary` (JSON).

    `work`: the folder of the shards' journals, which are removed in the end; it need not exist.
    `settings` is `config.select_settings`. Raises ValueError for a corrupted or incomplete shard, for an attempt that
    comes twice or belongs to no problem, and where no attempt is kept (with `allow_prefixes_only`: no row results).
    """
    records = {record["id"]: record for record in read_jsonl(problems)}
    if not records:
        raise ValueError(f"{problems} holds no problems; check problems.dataset and problems.limit")
    skipped = _skipped(shards)
    tallies, judged, broken = judge_shards(shards, records, settings)
    check_complete(records, tallies, skipped)
    settle(judged, tallies, settings["pick"])
    chosen = choose(records, tallies, settings)
    reasons = Counter(verdict["reason"] for verdict in judged)
    solved = any(tally.kept is not None for tally in tallies.values())
    # Prefixes of kept attempts are meant (`solved: prefix`); prefixes because nothing was kept are mostly a mistake.
    if not chosen or not (solved or settings["allow_prefixes_only"]):
        raise ValueError(
            f"no trace to train on: none of {len(judged)} attempts at {len(records)} problems was kept "
            f"({_listing(reasons)}); check models, prompts and format, loosen the rules in traces.<name>.select, or "
            "set allow_prefixes_only: true and unsolved: prefix there to train on beginnings of attempts alone"
        )
    if not solved:
        LOG.warning("no attempt was kept; all %d rows are prefixes (%s)", len(chosen), _listing(reasons))
    tokenizer = load_tokenizer(student)
    for row in chosen:
        record = records[row["problem_id"]]
        row["prompt_tokens"] = encode_prompt(
            tokenizer, settings["student"]["prompt"], record["question"], record["solution"]
        )
    # What the shards were made from is in their own stamps.
    inputs = {"problems": problems, "student": student} | {path.stem: path for path in shards}
    provenance = stamp(settings, inputs, settings["seed"])
    report = {
        **summarise(judged, chosen, tallies, skipped, settings["block_size"]),
        "rules_broken": {rule: broken[rule] for rule in RULES},
        "provenance": provenance,
    }
    write_table(verdicts, judged, VERDICTS, provenance)
    write_table(rows, chosen, ROWS, {**provenance, "vocabulary": vocabulary_digest(tokenizer)})
    write_record(summary, report)
    # Now no job that makes a shard can lose it any more.
    remove_journals(work)
    LOG.info("%d rows; attempts: %s", len(chosen), _listing(reasons))


# --- one attempt -----------------------------------------------------------------------------------------------------


def judge(attempt: Mapping[str, Any], reference: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the attempt's VERDICTS row, every rule that it breaks in the order of RULES).

    The rules are those of the paper's code: the turn ended, exactly one think_close, an answer equal to the reference,
    a fallback rate of at most `max_fallback_rate`; each can be switched off but the last, which 1 switches off. The
    reason is the first broken rule, or `kept`, which `settle` may change. An attempt that differs from a reference in
    prose breaks no_reference instead of wrong_answer, since rules cannot tell.
    """
    text = attempt["text"].removesuffix(settings["format"]["end_of_turn"])
    answer = extract_answer(text, settings["format"])
    correct = grade(answer, reference)
    n_tokens = len(attempt["tokens"])
    fallback_rate = float(np.mean(attempt["fallback"])) if n_tokens else 0.0
    right = settings["require_correct"]
    breaks = {
        "unfinished": settings["require_finished"] and attempt["finish"] != "end_of_turn",
        "think_markers": settings["require_think_close"]
        and bool(settings["format"]["think_close"])
        and count_think_close(text, settings["format"]) != 1,
        "no_answer": right and answer is None,
        "no_reference": right and not correct and answer is not None and not is_gradable(reference),
        "wrong_answer": right and not correct and answer is not None and is_gradable(reference),
        "fallback_rate": fallback_rate > settings["max_fallback_rate"],
    }
    broken = [rule for rule in RULES if breaks[rule]]
    verdict = {
        "problem_id": attempt["problem_id"],
        "attempt": attempt["attempt"],
        "n_tokens": n_tokens,
        "finish": attempt["finish"],
        "fallback_rate": fallback_rate,
        "answer": answer,
        "correct": correct,
        "kept": False,
        "reason": broken[0] if broken else "kept",
    }
    return verdict, broken


def rank(pick: str, attempt: int, n_tokens: int, seed: int, problem_id: str) -> Rank:
    """The order of preference by `pick` (shortest | first | random); random by a hash of seed, problem and attempt."""
    match pick:
        case "shortest":
            return n_tokens, attempt
        case "first":
            return 0, attempt
        case _:
            return hashlib.sha256(f"{seed}/{problem_id}/{attempt}".encode()).hexdigest(), attempt


# --- all attempts ----------------------------------------------------------------------------------------------------


def judge_shards(
    shards: Sequence[Path], records: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> tuple[dict[str, Tally], list[dict[str, Any]], Counter[str]]:
    """(a tally a problem, all verdicts by problem and attempt, how often each rule was broken)."""
    tallies = {key: Tally() for key in records}
    judged = []
    broken: Counter[str] = Counter()
    start = last = time.monotonic()
    for path in shards:
        for attempt in read_attempts(path):
            key, number = attempt["problem_id"], attempt["attempt"]
            if key not in tallies:
                raise ValueError(f"{path}: problem {key} is not in the problems; {REMEDY}")
            if number in tallies[key].attempts:
                raise ValueError(f"{path}: attempt {number} at problem {key} comes a second time; {REMEDY}")
            verdict, rules = judge(attempt, records[key]["answer"], settings)
            _count(tallies[key], attempt, kept=not rules, settings=settings)
            judged.append(verdict)
            broken.update(rules)
            if time.monotonic() - last > PROGRESS_SECONDS:
                last = time.monotonic()
                kept = sum(tally.kept is not None for tally in tallies.values())
                LOG.info("%d attempts judged, %d problems solved, %.0f s", len(judged), kept, last - start)
    order = {key: index for index, key in enumerate(records)}
    judged.sort(key=lambda verdict: (order[verdict["problem_id"]], verdict["attempt"]))
    return tallies, judged, broken


def _count(tally: Tally, attempt: Mapping[str, Any], *, kept: bool, settings: Mapping[str, Any]) -> None:
    """Adds one attempt, keeping its tokens where it is the best so far."""
    number, tokens = attempt["attempt"], attempt["tokens"]
    tally.attempts.add(number)
    without_end = _without_end(len(tokens), attempt["finish"])
    if not kept and not without_end:
        return  # nothing to begin with
    place = "kept" if kept else "prefix"
    pick = settings["pick" if kept else "prefix_attempt"]
    order = rank(pick, number, len(tokens), settings["seed"], attempt["problem_id"])
    best: Candidate | None = getattr(tally, place)
    if best is None or order < best.rank:
        # A prefix needs no more than its own tokens. Copies: a view would hold the whole batch.
        whole = kept and settings["solved"] == "trace"
        wanted = tokens if whole else tokens[: min(settings["prefix_tokens"], without_end)]
        setattr(tally, place, Candidate(order, number, wanted.copy()))


def _without_end(n_tokens: int, finish: str) -> int:
    """An attempt's length without the end of turn, which is its last token exactly where it finished by it."""
    return n_tokens - (finish == "end_of_turn")


def check_complete(
    records: Mapping[str, Mapping[str, Any]], tallies: Mapping[str, Tally], skipped: Mapping[str, str]
) -> None:
    """ValueError where a problem has no attempt, or fewer than others have."""
    missing = [key for key in records if not tallies[key].attempts and key not in skipped]
    if missing:
        raise ValueError(
            f"the shards are incomplete: no attempt at {len(missing)} of {len(records)} problems, the first is "
            f"{missing[0]}; delete the shards of this trace set and run again"
        )
    most = max((len(tally.attempts) for tally in tallies.values()), default=0)
    fewer = [key for key in records if key not in skipped and len(tallies[key].attempts) != most]
    if fewer:
        raise ValueError(
            f"the shards are incomplete: problem {fewer[0]} has {len(tallies[fewer[0]].attempts)} attempts, others "
            f"{most}; delete the shards of this trace set and run again"
        )


def settle(judged: Sequence[dict[str, Any]], tallies: Mapping[str, Tally], pick: str) -> None:
    """Of the attempts that break no rule, marks the picked one of each problem as kept."""
    for verdict in judged:
        if verdict["reason"] == "kept":
            best = tallies[verdict["problem_id"]].kept
            verdict["kept"] = best is not None and best.attempt == verdict["attempt"]
            if not verdict["kept"]:
                verdict["reason"] = NOT_PICKED[pick]


def choose(
    records: Mapping[str, Any], tallies: Mapping[str, Tally], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The ROWS, prompt_tokens still missing: a kept trace (or by `solved` its first tokens), else by `unsolved` the
    first tokens of an attempt, or nothing.

    A prefix holds no end of turn, or a short wrong answer would be taught as a whole turn; an attempt shorter than
    the prefix gives all before its end.
    """
    rows = []
    for key in records:
        tally = tallies[key]
        source, kind = (tally.kept, settings["solved"]) if tally.kept else (tally.prefix, "prefix")
        dropped = tally.kept is None and settings["unsolved"] == "drop"
        if source is None or dropped or not len(source.tokens):
            continue
        rows.append({"problem_id": key, "attempt": source.attempt, "kind": kind, "completion_tokens": source.tokens})
    return rows


# --- files -----------------------------------------------------------------------------------------------------------


def read_attempts(path: Path) -> Iterator[dict[str, Any]]:
    """The attempts of a shard, a few in memory at a time; tokens [n] int32 and fallback [n] bool as arrays.

    Raises ValueError naming the file and the remedy where it is truncated, corrupted or of another schema.
    """
    verify(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(ATTEMPTS, check_metadata=False):
                raise ValueError(
                    f"{path} has the columns {file.schema_arrow.names}, expected {ATTEMPTS.names}; {REMEDY}"
                )
            for batch in file.iter_batches(batch_size=BATCH, columns=COLUMNS, use_threads=False):
                yield from _unpack(batch)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}); {REMEDY}") from error


def _unpack(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    plain = {name: batch.column(name).to_pylist() for name in ("problem_id", "attempt", "finish", "text")}
    for index in range(batch.num_rows):
        row = {name: values[index] for name, values in plain.items()}
        row |= {
            name: batch.column(name)[index].values.to_numpy(zero_copy_only=False) for name in ("tokens", "fallback")
        }
        yield row


def _skipped(shards: Sequence[Path]) -> dict[str, str]:
    """Problems that the shards say they have no trace of -> why."""
    skipped: dict[str, str] = {}
    for path in shards:
        try:
            groups = read_provenance(path).get("skipped", {})
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{path} is truncated or corrupted ({error}); {REMEDY}") from error
        skipped |= {key: reason for reason, keys in groups.items() for key in keys}
    return skipped


# --- summary ---------------------------------------------------------------------------------------------------------


def summarise(
    judged: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    tallies: Mapping[str, Tally],
    skipped: Mapping[str, str],
    block_size: int,
) -> dict[str, Any]:
    """Counts, shares in [0, 1] and lengths in tokens, for the report.

    Of the problems, `solved` have a row of a kept attempt, `prefix` one of another attempt, `dropped` have none; these
    sum to all. Of the rows, `trace` are whole attempts and `prefix` are not, which `select.solved` decides, too.
    """
    kept = [verdict for verdict in judged if verdict["kept"]]
    solved = sum(tallies[row["problem_id"]].kept is not None for row in rows)
    without_end = {(v["problem_id"], v["attempt"]): _without_end(v["n_tokens"], v["finish"]) for v in judged}
    prefixes = [row for row in rows if row["kind"] == "prefix"]
    tokens = sum(verdict["n_tokens"] for verdict in judged)
    fallback = sum(verdict["fallback_rate"] * verdict["n_tokens"] for verdict in judged)
    kept_tokens = sum(verdict["n_tokens"] for verdict in kept)
    kept_fallback = sum(verdict["fallback_rate"] * verdict["n_tokens"] for verdict in kept)
    return {
        "problems": {
            "all": len(tallies),
            "solved": solved,
            "prefix": len(rows) - solved,
            "dropped": len(tallies) - len(rows),
            "without_attempt": dict(Counter(skipped.values())),
        },
        "rows": count_kinds(rows),
        # Prefixes that reach the last token of their attempt before the end of its turn.
        "prefixes_of_whole_attempts": sum(
            len(row["completion_tokens"]) == without_end[row["problem_id"], row["attempt"]] for row in prefixes
        ),
        "solved_share": solved / len(tallies),
        "attempts": len(judged),
        "reasons": dict(sorted(Counter(verdict["reason"] for verdict in judged).items())),
        "correct_share": share(sum(verdict["correct"] for verdict in judged), len(judged)),
        "tokens": {
            "attempts": quantiles([verdict["n_tokens"] for verdict in judged]),
            "kept": quantiles([verdict["n_tokens"] for verdict in kept]),
            **lengths(rows),
        },
        **over_block(rows, block_size),
        # Kept attempts that stop in the middle already.
        "kept_unfinished_share": share(sum(verdict["finish"] != "end_of_turn" for verdict in kept), len(kept)),
        "fallback_rate": {"attempts": share(fallback, tokens), "kept": share(kept_fallback, kept_tokens)},
    }


def _listing(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
