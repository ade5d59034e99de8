"""Models of lm-evaluation-harness that sample whole benchmarks; our decoder is one of them, registered there as `rsd`.

Requests of lm-eval -> generated texts, each with its length and the reason why it ended. Every sample has a random
stream of its own, (seed, task, problem, repeat): it does not depend on lanes, on order, on a restart, or on which model
is measured, so two models answer the same problem with the same random numbers. Importing this module loads torch.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from transformers import PreTrainedModel

from rsd.decode import Completion, Request, Snapshots, sample
from rsd.journal import Found, Journal, peek
from rsd.law import Sampling
from rsd.models import load_model, load_tokenizer, token_id
from rsd.planning import plan_single
from rsd.progress import Progress, Recorder, begun
from rsd.samples import Generation
from rsd.vocabulary import token_ids

LOG = logging.getLogger(__name__)
Key = tuple[str, str, int]  # task, problem id, repeat


@dataclass(frozen=True)
class Job:
    """A sample that is to be made: the number of its request, who it is, its prompt as text and as tokens."""

    index: int
    key: Key
    text: str
    prompt: list[int]


class SampledLM(LM):
    """What all backends have in common: who is asked for, what is there already, what is kept.

    `max_length` is the longest prompt and answer together, `batch_size` the number of samples made side by side
    (lm-eval's names for them), None for as many as fit and pay. With a `journal` (entered by the caller) finished
    samples are appended as they come and are not made again; nor are those in the journals `others`, which a run that
    was split into other shards has left.
    """

    def __init__(
        self,
        pretrained: str | Path,
        *,
        dtype: str,
        device: str,
        batch_size: int | None,
        max_length: int,
        end_of_turn: str,
        seed: int,
        sharers: int = 1,
        gpus: int = 1,
        journal: Journal | None = None,
        others: Sequence[Path] = (),
    ) -> None:
        super().__init__()
        self.folder, self.dtype, self._device = Path(pretrained), dtype, device
        self.tokenizer = load_tokenizer(self.folder)
        self.end_of_turn = token_id(self.tokenizer, end_of_turn)
        self.lanes = None if batch_size is None else int(batch_size)
        self.max_length = int(max_length)
        self.seed, self.sharers, self.gpus = int(seed), sharers, gpus
        self.journal, self.others = journal, others
        self.resumed = 0  # samples that earlier runs have finished

    @abstractmethod
    def make(
        self, jobs: Sequence[Job], sampling: Sampling, found: Found, own: Found, progress: Progress
    ) -> Iterator[tuple[Job, Generation]]:
        """Makes the samples, in any order.

        `found` has what earlier runs had written of them, `own` what of that is in this run's journal. A sample that is
        yielded has been remembered and counted when the next one is asked for.
        """

    def generate_until(self, requests: Sequence[Instance]) -> list[Generation]:
        """The generations, in the order of the requests; the k-th request of one document is its k-th sample.

        Raises ValueError for a stop text (nothing but the end of turn may stop a generation), for settings that the
        backend does not know, and for a prompt that leaves no room in `max_length`.
        """
        sampling = _sampling(requests)
        keys = list(number_repeats(requests))
        own, found = self._load(list(map(sample_name, keys)))
        items = {index: found.items.get(sample_name(key)) for index, key in enumerate(keys)}
        results = {index: Generation(**item) for index, item in items.items() if item is not None}
        self.resumed = len(results)
        if self.resumed:
            LOG.info("%d of %d samples were already in the journal", self.resumed, len(keys))
        progress = Progress("samples", len(keys))
        for generation in results.values():
            progress.resume(generation.n_tokens)
        jobs = self._jobs([(index, key, requests[index]) for index, key in enumerate(keys) if index not in results])
        if jobs:
            for job, generation in self.make(jobs, sampling, found, own, progress):
                self._remember(sample_name(job.key), generation)
                progress.finish(generation.n_tokens)
                results[job.index] = generation
        return [results[index] for index in range(len(keys))]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Not offered: every task of this pipeline generates."""
        raise NotImplementedError("this model only generates; use a task with `output_type: generate_until`")

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        """Not offered: every task of this pipeline generates."""
        self.loglikelihood(requests)

    def _load(self, names: Sequence[str]) -> tuple[Found, Found]:
        """What this run's journal holds, and what all journals hold of these samples."""
        own = self.journal.load() if self.journal is not None else Found()
        found = Found(dict(own.items), dict(own.parts))
        for path in self.others:
            # Big files; mostly there is no need to read them.
            if all(name in found.items for name in names):
                break
            other = peek(path)
            for name in names:
                if name in other.items and name not in found.items:
                    found.items[name] = other.items[name]
                # Every run goes on from the longest beginning there is, so the shorter ones are beginnings of it.
                if written(other, name) > written(found, name):
                    found.parts[name] = other.parts[name]
        return own, found

    def _jobs(self, missing: Iterable[tuple[int, Key, Instance]]) -> list[Job]:
        """One job a sample, each prompt encoded once for all its repeats."""
        encoded: dict[str, list[int]] = {}
        jobs = []
        for index, key, request in missing:
            text = request.args[0]
            if text not in encoded:
                encoded[text] = self._encode(text, key)
            jobs.append(Job(index, key, text, encoded[text]))
        return jobs

    def _encode(self, text: str, key: Key) -> list[int]:
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) >= self.max_length:
            raise ValueError(
                f"task {key[0]}, problem {key[1]}: the prompt has {len(tokens)} tokens and leaves no room for an "
                f"answer in a context of {self.max_length}; raise `context` of the evaluation profile"
            )
        return tokens

    def stream(self, job: Job) -> tuple[int | str, ...]:
        """The name of a sample's random stream."""
        return ("eval", self.seed, *job.key)

    def generation(self, tokens: list[int]) -> Generation:
        """What the tokens of a finished sample say, the end of turn included; without it, it was cut."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        ended = tokens[-1:] == [self.end_of_turn]
        return Generation(str(text), len(tokens), "end_of_turn" if ended else "length")

    def _remember(self, name: str, generation: Generation) -> None:
        if self.journal is not None:
            item = {"text": str(generation), "n_tokens": generation.n_tokens, "finish": generation.finish}
            self.journal.append(name, item)


@register_model("rsd")
class RsdLM(SampledLM):
    """One model folder, sampled by `decode.sample`.

    What is written of unfinished samples is saved twice a minute, too, and gone on from.
    """

    def make(
        self, jobs: Sequence[Job], sampling: Sampling, found: Found, own: Found, progress: Progress
    ) -> Iterator[tuple[Job, Generation]]:
        """Each sample as it ends."""
        started = [begun(index, found.parts.get(sample_name(job.key), ())) for index, job in enumerate(jobs)]
        behind = sum(len(attempt.tokens) for attempt in started if attempt is not None)
        if behind:
            count = sum(attempt is not None for attempt in started)
            LOG.info("%d samples go on where they were, behind %d tokens", count, behind)
        progress.tokens_in_flight = behind
        requests = [
            Request(
                index=index,
                student_prompt=job.prompt,
                teacher_prompt=[],
                stream=self.stream(job),
                begun=started[index],
            )
            for index, job in enumerate(jobs)
        ]
        names = [sample_name(job.key) for job in jobs]
        saved = {index: written(own, name) for index, name in enumerate(names)}
        with Recorder(self.journal, names, saved, progress) as recorder:
            for completion in self._sample(requests, sampling, recorder):
                yield jobs[completion.index], self.generation(completion.tokens.tolist())
        if self.journal is not None:
            # The samples are kept for another grading; the parts that they came in are of no more use.
            self.journal.drop_parts()

    @cached_property
    def model(self) -> PreTrainedModel:
        """The weights, loaded at their first use: a run that only grades what the journal holds needs none."""
        return load_model(self.folder, self.dtype, str(self._device), self.gpus)

    def _sample(self, requests: Sequence[Request], sampling: Sampling, snapshots: Snapshots) -> Iterator[Completion]:
        lengths = {"context": self.max_length, "max_new_tokens": self.max_length}
        return sample(
            self.model,
            requests,
            sampling=sampling,
            end_of_turn=self.end_of_turn,
            **lengths,
            lanes=plan_single(self.model, **lengths, sequences=len(requests), lanes=self.lanes, sharers=self.sharers),
            emittable=token_ids(self.tokenizer, self.model.get_output_embeddings().weight.shape[0]),
            snapshots=snapshots,
        )


def number_repeats(requests: Iterable[Instance]) -> Iterator[Key]:
    """(task, problem id, repeat) of each request.

    lm-eval asks for k samples by putting the very same object k times into the list, so a repeat's number is how often
    its document came before.
    """
    seen: Counter[tuple[str, str]] = Counter()
    for request in requests:
        document = (str(request.task_name), str(request.doc["id"]))
        yield *document, seen[document]
        seen[document] += 1


def sample_name(key: Key) -> str:
    """A sample's key in the journal."""
    return "/".join(map(str, key))


def written(found: Found, name: str) -> int:
    """How many tokens of an unfinished sample a journal holds."""
    parts = found.parts.get(name)
    return parts[-1].stop if parts else 0


def _sampling(requests: Sequence[Instance]) -> Sampling:
    """The sampling that all requests ask for; ValueError where they differ or ask for what the decoder has not."""
    wishes: list[Mapping[str, Any]] = []
    for request in requests:
        if request.args[1] not in wishes:
            wishes.append(request.args[1])
    if len(wishes) != 1:
        raise ValueError(f"requests with {len(wishes)} different generation settings at once: {wishes}; evaluate apart")
    wish = dict(wishes[0])
    if until := wish.pop("until", None):
        raise ValueError(
            f"generation_kwargs.until = {until!r}: a stop text can occur inside the reasoning, and only the end of "
            "turn stops a generation; write `until: []`"
        )
    unknown = wish.keys() - {"temperature", "top_k", "top_p"}
    if unknown:
        raise ValueError(f"generation_kwargs: unknown {sorted(unknown)}; expected temperature, top_k, top_p, until")
    return Sampling(**wish)
