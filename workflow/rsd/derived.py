"""Trace sets that are made of another one: some of its training rows, or all of them in another student's tokens.

ROWS of a trace set, a student -> `rows` (ROWS) and `summary` (JSON), as select_traces writes them for attempts.

filter   keeps the rows that a student finds the least improbable. This is filtering after the fact: no token is
         changed, and a row is kept or lost as a whole. The control for RSD, which acts while the trace is written.
recode   writes the rows in the tokens and the prompt of another student, to train it on traces made for the first.

By hand: `rsd derive-traces --help`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import PreTrainedModel

from rsd.counting import count_kinds, lengths, over_block, quantiles
from rsd.journal import Journal
from rsd.models import load_model, load_tokenizer, token_id, vocabulary_digest
from rsd.prompts import encode_prompt
from rsd.provenance import code_digest, settings_digest, stamp
from rsd.recoding import Recoder
from rsd.records import REMEDY, ROWS, read_jsonl, read_provenance, read_table, write_record, write_table
from rsd.runtime import choose_device, set_threads
from rsd.scoring import TokenScores, score_tokens
from rsd.training_rows import token_lists

LOG = logging.getLogger(__name__)
PROGRESS_SECONDS = 10.0
# A probability that float32 cannot hold counts as the smallest that it can: a surprisal of 87 nats.
SMALLEST = float(np.finfo(np.float32).tiny)
# The modules that decide a row's scores; which rows these keep is decided anew in every run.
SCORE_CODE = ("derived", "scoring", "models")

Row = dict[str, Any]  # of ROWS, the tokens as arrays


def run_derive_traces(
    *,
    problems: Path,
    of: Path,
    student: Path,
    source: Path | None,
    settings: Mapping[str, Any],
    threads: int,
    rows: Path,
    summary: Path,
    work: Path,
) -> None:
    """Writes `rows` (ROWS, in the order of those in `of`) and `summary` (JSON).

    `settings` is `config.derive_settings`; `source`, needed for method recode, is the model whose tokens `of` is in.
    What a filter has scored is kept in `work` and not scored again. Raises ValueError for rows in other tokens than
    they should be, for an unreadable file, and where no row results.
    """
    set_threads(threads)
    taken = read_rows(of)
    questions = {record["id"]: record for record in read_jsonl(problems)}
    _require_problems(taken, questions, of)
    inputs = {"problems": problems, "of": of, "student": student} | ({"source": source} if source else {})
    provenance = stamp(settings, inputs)
    if settings["method"] == "filter":
        made, facts = filtered(taken, of, student, settings, work)
        vocabulary = read_provenance(of).get("vocabulary")
    else:
        if source is None:
            raise ValueError("method recode needs --source, the model whose tokens the rows are in")
        made, facts = recoded(taken, questions, of, student, source, settings)
        vocabulary = vocabulary_digest(load_tokenizer(student))
    write_table(rows, made, ROWS, {**provenance, "vocabulary": vocabulary})
    kinds = count_kinds(made)
    report = {
        "of": settings["of"],
        "method": settings["method"],
        "problems": {
            "all": len(questions),
            "solved": kinds["trace"],
            "prefix": kinds["prefix"],
            "dropped": len(questions) - len({row["problem_id"] for row in made}),
        },
        "rows": kinds,
        "tokens": lengths(made),
        **over_block(made, settings["block_size"]),
        settings["method"]: facts,
        "provenance": provenance,
    }
    write_record(summary, report)
    LOG.info("%d of the %d rows of %s", len(made), len(taken), settings["of"])


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, prompt_tokens and completion_tokens as [n] int64.

    Raises ValueError naming the file where it is damaged, lacks an id, or holds no row.
    """
    table: pa.Table = read_table(path, ROWS)
    if not table.num_rows:
        raise ValueError(f"{path} holds no training rows, so nothing can be made of them; see selection.json beside it")
    plain = table.select(["problem_id", "attempt", "kind"]).to_pylist()
    tokens = {name: token_lists(path, table, name) for name in ("prompt_tokens", "completion_tokens")}
    return [{**row, **{name: values[n] for name, values in tokens.items()}} for n, row in enumerate(plain)]


def _require_problems(rows: Sequence[Row], questions: Mapping[str, Any], path: Path) -> None:
    unknown = [row["problem_id"] for row in rows if row["problem_id"] not in questions]
    if unknown:
        raise ValueError(f"{path}: problem {unknown[0]} of {len(unknown)} rows is not in the problems; {REMEDY}")


# --- filter ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """What the student makes of a completion: how many tokens were looked at, how many of them are improbable, and
    their surprisals (-ln p, nats) summed."""

    tokens: int
    improbable: int
    surprisal: float

    def value(self, by: str) -> float:
        """The lower, the likelier the row is kept: a share, or nats a token; infinite where nothing was looked at."""
        total = {"improbable_share": self.improbable, "mean_surprisal": self.surprisal}[by]
        return total / self.tokens if self.tokens else math.inf


def filtered(
    rows: Sequence[Row], path: Path, student: Path, settings: Mapping[str, Any], work: Path
) -> tuple[list[Row], dict[str, Any]]:
    """The share of `rows` with the lowest values, and what decided it; ties go by problem id.

    Of a row no more than `context` tokens, prompt included, are looked at, nor more than the student can read.
    """
    require_tokens(path, student, "the student of this trace set")
    scores = scored(rows, path, student, settings, work)
    by, keep = settings["filter"]["by"], settings["filter"]["keep"]
    values = [score.value(by) for score in scores]
    order = sorted(range(len(rows)), key=lambda n: (values[n], rows[n]["problem_id"], rows[n]["attempt"]))
    count = kept_count(len(rows), keep)
    chosen = sorted(order[:count])
    finite = [n for n, value in enumerate(values) if math.isfinite(value)]
    facts = {
        **settings["filter"],
        "threshold": settings["threshold"],
        "rows": len(rows),
        "kept": count,
        "values": {
            "all": quantiles([values[n] for n in finite]),
            "kept": quantiles([values[n] for n in chosen if math.isfinite(values[n])]),
        },
        # Longer than what was looked at; the rest of them had no say.
        "rows_in_part": sum(
            0 < score.tokens < len(row["completion_tokens"]) for row, score in zip(rows, scores, strict=True)
        ),
        "rows_not_at_all": len(rows) - len(finite),
    }
    return [rows[n] for n in chosen], facts


def kept_count(rows: int, keep: float) -> int:
    """The share `keep` of `rows`, to the nearest whole number, halves up, and at least one."""
    return max(1, math.floor(keep * rows + 0.5))


def scored(rows: Sequence[Row], path: Path, student: Path, settings: Mapping[str, Any], work: Path) -> list[Score]:
    """The score of every row, in order; a later run, or a filter by another measure, finds them in `work`."""
    inputs = stamp({}, {"of": path, "student": student})["settings"]["inputs"]
    decides = [settings["threshold"], settings["context"], settings["student"]["dtype"]]
    identity = [inputs, decides, code_digest(SCORE_CODE)]
    with Journal(work / f"{settings_digest(identity)}.journal") as journal:
        found = {key: Score(**item) for key, item in journal.load().items.items()}
        missing = [row for row in rows if _key(row) not in found]
        LOG.info("%d rows, %d of them scored before", len(rows), len(rows) - len(missing))
        if missing:
            device = choose_device(settings["device"])
            model = load_model(student, settings["student"]["dtype"], device, settings["gpus"])
            limit = min(settings["context"], _positions(model))
            scores = score_tokens(model, (_shortened(row, limit) for row in missing))
            start = last = time.monotonic()
            for number, (row, score) in enumerate(zip(missing, scores, strict=True), start=1):
                found[_key(row)] = summed(score, settings["threshold"])
                journal.append(_key(row), vars(found[_key(row)]))
                if time.monotonic() - last > PROGRESS_SECONDS:
                    last = time.monotonic()
                    LOG.info("%d of %d rows scored, %.2g a second", number, len(missing), number / (last - start))
    return [found[_key(row)] for row in rows]


def summed(scores: TokenScores, threshold: float) -> Score:
    """The scores of a row's tokens as one; a probability of just the threshold is not improbable, as RSD accepts it."""
    probability = np.clip(scores.probability.astype(np.float64), SMALLEST, 1.0)
    # Compared in float32, as the decoder does.
    improbable = int((scores.probability < np.float32(threshold)).sum())
    return Score(len(probability), improbable, math.fsum(-np.log(probability)))


def _shortened(row: Row, limit: int) -> tuple[list[int], list[int]]:
    prompt: NDArray[np.int64] = row["prompt_tokens"]
    completion: NDArray[np.int64] = row["completion_tokens"]
    return prompt[:limit].tolist(), completion[: max(limit - len(prompt), 0)].tolist()


def _positions(model: PreTrainedModel) -> float:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


def _key(row: Row) -> str:
    return f"{row['problem_id']}/{row['attempt']}"


# --- recode ----------------------------------------------------------------------------------------------------------


def recoded(
    rows: Sequence[Row],
    questions: Mapping[str, Mapping[str, Any]],
    path: Path,
    student: Path,
    source: Path,
    settings: Mapping[str, Any],
) -> tuple[list[Row], dict[str, Any]]:
    """`rows` behind the student's prompt, in its tokens: the same ids where both have one vocabulary.

    Else the text is what stays. A row whose text the student's tokens cannot hold is lost, and counted.
    """
    require_tokens(path, source, "the student of the other trace set")
    reader, writer = load_tokenizer(student), load_tokenizer(source)
    same = vocabulary_digest(reader) == vocabulary_digest(writer)
    end = settings["format"]["end_of_turn"]
    ends = {"writer_end": token_id(writer, end), "reader_end": token_id(reader, end)}
    recoder = Recoder(writer, reader, end_of_turn=end, **ends)
    made: list[Row] = []
    lost: list[str] = []
    for row in rows:
        record = questions[row["problem_id"]]
        prompt = encode_prompt(reader, settings["student"]["prompt"], record["question"], record["solution"])
        tokens: Sequence[int] = row["completion_tokens"]
        if not same:
            reading = recoder.read(row["completion_tokens"].tolist())
            tokens = reading.tokens if reading.exact else []
        if len(tokens):
            made.append({**row, "prompt_tokens": prompt, "completion_tokens": tokens})
        else:
            lost.append(row["problem_id"])
    if lost:
        LOG.warning("%d of %d rows are lost: the student's tokens do not say what they said", len(lost), len(rows))
    if not made:
        raise ValueError(
            f"{path}: none of its {len(rows)} rows can be said in the tokens of {student}; name a student whose "
            "tokenizer can write them"
        )
    before = quantiles([len(row["completion_tokens"]) for row in rows])
    return made, {"same_tokens": same, "rows": len(rows), "lost": lost, "completions_before": before}


def require_tokens(path: Path, model: Path, what: str) -> None:
    """ValueError where the ids of the rows in `path` are not those of `model`.

    Rows that say nothing of their vocabulary (written by hand) are taken as they are.
    """
    theirs = read_provenance(path).get("vocabulary")
    if theirs is not None and theirs != vocabulary_digest(load_tokenizer(model)):
        raise ValueError(
            f"{path} holds token ids of another vocabulary than that of {model}, {what}; name the student that the "
            "rows were made for, or make a trace set of method recode first, with this student"
        )
