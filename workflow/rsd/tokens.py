"""Token analysis: what a trace set looks like to a model, its reader, before training or after.

Training rows, problems, a model folder -> every token with its text, probability and rank (Parquet, TOKENS), and a
summary (JSON, see `token_summary`). Rows that are scored are kept in `work` and not scored again. By hand:
`rsd analyse-tokens --help`.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from rsd.checksums import verify
from rsd.journal import Journal
from rsd.manifest import MANIFEST, verify_manifest
from rsd.models import load_model, load_tokenizer, vocabulary_digest
from rsd.pieces import decoder, spell, split_text
from rsd.provenance import code_digest, file_digest, settings_digest, stamp
from rsd.records import (
    ATTEMPTS,
    REMEDY,
    ROWS,
    TOKENS,
    read_jsonl,
    read_provenance,
    read_table,
    write_record,
    write_table,
)
from rsd.runtime import choose_device, set_threads
from rsd.scoring import TokenScores, score_tokens
from rsd.token_summary import Scored, summarise
from rsd.vocabulary import token_ids

LOG = logging.getLogger(__name__)
PROGRESS_SECONDS = 10.0
BATCH = 32  # attempts in memory at once
# The modules that decide a token's scores; the summary is made anew in every run.
SCORE_CODE = ("scoring", "models", "vocabulary")
# How the arrays of `TokenScores` are laid out in the journal: exact bits, base64.
COLUMNS = {"probability": "<f4", "rank": "<i4", "entropy": "<f4"}
Attempt = tuple[str, int]  # problem id, number


@dataclass(frozen=True)
class Row:
    """A training row that is looked at; `number` is its place in the file."""

    number: int
    problem_id: str
    attempt: int
    kind: str
    prompt: NDArray[np.int32]
    completion: NDArray[np.int32]


def run_analyse_tokens(
    *,
    rows: Path,
    shards: Sequence[Path],
    problems: Path,
    reader: Path,
    settings: Mapping[str, Any],
    threads: int,
    tokens: Path,
    summary: Path,
    work: Path,
) -> None:
    """Writes `tokens` (TOKENS, rows in the order of the problems) and `summary` (JSON).

    `rows` are the training rows of a trace set, `shards` the attempts that they were taken from, where RSD wrote these
    (for who wrote each token), `reader` a model folder, `settings` is `config.analysis_settings`. Raises ValueError
    for a reader of another vocabulary than the rows', for rows that belong to other problems or shards, and for
    corrupted files; FileNotFoundError for an incomplete model folder.
    """
    set_threads(threads)
    disable_progress_bar()
    verify_manifest(reader, deep=False)
    tokenizer = load_tokenizer(reader)
    require_vocabulary(rows, tokenizer, reader)
    wanted = [record["id"] for record in read_jsonl(problems)]
    chosen = read_rows(rows, wanted, settings["problems"])
    flags = read_flags(shards, chosen, rows)
    provenance = stamp(settings, {"rows": rows, "problems": problems, "reader": reader})
    path = work / f"{settings_digest(_identity(rows, reader, settings))}.journal"
    with Journal(path) as journal:
        scores = _score(journal, chosen, rows, reader, settings, tokenizer)
    scored = [
        Scored(row.completion, found, fallback) for row, found, fallback in zip(chosen, scores, flags, strict=True)
    ]
    write_table(tokens, _records(chosen, scored, tokenizer), TOKENS, provenance)
    report = {
        "traces": settings["traces"],
        "reader": settings["reader"],
        "problems": len(wanted[: settings["problems"]]),
        "rows_beyond_context": count_long(chosen, reader),
        **summarise(scored, threshold=settings["threshold"], spell=lambda token: spell(tokenizer, token)),
        "provenance": provenance,
    }
    write_record(summary, report)
    # The scores stay for another threshold; those of earlier settings go.
    for other in set(path.parent.glob("*.journal")) - {path}:
        other.unlink()
    _tell(report)


def require_vocabulary(rows: Path, tokenizer: PreTrainedTokenizerBase, reader: Path) -> None:
    """ValueError where the rows' ids are another tokenizer's: the reader would see other words.

    Rows that say nothing of their vocabulary (written by hand) are taken as they are.
    """
    try:
        theirs = read_provenance(rows).get("vocabulary")
    except (pa.ArrowException, KeyError, TypeError) as error:
        raise ValueError(f"{rows} is truncated or corrupted ({error}); {REMEDY}") from error
    if theirs is not None and theirs != vocabulary_digest(tokenizer):
        raise ValueError(
            f"{rows} holds token ids of another vocabulary than that of {reader}; analyse a trace set in this model's "
            "own ids, which a trace set of method recode (`of` this one, the model as its student) makes of it"
        )


# --- rows ------------------------------------------------------------------------------------------------------------


def read_rows(path: Path, problems: Sequence[str], limit: int | None) -> list[Row]:
    """The training rows of the first `limit` of `problems` (all where None), in the order of these.

    Which problems are looked at does not depend on the trace set; one without a row there has none here. ValueError
    for a row of a problem that is none of `problems`.
    """
    table = read_table(path, ROWS)
    order = {key: number for number, key in enumerate(problems)}
    unknown = set(table.column("problem_id").to_pylist()) - order.keys()
    if unknown:
        raise ValueError(
            f"{path} holds rows of {len(unknown)} problems that are not in the problems, the first is {min(unknown)}; "
            "select the traces again"
        )
    table = table.append_column("number", pa.array(range(len(table)), pa.int64()))
    table = table.filter(pc.is_in(table.column("problem_id"), pa.array(problems[:limit], pa.string())))
    rows = [
        Row(
            number=row["number"],
            **{name: row[name] for name in ("problem_id", "attempt", "kind")},
            prompt=_ids(path, row, "prompt_tokens"),
            completion=_ids(path, row, "completion_tokens"),
        )
        for batch in table.to_batches(max_chunksize=BATCH)
        for row in batch.to_pylist()
    ]
    return sorted(rows, key=lambda row: (order[row.problem_id], row.number))


def _ids(path: Path, row: Mapping[str, Any], name: str) -> NDArray[np.int32]:
    values = row[name]
    if values is None or None in values:
        raise ValueError(f"{path}, row {row['number']}: {name} holds missing values; {REMEDY}")
    return np.array(values, dtype=np.int32)


def read_flags(shards: Sequence[Path], rows: Sequence[Row], path: Path) -> list[NDArray[np.bool_] | None]:
    """Who wrote each token of each row, from the attempts that they were taken from; None for all without `shards`.

    Of the attempts only those of the rows' problems are looked at, a few at a time. ValueError where an attempt is
    missing or its tokens are not the row's: then `path` and the shards were not made together.
    """
    if not shards:
        return [None] * len(rows)
    wanted = {(row.problem_id, row.attempt) for row in rows}
    found = {key: arrays for shard in shards for key, arrays in _attempts(shard, wanted)}
    flags: list[NDArray[np.bool_] | None] = []
    for row in rows:
        tokens, fallback = found.get((row.problem_id, row.attempt), (None, None))
        count = len(row.completion)
        if tokens is None or fallback is None or not np.array_equal(tokens[:count], row.completion):
            raise ValueError(
                f"{path}, row {row.number}: its tokens are not those of attempt {row.attempt} at problem "
                f"{row.problem_id} in {shards[0].parent}; select the traces again"
            )
        flags.append(fallback[:count])
    return flags


def _attempts(
    path: Path, wanted: Collection[Attempt]
) -> Iterator[tuple[Attempt, tuple[NDArray[np.int32], NDArray[np.bool_]]]]:
    """(problem id, attempt), (tokens, flags) of those attempts of a shard that are wanted."""
    ids = pa.array(sorted({problem for problem, _ in wanted}), pa.string())
    columns = ["problem_id", "attempt", "tokens", "fallback"]
    verify(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(ATTEMPTS, check_metadata=False):
                raise ValueError(
                    f"{path} has the columns {file.schema_arrow.names}, expected {ATTEMPTS.names}; {REMEDY}"
                )
            for batch in file.iter_batches(batch_size=BATCH, columns=columns, use_threads=False):
                for row in batch.filter(pc.is_in(batch.column("problem_id"), ids)).to_pylist():
                    if (row["problem_id"], row["attempt"]) in wanted:
                        arrays = np.array(row["tokens"], dtype=np.int32), np.array(row["fallback"], dtype=np.bool_)
                        yield (row["problem_id"], row["attempt"]), arrays
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}); {REMEDY}") from error


# --- scores ----------------------------------------------------------------------------------------------------------


def _identity(rows: Path, reader: Path, settings: Mapping[str, Any]) -> list[Any]:
    """All that decides the scores of a row, so that no other run's can be taken."""
    return [file_digest(rows), file_digest(reader / MANIFEST), settings["dtype"], code_digest(SCORE_CODE)]


def _score(
    journal: Journal,
    chosen: Sequence[Row],
    rows: Path,
    reader: Path,
    settings: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> list[TokenScores]:
    """The scores of the `chosen` rows, in order; those that the journal lacks are made and appended as they come."""
    found = {int(key): _unpack(item) for key, item in journal.load().items.items()}
    missing = [row for row in chosen if row.number not in found]
    LOG.info("%d rows, %d of them scored before", len(chosen), len(chosen) - len(missing))
    if missing:
        model = load_model(reader, settings["dtype"], choose_device(settings["device"]), settings["gpus"])
        known = token_ids(tokenizer, model.get_output_embeddings().weight.shape[0])
        done = _Progress(missing)
        scores = score_tokens(model, ((row.prompt.tolist(), row.completion.tolist()) for row in missing), known=known)
        for index, row in enumerate(missing):
            try:
                found[row.number] = next(scores)
            except (ValueError, FloatingPointError) as error:
                fault = str(error).removeprefix(f"row {index}: ")
                raise type(error)(f"{rows}, row {row.number} (problem {row.problem_id}): {fault}") from error
            journal.append(str(row.number), _pack(found[row.number]))
            done.add(row)
    return [found[row.number] for row in chosen]


def count_long(rows: Sequence[Row], reader: Path) -> int:
    """How many rows are longer than what the reader was made for; a warning where there are any."""
    config = AutoConfig.from_pretrained(reader, trust_remote_code=False, local_files_only=True).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    count = sum(context is not None and len(row.prompt) + len(row.completion) > context for row in rows)
    if count:
        LOG.warning(
            "%d of %d rows are longer than the %d tokens that the reader was made for; what it thinks of the tokens "
            "behind these says little",
            *(count, len(rows), context),
        )
    return count


class _Progress:
    """A line in the log every PROGRESS_SECONDS."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.total, self.rows, self.tokens = len(rows), 0, 0
        self.start = self.last = time.monotonic()

    def add(self, row: Row) -> None:
        """A row is scored."""
        self.rows += 1
        self.tokens += len(row.prompt) + len(row.completion)
        now = time.monotonic()
        if now - self.last > PROGRESS_SECONDS:
            self.last = now
            rate = self.tokens / (now - self.start)
            LOG.info("%d of %d rows scored, %.0f tokens/s", self.rows, self.total, rate)


def _pack(scores: TokenScores) -> dict[str, str]:
    return {
        name: base64.b64encode(getattr(scores, name).astype(dtype).tobytes()).decode()
        for name, dtype in COLUMNS.items()
    }


def _unpack(item: Mapping[str, str]) -> TokenScores:
    return TokenScores(
        **{name: np.frombuffer(base64.b64decode(item[name]), dtype=dtype) for name, dtype in COLUMNS.items()}
    )


# --- outputs ---------------------------------------------------------------------------------------------------------


def _records(rows: Sequence[Row], scored: Sequence[Scored], tokenizer: PreTrainedTokenizerBase) -> pa.Table:
    """The rows as TOKENS."""
    decode: Callable[[Sequence[int]], str] = decoder(tokenizer)
    batches = []
    for row, entry in zip(rows, scored, strict=True):
        record = {
            "problem_id": row.problem_id,
            "attempt": row.attempt,
            "kind": row.kind,
            "tokens": row.completion,
            "pieces": split_text(decode, row.completion.tolist()),
            "fallback": np.zeros(len(row.completion), dtype=bool) if entry.fallback is None else entry.fallback,
            "probability": entry.scores.probability,
            "rank": entry.scores.rank,
        }
        batches.append(pa.RecordBatch.from_pylist([record], schema=TOKENS))
    return pa.Table.from_batches(batches, schema=TOKENS)


def _tell(report: Mapping[str, Any]) -> None:
    if not report["tokens"]:
        LOG.warning("%s has no row for any of the first %d problems", report["traces"], report["problems"])
        return
    ratio = report["rank_surprisal_ratio"]
    LOG.info(
        "%s under %s: %d tokens, %.2f %% of them below %g, mean surprisal %.3f nats, rank-surprisal ratio %s",
        *(report["traces"], report["reader"], report["tokens"], 100 * report["improbable_share"]),
        *(report["threshold"], report["mean_surprisal"], "unknown" if ratio is None else f"{ratio:.3g}"),
    )
