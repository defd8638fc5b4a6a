"""The demo's experiments; the whole of it at toy size is in ``test_road``."""

import pytest

from ifsq.bench import demo as module


def test_both_generators_have_the_same_training_compute():
    """FLOP of a step, of torch's counter, and the steps of each experiment."""
    a_step = {"ar": 11.0, "diffusion": 2.51}
    steps = {
        kind: module.load_generator_experiment(module.experiment_file(f"demo/{kind}.toml")).train.steps
        for kind in a_step
    }
    assert a_step["ar"] * steps["ar"] == pytest.approx(a_step["diffusion"] * steps["diffusion"], rel=0.02)
