"""Stochastic depth: whole examples, the right share of them, and the mean unchanged."""

import pytest
import torch

from ifsq.nn.droppath import DropPath


def test_a_share_of_the_examples_is_dropped_and_the_mean_stays():
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.rand(20000, 3, 2) + 1
    out = layer(x)
    scale = out / x
    kept = scale[:, 0, 0] != 0
    assert torch.allclose(scale, (kept / 0.75)[:, None, None].expand_as(x))  # one draw an example
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.015)  # five standard deviations
    assert float(scale.mean()) == pytest.approx(1.0, abs=0.02)


def test_nothing_is_dropped_in_evaluation_and_the_type_stays():
    layer, x = DropPath(0.5), torch.ones(8, 2, dtype=torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16
    assert layer.eval()(x) is x


def test_the_share_survives_casts_and_other_devices():
    layer = DropPath(0.1).bfloat16()
    assert layer.keep.dtype == torch.float32
    assert float(layer.keep) == pytest.approx(0.9, abs=1e-7)
    with torch.device("meta"):
        elsewhere = DropPath(0.1)
    assert float(elsewhere.to_empty(device="cpu").keep) == pytest.approx(0.9, abs=1e-7)
    assert not layer.state_dict()


@pytest.mark.parametrize("rate", [1.0, -0.1])
def test_a_share_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=f"rate={rate}: expected a share of at least 0 and below 1"):
        DropPath(rate)
