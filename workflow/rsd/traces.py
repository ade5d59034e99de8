"""Trace generation: problems -> attempts, by RSD or by plain sampling of one model, the student or another.

Finished attempts go to a journal in the work folder at once, what is written of the others twice a minute; a second run
goes on from there. The declared output appears when all are finished; the journal stays until rows were chosen from it
(`selection`), since Snakemake removes the output of a job that is ended right after it. What another model than the
student wrote is read in the student's tokens then (`recoding`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rsd.config import NOT_DECIDING
from rsd.decode import Completion, Request, Snapshots, Unfinished, generate_rsd, sample
from rsd.journal import Found, Journal
from rsd.law import Law, Sampling
from rsd.models import load_model, load_tokenizer, token_id
from rsd.planning import plan_pair, plan_single
from rsd.progress import GRADING_SECONDS, FallbackRate, Progress, Recorder, SolvedShare, begun, pack, unpack
from rsd.prompts import encode_prompt
from rsd.provenance import settings_digest, stamp
from rsd.recoding import Recoder
from rsd.records import ATTEMPTS, read_jsonl, write_table
from rsd.runtime import choose_device, set_threads, sharers
from rsd.stages import stage_code
from rsd.vocabulary import Alignment, align, token_ids

LOG = logging.getLogger(__name__)
# Problems whose questions both tokenizers must split alike before a pair is believed to be aligned.
PROBES = 20
Job = tuple[Mapping[str, Any], int]  # a problem, and the number of an attempt at it


def run_generate_traces(
    *,
    problems: Path,
    student: Path,
    teacher: Path | None,
    sampled: Path | None = None,
    settings: Mapping[str, Any],
    shard: int,
    threads: int,
    output: Path,
    work: Path,
) -> None:
    """Writes the ATTEMPTS of one shard (problems number shard, shard + shards, ...), sorted by problem and attempt.

    `settings` is `config.traces_settings`; `teacher` is needed for method rsd. `sampled` is the model that writes by
    method sample, the student where None: `context` and `max_new_tokens` then count its tokens, while the attempts hold
    what the student reads (see `recoding`), and the file's metadata say under `altered` how many of them do not say
    just what was written; under `resumed` how many were finished or begun by earlier runs. SIGTERM and Ctrl-C save
    what is written and end the process (SystemExit 143, KeyboardInterrupt). Raises ValueError for an empty
    problem set, vocabularies that cannot be aligned, and prompts that leave no room in the context.
    """
    set_threads(threads)
    records = read_jsonl(problems)
    if not records:
        raise ValueError(f"{problems} holds no problems; check problems.dataset and problems.limit")
    records = records[shard :: settings["shards"]]
    inputs = {"problems": problems, "student": student}
    inputs |= {name: path for name, path in (("teacher", teacher), ("sampled", sampled)) if path}
    provenance = stamp(settings, inputs, settings["seed"])
    # How fast an attempt comes: lowering the lanes for want of memory, say, must not cost what is done.
    decides = {key: value for key, value in settings.items() if key not in NOT_DECIDING}
    identity = [decides, provenance["settings"]["inputs"], shard, stage_code("generate_traces")]
    jobs = [(record, attempt) for record in records for attempt in range(settings["attempts"])]
    with Journal(work / f"shard-{shard:03d}-{settings_digest(identity)}.journal") as journal:
        found = journal.load()
        missing = [job for job in jobs if _key(*job) not in found.items]
        provenance["resumed"] = len(jobs) - len(missing) + sum(_key(*job) in found.parts for job in missing)
        LOG.info("%d attempts, %d of them done before", len(jobs), len(jobs) - len(missing))
        if missing:
            questions = [record["question"] for record in records[:PROBES]]
            generator = _Generator(student, teacher, sampled, settings, questions)
            _make(generator, journal, found, jobs, missing)
            found = journal.load()
    rows = [{"problem_id": record["id"], "attempt": n, **_unpack(found.items[_key(record, n)])} for record, n in jobs]
    if sampled is not None:
        provenance["altered"] = read_by_student(rows, student, sampled, settings["format"]["end_of_turn"])
    write_table(output, rows, ATTEMPTS, provenance)
    for other in set(work.glob(f"shard-{shard:03d}-*.journal")) - {journal.path}:
        other.unlink()  # of earlier settings


def read_by_student(rows: Sequence[dict[str, Any]], student: Path, sampled: Path, end_of_turn: str) -> int:
    """Puts what the model `sampled` wrote into the student's tokens, in place; how many attempts that changed.

    Probabilities are left out: they belong to other tokens.
    """
    reader, writer = load_tokenizer(student), load_tokenizer(sampled)
    ends = {"writer_end": token_id(writer, end_of_turn), "reader_end": token_id(reader, end_of_turn)}
    recoder = Recoder(writer, reader, end_of_turn=end_of_turn, **ends)
    altered = 0
    for row in rows:
        reading = recoder.read(row["tokens"].tolist())
        altered += not reading.exact
        row |= {"tokens": reading.tokens, "text": reading.text, "fallback": [False] * len(reading.tokens)}
        row |= {"p_student": [], "p_teacher": [], "finish": "end_of_turn" if reading.ends else "length"}
    if altered:
        LOG.warning(
            "%d of %d attempts do not say in the student's tokens just what the model wrote; they are judged by what "
            "they say there",
            *(altered, len(rows)),
        )
    return altered


def _make(generator: _Generator, journal: Journal, found: Found, jobs: Sequence[Job], missing: Sequence[Job]) -> None:
    """Makes the `missing` ones of `jobs` and appends them to the journal as they come; the others are in `found`."""
    keys = [_key(*job) for job in missing]
    started = [begun(index, found.parts.get(key, ())) for index, key in enumerate(keys)]
    saved = {attempt.index: len(attempt.tokens) for attempt in started if attempt is not None}
    if saved:
        LOG.info("%d attempts go on where they were, behind %d tokens", len(saved), sum(saved.values()))
    fallback, solved = FallbackRate(), SolvedShare(generator.settings["format"])
    progress = Progress("attempts", len(jobs), lambda: [str(solved), str(fallback)])
    for record, attempt in jobs:
        if item := found.items.get(_key(record, attempt)):
            flags = unpack(item)["fallback"]
            progress.resume(len(flags))
            fallback.finish(flags)
            solved.add(item["text"], record["answer"])
    progress.tokens_in_flight = sum(saved.values())
    with closing(solved), Recorder(journal, keys, saved, progress, fallback.see) as recorder:
        for completion in generator.run(missing, started, recorder):
            text = generator.decode_text(completion)
            journal.append(keys[completion.index], {**pack(completion), "finish": completion.finish, "text": text})
            progress.finish(len(completion.tokens))
            fallback.finish(completion.fallback, completion.index)
            solved.add(text, missing[completion.index][0]["answer"])
        solved.catch_up(GRADING_SECONDS)


class _Generator:
    """The models of a trace set, loaded, and what to ask of them.

    Sampled alone, another model stands in the student's place, with its own prompt and tokens.
    """

    def __init__(
        self,
        student: Path,
        teacher: Path | None,
        sampled: Path | None,
        settings: Mapping[str, Any],
        probes: Sequence[str],
    ) -> None:
        device = choose_device(settings["device"])
        self.settings = settings
        self.side = "student" if sampled is None else "sampled"
        folder = sampled or student
        self.tokenizer = load_tokenizer(folder)
        self.student = load_model(folder, settings[self.side]["dtype"], device, settings["gpus"][self.side])
        size = self.student.get_output_embeddings().weight.shape[0]
        self.end_of_turn = token_id(self.tokenizer, settings["format"]["end_of_turn"])
        self.emittable = token_ids(self.tokenizer, size)
        self.alignment: Alignment | None = None
        if teacher is not None:
            self.teacher_tokenizer = load_tokenizer(teacher)
            # On the first GPUs, those of the student among them.
            self.teacher = load_model(teacher, settings["teacher"]["dtype"], device, settings["gpus"]["teacher"])
            self.alignment = align(
                self.tokenizer,
                self.teacher_tokenizer,
                student_size=size,
                teacher_size=self.teacher.get_output_embeddings().weight.shape[0],
                probes=probes,
            )
            LOG.info("the teacher lacks %d of the student's tokens", len(self.alignment.pieces))

    def run(
        self, jobs: Sequence[Job], started: Sequence[Unfinished | None], snapshots: Snapshots
    ) -> Iterator[Completion]:
        """The attempts of `jobs`, each going on from what was `started` of it."""
        requests = (self._request(index, *job, started[index]) for index, job in enumerate(jobs))
        lengths = {name: self.settings[name] for name in ("context", "max_new_tokens")}
        wanted = {**lengths, "sequences": len(jobs), "lanes": self.settings["lanes"]}
        wanted |= {"sharers": sharers(self.student.device.type, self.settings["jobs_at_once"])}
        common = {**lengths, "end_of_turn": self.end_of_turn, "emittable": self.emittable, "snapshots": snapshots}
        if self.alignment is None:
            common |= {"lanes": plan_single(self.student, **wanted), "sampling": Sampling(**self.settings["sampling"])}
            return sample(self.student, requests, **common)
        law = law_of(self.settings["law"])
        wanted |= {"schedule": self.settings["schedule"], "block": self.settings["block_length"]}
        lanes, scheduler = plan_pair(self.student, self.teacher, self.alignment, law, **wanted)
        common |= {"lanes": lanes, "scheduler": scheduler, "law": law}
        return generate_rsd(self.student, self.teacher, self.alignment, requests, **common)

    def _request(self, index: int, record: Mapping[str, Any], attempt: int, started: Unfinished | None) -> Request:
        def prompt(tokenizer: PreTrainedTokenizerBase, side: str) -> list[int]:
            return encode_prompt(tokenizer, self.settings[side]["prompt"], record["question"], record["solution"])

        return Request(
            index=index,
            student_prompt=prompt(self.tokenizer, self.side),
            teacher_prompt=prompt(self.teacher_tokenizer, "teacher") if self.alignment is not None else [],
            stream=("traces", self.settings["seed"], record["id"], attempt),
            begun=started,
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


def _key(record: Mapping[str, Any], attempt: int) -> str:
    return f"{record['id']}/{attempt}"


def _unpack(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**unpack(item), "finish": item["finish"], "text": item["text"]}
