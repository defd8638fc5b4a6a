"""The face of a teacher: grids, channels, precision, gradients, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ifsq.pretrained.teachers.face import ImageTeacher, SelfTeacher, teacher_digest


class Cells(ImageTeacher):
    """Means over square cells, after a linear map."""

    name, digest, width, smallest = "cells", "", 5, 8

    def __init__(self, cell=4):
        super().__init__()
        self.cell = cell
        self.linear = nn.Linear(3, 5)

    def maps(self, images, grid):
        means = F.avg_pool2d(images, self.cell)
        return self.linear(means.movedim(1, -1)).movedim(-1, 1)


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_features_are_rows_of_the_grid():
    teacher, images = Cells(), noise(2, 3, 16, 24)
    found = teacher.features(images, (4, 6))
    assert found.shape == (2, 24, 5)
    cell = images[1, :, 8:12, 20:24].mean(dim=(1, 2))
    torch.testing.assert_close(found[1, 2 * 6 + 5], teacher.linear(cell).detach())


def test_there_is_no_gradient_and_no_half_precision():
    teacher, images = Cells(), noise(1, 3, 16, 16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = teacher.features(images, (4, 4))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found, teacher.features(images, (4, 4)), atol=0, rtol=0)
    assert not teacher.train().training


def test_luminance_is_grey():
    teacher, grey = Cells(), noise(2, 1, 16, 16)
    torch.testing.assert_close(teacher.features(grey, (4, 4)), teacher.features(grey.expand(-1, 3, -1, -1), (4, 4)))


@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (4, 4), (2, 2)])
def test_another_grid_keeps_constants_and_slopes(grid):
    """A ramp across the image stays one, at the centres of the tokens; borders aside, where the kernel is cut off."""
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    teacher = Cells()
    with torch.no_grad():
        teacher.linear.weight.copy_(torch.eye(5, 3))
        teacher.linear.bias.fill_(0.25)
    found = teacher.features(ramp, grid).unflatten(1, grid)[0, 0, :, 0] - 0.25
    centres = ((torch.arange(grid[1]) + 0.5) / grid[1] * 2 - 1) * 32 / 31
    inner = slice(1, -1) if grid[1] > 2 else slice(0, 0)
    torch.testing.assert_close(found[inner], centres[inner], atol=1e-5, rtol=0)
    torch.testing.assert_close(found, -found.flip(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("shape", "grid", "told"),
    [
        ((1, 2, 16, 16), (4, 4), "2 channels: cells expects 3, or 1"),
        ((1, 3, 16, 7), (4, 4), "16x7 pixels: cells expects at least 8 a side"),
        ((1, 3, 16, 16), (4, 0), "grid 4x0: expected 1 to 1024 tokens a side"),
    ],
)
def test_what_it_refuses(shape, grid, told):
    with pytest.raises(ValueError, match=told):
        Cells().features(noise(*shape), grid)


def test_a_digest_is_of_weights_and_settings():
    table = Cells().state_dict()
    digest = teacher_digest(table, {"mean": [0.5]})
    assert digest == teacher_digest(dict(reversed(table.items())), {"mean": [0.5]})
    assert digest != teacher_digest(table, {"mean": [0.4]})
    assert digest != teacher_digest(Cells().state_dict(), {"mean": [0.5]})


def test_a_self_teacher_follows_weights_that_it_does_not_own():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).train()
    teacher = SelfTeacher(model, lambda net, given: net(given), 4)
    assert not list(teacher.parameters())
    assert not teacher.state_dict()
    given = noise(2, 6, 3).requires_grad_()
    before = teacher.features(given, (2, 3))
    torch.testing.assert_close(before, model[0](given).detach())
    assert model.training
    assert not before.requires_grad
    with torch.no_grad():
        model[0].weight.add_(1)
    torch.testing.assert_close(teacher.features(given, (2, 3)), model[0](given).detach())
    with pytest.raises(ValueError, match="expected 9 tokens of 4"):
        teacher.features(given, (3, 3))
