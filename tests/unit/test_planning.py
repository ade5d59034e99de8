"""A plan fits the memory or says what to lower; lanes and schedule are chosen from costs and change no token."""

from __future__ import annotations

import pytest
import torch
from test_decode import LAW, assert_bit_equal, requests

from pairs import END, STUDENT_SIZE, TEACHER_SIZE, tiny_alignment, tiny_model
from rsd import planning
from rsd.decode import _State, generate_rsd, teacher_context
from rsd.graphs import bucket
from rsd.lanes import ModelLanes
from rsd.planning import (
    LaneBytes,
    fewest_good_lanes,
    lanes_that_fit,
    pair_lane_bytes,
    plan_pair,
    plan_single,
    single_lane_bytes,
)
from rsd.schedule import BLOCKS, LOCK_STEP, Costs, PassCost, Scheduler, candidates

LENGTHS = {"context": 90, "max_new_tokens": 40}


@pytest.fixture
def pair():
    torch.set_num_threads(1)
    return tiny_model(1, STUDENT_SIZE), tiny_model(2, TEACHER_SIZE, width=48, layers=3), tiny_alignment()


def test_a_lane_takes_what_its_tensors_take(pair):
    """Per lane, from what is really allocated; the teacher's context is longer (tokens of several pieces)."""
    student, teacher, alignment = pair
    lanes, block = 6, 4
    each = pair_lane_bytes(*pair, context=255, max_new_tokens=40, block=block)
    contexts = 255, teacher_context(teacher, alignment, 255)
    assert contexts[1] > 256
    sides = [ModelLanes(model, lanes, context) for model, context in zip((student, teacher), contexts, strict=True)]
    caches = sum(entry.nbytes for side in sides for entry in (*side.cache.keys, *side.cache.values))
    assert each.cache == caches / lanes
    state = _State(sides, lanes, 40, Scheduler(candidates("student-drafts", block)))
    written = [state.tokens, state.fallback, state.p_student, state.p_teacher]
    assert each.written == sum(entry.nbytes for entry in written) / lanes
    assert each.logits == block * (STUDENT_SIZE + TEACHER_SIZE) * 4 * 4
    assert each.total == each.cache + each.written + each.logits
    alone = single_lane_bytes(student, context=255, max_new_tokens=40)
    assert alone.cache == sum(entry.nbytes for entry in (*sides[0].cache.keys, *sides[0].cache.values)) / lanes


EACH = LaneBytes(cache=900, written=80, logits=20)


def test_lanes_fit_to_the_last_byte_that_is_not_reserved():
    assert lanes_that_fit(9, EACH, 10_000, most=100) == 9
    assert lanes_that_fit(None, EACH, 10_000, most=100) == 9
    assert lanes_that_fit(None, EACH, 10_000, most=4) == 4
    assert lanes_that_fit(50, EACH, 10_000, most=4) == 4
    with pytest.raises(MemoryError, match=r"no memory for 10 lanes: .* so 9 fit; lower lanes, or leave it to the"):
        lanes_that_fit(10, EACH, 10_000, most=100)
    with pytest.raises(MemoryError, match=r"no memory for 1 lanes: .* so 0 fit; lower context, or free memory"):
        lanes_that_fit(None, EACH, 1000, most=100)


def test_rows_that_a_graph_adds_must_fit_too():
    """Room for 40 rows: 33 to 48 lanes would take a graph of 48."""
    assert lanes_that_fit(None, EACH, 45_000, most=100, allocated=bucket) == 32
    assert lanes_that_fit(17, EACH, 45_000, most=100, allocated=bucket) == 17
    with pytest.raises(MemoryError, match="so 32 fit"):
        lanes_that_fit(33, EACH, 45_000, most=100, allocated=bucket)


def test_the_fewest_lanes_are_taken_that_are_nearly_as_fast_as_any():
    # A pass costs 1 s up to 16 tokens, then in proportion: more than 16 lanes gain nothing in lock-step.
    cost = PassCost((1, 16, 1024), (1.0, 1.0, 64.0))
    costs = Costs(cost, cost, PassCost((1, 1024), (0.0, 0.0)))
    assert fewest_good_lanes(costs, (LOCK_STEP,), most=300, length=10) == 16
    assert fewest_good_lanes(costs, (LOCK_STEP,), most=5, length=10) == 5
    flat = PassCost((1, 1024), (1.0, 1.0))
    assert fewest_good_lanes(Costs(flat, flat, cost), (LOCK_STEP,), most=8, length=10) == 8


def test_what_is_given_is_not_measured(pair, monkeypatch):
    monkeypatch.setattr(planning, "measure_costs", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(planning, "measure_pass", lambda *_, **__: pytest.fail("measured"))
    lanes, scheduler = plan_pair(*pair, LAW, **LENGTHS, sequences=50, lanes=7, schedule="student-drafts", block=3)
    assert (lanes, scheduler.choose(7, 10).name, scheduler.longest_block) == (7, "student-drafts", 3)
    assert plan_single(pair[0], **LENGTHS, sequences=50, lanes=7) == 7
    assert plan_single(pair[0], **LENGTHS, sequences=5, lanes=7) == 5


@pytest.mark.parametrize("schedule", ["auto", "student-drafts", "teacher-drafts"])
def test_what_is_chosen_changes_no_bit(pair, schedule):
    wanted = requests(10, seed=21)
    common = {"law": LAW, "end_of_turn": END, **LENGTHS}
    reference = {done.index: done for done in generate_rsd(*pair, wanted, lanes=4, **common)}
    lanes, scheduler = plan_pair(*pair, LAW, **LENGTHS, sequences=10, lanes=None, schedule=schedule, block=None)
    assert 1 <= lanes <= 10
    for done in generate_rsd(*pair, wanted, lanes=lanes, scheduler=scheduler, **common):
        assert_bit_equal(done, reference[done.index])


def test_jobs_that_share_a_machine_share_its_memory(pair, monkeypatch):
    each = single_lane_bytes(pair[0], **LENGTHS)
    monkeypatch.setattr(planning, "free_bytes", lambda _: each.total * 12)
    assert plan_single(pair[0], **LENGTHS, sequences=50, lanes=10) == 10
    with pytest.raises(MemoryError, match="so 5 fit"):
        plan_single(pair[0], **LENGTHS, sequences=50, lanes=10, sharers=2)


def test_a_plan_for_every_block_reserves_the_longest(pair):
    _, scheduler = plan_pair(*pair, LAW, **LENGTHS, sequences=3, lanes=2, schedule="auto", block=None)
    assert scheduler.longest_block == max(BLOCKS)
