"""The noise: the published generator, uniform, without a pattern over streams, positions and tokens."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsd.streams import FALLBACK, race, states, stream_key, uniforms
from statistical import assert_frequencies

COUNT = 1 << 16


def test_it_is_splitmix64():
    """The generator's published first outputs for the seed 1234567; our numbers are their upper 52 bits."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    ours = uniforms(torch.tensor([1234567]), torch.arange(4))
    assert ours.tolist() == [((value >> 12) + 0.5) / 2**52 for value in published]


def test_a_key_is_the_same_everywhere_and_differs_by_every_part():
    assert stream_key(("traces", 0, "p1", 3)) == 6982252522627139641
    names = [("a", 1), ("a", 2), ("b", 1), ("a", "1"), ("a1",)]
    assert len({stream_key(name) for name in names}) == len(names)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31), st.integers(FALLBACK, 2**31))
def test_numbers_lie_inside_the_open_interval(key, position, token):
    value = float(uniforms(states(torch.tensor(key), torch.tensor(position)), token))
    assert 0 < value < 1


def neighbours() -> dict[str, torch.Tensor]:
    """Numbers that differ in one coordinate alone, which a weak mixing would give away."""
    one, many = torch.tensor(stream_key(("x",))), torch.arange(COUNT)
    return {
        "positions": uniforms(states(one, many), 7),
        "tokens": uniforms(states(one, torch.tensor(3)), many),
        "keys": uniforms(states(many, torch.tensor(3)), 7),
        "fallback": uniforms(states(one, many), FALLBACK),
    }


def test_neighbours_are_uniform_and_independent_of_each_other():
    """16 x 16 cells of each number and the next: 4 tests at a false-alarm rate of 1e-9 each."""
    for name, values in neighbours().items():
        cells = (values[:-1] * 16).long() * 16 + (values[1:] * 16).long()
        counts = np.bincount(cells.numpy(), minlength=256)
        assert_frequencies(counts.tolist(), [1 / 256] * 256, false_alarm=1e-9), name


def test_the_same_token_at_the_next_position_and_other_coordinates_are_uncorrelated():
    """Sample correlations of 65,536 pairs lie within 6 standard deviations of zero."""
    values = list(neighbours().values())
    for left in range(len(values)):
        for right in range(left):
            correlation = np.corrcoef(values[left].numpy(), values[right].numpy())[0, 1]
            assert abs(correlation) < 6 / COUNT**0.5


def test_a_races_shape_and_neighbours_do_not_matter():
    weights, tokens = torch.rand(8, 5), torch.randint(0, 1000, (8, 5))
    noise = states(torch.arange(8), torch.arange(8))
    together = race(weights, noise, tokens)
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = race(weights[:, order], noise, tokens[:, order])
    assert torch.equal(tokens.gather(1, together[:, None]), tokens[:, order].gather(1, shuffled[:, None]))
    for n in range(8):
        assert int(race(weights[n : n + 1], noise[n : n + 1], tokens[n : n + 1])) == int(together[n])
