"""Eval mode and exact float32 for a while: what was set before comes back, also after an error."""

import pytest
import torch
from torch import nn

from ifsq.nn.modes import evaluating, exact_float32


def test_modes_and_gradients_come_back():
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    module[1].eval()
    with evaluating(module):
        assert not module[0].training
        assert not torch.is_grad_enabled()
    assert (module.training, module[0].training, module[1].training) == (True, True, False)
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error():
    module = nn.Dropout(0.5)
    with pytest.raises(RuntimeError, match="stop"), evaluating(module):
        raise RuntimeError("stop")
    assert module.training


def test_float32_is_exact_and_the_switches_come_back():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(RuntimeError, match="stop"), exact_float32():
            raise RuntimeError("stop")
        with exact_float32():
            seen = [matmul.fp32_precision, conv.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]
        assert seen == ["ieee"] * 3
        assert torch.get_float32_matmul_precision() == "high"
        assert matmul.fp32_precision == "tf32"
        assert conv.fp32_precision == before[1]
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
