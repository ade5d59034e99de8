"""The bench measures what it says, on a pair that agrees as stated; the projection adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pairs import STUDENT_SIZE, tiny_model
from rsd import bench_command, config
from rsd.bench import NEVER, Workload, bytes_of_round, parameter_count, pass_bytes, requests, time_alone, time_schedule
from rsd.cli import main
from rsd.costs import measure_costs
from rsd.decode import generate_rsd
from rsd.emulation import Emulation, emulate
from rsd.law import Law, Sampling
from rsd.packing import pack
from rsd.projection import disk_bytes, project
from rsd.schedule import LOCK_STEP, Schedule, Scheduler
from rsd.shapes import SHAPES, random_model, shape_of
from rsd.speeds import Speeds, measured
from rsd.vocabulary import Alignment
from rsd.workload import count_problems

LAW = Law(0.01, 5, Sampling(1.0, 20, 1.0), 20, Sampling(1.0, 20, 1.0))
ROOT = Path(__file__).parents[2]


def emulated_pair(emulation: Emulation, size: int = STUDENT_SIZE):
    models = [tiny_model(seed, size) for seed in (1, 2)]
    emulate(*models, emulation)
    return *models, Alignment.of(torch.arange(size), {}, size)


@pytest.mark.parametrize("emulation", [Emulation(0.85, 0.007), Emulation(0.6, 0.1), Emulation(1.0, 0.0)])
def test_an_emulated_pair_agrees_and_falls_back_as_stated(emulation):
    """Some 9,000 tokens: within 5 standard deviations, a false alarm in two million."""
    pair = emulated_pair(emulation, 400)
    agreement, fallback, tokens = {}, 0, 0
    for drafter in ("student", "teacher"):
        scheduler = Scheduler.fixed(Schedule(drafter, 4))
        made = list(
            generate_rsd(
                *pair, requests(Workload(64, 8, 72), 400), law=LAW, end_of_turn=400, context=90, max_new_tokens=72,
                lanes=64, scheduler=scheduler,
            )
        )  # fmt: skip
        fallback += sum(int(completion.fallback.sum()) for completion in made)
        tokens += sum(len(completion.tokens) for completion in made)
        tried = scheduler.agreement[drafter].tried.sum()
        agreement[drafter] = scheduler.agreement[drafter].right.sum() / tried, tried
    assert abs(fallback / tokens - emulation.fallback) <= 5 * (emulation.fallback / tokens) ** 0.5
    for drafter, expected in (("student", emulation.agreement), ("teacher", 1 - emulation.fallback)):
        share, tried = agreement[drafter]
        # Lanes that reach their limit within a block look like wrong drafts to the count: at most one a lane.
        assert expected - share <= 5 * (expected * (1 - expected) / tried) ** 0.5 + 64 / tried + 1e-9
        assert share - expected <= 5 * (expected * (1 - expected) / tried) ** 0.5 + 1e-9


def test_impossible_emulations_are_refused():
    with pytest.raises(ValueError, match=r"agreement 0.2, fallback 0.5: expected 0 <= fallback <= agreement <= 1"):
        emulated_pair(Emulation(0.2, 0.5))


def test_timings_are_of_all_tokens_after_the_first_round_and_of_as_many_bare_rounds():
    pair = emulated_pair(Emulation(0.85, 0.0))
    work = Workload(3, 6, 30)
    costs = measure_costs(*pair, LAW, context=work.context, tokens=12)
    alone = time_alone(pair[0], work, LAW.proposal, 2)
    assert len(alone.runs) == 2
    assert alone.median > 0
    timing = time_schedule(*pair, LAW, work, LOCK_STEP, costs, 2)
    assert timing.tokens_per_round == 3
    for runs in (timing.measured.runs, timing.bare.runs):
        assert len(runs) == 2
        assert all(run > 0 for run in runs)
    assert 1 < time_schedule(*pair, LAW, work, Schedule("teacher", 4), costs, 1).tokens_per_round / 3 <= 4


def test_bytes_are_those_of_weights_and_live_caches():
    """A pair of made-up shapes: Qwen3 with 2 layers of width 32, 2 key-value heads of 8, untied, float32."""
    model = tiny_model(1, STUDENT_SIZE)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert parameter_count(model) == total
    work = Workload(5, 10, 4)
    expected = 4 * (total - STUDENT_SIZE * 32) + 5 * 12 * (2 * 2 * 2 * 8 * 4)
    assert pass_bytes(model, work) == expected
    assert bytes_of_round(model, model, work, Schedule("teacher", 3)) == 4 * expected


def test_packing_a_tied_model_does_not_change_its_parameter_count():
    shape = SHAPES["HuggingFaceTB/SmolLM2-135M-Instruct"]
    small = type(shape)(**{**shape.to_dict(), "num_hidden_layers": 1, "vocab_size": 300, "eos_token_id": None})
    model = random_model(small, dtype="float32", device="cpu")
    before = parameter_count(model)
    pack(model)
    assert parameter_count(model) == before


def test_the_papers_pair_has_the_published_sizes():
    """Qwen3-0.6B: 0.6 G parameters (0.44 G without the embedding), Qwen2.5-7B: 7.61 G; from their model cards."""
    for source, expected in (("hf://Qwen/Qwen3-0.6B@abc", 0.596e9), ("hf://simplescaling/s1.1-7B", 7.616e9)):
        with torch.device("meta"):
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_config(shape_of(source))
        assert parameter_count(model) == pytest.approx(expected, rel=1e-3)


def test_an_unknown_shape_names_the_known_ones_and_the_remedy():
    with pytest.raises(ValueError, match=r"hf://a/b: the shape .* is not known here \(.*Qwen3-0.6B.*run the downloads"):
        shape_of("hf://a/b")


# --- projection ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper():
    return config.load([ROOT / "config.yaml"])


def projected(configuration, results, rsd=1000.0, student=2000.0, teacher=500.0, reading=8000.0):
    """The items by name, at speeds measured with the configured pair."""
    speed = measured(configuration, Speeds(rsd, student, teacher, reading), ("student", "teacher"), results / "models")
    return {item.what: item for item in project(configuration, speed, results)}


def test_the_projection_of_the_paper_adds_up(paper, tmp_path):
    assert count_problems(paper, tmp_path) == 1000
    items = projected(paper, tmp_path)
    assert items["traces rsd"].tokens == 1000 * 16 * 7168
    assert items["traces rsd"].seconds == 1000 * 16 * 7168 / 1000.0
    assert "traces direct" not in items
    assert items["training rsd"].tokens == 3 * 15 * 1000 * 8192
    assert items["training rsd"].seconds == 4 * 3 * 15 * 1000 * 8192 / 8000.0
    # base once, two trained arms three times.
    assert items["evaluation aime24"].tokens == 7 * 30 * 64 * 16384
    assert items["evaluation aime24"].seconds == 7 * 30 * 64 * 16384 / 2000.0
    # The rows of 100 problems, read once by the model before training and after; those of RSD fit their context.
    assert items["analysis rsd by student"].tokens == items["analysis rsd by rsd-seed0"].tokens == 100 * 8192
    assert items["analysis rsd by student"].seconds == 100 * 8192 / 8000.0
    analyses = {f"analysis {arm} by {reader}" for arm in ("rsd", "direct") for reader in ("student", f"{arm}-seed0")}
    assert set(items) == {"traces rsd", "training direct", "training rsd"} | analyses | {
        f"evaluation {task}" for task in ("aime24", "aime25", "gpqa_diamond", "math500")
    }
    disk = disk_bytes(paper, tmp_path)
    student, teacher = 596_049_920, 7_615_616_512
    assert disk["models downloaded or made"] == 2 * (student + teacher)
    assert disk["trained models"] == 6 * 2 * student


def test_the_projection_of_controls_counts_each_generation_once_and_every_training(tmp_path):
    controls = config.load([ROOT / "config.yaml", ROOT / "workflow/experiments/controls.yaml"])
    items = projected(controls, tmp_path)
    attempts = 1000 * 16 * 7168
    assert {name: items[f"traces {name}"].seconds for name in ("rsd", "own", "teacher-own")} == {
        "rsd": attempts / 1000.0,
        "own": attempts / 2000.0,
        "teacher-own": attempts / 500.0,
    }
    # A filter reads every row once; prefixes take the attempts that are there.
    assert items["traces direct-by-share"].seconds == 1000 * 8192 / 8000.0
    assert not {"traces rsd-prefix", "traces direct-prefix", "traces direct"} & set(items)
    assert items["training rsd-tokens"].tokens == items["training direct"].tokens
    assert disk_bytes(controls, tmp_path)["traces"] == 3 * attempts * 17


def test_a_model_that_is_trained_for_others_is_projected_with_its_own_seeds(tmp_path):
    iterative = config.load([ROOT / "config.yaml", ROOT / "workflow/experiments/iterative.yaml"])
    alone = config.validate(config.merge(iterative, {"run": {"arms": ["base", "rsd-2"]}}))
    items = projected(alone, tmp_path)
    assert items["training rsd"].tokens * 3 == items["training rsd-2"].tokens
    assert {"traces rsd", "traces rsd-2"} < set(items)


def test_problems_that_are_prepared_are_counted(paper, tmp_path):
    path = tmp_path / "paper" / "data" / "problems.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("{}\n{}\n{}\n")
    assert count_problems(paper, tmp_path) == 3


def test_a_dataset_of_unknown_size_gives_no_projection(paper, tmp_path):
    unknown = config.merge(paper, {"datasets": {"s1k": {"source": "hf://some/other"}}})
    assert count_problems(unknown, tmp_path) is None
    assert count_problems(config.merge(unknown, {"problems": {"limit": 7}}), tmp_path) == 7


# --- the command -----------------------------------------------------------------------------------------------------

POCKET = [str(ROOT / "config.yaml"), str(ROOT / "workflow" / "experiments" / "pocket.yaml")]


def test_the_command_prints_a_table_and_writes_its_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_command, "RESULTS", tmp_path)
    flags = ["--random-weights", "--lanes", "2", "--new", "24", "--length", "40", "--runs", "1", "--threads", "1"]
    assert main(["bench", *POCKET, *flags, "--json", str(tmp_path / "b.json")]) == 0
    text = capsys.readouterr().out
    for wanted in (
        "85 % of the student's drafts right, 0.7 % of tokens by fallback", "teacher alone", "student alone",
        "lock-step", "student-drafts in blocks of 4", "teacher-drafts in blocks of 8", "fastest here:", "traces rsd",
        "all together:",
        "disk, at most", "memory",
    ):  # fmt: skip
        assert wanted in text
    assert main(["estimate", *POCKET, "--speeds", str(tmp_path / "b.json")]) == 0
    assert "measured by rsd bench (b.json): 2 lanes at about 40 tokens" in capsys.readouterr().out
    facts = json.loads((tmp_path / "b.json").read_text())
    assert facts["lanes"] == 2
    assert len(facts["schedules"]) == 9
    assert facts["emulation"] == {"agreement": 0.85, "fallback": 0.007}


def test_too_few_tokens_to_time_are_refused(capsys):
    assert main(["bench", *POCKET, "--random-weights", "--new", "4"]) == 1
    assert "--new 4: expected at least 24, two of the longest blocks; write more" in capsys.readouterr().err


def test_models_that_are_not_there_are_named_with_both_remedies(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_command, "RESULTS", tmp_path)
    assert main(["bench", *POCKET]) == 1
    error = capsys.readouterr().err
    assert "is not there; download the models first (snakemake --cores 1 downloads)" in error
    assert "--random-weights" in error


def test_a_pair_with_a_student_that_is_trained_here_is_timed_by_what_it_is_made_of(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_command, "RESULTS", tmp_path)
    flags = ["--random-weights", "--lanes", "2", "--new", "24", "--length", "40", "--runs", "1", "--threads", "1"]
    again = [str(ROOT / "workflow/experiments" / name) for name in ("iterative.yaml", "pocket-iterative.yaml")]
    assert main(["bench", *POCKET, *again, "--traces", "rsd-2", *flags]) == 0
    assert "trace set rsd-2" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["select", "filter"])
def test_a_trace_set_that_is_made_of_another_is_refused(tmp_path, capsys, method):
    overlay = tmp_path / "made.yaml"
    overlay.write_text(f"traces: {{made: {{method: {method}, of: direct}}}}\n")
    assert main(["bench", *POCKET, str(overlay), "--traces", "made", "--random-weights"]) == 1
    assert f"--traces made: its method is {method}, expected a trace set of method rsd" in capsys.readouterr().err


def test_a_trace_set_that_is_none_of_rsd_is_refused(capsys):
    assert main(["bench", *POCKET, "--traces", "direct", "--random-weights"]) == 1
    assert "--traces direct: its method is dataset, expected a trace set of method rsd" in capsys.readouterr().err


def test_nothing_that_is_timed_can_end_early():
    assert all(NEVER not in request.student_prompt for request in requests(Workload(300, 20, 4), 100))
