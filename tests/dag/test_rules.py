"""The form of the rules: complete, formatted, lint-free; and the list of sources that decide each stage's numbers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import ROOT
from rsd.cli import STAGES
from rsd.stages import PLUMBING, STAGE_MODULES, stage_code

RULE_FILES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
PACKAGE = ROOT / "workflow" / "rsd"


def rules() -> dict[str, str]:
    """Rule -> its text, for the rules that run something."""
    found = {}
    for path in RULE_FILES:
        for block in re.split(r"^rule ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            if "\n    shell:" in block:
                found[block.partition(":")[0]] = block
    return found


@pytest.mark.parametrize("name", rules())
def test_a_rule_says_what_it_makes_and_declares_all_that_a_job_needs(name: str) -> None:
    text = rules()[name]
    assert re.match(rf'{name}:\n    """[A-Z][^\n]*\."""\n', text), "a docstring of one sentence"
    for directive in ("output", "log", "benchmark", "conda", "threads", "resources", "params", "shell"):
        assert f"\n    {directive}:" in text, f"{directive} is missing"
    assert not re.search(r"\n    (run|script|notebook):", text)
    for placeholder in re.findall(r"\{[a-z]+(?:\.[a-z_]+)?(?::q)?\}", text.partition("\n    shell:")[2]):
        assert placeholder.endswith(":q}") or placeholder == "{threads}", f"{placeholder} is not quoted"
    stem = re.escape(name)
    assert re.search(rf'log:\n        "<logs>/{stem}[/.]', text), "the log carries the rule's name"
    assert re.search(rf'benchmark:\n        "<benchmarks>/{stem}[/.].*jsonl"', text)
    assert f'"rsd {name.replace("_", "-")} ' in text, "the command carries the rule's name"
    assert f'needs("{name}"' in text


def test_rules_commands_and_lists_of_sources_name_the_same_stages() -> None:
    names = set(rules())
    assert names == {name.replace("-", "_") for name in STAGES}
    assert names == set(STAGE_MODULES)


def test_a_rule_file_says_what_it_takes_and_what_it_makes() -> None:
    for path in RULE_FILES:
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""'), path.name
        if path.name != "common.smk":
            docstring = text.split('"""')[1]
            assert "Inputs:" in docstring, path.name
            assert "Outputs:" in docstring, path.name


def entry_module(stage: str) -> str:
    """The module that the command of a stage imports."""
    source = ast.parse((PACKAGE / "cli.py").read_text(encoding="utf-8"))
    runner = STAGES[stage.replace("_", "-")][1].__name__
    for function in ast.walk(source):
        if isinstance(function, ast.FunctionDef) and function.name == runner:
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rsd."):
                    return node.module.removeprefix("rsd.")
    raise AssertionError(f"{stage}: no import of its module found in {runner}")


def imported(module: str) -> set[str]:
    """The modules of the package that `module` imports anywhere, plumbing left out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "rsd":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rsd."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("rsd.")}
    return {name for name in names if (PACKAGE / f"{name}.py").exists()} - set(PLUMBING)


@pytest.mark.parametrize("stage", [stage for stage, modules in STAGE_MODULES.items() if modules])
def test_a_stage_lists_every_module_that_it_reaches(stage: str) -> None:
    reached, todo = set(), [entry_module(stage)]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += imported(module)
    missing = reached - set(STAGE_MODULES[stage])
    assert not missing, f"add {sorted(missing)} to STAGE_MODULES[{stage!r}], or to PLUMBING if they decide no number"


def test_every_listed_module_exists_and_every_stage_has_a_digest() -> None:
    digests = {stage: stage_code(stage, "aime24") for stage in STAGE_MODULES}
    assert all(re.fullmatch(r"[0-9a-f]{16}", digest) for digest in digests.values())
    for module in PLUMBING:
        assert (PACKAGE / f"{module}.py").exists()


def test_an_unknown_stage_has_no_digest() -> None:
    with pytest.raises(KeyError):
        stage_code("no_such_stage")


def test_the_linter_has_no_findings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "snakemake", "--lint", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path]
    result = subprocess.run([*command, "--configfile", ROOT / "config.yaml"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_rules_are_formatted() -> None:
    command = [sys.executable, "-m", "snakefmt", "--check", "--config", ROOT / "pyproject.toml"]
    result = subprocess.run([*command, ROOT / "Snakefile", ROOT / "workflow/rules"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
