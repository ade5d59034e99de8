"""Which schedule is chosen follows from costs and counts; what a block yields follows from agreement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rsd.schedule import (
    BLOCKS,
    DRAFTERS,
    LOCK_STEP,
    MEMORY,
    ROUNDS_BETWEEN,
    TRIAL_ROUNDS,
    Agreement,
    Costs,
    PassCost,
    Schedule,
    Scheduler,
    best_schedule,
    candidates,
    describe,
    tokens_per_second,
)

FLAT = PassCost((1, 1024), (0.0, 0.0))


def flat(seconds: float, cache: float = 0.0) -> PassCost:
    """A pass that costs the same however many tokens it reads."""
    return PassCost((1, 1024), (seconds, seconds), cache)


def with_agreement(rate: float, tried: int = 10**6) -> dict[str, Agreement]:
    made = {drafter: Agreement() for drafter in DRAFTERS}
    for agreement in made.values():
        agreement.tried[:], agreement.right[:] = tried, rate * tried
    return made


def test_a_configuration_leaves_these_to_choose_from():
    assert candidates("lock-step", None) == (LOCK_STEP,)
    assert candidates("lock-step", 1) == (LOCK_STEP,)
    assert candidates("student-drafts", 7) == (Schedule("student", 7),)
    assert [entry.block for entry in candidates("teacher-drafts", None)] == [block for block in BLOCKS if block > 1]
    assert candidates("auto", 4) == (Schedule("student", 4), Schedule("teacher", 4))
    assert candidates("auto", None)[0] == LOCK_STEP
    assert len(candidates("auto", None)) == 1 + 2 * (len(BLOCKS) - 1)


def test_a_block_of_one_is_lock_step_whoever_is_named():
    assert {Schedule(drafter, 1).name for drafter in DRAFTERS} == {"lock-step"}
    assert describe(Schedule("teacher", 4)) == "teacher-drafts in blocks of 4"


def test_a_pass_costs_what_was_measured_between_it_in_proportion_and_beyond_it_too():
    cost = PassCost((1, 4, 16), (1.0, 2.0, 6.0), cache_seconds=0.001)
    assert cost.predict(4, 1, 0) == 2.0
    assert cost.predict(1, 4, 0) == 2.0
    assert cost.predict(5, 2, 0) == pytest.approx(4.0)  # 10 tokens, halfway from 4 to 16
    assert cost.predict(32, 1, 0) == 12.0
    assert cost.predict(4, 1, 500) == pytest.approx(2.0 + 0.001 * 4 * 500)


def test_a_round_costs_the_drafters_steps_the_readers_pass_and_the_law():
    costs = Costs(
        PassCost((1, 1000), (1.0, 1000.0)), PassCost((1, 1000), (10.0, 10_000.0)), PassCost((1, 1000), (0.1, 100.0))
    )
    assert costs.round_seconds(Schedule("student", 3), 2, 0) == pytest.approx(3 * 2 + 60 + 0.6)
    assert costs.round_seconds(Schedule("teacher", 3), 2, 0) == pytest.approx(3 * 20 + 6 + 0.6)
    assert costs.round_seconds(LOCK_STEP, 2, 0) == pytest.approx(2 + 20 + 0.2)


@given(st.integers(0, 3), st.integers(2, 12))
def test_what_a_block_yields_is_the_sum_of_the_chances_to_get_that_far(seed, block):
    """Hand-made counts of 3 lanes a round; PRIOR is what little is known before."""
    generator = np.random.default_rng(seed)
    agreement = Agreement()
    seen = [generator.integers(1, block + 1, 3) for _ in range(5)]
    for emitted in seen:
        agreement.observe(emitted, block - 1)
    every = np.concatenate(seen)
    expected, chance = 1.0, 1.0
    for place in range(block - 1):
        tried, right = int((every > place).sum()), int((every > place + 1).sum())
        chance *= (right + agreement.rate * 6) / (tried + 6)
        expected += chance
    assert agreement.expected_tokens(block) == pytest.approx(expected)
    assert agreement.expected_tokens(1) == 1


@pytest.mark.parametrize("rate", [0.2, 0.7, 0.95])
def test_independent_guesses_yield_the_geometric_sum(rate):
    """10,000 rounds of 12: within 6 standard errors of the mean (a false alarm in 500 million)."""
    generator = np.random.default_rng(1)
    rounds, block = 10_000, 12
    right = generator.random((rounds, block - 1)) < rate
    emitted = 1 + right.cumprod(axis=1).sum(axis=1)
    agreement = Agreement()
    agreement.right[:], agreement.tried[:] = 0, 0
    for some in emitted.reshape(-1, 10):  # below MEMORY, so nothing is forgotten
        agreement.observe(some, block - 1)
    exact = (1 - rate**block) / (1 - rate)
    assert abs(agreement.expected_tokens(block) - exact) < 6 * emitted.std() / rounds**0.5 + 0.01


def test_old_counts_fade():
    agreement = Agreement()
    for _ in range(10):
        agreement.observe(np.full(MEMORY // 4, 2), 1)
    assert agreement.tried[0] <= MEMORY
    before = agreement.rate
    for _ in range(10):
        agreement.observe(np.full(MEMORY // 4, 1), 1)
    assert before > 0.99
    assert agreement.rate < 0.1


def test_the_longest_block_that_a_configuration_may_name_is_counted_and_predicted():
    schema = yaml.safe_load((Path(__file__).parents[2] / "workflow/schemas/config.schema.yaml").read_text())
    longest = schema["$defs"]["trace_set"]["properties"]["block_length"]["maximum"]
    agreement = Agreement()
    for _ in range(10):
        agreement.observe(np.full(1000, longest), longest - 1)
    assert agreement.expected_tokens(longest) > agreement.expected_tokens(longest - 1) > 0.9 * longest


def test_the_best_schedule_follows_the_costs():
    agreeing, options = with_agreement(0.95), candidates("auto", None)
    teacher_heavy = Costs(flat(1.0), flat(12.0), FLAT)
    assert best_schedule(teacher_heavy, agreeing, options, 1, 100).drafter == "student"
    assert best_schedule(teacher_heavy, agreeing, options, 1, 100).block > 4
    # The student's cache costs twice the teacher's, and weights nothing.
    cache_heavy = Costs(flat(0.0, 2.0), flat(0.0, 1.0), FLAT)
    assert best_schedule(cache_heavy, agreeing, options, 128, 4000).drafter == "teacher"
    # Reading ten tokens costs ten times one: drafting only wastes.
    linear = PassCost((1, 1024), (1.0, 1024.0))
    assert best_schedule(Costs(linear, linear, FLAT), with_agreement(0.3), options, 8, 0) == LOCK_STEP


def test_the_prediction_is_lanes_times_yield_over_the_rounds_time():
    costs, agreement = Costs(flat(1.0), flat(12.0), flat(0.5)), with_agreement(0.5)
    speed = tokens_per_second(costs, agreement, Schedule("student", 3), 7, 0)
    assert speed == pytest.approx(7 * (1 + 0.5 + 0.25) / (3 * 1 + 12 + 0.5), rel=1e-4)


def run(scheduler: Scheduler, rounds: int, lanes: int, length: float, rate: float, seed: int = 0) -> list[Schedule]:
    generator = np.random.default_rng(seed)
    chosen = []
    for _ in range(rounds):
        schedule = scheduler.choose(lanes, length)
        chosen.append(schedule)
        right = generator.random((lanes, schedule.block - 1)) < rate
        scheduler.observe(1 + right.cumprod(axis=1).sum(axis=1), schedule.block - 1)
    return chosen


def test_a_fixed_schedule_never_changes():
    assert set(run(Scheduler.fixed(Schedule("teacher", 3)), 100, 2, 10, 0.1)) == {Schedule("teacher", 3)}


def test_both_drafters_are_tried_then_the_best_is_kept():
    costs = Costs(flat(1.0), flat(12.0), FLAT)
    chosen = run(Scheduler(candidates("auto", None), costs), 200, 4, 100, 0.9)
    trials = chosen[: 2 * TRIAL_ROUNDS]
    assert {entry.drafter for entry in trials} == set(DRAFTERS)
    assert all(entry.block == 5 for entry in trials)
    later = chosen[2 * TRIAL_ROUNDS :]
    assert {entry.drafter for entry in later} == {"student"}
    assert min(entry.block for entry in later) > 5


def test_a_choice_is_made_right_after_the_trials_and_again_after_so_many_rounds(monkeypatch):
    choices = []
    monkeypatch.setattr("rsd.schedule.best_schedule", lambda *_: choices.append(len(rounds)) or LOCK_STEP)
    scheduler, rounds = Scheduler(candidates("auto", None), Costs(flat(1.0), flat(1.0), FLAT)), []
    for _ in range(2 * TRIAL_ROUNDS + 2 * ROUNDS_BETWEEN + 1):
        rounds.append(scheduler.choose(4, 100))
    assert choices == [2 * TRIAL_ROUNDS + ROUNDS_BETWEEN * number for number in range(3)]


def test_the_choice_follows_the_work():
    """Short contexts: the teacher's weights dominate. Long ones: the student's cache."""
    costs = Costs(flat(1.0, 0.01), flat(12.0, 0.001), FLAT)
    scheduler = Scheduler(candidates("auto", None), costs)
    assert run(scheduler, 100, 4, 1, 0.9)[-1].drafter == "student"
    assert run(scheduler, 2 * ROUNDS_BETWEEN, 4, 4000, 0.9)[-1].drafter == "teacher"
    # Drafts that are never right any more end the drafting.
    linear = PassCost((1, 1024), (1.0, 1024.0))
    scheduler = Scheduler(candidates("auto", None), Costs(linear, linear, FLAT))
    assert run(scheduler, 300, 8, 0, 0.02)[-1] == LOCK_STEP


def test_the_summary_says_what_was_chosen_and_how_often_drafts_were_right():
    scheduler = Scheduler.fixed(Schedule("student", 3))
    run(scheduler, 50, 100, 0, 0.5)
    assert "student-drafts in blocks of 3 in 100% of rounds" in scheduler.summary()
    assert "% of the student's drafts right" in scheduler.summary()
