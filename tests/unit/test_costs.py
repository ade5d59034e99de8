"""Costs are medians of what passes of growing size take by the clock, and measuring leaves the models as they were."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from test_decode import LAW, assert_bit_equal, requests

from pairs import END, STUDENT_SIZE, TEACHER_SIZE, tiny_alignment, tiny_model
from rsd import costs
from rsd.costs import LONG_CONTEXT, LONG_LANES, MOST_LANES, RUNS, measure_costs, measure_law, measure_pass
from rsd.decode import Drawn, generate_rsd

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair():
    torch.set_num_threads(1)
    return tiny_model(1, STUDENT_SIZE), tiny_model(2, TEACHER_SIZE, width=48, layers=3), tiny_alignment()


def test_costs_are_positive_and_finite_at_growing_counts_and_leave_the_models_usable(pair):
    def decoded():
        common = {"law": LAW, "end_of_turn": END, "context": 90, "max_new_tokens": 10, "lanes": 2}
        return list(generate_rsd(*pair, requests(2), **common))

    before = decoded()
    measured = measure_costs(*pair, LAW, context=60, tokens=20)
    for cost in (measured.student, measured.teacher, measured.law):
        assert cost.tokens == (1, 2, 4, 8, 16, 32)
        assert len(cost.seconds) == len(cost.tokens)
        assert all(math.isfinite(seconds) and seconds > 0 for seconds in cost.seconds)
        assert math.isfinite(cost.cache_seconds)
        assert cost.cache_seconds >= 0
    for one, other in zip(before, decoded(), strict=True):
        assert_bit_equal(one, other)


@pytest.mark.parametrize(("most", "counts"), [(1, [1, 2]), (2, [1, 2]), (3, [1, 2, 4]), (64, [1, 2, 4, 8, 16, 32, 64])])
def test_counts_are_powers_of_two_up_to_what_is_asked_for(most, counts):
    assert costs._counts(most) == counts


# --- by another clock ----------------------------------------------------------------------------------------------


class Clock:
    """Runs take what a list says, in this order, the first being the warm-up."""

    def __init__(self, monkeypatch, durations):
        self.now, self.durations, self.runs = 0.0, iter(durations), 0
        monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def run(self):
        self.now += next(self.durations)
        self.runs += 1


def test_a_time_is_the_median_of_the_runs_after_the_warm_up(monkeypatch):
    clock = Clock(monkeypatch, [50.0, 0.1, 0.4, 0.2])
    assert costs._clock(clock.run, CPU) == pytest.approx(0.2)
    assert clock.runs == 1 + RUNS


def test_a_slow_run_is_not_repeated(monkeypatch):
    clock = Clock(monkeypatch, [9.0, 7.0])
    assert costs._clock(clock.run, CPU) == pytest.approx(7.0)
    assert clock.runs == 2


class Watch:
    """In place of `_clock`: each thing measured is run once, and takes what `price` says of its result."""

    def __init__(self, monkeypatch, price):
        self.results = []
        self.price = price
        monkeypatch.setattr(costs, "_clock", self.clock)

    def clock(self, run, device):
        self.results.append(run())
        return self.price(len(self.results), self.results[-1])


def test_a_pass_is_measured_over_lanes_first_and_then_over_blocks(pair, monkeypatch):
    watch = Watch(monkeypatch, lambda _, logits: logits.shape[0] * logits.shape[1] / 1000)
    cost = measure_pass(pair[0], context=90, tokens=200)
    passes = [tuple(logits.shape[:2]) for logits in watch.results]
    assert passes[:-2] == [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (MOST_LANES, 1), (64, 2), (64, 4)]
    assert cost.seconds == tuple(count / 1000 for count in cost.tokens)
    assert passes[-2:] == [(LONG_LANES, 1)] * 2


@pytest.mark.parametrize("context", [60, LONG_CONTEXT + 1000])
def test_the_cost_of_a_cache_is_what_a_long_context_adds_for_each_token_of_each_lane(monkeypatch, context):
    held = []
    length, second = min(context, LONG_CONTEXT), 1e-6

    def price(_, logits):
        held.append(lanes[-1].known_lengths.tolist())
        return 0.5 + second * sum(held[-1])

    lanes = []
    made = costs.ModelLanes
    monkeypatch.setattr(costs, "ModelLanes", lambda *arguments: lanes.append(made(*arguments)) or lanes[-1])
    Watch(monkeypatch, price)
    model = tiny_model(1, STUDENT_SIZE)
    model.config.max_position_embeddings = 8192
    assert costs._cache_seconds(model, context) == pytest.approx(second, rel=0.05)
    assert held == [[0] * LONG_LANES, [length - 2] * LONG_LANES]


def test_noise_of_the_clock_makes_no_cache_cheaper_than_nothing(pair, monkeypatch):
    Watch(monkeypatch, lambda number, _: 1.0 / number)
    assert costs._cache_seconds(pair[0], 60) == 0


def test_the_law_is_measured_at_so_many_positions(pair, monkeypatch):
    watch = Watch(monkeypatch, lambda number, _: number)
    cost = measure_law(*pair, LAW, tokens=6)
    assert all(isinstance(drawn, Drawn) for drawn in watch.results)
    assert [tuple(drawn.tokens.shape) for drawn in watch.results] == [(1, count) for count in (1, 2, 4, 8)]
    assert (cost.tokens, cost.seconds, cost.cache_seconds) == ((1, 2, 4, 8), (1, 2, 3, 4), 0.0)
