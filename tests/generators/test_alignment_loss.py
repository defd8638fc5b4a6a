"""Projectors and the loss of alignment: the official values, positions, grids and weights over the training."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ifsq.generators.repa import Alignment, AlignmentConfig
from ifsq.generators.repa.alignment import cosine, resampled, spatially_normalized
from ifsq.pretrained.teachers import TeacherConfig

CLOSE = {"atol": 1e-6, "rtol": 1e-5}


def config(**options):
    given = {"teachers": ("one",), "depth": 1, "weight": 0.5, "hidden": 8} | options
    teachers = tuple(TeacherConfig(*one) if isinstance(one, tuple) else TeacherConfig(one) for one in given["teachers"])
    return AlignmentConfig(**given | {"teachers": teachers})


def rows(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Given(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, states):
        return self.value


def plain(alignment):
    """With nothing projected."""
    alignment.projectors = nn.ModuleList(nn.Identity() for _ in alignment.projectors)
    return alignment


def test_official_loss_of_two_teachers(golden):
    """Of projected features; the official projector on the states of both kinds is in their own tests."""
    tensor = golden("metrics").get_tensor
    alignment = Alignment(config(teachers=("one", "two")), 8, (3, 3), (32, 20))
    alignment.projectors = nn.ModuleList([Given(tensor("repa/zt0")), Given(tensor("repa/zt1"))])
    found = alignment(rows(4, 9, 8), None, [tensor("repa/z0"), tensor("repa/z1")])
    assert torch.allclose(found, tensor("repa/proj_loss")[0], atol=1e-5)


def test_the_loss_is_computed_in_float32():
    """A cosine of bfloat16 vectors, normalised in it, is off in the third digit."""
    one, two = rows(4, 6, 64).bfloat16(), rows(4, 6, 64, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine(one, two)
    assert found.dtype == torch.float32
    assert torch.allclose(found, F.cosine_similarity(one.float(), two, dim=-1), **CLOSE)
    alignment = Alignment(config(), 8, (2, 3), (5,))
    with torch.autocast("cpu", torch.bfloat16):
        assert alignment(rows(2, 6, 8), None, [rows(2, 6, 5)]).dtype == torch.float32


def test_a_state_meets_the_feature_of_the_token_that_it_predicts_or_has_read():
    order = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(s)) for s in range(4)])
    features = rows(4, 6, 8)
    in_order = features.gather(1, order[..., None].expand_as(features))
    predicted, read = (plain(Alignment(config(token=token), 8, (2, 3), (8,))) for token in ("predicted", "read"))
    assert predicted(features, None, [features]).item() == pytest.approx(-1)
    assert predicted(in_order, order, [features]).item() == pytest.approx(-1)
    assert predicted(in_order, None, [features]) > -0.6
    behind = torch.cat([rows(4, 1, 8, seed=9), in_order[:, :-1]], dim=1)  # the first has read the class alone
    assert read(behind, order, [features]).item() == pytest.approx(-1)
    assert predicted(behind, order, [features]) > -0.6


def test_features_of_another_grid_are_resampled():
    """A plane stays one; the mean of an image does not move where the grid is finer."""
    y, x = torch.meshgrid(torch.arange(4) + 0.5, torch.arange(6) + 0.5, indexing="ij")
    fine = torch.stack([y / 4, x / 6], dim=-1).flatten(0, 1)[None]
    coarse = resampled(fine, (4, 6), (2, 3))
    assert torch.allclose(coarse.mean(dim=1), fine.mean(dim=1), atol=1e-6)
    assert coarse.unflatten(1, (2, 3))[0, :, 1, 0].diff().item() > 0.3
    assert resampled(fine, (4, 6), (4, 6)) is fine
    alignment = plain(Alignment(config(), 2, (2, 3), (2,), [(4, 6)]))
    assert alignment(coarse, None, [fine]).item() == pytest.approx(-1, abs=1e-6)


def test_spatial_normalisation():
    features = rows(3, 12, 5) * 4 + 2
    found = spatially_normalized(features, 1.0)
    assert torch.allclose(found.mean(dim=1), torch.zeros(3, 5), atol=1e-5)
    assert torch.allclose(found.std(dim=1), torch.ones(3, 5), atol=1e-4)
    kept = spatially_normalized(features, 0.0)
    assert torch.allclose(kept * features.std(dim=1, keepdim=True), features, atol=1e-4)
    alignment = plain(Alignment(config(spatial_norm=1.0), 5, (3, 4), (5,)))
    assert alignment(found, None, [features]).item() == pytest.approx(-1, abs=1e-5)


def test_a_projector_is_as_wide_inside_as_the_states_unless_it_is_told():
    widths = [Alignment(config(hidden=hidden), 6, (2, 3), (5,)).projectors[0][2].weight.shape for hidden in (None, 9)]
    assert widths == [(6, 6), (9, 9)]


@pytest.mark.parametrize("projector", ["mlp", "conv"])
def test_a_projector_begins_with_glorots_uniform_weights_and_no_bias(projector):
    torch.manual_seed(0)
    for name, value in Alignment(config(projector=projector, hidden=96), 64, (2, 3), (48,)).named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        else:
            bound = math.sqrt(6 / (len(value) + value[0].numel()))
            assert 0.98 * bound < value.max() <= bound, name
            assert -bound <= value.min() < -0.98 * bound, name


def test_a_convolution_sees_the_neighbours_on_the_grid():
    alignment = Alignment(config(projector="conv"), 8, (3, 4), (5,))
    states = rows(1, 12, 8).requires_grad_()
    alignment.projectors[0](states)[0, 0].sum().backward()  # the corner
    reached = states.grad.abs().sum(dim=-1)[0].unflatten(0, (3, 4)) > 0
    assert reached.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_features_get_no_gradient_and_every_parameter_one_of_zero_when_idle():
    alignment = Alignment(config(teachers=("one", "two")), 8, (2, 3), (5, 4))
    features = [rows(2, 6, 5).requires_grad_(), rows(2, 6, 4).requires_grad_()]
    states = rows(2, 6, 8).requires_grad_()
    alignment(states, None, features).backward()
    assert all(one.grad is None for one in features)
    assert bool(states.grad.any())
    assert all(bool(p.grad.any()) for p in alignment.parameters() if p.ndim > 1)
    alignment.zero_grad()
    alignment.idle().backward()
    assert all(p.grad is not None and not p.grad.any() for p in alignment.parameters())


def test_the_weight_over_the_training():
    constant, linear, cosine_ = (config(weight=2.0, stop=0.5, decay=d) for d in ("constant", "linear", "cosine"))
    assert [constant.weight_at(p) for p in (0.0, 0.49, 0.5, 1.0)] == [2, 2, 0, 0]
    assert [linear.weight_at(p) for p in (0.0, 0.25, 0.5, 0.9)] == [2, 1, 0, 0]
    assert cosine_.weight_at(0.125) == pytest.approx(2 * (1 + math.cos(math.pi / 4)) / 2)
    assert config().weight_at(1.0) == 0.5  # what is asked at the end of a run, or outside of one
    assert config(stop=0.0).weight_at(0.0) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": ()}, r"teachers=\[\]: expected at least one, each once"),
        ({"teachers": ("a", "a")}, r"teachers=\['a', 'a'\]: expected at least one, each once"),
        ({"depth": 0}, "depth=0: expected at least 1"),
        ({"weight": -1.0}, "weight=-1.0: expected a number of at least 0"),
        ({"projector": "linear"}, "projector='linear': expected one of mlp, conv"),
        ({"token": "next"}, "token='next': expected one of predicted, read"),
        ({"decay": "no"}, "decay='no': expected one of constant, linear, cosine"),
        ({"hidden": 0}, "hidden=0: expected at least 1"),
        ({"stop": 1.5}, "stop=1.5: expected a share, 0 to 1"),
        ({"spatial_norm": -0.1}, "spatial_norm=-0.1: expected a share, 0 to 1"),
        ({"cleaner": 2.0}, "cleaner=2.0: expected a share, 0 to 1"),
        ({"projector": "conv", "token": "read"}, "projector='conv' of token='read': expected 'predicted'"),
        ({"teachers": ("self", ("self", 2))}, "teachers: 'self' stands twice; expected it once"),
        ({"features": ("a", "b")}, r"features=\['a', 'b'\]: expected a folder for each of one"),
        ({"teachers": ("self",), "features": ("a",)}, "expected a folder for each of no teacher"),
        ({"features": ("",)}, r"features=\[''\]: expected names of folders"),
        ({"teachers": (("self", 2, 448),)}, "teachers: 'self' looks at no images; expected no option but layer"),
    ],
)
def test_a_bad_config_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_depths_are_those_of_the_network():
    own = config(teachers=("self",), depth=3)
    assert [own.teaching_depth(blocks) for blocks in (4, 8)] == [4, 6]
    assert config(teachers=(("self", 5),)).teaching_depth(8) == 5
    plainly = {"noisy": False, "online": False}
    small = SimpleNamespace(depth=2)
    own.check(SimpleNamespace(depth=3), **plainly)
    with pytest.raises(ValueError, match=r"alignment\.depth=3: expected 1 to 2, the blocks of the network"):
        own.check(small, **plainly)
    with pytest.raises(ValueError, match=r"alignment\.teachers: layer of 'self'=5: expected 1 to 4"):
        config(teachers=(("self", 5),)).check(SimpleNamespace(depth=4), **plainly)
    for options, asked, message in (
        ({"token": "read"}, {"noisy": True}, r"token='read' of a generator that reads noise: expected 'predicted'"),
        (
            {"projector": "conv"},
            {"generator": SimpleNamespace(depth=2, order="random")},
            r"projector='conv' of tokens in random orders: expected 'mlp'",
        ),
        ({"features": ("a",)}, {"online": True}, r"features with data\.online=true: expected none"),
    ):
        config(**options).check(small, **plainly)
        with pytest.raises(ValueError, match=message):
            config(**options).check(**{"generator": small, **plainly, **asked})
