"""lm-eval's own classes for transformers and vLLM as backends of an evaluation, beside our decoder (`rsd.lm`).

Jobs -> token ids, in chunks. The classes load, batch and generate; what a prompt is, what ends a sample, what is kept
and which random numbers it gets is decided here and in `rsd.lm`, so that the backends differ in nothing else: prompts
as they are, without a token or template added; the end of turn is the only token that ends a sample, whatever the
model's own settings say; special tokens stay in the text. A chunk that is finished is kept at once, one that a kill
interrupts is made again.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rsd.journal import Found
from rsd.law import Sampling
from rsd.lm import Job, SampledLM
from rsd.memory import free_bytes
from rsd.planning import lanes_that_fit, single_lane_bytes
from rsd.progress import Progress
from rsd.samples import Generation
from rsd.streams import states, stream_key, uniforms
from rsd.vocabulary import token_ids

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.vllm_causallms import VLLM

LOG = logging.getLogger(__name__)

# Without `lanes`: samples that transformers makes side by side. Samples that vLLM gets at once; it batches them itself.
TRANSFORMERS_LANES = 64
VLLM_CHUNK = 1024
# The share of a GPU's memory that vLLM takes, divided among the jobs that share it.
VLLM_MEMORY = 0.9


class ChunkedLM(SampledLM):
    """A backend that gives nothing until a whole chunk of samples is finished."""

    def make(
        self, jobs: Sequence[Job], sampling: Sampling, found: Found, own: Found, progress: Progress
    ) -> Iterator[tuple[Job, Generation]]:
        """The samples of one chunk after the other."""
        for chunk in self.chunks(jobs):
            completed = self.complete(chunk, sampling)
            progress.count(sum(map(len, completed)))
            for job, tokens in zip(chunk, completed, strict=True):
                yield job, self.generation(tokens)
        progress.report()

    @abstractmethod
    def chunks(self, jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
        """The jobs in the pieces that `complete` takes, every one once."""

    @abstractmethod
    def complete(self, jobs: Sequence[Job], sampling: Sampling) -> list[list[int]]:
        """The tokens of each sample, the end of turn included; without it, as many as fit `max_length`."""

    def room(self, job: Job) -> int:
        """How many tokens a sample may have."""
        return self.max_length - len(job.prompt)


# --- transformers --------------------------------------------------------------------------------------------------


class TransformersLM(ChunkedLM):
    """lm-eval's `hf` model: passes, caches, padding, batches and the cuts of the distribution are transformers'.

    A token is drawn with the noise of the sample's own stream at its position, so that neither the batch nor a restart
    has a part in it; with equal logits it is the token that our decoder draws.
    """

    @cached_property
    def engine(self) -> HFLM:
        """The harness's model, loaded at its first use."""
        from lm_eval.models.huggingface import HFLM

        engine = HFLM(
            pretrained=str(self.folder),
            device=str(self._device),
            dtype=self.dtype,
            batch_size=1,
            max_length=self.max_length,
            add_bos_token=False,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
        # What the folder says of temperature, penalties and end tokens; the settings and the format say it here.
        engine.model.generation_config = GenerationConfig()
        engine.model.requires_grad_(False)
        return engine

    def chunks(self, jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
        """The longest prompts first, as many as fit the memory.

        A batch goes on until its shortest prompt has used its room. Those beside it are longer by then than the
        context, and must still have positions.
        """
        model = self.engine.model
        each = single_lane_bytes(model, context=self.max_length, max_new_tokens=self.max_length)
        most = len(jobs) if self.lanes else min(len(jobs), TRANSFORMERS_LANES)
        lanes = lanes_that_fit(self.lanes, each, free_bytes(model.device) / self.sharers, most=most)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or self.max_length
        chunk: list[Job] = []
        for job in sorted(jobs, key=lambda job: -len(job.prompt)):
            longer = len(chunk[0].prompt) - len(job.prompt) if chunk else 0
            if chunk and (len(chunk) == lanes or longer > max(positions - self.max_length, 0)):
                yield chunk
                chunk = []
            chunk.append(job)
        if chunk:
            yield chunk

    def complete(self, jobs: Sequence[Job], sampling: Sampling) -> list[list[int]]:
        """One batch, padded on the left.

        Raises RuntimeError where the harness reads a prompt otherwise than our decoder.
        """
        engine = self.engine
        prompts, mask = engine.tok_batch_encode([job.text for job in jobs])
        for job, row, seen in zip(jobs, prompts, mask.bool(), strict=True):
            if row[seen].tolist() != job.prompt:
                raise RuntimeError(
                    f"task {job.key[0]}, problem {job.key[1]}: lm-eval reads the prompt as other tokens than this "
                    "pipeline; use the lm-eval version of the lock, or evaluation.backend: rsd"
                )
        width, device = prompts.shape[1], engine.device
        rows = engine.model.get_output_embeddings().weight.shape[0]
        noise = StreamNoise(
            torch.tensor([stream_key(self.stream(job)) for job in jobs], device=device),
            start=width,
            sampling=sampling,
            emittable=token_ids(self.tokenizer, rows).to(device),
        )
        # Greedy, of logits that hold the noise already.
        output = engine._model_generate(
            context=prompts.to(device),
            attention_mask=mask.to(device),
            max_length=width + max(map(self.room, jobs)),
            stop=[],
            do_sample=False,
            eos_token_id=self.end_of_turn,
            logits_processor=LogitsProcessorList([noise]),
        )
        return [self._ended(row, self.room(job)) for job, row in zip(jobs, output[:, width:].tolist(), strict=True)]

    def _ended(self, tokens: list[int], room: int) -> list[int]:
        """A row of a batch without what stands behind its end."""
        tokens = tokens[:room]
        return tokens[: tokens.index(self.end_of_turn) + 1] if self.end_of_turn in tokens else tokens


class StreamNoise(LogitsProcessor):
    """Turns the drawing of a token into taking the largest score: transformers' cuts, then the noise of each stream.

    `keys` [batch] int64 name the streams, `start` is the padded length of the prompts, `emittable` [vocab] bool the
    rows of the output layer that are tokens. The largest of log w + g with g = -log(-log u), u uniform, is y with
    probability w_y / sum(w): the race of exponential clocks of `streams.race`, with the same numbers u.
    """

    def __init__(self, keys: Tensor, *, start: int, sampling: Sampling, emittable: Tensor) -> None:
        self.keys, self.start, self.greedy = keys, start, sampling.temperature == 0
        self.dead = (~emittable).nonzero().flatten()
        self.tokens = torch.arange(len(emittable), device=keys.device)
        self.cuts: list[LogitsProcessor] = []
        if not self.greedy:
            self.cuts.append(TemperatureLogitsWarper(float(sampling.temperature)))
            self.cuts += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
            self.cuts += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores [batch, vocab] of the next token -> scores whose largest is the token that is drawn."""
        scores = scores.index_fill(-1, self.dead, float("-inf"))
        if self.greedy:
            return scores
        for cut in self.cuts:
            scores = cut(input_ids, scores)
        position = torch.full_like(self.keys, input_ids.shape[1] - self.start)
        noise = uniforms(states(self.keys, position)[:, None], self.tokens)
        return scores.double() - torch.log(-torch.log(noise))


# --- vLLM ----------------------------------------------------------------------------------------------------------


class VllmLM(ChunkedLM):
    """lm-eval's `vllm` model. Every sample has a seed of its own, made from the name of its stream.

    vLLM's numbers depend on what it batches, so that the same seeds need not give the same samples.
    """

    @cached_property
    def engine(self) -> VLLM:
        """The harness's model, loaded at its first use; ModuleNotFoundError where vLLM is not installed."""
        return vllm_class()(**self.engine_arguments())

    def engine_arguments(self) -> dict[str, Any]:
        """What the harness's class is made with; what it does not know itself, it hands on to vLLM."""
        return {
            "pretrained": str(self.folder),
            "dtype": self.dtype,
            "trust_remote_code": False,
            "add_bos_token": False,
            "max_model_len": self.max_length,
            "max_batch_size": self.lanes,
            # Where it is `auto`, a bar is drawn into the log.
            "batch_size": VLLM_CHUNK,
            "seed": self.seed,
            "tensor_parallel_size": self.gpus,
            "data_parallel_size": 1,
            "gpu_memory_utilization": VLLM_MEMORY / self.sharers,
            # Not what the folder says of temperature, penalties and end tokens.
            "generation_config": "vllm",
        }

    def sampling_arguments(self, job: Job, sampling: Sampling) -> dict[str, Any]:
        """What one sample is made with, in the words of vLLM's SamplingParams."""
        return {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "seed": stream_key(self.stream(job)) % (1 << 63),
            "max_tokens": self.room(job),
            # The end of turn, and no other token that the model's files call an end.
            "stop_token_ids": [self.end_of_turn],
            "ignore_eos": True,
            # Token ids are the data; the text is made from them here.
            "detokenize": False,
        }

    def make(
        self, jobs: Sequence[Job], sampling: Sampling, found: Found, own: Found, progress: Progress
    ) -> Iterator[tuple[Job, Generation]]:
        """As all chunked backends; then vLLM's own processes are ended, which would outlive this one."""
        try:
            yield from super().make(jobs, sampling, found, own, progress)
        finally:
            if engine := self.__dict__.pop("engine", None):
                del engine.model
                gc.collect()

    def chunks(self, jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
        """Pieces of which a kill may cost one."""
        for start in range(0, len(jobs), VLLM_CHUNK):
            yield jobs[start : start + VLLM_CHUNK]

    def complete(self, jobs: Sequence[Job], sampling: Sampling) -> list[list[int]]:
        """One call of vLLM. RuntimeError where it gave up a sample."""
        engine = self.engine
        from vllm import SamplingParams

        outputs = engine._model_generate(
            requests=[job.prompt for job in jobs],
            generate=True,
            sampling_params=[SamplingParams(**self.sampling_arguments(job, sampling)) for job in jobs],
        )
        return [self._tokens(output.outputs[0], job) for output, job in zip(outputs, jobs, strict=True)]

    def _tokens(self, output: Any, job: Job) -> list[int]:
        tokens = list(output.token_ids)
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(
                f"task {job.key[0]}, problem {job.key[1]}: vLLM ended a sample by {output.finish_reason!r} after "
                f"{len(tokens)} tokens; expected the end of turn or the length limit; run again"
            )
        # Not every version counts the token that ends a sample among the sample's.
        ended = output.finish_reason == "stop" and tokens[-1:] != [self.end_of_turn]
        return [*tokens, self.end_of_turn] if ended else tokens


def vllm_class() -> type[VLLM]:
    """lm-eval's class for vLLM; ModuleNotFoundError saying what to install where vLLM is not there."""
    if importlib.util.find_spec("vllm") is None:
        raise ModuleNotFoundError(
            "evaluation.backend = 'vllm': vLLM is not installed here, since it wants other versions than the rest; run "
            "snakemake with `--sdm conda`, which makes envs/vllm.yaml, or write `evaluation: {backend: rsd}`"
        )
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM
