"""The eval-mode guard puts every submodule back, also after an error."""

import pytest
import torch
from torch import nn

from ifsq.nn.modes import evaluating


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
