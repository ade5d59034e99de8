"""Trace generation: problems -> attempts, by RSD or by plain sampling of the student.

Finished attempts go to a journal in the work folder at once; a second run takes them from there. The declared output
appears when all are there.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rsd.decode import Completion, Request, generate_rsd, sample
from rsd.journal import Journal
from rsd.law import Law, Sampling
from rsd.models import load_model, load_tokenizer, token_id
from rsd.prompts import encode_prompt
from rsd.provenance import settings_digest, stamp
from rsd.records import ATTEMPTS, read_jsonl, write_table
from rsd.runtime import choose_device, set_threads
from rsd.stages import stage_code
from rsd.vocabulary import Alignment, align, token_ids

LOG = logging.getLogger(__name__)
PROGRESS_SECONDS = 10.0
# Problems whose questions both tokenizers must split alike before a pair is believed to be aligned.
PROBES = 20


def run_generate_traces(
    *,
    problems: Path,
    student: Path,
    teacher: Path | None,
    settings: Mapping[str, Any],
    shard: int,
    threads: int,
    output: Path,
    work: Path,
) -> None:
    """Writes the ATTEMPTS of one shard (problems number shard, shard + shards, ...), sorted by problem and attempt.

    `settings` is `config.traces_settings`; `teacher` is needed for method rsd. Raises ValueError for an empty problem
    set, vocabularies that cannot be aligned, and prompts that leave no room in the context.
    """
    set_threads(threads)
    records = read_jsonl(problems)
    if not records:
        raise ValueError(f"{problems} holds no problems; check problems.dataset and problems.limit")
    records = records[shard :: settings["shards"]]
    inputs = {"problems": problems, "student": student} | ({"teacher": teacher} if teacher else {})
    provenance = stamp(settings, inputs, settings["seed"])
    # An attempt does not depend on the lanes beside it, nor should lowering them for want of memory cost what is done.
    decides = {key: value for key, value in settings.items() if key not in ("lanes", "device")}
    identity = [decides, provenance["settings"]["inputs"], shard, stage_code("generate_traces")]
    jobs = [(record, attempt) for record in records for attempt in range(settings["attempts"])]
    journal_path = work / f"shard-{shard:03d}-{settings_digest(identity)}.journal"
    with Journal(journal_path) as journal:
        done = journal.load()
        missing = [job for job in jobs if _key(*job) not in done]
        LOG.info("%d attempts, %d of them done before", len(jobs), len(jobs) - len(missing))
        if missing:
            generator = _Generator(student, teacher, settings, [record["question"] for record in records[:PROBES]])
            progress = _Progress(len(missing))
            for completion in generator.run(missing):
                record, attempt = missing[completion.index]
                journal.append(_key(record, attempt), _pack(completion, generator.decode_text(completion)))
                progress.add(completion)
            progress.report()
            done = journal.load()
    rows = [{"problem_id": record["id"], "attempt": n, **_unpack(done[_key(record, n)])} for record, n in jobs]
    write_table(output, rows, ATTEMPTS, provenance)
    # Those of earlier settings go with it.
    for path in work.glob(f"shard-{shard:03d}-*.journal"):
        path.unlink()


class _Generator:
    """The models of a trace set, loaded, and what to ask of them."""

    def __init__(self, student: Path, teacher: Path | None, settings: Mapping[str, Any], probes: Sequence[str]) -> None:
        device = choose_device(settings["device"])
        self.settings = settings
        self.tokenizer = load_tokenizer(student)
        self.student = load_model(student, settings["student"]["dtype"], device)
        size = self.student.get_output_embeddings().weight.shape[0]
        self.common = {
            "end_of_turn": token_id(self.tokenizer, settings["format"]["end_of_turn"]),
            "context": settings["context"],
            "max_new_tokens": settings["max_new_tokens"],
            "lanes": settings["lanes"],
            "emittable": token_ids(self.tokenizer, size),
        }
        self.alignment: Alignment | None = None
        if teacher is not None:
            self.teacher_tokenizer = load_tokenizer(teacher)
            self.teacher = load_model(teacher, settings["teacher"]["dtype"], device)
            self.alignment = align(
                self.tokenizer,
                self.teacher_tokenizer,
                student_size=size,
                teacher_size=self.teacher.get_output_embeddings().weight.shape[0],
                probes=probes,
            )
            LOG.info("the teacher lacks %d of the student's tokens", len(self.alignment.pieces))

    def run(self, jobs: Sequence[tuple[Mapping[str, Any], int]]) -> Iterator[Completion]:
        requests = (self._request(index, *job) for index, job in enumerate(jobs))
        if self.alignment is None:
            return sample(self.student, requests, sampling=Sampling(**self.settings["sampling"]), **self.common)
        return generate_rsd(
            self.student, self.teacher, self.alignment, requests, law=law_of(self.settings["law"]), **self.common
        )

    def _request(self, index: int, record: Mapping[str, Any], attempt: int) -> Request:
        def prompt(tokenizer: PreTrainedTokenizerBase, side: str) -> list[int]:
            return encode_prompt(tokenizer, self.settings[side]["prompt"], record["question"], record["solution"])

        return Request(
            index=index,
            student_prompt=prompt(self.tokenizer, "student"),
            teacher_prompt=prompt(self.teacher_tokenizer, "teacher") if self.alignment is not None else [],
            stream=("traces", self.settings["seed"], record["id"], attempt),
        )

    def decode_text(self, completion: Completion) -> str:
        text = self.tokenizer.decode(completion.tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def law_of(settings: Mapping[str, Any]) -> Law:
    """The Law that the settings of a trace set describe."""
    return Law(
        threshold=settings["threshold"],
        draws=settings["draws"],
        proposal=Sampling(**settings["proposal"]),
        accept_top_k=settings["accept_top_k"],
        fallback=Sampling(**settings["fallback"]),
    )


class _Progress:
    """A line every few seconds: done, rate, fallback rate, remaining time."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.tokens, self.fallback = total, 0, 0, 0
        self.start = self.last = time.monotonic()

    def add(self, completion: Completion) -> None:
        self.done += 1
        self.tokens += len(completion.tokens)
        self.fallback += int(completion.fallback.sum())
        if time.monotonic() - self.last > PROGRESS_SECONDS:
            self.report()

    def report(self) -> None:
        self.last = time.monotonic()
        seconds = max(self.last - self.start, 1e-9)
        LOG.info(
            "%d of %d attempts, %.0f tokens/s, fallback on %.2f %% of tokens, about %.0f s to go",
            self.done,
            self.total,
            self.tokens / seconds,
            100 * self.fallback / max(self.tokens, 1),
            seconds / max(self.done, 1) * (self.total - self.done),
        )


def _key(record: Mapping[str, Any], attempt: int) -> str:
    return f"{record['id']}/{attempt}"


# How an array of a completion is laid out in the journal: exact bits, base64.
_COLUMNS = {"tokens": "<i4", "fallback": "|b1", "p_student": "<f4", "p_teacher": "<f4"}


def _pack(completion: Completion, text: str) -> dict[str, Any]:
    arrays = {
        name: base64.b64encode(getattr(completion, name).astype(dtype).tobytes()).decode()
        for name, dtype in _COLUMNS.items()
    }
    return {**arrays, "finish": completion.finish, "text": text}


def _unpack(item: Mapping[str, Any]) -> dict[str, Any]:
    arrays: dict[str, NDArray[Any]] = {
        name: np.frombuffer(base64.b64decode(item[name]), dtype=dtype) for name, dtype in _COLUMNS.items()
    }
    return {**arrays, "finish": item["finish"], "text": item["text"]}
