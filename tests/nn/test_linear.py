"""The linear layer by oneDNN's products against torch's, with both derivatives; and where it stays torch's own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ifsq.nn import linear
from ifsq.nn.linear import Linear

INPUTS, OUTPUTS = 256, 520  # above `linear.LARGE`


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("a torch without oneDNN")
    monkeypatch.setattr(linear, "multiplies_faster_by_onednn", lambda: True)


def _made(bias: bool = True) -> tuple[Linear, Tensor]:
    torch.manual_seed(0)
    return Linear(INPUTS, OUTPUTS, bias=bias), torch.randn(2, 5, INPUTS, requires_grad=True)


@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradient_are_those_of_float64(bias: bool) -> None:
    layer, x = _made(bias)
    exact, y = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    weights = torch.randn(2, 5, OUTPUTS)
    for module, given in ((layer, x), (exact, y)):
        out = module(given)
        assert out.shape == (2, 5, OUTPUTS)
        (out.square() * weights.to(out)).sum().backward()
    torch.testing.assert_close(layer(x).double(), exact(y), rtol=0, atol=2e-6)
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)


def test_one_row_of_any_stride_and_no_row() -> None:
    layer, _ = _made()
    strided = torch.randn(INPUTS, 3).T
    torch.testing.assert_close(layer(strided), F.linear(strided, layer.weight, layer.bias))
    assert layer(torch.randn(INPUTS)).shape == (OUTPUTS,)
    assert layer(torch.randn(0, INPUTS)).shape == (0, OUTPUTS)


def test_only_what_needs_a_gradient_has_one() -> None:
    layer, x = _made()
    layer.weight.requires_grad_(False)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((OUTPUTS,), 10.0))


def test_second_derivative_is_torchs() -> None:
    layer, x = _made()

    def second(call: nn.Module) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(call(x).tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, *call.parameters()))

    plain = nn.Linear(INPUTS, OUTPUTS)
    plain.load_state_dict(layer.state_dict())
    for mine, theirs in zip(second(layer), second(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_forward_mode_derivative_is_that_of_a_linear_map() -> None:
    layer, x = _made()
    along = torch.randn_like(x)
    _, told = torch.func.jvp(layer, (x.detach(),), (along,))
    torch.testing.assert_close(told, F.linear(along, layer.weight))
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x.detach(), along))
        told = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(told, F.linear(along, layer.weight))


def test_small_layers_other_types_and_autocast_are_torchs_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = _made()

    def refused(*_: object) -> None:
        raise AssertionError("oneDNN's product")

    monkeypatch.setattr(linear, "_linear", refused)
    with pytest.raises(AssertionError, match="oneDNN"):
        layer(x)
    small = Linear(8, 8)
    assert torch.equal(small(x[..., :8]), F.linear(x[..., :8], small.weight, small.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.to("meta")(x.to("meta")).device.type == "meta"


def test_its_operations_are_counted() -> None:
    layer, x = _made()
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 10 * INPUTS * OUTPUTS


def test_its_tensors_have_torchs_names() -> None:
    layer, _ = _made()
    assert list(layer.state_dict()) == list(nn.Linear(2, 2).state_dict())
