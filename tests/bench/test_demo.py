"""The demo's choice of precision; the whole of it at toy size is in ``test_road``."""

import pytest

from ifsq import pipeline
from ifsq.bench import demo as module
from ifsq.training.log import Silent


class SeenError(Exception):
    """Ends the demo at its first stage."""


@pytest.mark.parametrize(
    ("computes", "given", "expected"),
    [(True, [], "bf16"), (False, [], "fp32"), (False, ["--train.precision", "bf16"], "bf16")],
)
def test_half_precision_is_for_processors_that_compute_in_it(computes, given, expected, tmp_path, monkeypatch):
    seen = []

    def stage(experiment, device, reporter):
        seen.append(experiment.train.precision)
        raise SeenError

    monkeypatch.setattr(module, "computes_bfloat16", lambda kind: computes)
    monkeypatch.setattr(pipeline, "train_tokenizer", stage)
    with pytest.raises(SeenError):
        module.demo(tmp_path, given, "cpu", Silent())
    assert seen == [expected]


def test_both_generators_have_the_same_training_compute():
    """FLOP of a step, of torch's counter, and the steps of each experiment."""
    a_step = {"ar": 11.0, "diffusion": 2.51}
    steps = {
        kind: module.load_generator_experiment(module.experiment_file(f"demo/{kind}.toml")).train.steps
        for kind in a_step
    }
    assert a_step["ar"] * steps["ar"] == pytest.approx(a_step["diffusion"] * steps["diffusion"], rel=0.02)
