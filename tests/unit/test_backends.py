"""lm-eval's own classes as backends: the same samples as our decoder, the same rules for prompts, ends and kills."""

from __future__ import annotations

import importlib.machinery
import inspect
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.registry import model_registry
from transformers import AutoModelForCausalLM

from evaluations import END, evaluated, facts, problem, requests_for, settings_with
from rsd import backends, evaluate
from rsd.backends import StreamNoise, TransformersLM, VllmLM, vllm_class
from rsd.journal import Journal
from rsd.law import Sampling, distribution, plain_parts
from rsd.lm import RsdLM, SampledLM
from rsd.models import load_tokenizer
from rsd.records import write_jsonl
from rsd.streams import race, states
from tiny import decided_model_folder, tiny_model_folder, tiny_tokenizer

NUMBERS = [3, 12, 120, 4567, 5]
MANY = [*NUMBERS, *range(20, 50)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decided_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "pocket.jsonl"
    write_jsonl(path, [problem(number) for number in NUMBERS])
    return path


def lm(kind: type[SampledLM], folder: Path, **changes: Any) -> Any:
    arguments = {"dtype": "float32", "device": "cpu", "batch_size": 4, "max_length": 40, "end_of_turn": END, "seed": 0}
    return kind(folder, **(arguments | changes))


# --- transformers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [9, 12, 40, 120])
def test_greedy_outputs_of_our_decoder_and_of_transformers_are_equal(folder: Path, max_length: int) -> None:
    requests = requests_for(MANY, repeats=1, temperature=0.0)
    ours = facts(lm(RsdLM, folder, max_length=max_length).generate_until(requests))
    assert facts(lm(TransformersLM, folder, max_length=max_length).generate_until(requests)) == ours
    assert {finish for _, _, finish in ours} >= {"length"}
    if max_length == 120:
        assert {finish for _, _, finish in ours} == {"end_of_turn", "length"}
        assert len({length for _, length, _ in ours}) > 10


@pytest.mark.parametrize(
    "wishes",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.95},
        {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
        {"temperature": 1.3, "top_k": 5},
    ],
    ids=str,
)
def test_samples_of_our_decoder_and_of_transformers_are_equal(folder: Path, wishes: dict[str, Any]) -> None:
    requests = requests_for(NUMBERS, repeats=5, **wishes)
    ours = facts(lm(RsdLM, folder).generate_until(requests))
    assert facts(lm(TransformersLM, folder).generate_until(requests)) == ours
    assert {finish for _, _, finish in ours} == {"end_of_turn", "length"}
    assert len(set(ours)) == len(ours), "no sample is another's copy"


@pytest.mark.parametrize("batch_size", [1, 3, 16, None])
def test_a_sample_of_transformers_does_not_depend_on_its_batch(folder: Path, batch_size: int | None) -> None:
    requests = requests_for(NUMBERS, repeats=3)
    everything = facts(lm(TransformersLM, folder, batch_size=7).generate_until(requests))
    assert facts(lm(TransformersLM, folder, batch_size=batch_size).generate_until(requests)) == everything
    some = requests_for(NUMBERS[2:3], repeats=2)
    assert facts(lm(TransformersLM, folder, batch_size=batch_size).generate_until(some)) == everything[6:8]


def test_special_tokens_and_marks_stay_in_the_text(folder: Path) -> None:
    found = facts(lm(TransformersLM, folder).generate_until(requests_for(range(60), repeats=2)))
    text = "".join(text for text, _, _ in found)
    for token in ("<think>", "</think>", "<|im_start|>", "<|endoftext|>"):
        assert token in text
    assert all(text.endswith(END) == (finish == "end_of_turn") for text, _, finish in found)
    assert all(text.count(END) == (finish == "end_of_turn") for text, _, finish in found)


def test_a_tokenizer_that_likes_to_add_tokens_adds_none(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    start = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", start)]
    )
    tokenizer.bos_token = "<|endoftext|>"
    folder = tiny_model_folder(tmp_path / "model", tokenizer=tokenizer)
    assert len(load_tokenizer(folder).encode("1")) == 2
    requests = requests_for([3, 4], repeats=2)
    ours = facts(lm(RsdLM, folder).generate_until(requests))
    assert facts(lm(TransformersLM, folder).generate_until(requests)) == ours


def test_a_batch_ends_with_its_last_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = requests_for(MANY, repeats=1, temperature=0.0)
    found = facts(lm(RsdLM, folder, max_length=120).generate_until(requests))
    short = [index for index, (_, length, finish) in enumerate(found) if finish == "end_of_turn" and length < 80]
    model = lm(TransformersLM, folder, max_length=120, batch_size=len(short))
    generate, widths = model.engine._model_generate, []

    def watched(**options: Any) -> torch.Tensor:
        output = generate(**options)
        widths.append(output.shape[1] - options["context"].shape[1])
        return output

    monkeypatch.setattr(model.engine, "_model_generate", watched)
    model.generate_until([requests[index] for index in short])
    assert widths == [max(found[index][1] for index in short)]


def test_a_harness_that_reads_prompts_otherwise_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lm(TransformersLM, folder)
    monkeypatch.setattr(type(model.engine), "tok_batch_encode", lambda self, texts: (torch.ones(1, 3),) * 2)
    with pytest.raises(RuntimeError, match="lm-eval reads the prompt as other tokens"):
        model.generate_until(requests_for([3], repeats=1))


def test_rows_of_the_output_layer_without_a_token_are_never_drawn() -> None:
    emittable = torch.tensor([True, False, True, False])
    scores = torch.tensor([[0.0, 50.0, 1.0, 40.0]]).expand(3, 4)
    for temperature in (0.0, 1.0):
        noise = StreamNoise(
            torch.arange(3), start=2, sampling=Sampling(temperature=temperature, top_k=2), emittable=emittable
        )
        assert set(noise(torch.zeros(3, 5), scores).argmax(dim=-1).tolist()) <= {0, 2}


@settings(deadline=None)
@given(
    st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=12, unique=True),
    st.sampled_from([Sampling(), Sampling(0.7, 0, 0.95), Sampling(0.6, 3, 0.9), Sampling(2.0, 2)]),
    st.integers(0, 10**6),
    st.integers(0, 50),
)
def test_the_largest_noisy_score_is_the_winner_of_our_race(
    logits: list[float], sampling: Sampling, key: int, position: int
) -> None:
    scores = torch.tensor([logits, logits])
    keys = torch.tensor([key, key + 1])
    noise = StreamNoise(keys, start=4, sampling=sampling, emittable=torch.ones(len(logits), dtype=torch.bool))
    taken = noise(torch.zeros(2, 4 + position), scores).argmax(dim=-1)
    weights = distribution(plain_parts(scores, sampling, whole=True), len(logits))
    tokens = torch.arange(len(logits)).expand_as(weights)
    assert taken.tolist() == race(weights.double(), states(keys, torch.tensor(position)), tokens).tolist()


@pytest.mark.parametrize("positions", [40, 42, 512])
def test_no_sequence_of_a_batch_goes_beyond_the_models_positions(folder: Path, positions: int) -> None:
    model = lm(TransformersLM, folder, batch_size=3)
    model.engine.model.config.max_position_embeddings = positions
    jobs = model._jobs(
        [(n, ("pocket", str(n), 0), request) for n, request in enumerate(requests_for([1, 22, 22, 333, 4444, 5], 1))]
    )
    chunks = list(model.chunks(jobs))
    assert sorted(job.index for chunk in chunks for job in chunk) == list(range(6))
    for chunk in chunks:
        lengths = [len(job.prompt) for job in chunk]
        assert len(chunk) <= 3
        assert model.max_length - min(lengths) + max(lengths) <= positions
    assert len(chunks) == {40: 4, 42: 2, 512: 2}[positions]


class _Kill(BaseException):
    pass


def test_a_killed_run_of_transformers_goes_on_behind_its_last_finished_batch(
    folder: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings_with(backend="transformers", lanes=4)
    complete, calls = TransformersLM.complete, []

    def dying(self: Any, jobs: Any, sampling: Any) -> Any:
        calls.append(len(jobs))
        if len(calls) == 3:
            raise _Kill
        return complete(self, jobs, sampling)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersLM, "complete", dying)
        with pytest.raises(_Kill):
            evaluated(folder, benchmark, tmp_path, options)
    rows, scores = evaluated(folder, benchmark, tmp_path, options)
    assert scores["resumed_samples"] == sum(calls[:2]) == 8
    assert scores["backend"] == "transformers"
    ours, _ = evaluated(folder, benchmark, tmp_path / "ours", settings_with())
    assert rows == ours


def test_a_finished_journal_of_transformers_is_graded_without_loading_the_model(
    folder: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings_with(backend="transformers")
    rows, _ = evaluated(folder, benchmark, tmp_path, options)
    monkeypatch.setattr(TransformersLM, "engine", property(lambda self: pytest.fail("the model was loaded")))
    assert evaluated(folder, benchmark, tmp_path, options | {"shards": 2})[0] == rows


@pytest.mark.parametrize("backend", [TransformersLM, VllmLM])
def test_the_limits_and_refusals_are_those_of_our_decoder(folder: Path, backend: type[SampledLM]) -> None:
    with pytest.raises(ValueError, match=rf"problem {problem(3)['id']}.*raise `context`"):
        lm(backend, folder, max_length=4).generate_until(requests_for([3], repeats=1))
    with pytest.raises(ValueError, match="only the end of turn"):
        lm(backend, folder).generate_until(requests_for([3], repeats=1, until=["Question:"]))
    with pytest.raises(ValueError, match=r"unknown.*min_p"):
        lm(backend, folder).generate_until(requests_for([3], repeats=1, min_p=0.1))
    with pytest.raises(NotImplementedError, match="only generates"):
        lm(backend, folder).loglikelihood([])


def test_too_many_lanes_for_the_memory_say_what_to_lower(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "free_bytes", lambda device: 1e5)
    with pytest.raises(MemoryError, match=r"no memory for 4 lanes.*lower"):
        lm(TransformersLM, folder).generate_until(requests_for(NUMBERS, repeats=1))


# --- vLLM ----------------------------------------------------------------------------------------------------------


class FakeSamplingParams:
    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


class FakeLLM:
    """Engine of the stand-in: a tiny model, asked greedily by transformers itself, one request at a time."""

    made: list[dict[str, Any]]
    asked: list[tuple[list[int], dict[str, Any]]]
    calls: list[int]
    include_stop_token = True
    finish_reason: str | None = None

    def __init__(self, **arguments: Any) -> None:
        type(self).made.append(arguments)
        self.model = AutoModelForCausalLM.from_pretrained(arguments["model"])
        config = types.SimpleNamespace(max_model_len=arguments["max_model_len"])
        self.llm_engine = types.SimpleNamespace(model_config=config)

    def generate(self, prompts: Sequence[Any], sampling_params: Sequence[Any], **options: Any) -> list[Any]:
        assert options == {"use_tqdm": False, "lora_request": None}
        type(self).calls.append(len(prompts))
        return [self.one(p["prompt_token_ids"], s.arguments) for p, s in zip(prompts, sampling_params, strict=True)]

    def one(self, prompt: list[int], wanted: dict[str, Any]) -> Any:
        type(self).asked.append((prompt, wanted))
        tokens: list[int] = []
        reason = "length"
        while len(tokens) < wanted["max_tokens"]:
            logits = self.model(torch.tensor([prompt + tokens])).logits[0, -1]
            tokens.append(int(logits.argmax()))
            if tokens[-1] in wanted["stop_token_ids"]:
                reason = "stop"
                break
        if reason == "stop" and not type(self).include_stop_token:
            tokens.pop()
        output = types.SimpleNamespace(
            token_ids=tuple(tokens), finish_reason=type(self).finish_reason or reason, text=""
        )
        return types.SimpleNamespace(outputs=[output])


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeLLM]]:
    """A stand-in package `vllm`, as far as lm-eval's class imports it."""
    site = tmp_path / "site"
    (site / "vllm-0.32.0.dist-info").mkdir(parents=True)
    (site / "vllm-0.32.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    monkeypatch.syspath_prepend(str(site))
    engine = type("LLM", (FakeLLM,), {"made": [], "asked": [], "calls": []})
    modules: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": engine, "SamplingParams": FakeSamplingParams, "TokensPrompt": dict},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": object},
        "vllm.renderers": {},
        "vllm.renderers.hf": {"resolve_chat_template": lambda **_: None},
        "vllm.tokenizers": {"get_tokenizer": lambda name, **_: load_tokenizer(Path(name))},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        for key, value in content.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)
    # lm-eval's class is imported anew, and knows this stand-in alone.
    monkeypatch.delitem(sys.modules, "lm_eval.models.vllm_causallms", raising=False)
    monkeypatch.setitem(model_registry._objs, "vllm", "lm_eval.models.vllm_causallms:VLLM")
    yield engine
    sys.modules.pop("lm_eval.models.vllm_causallms", None)


def test_without_vllm_the_message_says_what_to_do(folder: Path) -> None:
    with pytest.raises(
        ModuleNotFoundError, match=r"evaluation\.backend = 'vllm': vLLM is not installed.*envs/vllm\.yaml"
    ):
        lm(VllmLM, folder).generate_until(requests_for([3], repeats=1))


@pytest.mark.parametrize("counted", [True, False], ids=["stop token counted", "stop token left out"])
@pytest.mark.parametrize("max_length", [12, 40])
def test_greedy_outputs_of_our_decoder_and_of_vllms_class_are_equal(
    vllm: type[FakeLLM], folder: Path, max_length: int, counted: bool
) -> None:
    vllm.include_stop_token = counted
    requests = requests_for(NUMBERS, repeats=1, temperature=0.0)
    ours = facts(lm(RsdLM, folder, max_length=max_length).generate_until(requests))
    assert facts(lm(VllmLM, folder, max_length=max_length).generate_until(requests)) == ours


def test_every_argument_of_the_engine_is_one_that_lm_eval_or_its_vllm_knows(vllm: type[FakeLLM], folder: Path) -> None:
    model = lm(VllmLM, folder, sharers=3)
    arguments = model.engine_arguments()
    known = inspect.signature(vllm_class().__init__).parameters
    handed_on = arguments.keys() - known.keys()
    # Names of vLLM's own engine (EngineArgs); test_vllm.py makes one, where it is installed.
    assert handed_on == {"gpu_memory_utilization", "generation_config"}
    bound = inspect.signature(vllm_class().__init__).bind(None, **arguments)
    assert bound.arguments["kwargs"] == {"gpu_memory_utilization": 0.3, "generation_config": "vllm"}


def test_the_engine_is_made_for_this_model_and_context_without_data_parallelism(
    vllm: type[FakeLLM], folder: Path
) -> None:
    engine = lm(VllmLM, folder, batch_size=9, seed=5, dtype="bfloat16", max_length=33).engine
    assert engine.data_parallel_size == 1
    (made,) = vllm.made
    expected = {
        "model": str(folder),
        "dtype": "bfloat16",
        "max_model_len": 33,
        "max_num_seqs": 9,
        "seed": 5,
        "trust_remote_code": False,
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.9,
        "generation_config": "vllm",
        "enable_lora": False,
    }
    assert {name: made[name] for name in expected} == expected


def test_every_sample_has_its_own_seed_and_nothing_but_the_end_of_turn_stops_it(
    vllm: type[FakeLLM], folder: Path
) -> None:
    model = lm(VllmLM, folder)
    requests = requests_for(NUMBERS, repeats=3, temperature=0.6, top_p=0.95, top_k=20)
    model.generate_until(requests)
    end = load_tokenizer(folder).convert_tokens_to_ids(END)
    for (prompt, wanted), request in zip(vllm.asked, requests, strict=True):
        assert prompt == load_tokenizer(folder).encode(request.args[0], add_special_tokens=False)
        seed = wanted.pop("seed")
        assert 0 <= seed < 2**63
        assert wanted == {
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 20,
            "max_tokens": 40 - len(prompt),
            "stop_token_ids": [end],
            "ignore_eos": True,
            "detokenize": False,
        }
    first = [model.sampling_arguments(job, Sampling())["seed"] for job in jobs_of(model, requests)]
    assert len(set(first)) == len(first)
    assert [lm(VllmLM, folder).sampling_arguments(job, Sampling())["seed"] for job in jobs_of(model, requests)] == first
    other = lm(VllmLM, folder, seed=1)
    assert not set(first) & {other.sampling_arguments(job, Sampling())["seed"] for job in jobs_of(model, requests)}
    assert model.sampling_arguments(jobs_of(model, requests)[0], Sampling())["top_k"] == -1


def jobs_of(model: SampledLM, requests: Sequence[Any]) -> list[Any]:
    from rsd.lm import number_repeats

    return model._jobs([(n, key, requests[n]) for n, key in enumerate(number_repeats(requests))])


def test_a_killed_run_of_vllm_goes_on_behind_its_last_finished_chunk(
    vllm: type[FakeLLM], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "VLLM_CHUNK", 4)
    requests = requests_for(NUMBERS, repeats=2)
    expected = facts(lm(VllmLM, folder).generate_until(requests))
    assert vllm.calls == [4, 4, 2]
    generate = vllm.generate

    def dying(self: Any, *arguments: Any, **options: Any) -> Any:
        if len(vllm.calls) == 3 + 2:
            raise _Kill
        return generate(self, *arguments, **options)

    with monkeypatch.context() as patch, Journal(tmp_path / "j") as journal:
        patch.setattr(vllm, "generate", dying)
        with pytest.raises(_Kill):
            lm(VllmLM, folder, journal=journal).generate_until(requests)
    with Journal(tmp_path / "j") as journal:
        model = lm(VllmLM, folder, journal=journal)
        assert facts(model.generate_until(requests)) == expected
    assert model.resumed == 8
    assert vllm.calls == [4, 4, 2, 4, 4, 2]


def test_the_engine_is_let_go_after_the_last_sample(vllm: type[FakeLLM], folder: Path) -> None:
    model = lm(VllmLM, folder)
    model.generate_until(requests_for([3], repeats=1))
    assert "engine" not in model.__dict__
    model.generate_until(requests_for([4], repeats=1))
    assert len(vllm.made) == 2


def test_a_sample_that_vllm_gave_up_stops_the_run(vllm: type[FakeLLM], folder: Path) -> None:
    vllm.finish_reason = "abort"
    with pytest.raises(RuntimeError, match=rf"problem {problem(3)['id']}: vLLM ended a sample by 'abort'.*run again"):
        lm(VllmLM, folder).generate_until(requests_for([3], repeats=1))


# --- which one -----------------------------------------------------------------------------------------------------


def test_the_settings_choose_the_backend(folder: Path) -> None:
    for name, kind in (("rsd", RsdLM), ("transformers", TransformersLM), ("vllm", VllmLM)):
        assert type(evaluate.load_lm(folder, settings_with(backend=name), None)) is kind


def test_the_vllm_backend_runs_the_whole_stage(
    vllm: type[FakeLLM], folder: Path, benchmark: Path, tmp_path: Path
) -> None:
    rows, scores = evaluated(folder, benchmark, tmp_path, settings_with(backend="vllm", repeats=1))
    assert len(rows) == len(NUMBERS)
    assert scores["backend"] == "vllm"
    assert set(scores["metrics"]) == {"avg", "exact", "cut", "think_closed", "answered", "tokens"}
