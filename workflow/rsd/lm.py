"""Our decoder as a model of lm-evaluation-harness, registered there as `rsd`.

Requests of lm-eval -> generated texts, each with its length and the reason why it ended. Every sample has a random
stream of its own, (seed, task, problem, repeat): it does not depend on lanes, on order, on a restart, or on which model
is measured, so two models answer the same problem with the same random numbers. Importing this module loads torch.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from transformers import PreTrainedModel

from rsd.decode import Completion, Request, Snapshots, Unfinished, sample
from rsd.journal import Found, Journal
from rsd.law import Sampling
from rsd.models import load_model, load_tokenizer, token_id
from rsd.planning import plan_single
from rsd.progress import Progress, Recorder, begun
from rsd.vocabulary import token_ids

LOG = logging.getLogger(__name__)
Key = tuple[str, str, int]  # task, problem id, repeat


class Generation(str):
    """A generated text that knows its length in tokens and why it ended.

    lm-eval hands strings from the model to the scoring, and nothing beside them. As a string with two attributes the
    facts about a sample stay with its text, whatever happens to the order on the way.
    """

    n_tokens: int
    finish: str  # end_of_turn | length

    def __new__(cls, text: str, n_tokens: int, finish: str) -> Generation:
        """`finish` is end_of_turn or length."""
        self = super().__new__(cls, text)
        self.n_tokens = n_tokens
        self.finish = finish
        return self

    def __getnewargs__(self) -> tuple[str, int, str]:  # type: ignore[override]
        # What copy and pickle rebuild it from.
        return str(self), self.n_tokens, self.finish


@register_model("rsd")
class RsdLM(LM):
    """One model folder, sampled by `decode.sample`.

    `max_length` is the longest prompt and answer together, `batch_size` the number of lanes (lm-eval's names for them),
    None for as many as fit and pay. With a `journal` (entered by the caller) finished samples are appended as they
    come and are not made again; of others, what is written is saved twice a minute and gone on from.
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
        journal: Journal | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.dtype, self._device = Path(pretrained), dtype, device
        self.tokenizer = load_tokenizer(self.folder)
        self.end_of_turn = token_id(self.tokenizer, end_of_turn)
        self.lanes = None if batch_size is None else int(batch_size)
        self.max_length = int(max_length)
        self.seed, self.sharers = int(seed), sharers
        self.journal = journal
        self.resumed = 0  # samples taken from the journal

    def generate_until(self, requests: Sequence[Instance]) -> list[Generation]:
        """The generations, in the order of the requests; the k-th request of one document is its k-th sample.

        Raises ValueError for a stop text (nothing but the end of turn may stop a generation), for settings that the
        decoder does not know, and for a prompt that leaves no room in `max_length`.
        """
        sampling = _sampling(requests)
        keys = list(number_repeats(requests))
        names = [_name(key) for key in keys]
        found = self.journal.load() if self.journal is not None else Found()
        results = {index: Generation(**found.items[name]) for index, name in enumerate(names) if name in found.items}
        self.resumed = len(results)
        if self.resumed:
            LOG.info("%d of %d samples were already in the journal", self.resumed, len(keys))
        started = {index: begun(index, found.parts[name]) for index, name in enumerate(names) if name in found.parts}
        jobs = list(self._jobs(requests, keys, results.keys(), started))
        for index, generation in self._generate(jobs, names, sampling, list(results.values())):
            results[index] = generation
        return [results[index] for index in range(len(keys))]

    def _generate(
        self, jobs: Sequence[Request], names: Sequence[str], sampling: Sampling, earlier: Sequence[Generation]
    ) -> Iterator[tuple[int, Generation]]:
        """(index, generation) of each job as it ends, remembered in the journal under its name."""
        if not jobs:
            return
        saved = {job.index: len(job.begun.tokens) for job in jobs if job.begun is not None}
        if saved:
            LOG.info("%d samples go on where they were, behind %d tokens", len(saved), sum(saved.values()))
        progress = Progress("samples", len(names))
        for generation in earlier:
            progress.resume(generation.n_tokens)
        progress.tokens_in_flight = sum(saved.values())
        with Recorder(self.journal, names, saved, progress) as recorder:
            for completion in self._sample(jobs, sampling, recorder):
                generation = self._generation(completion)
                self._remember(names[completion.index], generation)
                progress.finish(generation.n_tokens)
                yield completion.index, generation
        if self.journal is not None:
            # The samples are kept for another grading; the parts that they came in are of no more use.
            self.journal.drop_parts()

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Not offered: every task of this pipeline generates."""
        raise NotImplementedError("the rsd model only generates; use a task with `output_type: generate_until`")

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        """Not offered: every task of this pipeline generates."""
        self.loglikelihood(requests)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The weights, loaded at their first use: a run that only grades what the journal holds needs none."""
        return load_model(self.folder, self.dtype, self._device)

    def _jobs(
        self,
        requests: Sequence[Instance],
        keys: Sequence[Key],
        skip: Container[int],
        started: Mapping[int, Unfinished | None],
    ) -> Iterator[Request]:
        """What the decoder shall do: one request a sample, each prompt encoded once for all its repeats."""
        encoded: dict[str, list[int]] = {}
        for index, (request, key) in enumerate(zip(requests, keys, strict=True)):
            if index in skip:
                continue
            text = request.args[0]
            if text not in encoded:
                encoded[text] = self._encode(text, key)
            yield Request(
                index=index,
                student_prompt=encoded[text],
                teacher_prompt=[],
                stream=("eval", self.seed, *key),
                begun=started.get(index),
            )

    def _encode(self, text: str, key: Key) -> list[int]:
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) >= self.max_length:
            raise ValueError(
                f"task {key[0]}, problem {key[1]}: the prompt has {len(tokens)} tokens and leaves no room for an "
                f"answer in a context of {self.max_length}; raise `context` of the evaluation profile"
            )
        return tokens

    def _sample(self, jobs: Sequence[Request], sampling: Sampling, snapshots: Snapshots) -> Iterator[Completion]:
        lengths = {"context": self.max_length, "max_new_tokens": self.max_length}
        return sample(
            self.model,
            jobs,
            sampling=sampling,
            end_of_turn=self.end_of_turn,
            **lengths,
            lanes=plan_single(self.model, **lengths, sequences=len(jobs), lanes=self.lanes, sharers=self.sharers),
            emittable=token_ids(self.tokenizer, self.model.get_output_embeddings().weight.shape[0]),
            snapshots=snapshots,
        )

    def _generation(self, completion: Completion) -> Generation:
        text = self.tokenizer.decode(completion.tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Generation(str(text), len(completion.tokens), completion.finish)

    def _remember(self, name: str, generation: Generation) -> None:
        if self.journal is not None:
            item = {"text": str(generation), "n_tokens": generation.n_tokens, "finish": generation.finish}
            self.journal.append(name, item)


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


def _name(key: Key) -> str:
    return "/".join(map(str, key))


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
