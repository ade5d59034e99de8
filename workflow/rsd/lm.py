"""Our decoder as a model of lm-evaluation-harness, registered there as `rsd`.

Requests of lm-eval -> generated texts, each with its length and the reason why it ended. Every sample has a random
stream of its own, (seed, task, problem, repeat): it does not depend on lanes, on order, on a restart, or on which model
is measured, so two models answer the same problem with the same random numbers. Importing this module loads torch.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from transformers import PreTrainedModel

from rsd.decode import Completion, Request, sample
from rsd.journal import Journal
from rsd.law import Sampling
from rsd.models import load_model, load_tokenizer, token_id
from rsd.vocabulary import token_ids

LOG = logging.getLogger(__name__)
REPORT_SECONDS = 10.0
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

    `max_length` is the longest prompt and answer together, `batch_size` the number of lanes (lm-eval's names for them).
    With a `journal` (entered by the caller) finished samples are appended as they come and are not made again.
    """

    def __init__(
        self,
        pretrained: str | Path,
        *,
        dtype: str,
        device: str,
        batch_size: int,
        max_length: int,
        end_of_turn: str,
        seed: int,
        journal: Journal | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.dtype, self._device = Path(pretrained), dtype, device
        self.tokenizer = load_tokenizer(self.folder)
        self.end_of_turn = token_id(self.tokenizer, end_of_turn)
        self.lanes = int(batch_size)
        self.max_length = int(max_length)
        self.seed = int(seed)
        self.journal = journal
        self.resumed = 0  # samples taken from the journal

    def generate_until(self, requests: Sequence[Instance]) -> list[Generation]:
        """The generations, in the order of the requests; the k-th request of one document is its k-th sample.

        Raises ValueError for a stop text (nothing but the end of turn may stop a generation), for settings that the
        decoder does not know, and for a prompt that leaves no room in `max_length`.
        """
        sampling = _sampling(requests)
        keys = list(number_repeats(requests))
        finished = self._load_finished()
        results = {index: finished[_name(key)] for index, key in enumerate(keys) if _name(key) in finished}
        self.resumed = len(results)
        if self.resumed:
            LOG.info("%d of %d samples were already in the journal", self.resumed, len(keys))
        jobs = list(self._jobs(requests, keys, skip=results.keys()))
        for completion in _report_progress(self._sample(jobs, sampling), total=len(jobs)):
            generation = self._generation(completion)
            results[completion.index] = generation
            self._remember(keys[completion.index], generation)
        return [results[index] for index in range(len(keys))]

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

    def _jobs(self, requests: Sequence[Instance], keys: Sequence[Key], skip: Iterable[int]) -> Iterator[Request]:
        """What the decoder shall do: one request a sample, each prompt encoded once for all its repeats."""
        skip = set(skip)
        encoded: dict[str, list[int]] = {}
        for index, (request, key) in enumerate(zip(requests, keys, strict=True)):
            if index in skip:
                continue
            text = request.args[0]
            if text not in encoded:
                encoded[text] = self._encode(text, key)
            stream = ("eval", self.seed, *key)
            yield Request(index=index, student_prompt=encoded[text], teacher_prompt=[], stream=stream)

    def _encode(self, text: str, key: Key) -> list[int]:
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) >= self.max_length:
            raise ValueError(
                f"task {key[0]}, problem {key[1]}: the prompt has {len(tokens)} tokens and leaves no room for an "
                f"answer in a context of {self.max_length}; raise `context` of the evaluation profile"
            )
        return tokens

    def _sample(self, jobs: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        if not jobs:
            return iter(())
        return sample(
            self.model,
            jobs,
            sampling=sampling,
            end_of_turn=self.end_of_turn,
            context=self.max_length,
            max_new_tokens=self.max_length,
            lanes=self.lanes,
            emittable=token_ids(self.tokenizer, self.model.get_output_embeddings().weight.shape[0]),
        )

    def _generation(self, completion: Completion) -> Generation:
        text = self.tokenizer.decode(completion.tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Generation(str(text), len(completion.tokens), completion.finish)

    def _load_finished(self) -> dict[str, Generation]:
        items = self.journal.load() if self.journal is not None else {}
        return {name: Generation(**item) for name, item in items.items()}

    def _remember(self, key: Key, generation: Generation) -> None:
        if self.journal is not None:
            item = {"text": str(generation), "n_tokens": generation.n_tokens, "finish": generation.finish}
            self.journal.append(_name(key), item)


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


def _report_progress(completions: Iterable[Completion], total: int) -> Iterator[Completion]:
    """Passes completions on, with a line in the log every few seconds and one at the end."""
    start = reported = time.monotonic()
    tokens = 0
    for done, completion in enumerate(completions, start=1):
        yield completion
        tokens += len(completion.tokens)
        now = time.monotonic()
        if now - reported >= REPORT_SECONDS or done == total:
            reported = now
            seconds = max(now - start, 1e-9)
            left = seconds / done * (total - done)
            LOG.info("%d/%d samples, %.0f tokens/s, about %.0f s to go", done, total, tokens / seconds, left)
