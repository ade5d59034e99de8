"""What a dry-run plans: the whole paper from nothing, each stage's target, other experiments."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines import POCKET_TINY, ROOT, SMALL, Pipeline, overlay, planned, shell_commands
from rsd import workload
from rsd.cli import STAGES, build_parser
from rsd.config import load
from rsd.estimate import stage_counts

DOWNLOADS = Counter(prefetch_model=2, prefetch_dataset=5)
DATA = Counter(prefetch_dataset=5, prepare_problems=1, prepare_benchmark=4, measure_overlap=1)
TRACES = Counter(
    prefetch_model=2, prefetch_dataset=1, prepare_problems=1, generate_traces=50, convert_traces=1, select_traces=2
)
MODELS = TRACES + Counter(train=6)
SCORES = MODELS + Counter(prefetch_dataset=4, prepare_benchmark=4, evaluate=28, collect_scores=28)
REPORT = SCORES + Counter(measure_overlap=1, analyse_tokens=4, compare=1, report=1)

# Fails every import of what a plan must not need, and every connection.
BLOCKER = """
import socket, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "trl", "datasets", "lm_eval", "pyarrow", "math_verify"}:
            raise ImportError(f"{name} is not needed for a plan")
sys.meta_path.insert(0, Blocker())
def refuse(*args, **kwargs):
    raise OSError("a plan needs no network")
socket.socket.connect = refuse
"""


def estimated(*experiments: str) -> Counter[str]:
    """The jobs that `rsd estimate` counts."""
    config = load([ROOT / "config.yaml", *(ROOT / name for name in experiments)])
    return stage_counts(workload.jobs(config, Path("nowhere")))


def test_the_paper_is_planned_from_an_empty_folder_without_models_network_or_torch(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCKER)
    pipeline.environment["PYTHONPATH"] = str(tmp_path / "block")
    assert pipeline.plan() == REPORT + Counter(write_config=1) == estimated()
    assert [path.name for path in pipeline.folder.iterdir()] in ([], [".snakemake"])


@pytest.mark.parametrize(
    ("target", "jobs"),
    [
        ("downloads", DOWNLOADS),
        ("data", DATA),
        ("traces", TRACES),
        ("models", MODELS),
        ("scores", SCORES),
        ("report", REPORT),
    ],
)
def test_a_target_runs_its_stage_and_what_that_needs(pipeline: Pipeline, target: str, jobs: Counter[str]) -> None:
    assert pipeline.plan(target) == jobs


def test_every_planned_command_is_one_that_the_package_understands(pipeline: Pipeline) -> None:
    more = {
        "traces": {"own": {"method": "sample"}, "filtered": {"method": "filter", "of": "own"}},
        "arms": {name: {"model": "student", "traces": name} for name in ("own", "filtered")},
    }
    judge = {"evaluation": {"judge": {"url": "http://localhost:8000/v1", "model": "judge"}}}
    everything = overlay(SMALL, more, judge, {"run": {"arms": ["base", "rsd", "direct", "own", "filtered"]}})
    seen = set()
    for experiments, config in (((), everything), (POCKET_TINY, None)):
        pipeline.experiments = experiments
        output = pipeline.run("--dry-run", "--printshellcmds", "all", config=config).stdout
        commands = shell_commands(output)
        rules = re.findall(r"^(?:local)?rule (\w+):$", output, flags=re.MULTILINE)
        assert len(commands) == sum(planned(output).values())
        for command in commands:
            words = shlex.split(command)
            build_parser().parse_args(words[1:])
            assert words[1].replace("-", "_") in rules
            seen.add(words[1])
    assert seen == set(STAGES), "each command of the package is some rule's"


def test_a_sampled_trace_set_asks_for_no_teacher(pipeline: Pipeline) -> None:
    config = overlay(
        SMALL,
        {
            "traces": {"own": {"method": "sample", "teacher": "teacher"}},
            "arms": {"own": {"model": "student", "traces": "own"}},
            "run": {"arms": ["base", "own"]},
            "question": {"comparisons": None},
        },
    )
    output = pipeline.run("--dry-run", "--printshellcmds", "traces", config=config).stdout
    assert planned(output)["prefetch_model"] == 1
    assert not any("--teacher" in command for command in shell_commands(output) if "generate-traces" in command)


def test_pocket_makes_its_models_and_problems_and_fetches_nothing(pipeline: Pipeline) -> None:
    pipeline.experiments = POCKET_TINY
    jobs = pipeline.plan()
    assert jobs["make_pocket_model"] == 2
    assert jobs["make_pocket_dataset"] == 2
    assert jobs.keys() & {"prefetch_model", "prefetch_dataset"} == set()
    assert jobs["report"] == jobs["compare"] == jobs["write_config"] == 1


@pytest.mark.parametrize("path", sorted((ROOT / "workflow" / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_file_plans_by_the_command_in_its_head_the_jobs_that_the_estimate_counts(
    pipeline: Pipeline, path: Path
) -> None:
    command = re.search(r"^# +snakemake --cores all --configfile ((?:\S+\.yaml ?)+)", path.read_text("utf-8"), re.M)
    assert command, "the head of an experiment file shows the command that runs it"
    assert command[1].split()[-1] == str(path.relative_to(ROOT))
    pipeline.experiments = tuple(command[1].split())
    assert pipeline.plan() == estimated(*pipeline.experiments)


def test_one_machine_runs_one_model_job_at_a_time_unless_told_otherwise(pipeline: Pipeline) -> None:
    def threads(**config: Any) -> set[tuple[str, str]]:
        output = pipeline.run("--dry-run", "--cores", "8", config=overlay(SMALL, config)).stdout
        blocks = re.split(r"^(?:local)?rule ", output, flags=re.MULTILINE)[1:]
        found = {(block.partition(":")[0], match) for block in blocks for match in re.findall(r"threads: (\d+)", block)}
        return {(rule, count) for rule, count in found if rule in {"generate_traces", "train", "evaluate"}}

    assert threads() == {("generate_traces", "8"), ("train", "8"), ("evaluate", "8")}
    assert threads(jobs_at_once=3) == {("generate_traces", "2"), ("train", "2"), ("evaluate", "2")}


def test_only_model_jobs_ask_for_a_gpu_and_none_where_the_device_is_the_cpu(pipeline: Pipeline) -> None:
    def asking(device: str) -> set[str]:
        output = pipeline.run("--dry-run", "all", "tokens", config=overlay(SMALL, {"device": device})).stdout
        blocks = re.split(r"^(?:local)?rule ", output, flags=re.MULTILINE)[1:]
        return {block.partition(":")[0] for block in blocks if re.search(r"gpu=[1-9]", block)}

    assert asking("auto") == asking("cuda") == {"generate_traces", "train", "evaluate", "analyse_tokens"}
    assert asking("cpu") == set()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"run": {"sedes": [1]}}, r"run\.sedes = \[1\]: unknown key; did you mean 'seeds'\?"),
        ({"traces": {"rsd": {"threshold": "0.03"}}}, r"traces\.rsd\.threshold = '0\.03'"),
        ({"arms": {"rsd": {"traces": "rds"}}}, r"arms\.rsd\.traces = 'rds': no such entry in traces"),
        ({"pathvars": {"logs": "/tmp"}}, r"pathvars = .*unknown key"),
    ],
)
def test_a_bad_configuration_stops_the_plan_with_its_message_and_no_traceback(
    pipeline: Pipeline, config: dict[str, Any], message: str
) -> None:
    output = pipeline.run("--dry-run", config=config, ok=False).stdout
    assert re.search(message, output)
    assert "Traceback" not in output


def test_a_number_on_the_command_line_is_refused_since_it_arrives_as_text(pipeline: Pipeline) -> None:
    output = pipeline.run("--dry-run", "--config", "traces={rsd: {threshold: 0.03}}", ok=False).stdout
    assert "traces.rsd.threshold = '0.03'" in output


def test_two_datasets_from_one_source_with_other_files_have_folders_of_their_own(pipeline: Pipeline) -> None:
    source = {"source": "hf://openai/gsm8k", "columns": {"question": "question", "answer": "answer"}}
    config = {
        "datasets": {"first": {**source, "files": "main/train*"}, "second": {**source, "files": "main/test*"}},
        "problems": {"dataset": "first"},
        "tasks": {"gsm8k": {"dataset": "second"}},
        "traces": {"direct": {"method": "sample"}},
        "run": {"tasks": ["gsm8k"]},
    }
    assert pipeline.plan("data", config=config)["prefetch_dataset"] == 2


def test_the_workstation_profile_plans_and_a_wrong_profile_path_stops(pipeline: Pipeline) -> None:
    profile = ROOT / "workflow" / "profiles" / "workstation"
    assert pipeline.plan("--profile", str(profile)) == REPORT + Counter(write_config=1)
    pipeline.run("--dry-run", "--profile", str(profile.with_name("workstatoin")), ok=False)


def test_a_run_of_the_base_alone_makes_no_traces_and_trains_nothing(pipeline: Pipeline) -> None:
    run = {"arms": ["base"], "tasks": ["math500"]}
    jobs = pipeline.plan(config={"run": run})
    assert jobs == Counter(
        prefetch_model=1,
        prefetch_dataset=2,
        prepare_problems=1,
        prepare_benchmark=1,
        measure_overlap=1,
        evaluate=1,
        collect_scores=1,
        compare=1,
        report=1,
        write_config=1,
    )
