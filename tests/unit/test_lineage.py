"""What is made of what: what a run needs and in which order, what each stage is told, and names that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rsd import config as c
from rsd import lineage

ROOT = Path(__file__).parents[2]
PAPER = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))

# A second round of RSD with the trained student, whose rows train both students.
AGAIN: dict[str, Any] = {
    "models": {"trained": {"like": "student", "source": "trained://rsd/1"}},
    "traces": {"again": {"like": "rsd", "student": "trained"}},
    "arms": {
        "again": {"model": "trained", "traces": "again"},
        "fresh": {"model": "student", "traces": "again"},
        "measured": {"model": "trained"},
    },
}
# Sets that are made of others, or written by others.
MADE: dict[str, Any] = {
    "traces": {
        "own": {"like": "rsd", "method": "sample"},
        "teachers": {"like": "rsd", "method": "sample", "sampled": "teacher"},
        "filtered": {"method": "filter", "of": "direct"},
        "recoded": {"method": "recode", "of": "filtered", "student": "teacher"},
        "prefixes": {"like": "rsd", "method": "select", "of": "rsd", "select": {"solved": "prefix"}},
    },
    "arms": {
        "own": {"model": "student", "traces": "own"},
        "teachers": {"model": "student", "traces": "teachers"},
        "filtered": {"model": "student", "traces": "filtered"},
        "recoded": {"model": "teacher", "traces": "recoded"},
        "prefixes": {"model": "student", "traces": "prefixes"},
        "tokens": {"model": "student", "traces": "rsd", "training": {"tokens_of": "direct"}},
    },
}


def paper(*changes: dict[str, Any]) -> c.Config:
    """config.yaml with `changes` laid over it, not validated."""
    merged = PAPER
    for change in changes:
        merged = c.merge(merged, change)
    return merged


def valid(*changes: dict[str, Any], arms: list[str]) -> c.Config:
    return c.validate(paper(*changes, {"run": {"arms": ["base", *arms]}}))


# --- like ------------------------------------------------------------------------------------------------------------


def test_an_entry_has_the_settings_of_the_one_that_it_is_like_where_it_gives_none() -> None:
    config = valid({"traces": {"other": {"like": "rsd", "threshold": 0.03, "select": {"pick": "first"}}}}, arms=["rsd"])
    rsd, other = config["traces"]["rsd"], config["traces"]["other"]
    assert other == rsd | {"threshold": 0.03, "select": rsd["select"] | {"pick": "first"}}
    assert c.validate(config) == config


def test_it_may_be_like_one_that_is_like_another_and_follows_an_overlay_on_the_first() -> None:
    changes = {"traces": {"a": {"like": "b", "draws": 2}, "b": {"like": "rsd", "threshold": 0.03}}}
    config = valid(changes, {"traces": {"rsd": {"attempts": 4}}}, arms=["rsd"])
    for name, draws in (("a", 2), ("b", None)):
        assert config["traces"][name] == config["traces"]["rsd"] | {"threshold": 0.03, "draws": draws}
    assert config["traces"]["rsd"]["attempts"] == 4


def test_a_model_may_be_like_another_from_elsewhere() -> None:
    config = valid({"models": {"larger": {"like": "student", "source": "hf://Qwen/Qwen3-1.7B"}}}, arms=["rsd"])
    assert config["models"]["larger"] == config["models"]["student"] | {"source": "hf://Qwen/Qwen3-1.7B"}


CHAINS = st.lists(st.dictionaries(st.sampled_from(["attempts", "context", "shards"]), st.integers(1, 9)), max_size=5)


@given(CHAINS)
def test_of_a_chain_the_nearest_setting_wins(chain: list[dict[str, int]]) -> None:
    entries: dict[str, Any] = {"e0": {"method": "rsd", "attempts": 99}}
    entries |= {f"e{n + 1}": {"like": f"e{n}", **own} for n, own in enumerate(chain)}
    config: c.Config = {"traces": entries}
    assert c.inherit(config) == []
    expected: dict[str, Any] = {"method": "rsd", "attempts": 99}
    for n, own in enumerate(chain):
        expected |= own
        assert config["traces"][f"e{n + 1}"] == expected


# --- what a run needs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "made_by"),
    [("trained://rsd/0", ("rsd", 0)), ("trained://a.b-c_d/12", ("a.b-c_d", 12)), ("hf://trained/rsd", None)],
)
def test_a_source_says_which_arm_and_seed_made_it(source: str, made_by: tuple[str, int] | None) -> None:
    assert lineage.trained_by(source) == made_by


def test_a_run_needs_what_its_arms_are_made_of_and_that_comes_first() -> None:
    config = valid(AGAIN, arms=["again"])
    assert c.trace_sets(config) == ["rsd", "again"]
    assert c.used_models(config) == ["teacher", "student", "trained"]
    assert c.used_models(config, "teacher") == ["teacher"]
    assert c.used_models(config, "student") == ["student", "trained"]
    # The arm that trains the student is no arm of the run, and only the seed that is used is trained.
    assert c.trained_names(config) == ["again-seed0", "again-seed1", "again-seed2", "rsd-seed1"]
    order = lineage.needed(config)
    assert order.index(("arms", "rsd")) < order.index(("models", "trained")) < order.index(("traces", "again"))


def test_a_trained_model_that_is_only_measured_is_trained_for_that() -> None:
    config = valid(AGAIN, arms=["measured"])
    assert c.trained_names(config) == ["rsd-seed1"]
    assert c.trace_sets(config) == ["rsd"]


def test_a_seed_that_the_run_has_anyway_is_trained_once() -> None:
    config = valid(AGAIN, arms=["rsd", "fresh"])
    assert c.trained_names(config) == [f"{arm}-seed{seed}" for arm in ("rsd", "fresh") for seed in range(3)]


def test_a_run_needs_the_sets_that_others_are_made_of_and_the_models_that_write() -> None:
    config = valid(MADE, arms=["recoded", "teachers"])
    assert c.trace_sets(config) == ["direct", "filtered", "recoded", "teachers"]
    assert c.used_models(config, "teacher") == ["teacher"]
    assert c.used_models(valid(MADE, arms=["own"])) == ["student"]
    assert c.used_models(valid(MADE, arms=["filtered"])) == ["student"]


def test_a_set_that_selects_anew_takes_the_attempts_of_another_and_makes_none() -> None:
    config = valid(MADE, arms=["prefixes"])
    assert c.trace_sets(config) == ["rsd", "prefixes"]
    assert [lineage.attempts_of(config, name) for name in ("rsd", "prefixes")] == ["rsd", "rsd"]
    assert c.select_settings(config, "prefixes") == c.select_settings(config, "rsd") | {"solved": "prefix"}
    assert c.trained_names(config) == [f"prefixes-seed{seed}" for seed in range(3)]


def test_an_arm_that_takes_anothers_number_of_tokens_needs_its_rows_and_not_its_model() -> None:
    config = valid(MADE, arms=["tokens"])
    assert lineage.tokens_of(config, "tokens") == "direct"
    assert lineage.tokens_of(config, "rsd") is None
    assert set(c.trace_sets(config)) == {"rsd", "direct"}
    assert c.trained_names(config) == [f"tokens-seed{seed}" for seed in range(3)]


def test_a_trained_model_is_of_the_kind_of_the_one_that_it_was_made_of() -> None:
    twice = {"models": {"twice": {"like": "student", "source": "trained://again/0"}}}
    config = valid(AGAIN, twice, arms=["again"])
    assert [lineage.origin(config, name) for name in ("twice", "trained", "student", "teacher")] == [
        "student",
        "student",
        "student",
        "teacher",
    ]


# --- what the stages are told ----------------------------------------------------------------------------------------


def test_the_slices_of_made_sets_hold_what_decides_them_and_no_more() -> None:
    config = valid(MADE, arms=["own", "teachers", "filtered", "recoded"])
    student, teacher = (c.model_settings(config, name) for name in ("student", "teacher"))
    assert c.traces_settings(config, "own")["sampled"] is None
    assert c.traces_settings(config, "teachers")["sampled"] == teacher
    assert c.derive_settings(config, "filtered") == {
        "method": "filter",
        "of": "direct",
        "student": student,
        "block_size": 8192,
        "device": "auto",
        "gpus": 1,
        "filter": {"by": "improbable_share", "keep": 0.5},
        "threshold": 0.01,
        "context": 8192,
    }
    recoded = c.derive_settings(config, "recoded")
    assert set(recoded) == {"method", "of", "student", "block_size", "device", "format"}
    assert recoded["student"] == teacher
    with pytest.raises(TypeError, match=r"traces\.rsd is not made of another"):
        c.derive_settings(config, "rsd")
    for name in ("filtered", "recoded", "prefixes"):
        with pytest.raises(TypeError, match=rf"traces\.{name} has no attempts of its own"):
            c.traces_settings(config, name)


def test_a_training_is_told_what_decides_the_other_arms_tokens_and_no_more() -> None:
    config = valid(MADE, {"arms": {"direct": {"training": {"epochs": 3, "block_size": 100}}}}, arms=["tokens", "rsd"])
    settings = c.training_settings(config, "tokens")
    assert settings["tokens_of"] == {
        "arm": "direct",
        "epochs": 3,
        "batch_size": 16,
        "block_size": 100,
        "overlong": "truncate",
        "drop_last": True,
    }
    assert "epochs" not in settings, "it decides nothing here"
    assert c.training_settings(config, "rsd")["tokens_of"] is None
    faster = valid(MADE, {"arms": {"direct": {"training": {"learning_rate": 1.0}}}}, arms=["tokens"])
    assert c.training_settings(faster, "tokens") == c.training_settings(valid(MADE, arms=["tokens"]), "tokens")


def test_a_pocket_model_follows_from_its_own_recipe_and_the_problems() -> None:
    config = valid({"models": {"teacher": {"source": "pocket://teacher"}}}, arms=["rsd"])
    other = valid(
        {"pocket": {"teacher": {"steps": 7}}}, {"models": {"teacher": {"source": "pocket://teacher"}}}, arms=[]
    )
    for make, same in (("teacher", False), ("student", True), ("student-b", True), ("train", True)):
        source = f"pocket://{make}"
        assert (c.pocket_settings(config, source) == c.pocket_settings(other, source)) == same
        assert (c.source_key(config, source) == c.source_key(other, source)) == same
    more = valid({"pocket": {"train_problems": 7}}, arms=[])
    assert c.source_key(more, "pocket://student") != c.source_key(config, "pocket://student")


# --- what is refused -------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an entry like one that is not there": (
        {"traces": {"other": {"like": "rds"}}},
        r"traces\.other\.like = 'rds': no such entry in traces; did you mean 'rsd'\?",
    ),
    "an entry like itself": (
        {"traces": {"other": {"like": "other"}}},
        r"traces\.other\.like: goes round in a circle \(other -> other\); write one of them out",
    ),
    "entries like each other": (
        {"models": {"a": {"like": "b"}, "b": {"like": "a"}}},
        r"models\.a\.like: goes round in a circle \(a -> b -> a\)",
    ),
    "an entry like no name": (
        {"traces": {"other": {"like": 3}}},
        r"traces\.other\.like = 3: expected string, found int",
    ),
    "an entry like an empty one": ({"traces": {"e": {}, "o": {"like": "e"}}}, r"traces\.o\.method: missing; add it"),
    "a wrong setting that another entry has": (
        {"traces": {"rsd": {"treshold": 1}, "other": {"like": "rsd"}}},
        r"traces\.other\.treshold = 1: unknown key; did you mean 'threshold'\?",
    ),
    "a model of an arm that is not there": (
        {"models": {"again": {"like": "student", "source": "trained://rds/0"}}},
        r"models\.again\.source = 'rds': no such entry in arms; did you mean 'rsd'\?",
    ),
    "a model of an arm that is not trained": (
        {"models": {"again": {"like": "student", "source": "trained://base/0"}}},
        r"models\.again\.source = 'trained://base/0': the arm base is not trained, it has no traces; name one that is",
    ),
    "a trained model without a seed": (
        {"models": {"again": {"like": "student", "source": "trained://rsd"}}},
        r"models\.again\.source = 'trained://rsd': .*trained://ARM/SEED",
    ),
    "a trained model of a seed that is no number": (
        {"models": {"again": {"like": "student", "source": "trained://rsd/first"}}},
        r"models\.again\.source = 'trained://rsd/first': ",
    ),
    "a dataset that is a trained model": (
        {"datasets": {"aime24": {"source": "trained://rsd/0"}}},
        r"datasets\.aime24\.source = 'trained://rsd/0': that is a model, no dataset; name a dataset",
    ),
    "a student made from its own traces": (
        {
            "models": {"again": {"like": "student", "source": "trained://rsd/0"}},
            "traces": {"rsd": {"student": "again"}},
        },
        r"traces\.rsd: would be made of itself \(traces\.rsd <- models\.again <- arms\.rsd <- traces\.rsd\); break",
    ),
    "an arm trained from itself": (
        {
            "models": {"again": {"like": "student", "source": "trained://a/0"}},
            "arms": {"a": {"model": "again", "traces": "rsd"}},
        },
        r"models\.again: would be made of itself \(models\.again <- arms\.a <- models\.again\)",
    ),
    "a set made of itself": (
        {"traces": {"x": {"method": "recode", "of": "x"}}},
        r"traces\.x: would be made of itself \(traces\.x <- traces\.x\)",
    ),
    "sets made of each other": (
        {"traces": {"x": {"method": "recode", "of": "y"}, "y": {"method": "filter", "of": "x"}}},
        r"would be made of itself \(traces\.x <- traces\.y <- traces\.x\)",
    ),
    "a teacher trained on what it teaches": (
        {"models": {"teacher": {"source": "trained://rsd/0"}}},
        r"would be made of itself",
    ),
    "a derived set of nothing": (
        {"traces": {"x": {"method": "filter"}}},
        r"traces\.x\.of: missing; name the trace set whose rows method filter takes",
    ),
    "a derived set of one that is not there": (
        {"traces": {"x": {"method": "filter", "of": "rds"}}},
        r"traces\.x\.of = 'rds': no such entry in traces; did you mean 'rsd'\?",
    ),
    "a set with attempts that is of another": (
        {"traces": {"rsd": {"of": "direct"}}},
        r"traces\.rsd\.of = 'direct': only for methods select, filter, recode; remove it",
    ),
    "a selection among rows that are taken as they are": (
        {"traces": {"x": {"method": "filter", "of": "rsd", "select": {"pick": "first"}}}},
        r"traces\.x\.select: nothing is selected by method filter, which takes the rows of 'rsd' as they are; write it",
    ),
    "a selection from the attempts of nothing": (
        {"traces": {"x": {"method": "select"}}},
        r"traces\.x\.of: missing; name the trace set whose attempts method select takes",
    ),
    "a selection from a set without attempts": (
        {"traces": {"x": {"method": "select", "of": "y"}, "y": {"method": "filter", "of": "direct"}}},
        r"traces\.x\.of = 'y': has no attempts to select from \(method filter\); name the trace set .* 'direct'",
    ),
    "a selection for another student": (
        {"traces": {"x": {"method": "select", "of": "rsd", "student": "teacher"}}},
        r"traces\.x\.student = 'teacher': the attempts of 'rsd' are in the tokens of 'student'; write that, and a set",
    ),
    "a prefix longer than the attempts of the other set": (
        {
            "traces": {
                "rsd": {"max_new_tokens": 100, "select": {"prefix_tokens": 100}},
                "x": {"method": "select", "of": "rsd", "select": {"prefix_tokens": 101}},
            }
        },
        r"traces\.x\.select\.prefix_tokens = 101: expected at most traces\.rsd\.max_new_tokens = 100",
    ),
    "a filter that keeps nothing": (
        {"traces": {"x": {"method": "filter", "of": "rsd", "filter": {"keep": 0}}}},
        r"traces\.x\.filter\.keep = 0: expected a value > 0 and <= 1",
    ),
    "a filter by what there is not": (
        {"traces": {"x": {"method": "filter", "of": "rsd", "filter": {"by": "surprisal"}}}},
        r"traces\.x\.filter\.by = 'surprisal': did you mean 'mean_surprisal'\?",
    ),
    "a model that is sampled where nothing is": (
        {"traces": {"rsd": {"sampled": "teacher"}}},
        r"traces\.rsd\.sampled = 'teacher': nothing is sampled by method rsd; remove it",
    ),
    "a sampled model that is not there": (
        {"traces": {"x": {"method": "sample", "sampled": "techer"}}},
        r"traces\.x\.sampled = 'techer': no such entry in models; did you mean 'teacher'\?",
    ),
    "a prefix for all that is longer than any trace": (
        {"traces": {"rsd": {"select": {"solved": "prefix", "unsolved": "drop", "prefix_tokens": 7169}}}},
        r"traces\.rsd\.select\.prefix_tokens = 7169: expected at most traces\.rsd\.max_new_tokens = 7168",
    ),
    "tokens of an arm that is not there": (
        {"arms": {"rsd": {"training": {"tokens_of": "dircet"}}}},
        r"arms\.rsd\.training\.tokens_of = 'dircet': no such entry in arms; did you mean 'direct'\?",
    ),
    "tokens of an arm that is not trained": (
        {"arms": {"rsd": {"training": {"tokens_of": "base"}}}},
        r"arms\.rsd\.training\.tokens_of = 'base': that arm is not trained, so it sees no tokens; name one that is",
    ),
    "tokens of an arm that takes those of a third": (
        {"arms": {"rsd": {"training": {"tokens_of": "direct"}}, "direct": {"training": {"tokens_of": "direct-full"}}}},
        r"arms\.rsd\.training\.tokens_of = 'direct': that arm takes its own number of tokens from 'direct-full'; name",
    ),
    "tokens of itself": (
        {"arms": {"rsd": {"training": {"tokens_of": "rsd"}}}},
        r"arms\.rsd\.training\.tokens_of = 'rsd': that arm takes its own number of tokens from 'rsd'",
    ),
    "tokens of one arm for all": (
        {"training": {"tokens_of": "rsd"}},
        r"arms\.rsd\.training\.tokens_of = 'rsd': that arm takes its own number of tokens from 'rsd'",
    ),
    "tokens of no name": (
        {"arms": {"rsd": {"training": {"tokens_of": 3}}}},
        r"arms\.rsd\.training\.tokens_of = 3: expected string or null, found int",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_made_is_refused_by_key_value_expectation_and_remedy(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        c.validate(paper(changes))


def test_a_circle_is_told_once() -> None:
    circle = {"traces": {"x": {"method": "recode", "of": "y"}, "y": {"method": "recode", "of": "x"}}}
    with pytest.raises(ValueError, match="made of itself") as caught:
        c.validate(paper(circle))
    assert len(str(caught.value).splitlines()) == 2


def test_sets_that_share_what_they_are_made_of_are_no_circle() -> None:
    config = valid(AGAIN, MADE, arms=["again", "fresh", "recoded", "filtered", "tokens"])
    nodes = lineage.needed(config)
    assert len(nodes) == len(set(nodes))


def test_limits_of_generation_do_not_bind_what_generates_nothing() -> None:
    valid({"traces": {"filtered": {"method": "filter", "of": "direct", "context": 100}}}, arms=["rsd"])
