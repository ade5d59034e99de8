"""The records on disk: one Parquet schema a kind, and their checked reading and writing.

Token ids are the data and text is for people. Every list column of ATTEMPTS has one entry a token. A Parquet file
carries its provenance in its schema metadata under `rsd`, and a checksum for every page; beside every record stands a
checksum of the whole file (`checksums`), which its readers check.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rsd.checksums import checked_path, verify
from rsd.runtime import atomic_path, json_text

# One generation of a trace.
ATTEMPTS = pa.schema(
    {
        "problem_id": pa.string(),
        "attempt": pa.int32(),
        "tokens": pa.list_(pa.int32()),  # the student's ids, the end of turn included
        "fallback": pa.list_(pa.bool_()),  # the student's own token, not the teacher's proposal
        # Raw probability at temperature 1; empty where the tokens are not those that somebody drew: of a dataset's
        # traces, and of what another model wrote in tokens of its own.
        "p_student": pa.list_(pa.float32()),
        "p_teacher": pa.list_(pa.float32()),  # likewise; NaN for a token that the teacher lacks
        "finish": pa.string(),  # end_of_turn | length
        "text": pa.string(),
    }
)
# What selection thinks of an attempt.
VERDICTS = pa.schema(
    {
        "problem_id": pa.string(),
        "attempt": pa.int32(),
        "n_tokens": pa.int32(),
        "finish": pa.string(),
        "fallback_rate": pa.float32(),
        "answer": pa.string(),
        "correct": pa.bool_(),
        "kept": pa.bool_(),
        "reason": pa.string(),
    }
)
# A training row: exact ids, loss on the completion alone.
ROWS = pa.schema(
    {
        "problem_id": pa.string(),
        "attempt": pa.int32(),
        "kind": pa.string(),  # trace | prefix
        "prompt_tokens": pa.list_(pa.int32()),
        "completion_tokens": pa.list_(pa.int32()),
    }
)
# A training row, token by token, under some model.
TOKENS = pa.schema(
    {
        "problem_id": pa.string(),
        "attempt": pa.int32(),
        "kind": pa.string(),  # trace | prefix
        "tokens": pa.list_(pa.int32()),  # the completion's ids
        "pieces": pa.list_(pa.string()),  # the text of each; together that of the completion
        "fallback": pa.list_(pa.bool_()),  # as in ATTEMPTS; false where RSD did not write the row
        "probability": pa.list_(pa.float32()),  # under the reader, at temperature 1
        "rank": pa.list_(pa.int32()),  # 1 is the most probable
    }
)
# One sampled answer to a benchmark problem.
SAMPLES = pa.schema(
    {
        "problem_id": pa.string(),
        "repeat": pa.int32(),
        "answer": pa.string(),
        "correct": pa.bool_(),  # by math verification
        "exact": pa.bool_(),  # by string comparison
        "n_tokens": pa.int32(),
        "finish": pa.string(),
        "think_closed": pa.bool_(),
        "text": pa.string(),
    }
)
# What a judge says of a sample.
JUDGEMENTS = pa.schema(
    {
        "problem_id": pa.string(),
        "repeat": pa.int32(),
        "verdict": pa.string(),  # right | wrong | unparsable
        "reply": pa.string(),
    }
)

REMEDY = "delete the file and run again; it will be made anew"


def write_table(
    path: Path, rows: pa.Table | Iterable[Mapping[str, Any]], schema: pa.Schema, provenance: Mapping[str, Any]
) -> None:
    """Writes rows (or a table) of `schema` atomically, with `provenance` in the file's metadata."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=schema)
    metadata = {"rsd": json.dumps(provenance, sort_keys=True)}
    table = table.cast(schema).replace_schema_metadata(metadata)
    with checked_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Reads a table of `schema`; the file is checked against its checksum, and so is every page.

    Raises ValueError naming the file and the remedy where it is truncated, corrupted or of another schema.
    """
    verify(path)
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is truncated or corrupted ({error}); {REMEDY}") from error
    if not table.schema.equals(schema, check_metadata=False):
        raise ValueError(f"{path} has the columns {table.schema.names}, expected {schema.names}; {REMEDY}")
    return table


def read_provenance(path: Path, *, checked: bool = True) -> dict[str, Any]:
    """The provenance stamp that `write_table` put into a Parquet file; ValueError where it is not the file written.

    `checked` False reads the end of the file alone: for what no result depends on.
    """
    if checked:
        verify(path)
    return json.loads(pq.read_schema(path).metadata[b"rsd"])


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Reads JSON Lines; ValueError naming file and line where one is no JSON object, or the file is damaged."""
    verify(path)
    records = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no valid JSON ({error}); {REMEDY}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: expected a JSON object; {REMEDY}")
            records.append(record)
    return records


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]], *, checksum: bool = True) -> None:
    """Writes one JSON object a line, atomically; without a checksum where a manifest has it."""
    with (checked_path if checksum else atomic_path)(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def write_record(path: Path, value: Any) -> None:
    """Writes JSON, indented, keys in the given order; NaN is refused (ValueError)."""
    with checked_path(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")
