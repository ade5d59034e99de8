"""The pocket experiment's problems, vocabularies and trainings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsd import config, pocket
from rsd.manifest import verify_manifest
from rsd.prompts import dataset_trace, encode_prompt, extract_answer
from rsd.records import read_jsonl
from rsd.vocabulary import align

ROOT = Path(__file__).parents[2]
CONFIGS = [ROOT / "config.yaml", ROOT / "workflow/experiments/pocket.yaml"]
TWO_DIGITS = strategies.integers(10, 99)
SUMS = strategies.lists(TWO_DIGITS, min_size=2, max_size=5)
STEP = re.compile(r"(\d+)\+(\d+)=(\d+)")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(make: str, **changes: object) -> dict:
    model = {
        "layers": 1,
        "width": 16,
        "heads": 1,
        "initial_std": 0.06,
        "largest_sum": 297 if make == "teacher" else 140,
        "steps": 20,
        "batch_size": 8,
        "learning_rate": 3e-3,
    }
    small = {"make": make, "seed": 0, "train_problems": 40, "test_problems": 60, "wordy_share": 0.65}
    return {**small, **{name: {**model, **changes} for name in pocket.MODELS}}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def parse(steps: str) -> list[tuple[int, int, int]]:
    matches = [STEP.fullmatch(step) for step in steps.split(";")]
    assert all(matches), steps
    return [tuple(map(int, match.groups())) for match in matches if match]


# --- problems --------------------------------------------------------------------------------------------------------


@given(SUMS)
def test_every_terse_step_adds_one_number_to_the_last_result(numbers: list[int]) -> None:
    steps = parse(pocket.terse_steps(numbers))
    assert [right for _, right, _ in steps] == numbers[1:]
    assert [left for left, _, _ in steps] == [numbers[0], *(result for *_, result in steps[:-1])]
    assert all(left + right == result for left, right, result in steps)
    assert steps[-1][2] == sum(numbers)


@given(SUMS)
def test_every_wordy_step_is_right_and_its_threes_add_one_number(numbers: list[int]) -> None:
    steps = parse(pocket.wordy_steps(numbers))
    assert all(left + right == result for left, right, result in steps)
    total = numbers[0]
    for number, (tens, units, both) in zip(numbers[1:], zip(*[iter(steps)] * 3, strict=True), strict=True):
        assert (tens[0] + units[0], tens[1] + units[1]) == (total, number)
        assert all(part % 10 == 0 for part in tens)
        assert max(units[:2]) < 10
        assert both[:2] == (tens[2], units[2])
        total += number
        assert both[2] == total


@given(strategies.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_no_problem_is_in_two_splits_and_none_is_twice_in_one(seed: int) -> None:
    made = recipe("student") | {"seed": seed}
    splits = {name: pocket.split_problems(made, name) for name in ("train", "test", "pretraining")}
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 40,
        "test": 60,
        "pretraining": 90**3 - 100,
    }
    together = np.concatenate(list(splits.values()))
    assert len(np.unique(together, axis=0)) == 90**3
    assert (together.min(), together.max()) == (10, 99)


def test_problems_follow_from_the_seed_alone() -> None:
    made = recipe("student")
    assert pocket.problems(made, "train") == pocket.problems(made, "train")
    assert pocket.problems(made, "train") != pocket.problems(made | {"seed": 1}, "train")


def test_more_train_problems_leave_the_test_problems_alone() -> None:
    made = recipe("student")
    assert pocket.problems(made, "test") == pocket.problems(made | {"train_problems": 80}, "test")


def test_a_dataset_row_states_a_sum_its_value_and_a_trace_that_ends_in_it() -> None:
    for row in pocket.problems(recipe("student"), "train"):
        assert str(sum(map(int, row["question"].split("+")))) == row["answer"] == row["response"]
        assert parse(row["thinking"])[-1][2] == int(row["answer"])
        assert row["solution"] == f"{row['question']}={row['answer']}"


def test_the_share_of_wordy_traces_is_the_one_asked_for() -> None:
    made = recipe("student") | {"train_problems": 4000}
    wordy = [row["thinking"].count("=") == 6 for row in pocket.problems(made, "train")]
    # Four standard deviations of 4000 draws.
    assert abs(np.mean(wordy) - 0.65) < 0.031


@pytest.mark.parametrize("make", ["train", "test"])
def test_a_dataset_folder_is_complete(make: str, tmp_path: Path) -> None:
    made = recipe(make)
    pocket.run_make_pocket(settings=made, threads=1, output=tmp_path / "out", work=tmp_path / "work")
    manifest = verify_manifest(tmp_path / "out", deep=True)
    assert (manifest["kind"], manifest["source"]) == ("dataset", f"pocket://{make}")
    assert read_jsonl(tmp_path / "out" / f"{make}.jsonl") == pocket.problems(made, make)


def test_an_unknown_thing_to_make_is_named() -> None:
    with pytest.raises(ValueError, match=r"pocket://tutor: expected one of pocket://student, .*correct it"):
        pocket.run_make_pocket(settings=recipe("tutor"), threads=1, output=Path("out"), work=Path("work"))


# --- vocabularies ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """All, saved and read again beside a model's configuration, as later stages do."""
    found = {}
    for make in pocket.MODELS:
        folder = tmp_path_factory.mktemp(make)
        tokenizer = pocket.make_tokenizer(make)
        tokenizer.save_pretrained(folder)
        pocket.new_model(make, recipe(make)[make], tokenizer, 0).config.save_pretrained(folder)
        found[make] = AutoTokenizer.from_pretrained(folder)
    return found


@given(
    strategies.text(strategies.characters(codec="utf-8"), max_size=20)
    | strategies.lists(strategies.sampled_from(["<think>", "</think>", "<|im_end|>", "1", "+", " ", "="])).map("".join)
)
@settings(deadline=None)
def test_a_text_survives_encoding_and_decoding(tokenizers: dict, text: str) -> None:
    for tokenizer in tokenizers.values():
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_students_alone_have_the_think_markers_as_tokens(tokenizers: dict) -> None:
    student, teacher = tokenizers["student"].get_vocab(), tokenizers["teacher"].get_vocab()
    assert tokenizers["student-b"].get_vocab() == student
    assert student.keys() - teacher.keys() == {"<think>", "</think>"}
    assert {token: student[token] for token in teacher} == teacher
    assert [len(tokenizers[make].encode("</think>")) for make in ("student", "teacher")] == [1, 8]


def test_the_pair_aligns_and_its_embeddings_differ_in_size(tokenizers: dict) -> None:
    sizes = {make: pocket.embedding_size(make, len(tokenizer)) for make, tokenizer in tokenizers.items()}
    assert sizes["student"] != sizes["teacher"]
    alignment = align(
        tokenizers["student"], tokenizers["teacher"], student_size=sizes["student"], teacher_size=sizes["teacher"]
    )
    assert sorted(map(len, alignment.pieces.values())) == [7, 8]


# --- trainings -------------------------------------------------------------------------------------------------------


def test_the_experiment_asks_the_models_for_what_they_were_trained_to_write(tokenizers: dict) -> None:
    pocketed = config.load(CONFIGS)
    form = pocketed["format"]
    problem = pocket.problems(config.pocket_settings(pocketed, "pocket://train"), "train")[0]
    numbers = [int(number) for number in problem["question"].split("+")]
    wordy = problem["thinking"] == pocket.wordy_steps(numbers)
    for make in ("student", "teacher"):
        tokenizer = tokenizers[make]
        batch = pocket.encode(tokenizer, [numbers], wordy)
        prompt = encode_prompt(tokenizer, config.model_settings(pocketed, make)["prompt"], problem["question"])
        turn = dataset_trace(problem, form) + form["end_of_turn"]
        completion = tokenizer.encode(turn, add_special_tokens=False)
        assert batch.ids[0].tolist() == prompt + completion
        assert batch.labels[0].tolist() == [-100] * len(prompt) + completion
        assert extract_answer(turn, form) == problem["answer"]


def test_the_longest_texts_fit_the_experiments_lengths(tokenizers: dict) -> None:
    pocketed = config.load(CONFIGS)
    hardest = pocket.encode(tokenizers["teacher"], [[99, 99, 99]], wordy=True).ids.shape[1]
    own = int((pocket.encode(tokenizers["student"], [[99, 99, 99]], wordy=True).labels != -100).sum())
    lengths = (
        pocketed["traces"]["rsd"]["context"],
        pocketed["profiles"]["paper"]["context"],
        pocketed["training"]["block_size"],
    )
    assert hardest <= min(lengths)
    assert own <= pocketed["traces"]["rsd"]["max_new_tokens"]


def test_the_learning_rate_overlay_trains_every_arm_at_its_own_rate() -> None:
    swept = config.load([*CONFIGS, ROOT / "workflow/experiments/pocket-learning-rates.yaml"])
    trained = [arm for arm in swept["run"]["arms"] if swept["arms"][arm]["traces"]]
    rates = {arm: config.training_settings(swept, arm)["learning_rate"] for arm in trained}
    assert rates == {
        f"{traces}-{rate}": float(rate) for traces in ("direct", "rsd") for rate in ("1e-4", "3e-4", "1e-3")
    }


def test_all_models_have_under_a_million_parameters() -> None:
    pocketed = config.load(CONFIGS)
    for make in pocket.MODELS:
        made = config.pocket_settings(pocketed, f"pocket://{make}")
        model = pocket.new_model(make, made[make], pocket.make_tokenizer(make), 0)
        assert model.num_parameters() < 1_000_000
        assert model.config.model_type == "qwen3"


def test_padding_and_prompt_carry_no_loss() -> None:
    tokenizer = pocket.make_tokenizer("student")
    batch = pocket.encode(tokenizer, [[10, 10, 10], [99, 99, 99]], wordy=False)
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        end = ids.tolist().index(tokenizer.eos_token_id) + 1
        start = ids.tolist().index(tokenizer.convert_tokens_to_ids("<think>")) + 1
        assert labels[start:end].equal(ids[start:end])
        assert set(labels[:start].tolist() + labels[end:].tolist()) <= {-100}


def test_the_students_learn_their_own_style_from_small_sums_and_the_teacher_both_styles() -> None:
    texts = {}
    for make in pocket.MODELS:
        tokenizer = pocket.make_tokenizer(make)
        parts = [part for step in pocket.training_batches(recipe(make), tokenizer, 0) for part in step]
        texts[make] = [tokenizer.decode(row, skip_special_tokens=True) for part in parts for row in part.ids]
    for make in ("student", "student-b"):
        assert max(int(text.rpartition("</think>")[2]) for text in texts[make]) <= 140
        assert {text.count("=") for text in texts[make]} == {2}
    assert {text.count("=") for text in texts["teacher"]} == {2, 6}
    shared = set(texts["student"]) & set(texts["student-b"])
    assert len(shared) < len(texts["student"]) / 2, "the second student sees batches of its own"


def test_the_second_student_differs_from_the_first_in_its_width_alone() -> None:
    made = config.load(CONFIGS)["pocket"]
    first, second = made["student"], made["student-b"]
    assert {key for key in first if first[key] != second[key]} == {"width", "heads"}


@pytest.mark.parametrize("make", pocket.MODELS)
def test_a_model_folder_is_complete_and_the_same_again(make: str, tmp_path: Path) -> None:
    for name in ("first", "second"):
        pocket.run_make_pocket(settings=recipe(make), threads=1, output=tmp_path / name, work=tmp_path / "work")
    manifests = [verify_manifest(tmp_path / name, deep=True) for name in ("first", "second")]
    assert manifests[0] == manifests[1]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= manifests[0]["files"].keys()
    assert not list((tmp_path / "work").glob("*"))


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original, done = pocket.training_step, iter(range(step))

    def stopped(*arguments: object) -> float:
        if next(done, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(pocket, "training_step", stopped)


def test_a_killed_training_goes_on_bit_exactly_and_leaves_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe("teacher")
    pocket.run_make_pocket(settings=made, threads=1, output=tmp_path / "whole", work=tmp_path / "work")
    with monkeypatch.context() as patch:
        patch.setattr(pocket, "CHECKPOINT_S", 0.0)
        interrupt_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            pocket.run_make_pocket(settings=made, threads=1, output=tmp_path / "cut", work=tmp_path / "work")
    assert not (tmp_path / "cut" / "manifest.json").exists()
    (saved,) = (tmp_path / "work").glob("*.pt")
    assert torch.load(saved, weights_only=True)["step"] == 7
    with monkeypatch.context() as patch:
        interrupt_at(patch, 13)  # the other steps must not be done again
        pocket.run_make_pocket(settings=made, threads=1, output=tmp_path / "cut", work=tmp_path / "work")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(whole[name].equal(cut[name]) for name in whole)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    made, path = recipe("student"), tmp_path / "x.pt"
    tokenizer = pocket.make_tokenizer("student")
    model = pocket.new_model("student", made["student"], tokenizer, 0)
    optimizer = torch.optim.AdamW(model.parameters())
    pocket.save_checkpoint(path, model, optimizer, 3)
    content = bytearray(path.read_bytes())
    assert pocket.load_checkpoint(path, model, optimizer) == 3
    content[len(content) // 2] ^= 0xFF
    path.write_bytes({"cut": content[: len(content) // 2], "flipped": content, "empty": b""}[damage])
    assert pocket.load_checkpoint(path, model, optimizer) == 0
    assert "x.pt is damaged" in caplog.text
    assert not path.exists()


def test_other_settings_do_not_go_on_from_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pocket, "CHECKPOINT_S", 0.0)
        interrupt_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            pocket.run_make_pocket(settings=recipe("student"), threads=1, output=tmp_path / "a", work=tmp_path)
    interrupt_at(monkeypatch, 20)
    made = recipe("student", learning_rate=1e-3)
    pocket.run_make_pocket(settings=made, threads=1, output=tmp_path / "b", work=tmp_path)
    assert verify_manifest(tmp_path / "b", deep=True)


def test_the_manifest_is_written_after_every_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*arguments: object, **named: object) -> None:
        raise OSError("no space left")

    made = recipe("student", steps=2)
    pocket.run_make_pocket(settings=made, threads=1, output=tmp_path / "model", work=tmp_path)
    monkeypatch.setattr(pocket, "write_manifest", full_disk)
    with pytest.raises(OSError, match="no space left"):
        pocket.run_make_pocket(settings=made, threads=1, output=tmp_path / "model", work=tmp_path)
    # Nor does the manifest of an earlier, complete folder vouch for one that is being made again.
    assert not (tmp_path / "model" / "manifest.json").exists()
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in (tmp_path / "model").iterdir()}


def test_the_manifest_holds_settings_but_no_time(tmp_path: Path) -> None:
    pocket.run_make_pocket(settings=recipe("train"), threads=1, output=tmp_path, work=tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    assert json.loads(text)["provenance"]["settings"] == recipe("train")
    assert "unix" not in text


def test_a_diverging_training_stops_and_names_the_learning_rate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss is nan.*pocket\.student\.learning_rate = 1e\+30"):
        pocket.run_make_pocket(
            settings=recipe("student", learning_rate=1e30), threads=1, output=tmp_path / "out", work=tmp_path
        )


def test_no_problem_small_enough_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"pocket\.student\.largest_sum = 29: no problem is left"):
        next(pocket.training_batches(recipe("student", largest_sum=29), pocket.make_tokenizer("student"), 0))


def test_training_lowers_the_loss() -> None:
    made = recipe("student", steps=60)
    tokenizer = pocket.make_tokenizer("student")
    model = pocket.new_model("student", made["student"], tokenizer, 0)
    (batch,) = next(pocket.training_batches(made, tokenizer, 0))

    def loss() -> float:
        with torch.no_grad():
            logits = model(input_ids=batch.ids).logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, batch.labels[:, 1:].flatten()).item()

    before = loss()
    pocket.train(model, tokenizer, made, checkpoint=Path("unused.pt"))
    assert loss() < before - 1


def test_the_learning_rate_rises_then_falls_to_nearly_nothing() -> None:
    rates = [pocket.schedule(step, 800) for step in range(800)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert (max(rates), 0 < rates[-1] < 0.01) == (1.0, True)
