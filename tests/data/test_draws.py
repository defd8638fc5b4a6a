"""Random numbers from integers: fixed for good, and uniform."""

import numpy as np
import pytest

from ifsq.data.draws import Draws, mix, mix_range


def splitmix64_stream(state: int, count: int) -> list[int]:
    """The published generator, written out with numpy's wrapping integers: a second implementation."""
    out = []
    with np.errstate(over="ignore"):
        word = np.uint64(state)
        for _ in range(count):
            word = word + np.uint64(0x9E3779B97F4A7C15)
            z = word
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            out.append(int(z ^ (z >> np.uint64(31))))
    return out


def test_one_value_is_the_published_splitmix64() -> None:
    # 16294208416658607535 is the first output for seed 0 that the literature lists.
    assert splitmix64_stream(0, 1) == [16294208416658607535]
    assert mix(0) == 16294208416658607535 >> 1
    for state in (1, 2**31, 2**63 - 1):
        assert mix(state) == splitmix64_stream(state, 1)[0] >> 1


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (2**63 - 1, 12)])
def test_the_array_form_equals_the_scalar_form(seed: int, epoch: int) -> None:
    assert mix_range(seed, epoch, 50).tolist() == [mix(seed, epoch, i) for i in range(50)]


def test_order_and_number_of_arguments_matter() -> None:
    assert len({mix(1, 2), mix(2, 1), mix(1), mix(1, 0), mix(0, 1), mix(0, 0, 1)}) == 6


def test_draws_are_uniform_and_in_range() -> None:
    draws = Draws(5)
    values = [draws.below(7) for _ in range(7000)]
    assert np.all(np.abs(np.bincount(values, minlength=7) - 1000) < 150)
    uniform = [draws.uniform() for _ in range(2000)]
    assert min(uniform) >= 0
    assert max(uniform) < 1
    assert abs(np.mean(uniform) - 0.5) < 0.03
