"""Cross-entropy by parts equals the plain form: losses, gradients under any weights, memory."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ifsq.nn import cross_entropy
from ifsq.nn.cross_entropy import linear_mean_nats, linear_nats

ROWS, WIDTH, CODES = (3, 7), 8, 50
COMPILED = """
import torch
from ifsq.nn import cross_entropy
cross_entropy.PART = 200
for form in (cross_entropy.linear_nats, cross_entropy.linear_mean_nats):
    found = []
    for compiled in (False, True):
        rng = torch.Generator().manual_seed(0)
        x, weight = torch.randn(21, 8, generator=rng), torch.randn(50, 8, generator=rng)
        leaves = x.requires_grad_(), weight.requires_grad_()
        layer = lambda x, weight: form(2 * x, weight, torch.arange(21)) + 1
        loss = (torch.compile(layer, backend="eager", fullgraph=True) if compiled else layer)(*leaves)
        loss.sum().backward()
        found.append((loss, x.grad, weight.grad))
    for plainly, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plainly)
print("the same")
"""


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(cross_entropy, "PART", 4 * CODES)  # 21 rows: five parts of four rows and one


def inputs(seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(*ROWS, WIDTH, generator=rng).requires_grad_()
    weight = torch.randn(CODES, WIDTH, generator=rng).requires_grad_()
    return x, weight, torch.randint(CODES, ROWS, generator=rng)


def plain(x, weight, target):
    return F.cross_entropy(F.linear(x, weight).float().movedim(-1, 1), target, reduction="none")


def both(form, of_nats, autocast):
    """Value and gradients of the form and of the plain one."""
    found = []
    for make in (form, plain):
        x, weight, target = inputs()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            nats = make(x, weight, target)
        loss = of_nats(nats)
        loss.backward()
        found.append((nats.detach(), loss.detach(), x.grad, weight.grad))
    return found


def test_every_rows_loss_and_the_gradient_of_any_weights():
    weights = torch.randn(ROWS, generator=torch.Generator().manual_seed(1))
    for ours, expected in zip(*both(linear_nats, lambda nats: (nats * weights).sum(), False), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_mean_and_its_gradient():
    x, weight, target = inputs()
    loss = 3 * linear_mean_nats(x, weight, target)
    loss.backward()
    expected = [part.detach().clone().requires_grad_() for part in (x, weight)]
    (3 * plain(*expected, target).mean()).backward()
    for ours, plainly in zip((x, weight), expected, strict=True):
        torch.testing.assert_close(ours.grad, plainly.grad)
    torch.testing.assert_close(loss, 3 * plain(x, weight, target).mean())


@pytest.mark.parametrize("form", [linear_nats, linear_mean_nats])
def test_autocast_rounds_products_and_nothing_else(form):
    ours, expected = both(form, torch.mean, True)
    assert ours[0].dtype == torch.float32
    torch.testing.assert_close(ours[1], expected[1], atol=1e-5, rtol=1e-5)
    for mine, plainly in zip(ours[2:], expected[2:], strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, plainly, atol=2e-2 * float(plainly.abs().max()), rtol=2e-2)


@pytest.mark.parametrize("form", [linear_nats, linear_mean_nats])
@pytest.mark.parametrize("frozen", ["x", "weight", "both"])
def test_what_is_frozen_gets_no_gradient(form, frozen):
    x, weight, target = inputs()
    x.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "x")
    loss = form(x, weight, target).sum()
    assert loss.requires_grad == (frozen != "both")
    if frozen != "both":
        loss.backward()
        assert (x.grad is None, weight.grad is None) == (frozen == "x", frozen == "weight")


@pytest.mark.parametrize("form", [linear_nats, linear_mean_nats])
def test_a_gradient_can_be_asked_for_twice(form):
    x, weight, target = inputs()
    loss = form(x, weight, target).sum()
    loss.backward(retain_graph=True)
    once = weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * once)


def test_operations_can_be_counted_without_computing():
    x, weight, target = (tensor.detach().to("meta") for tensor in inputs())
    for form in (linear_nats, linear_mean_nats):
        with FlopCounterMode(display=False) as counter:
            form(x, weight, target)
        assert counter.get_total_flops() == 2 * x.numel() * CODES


def test_logits_of_any_size_are_finite():
    x, weight, target = inputs()
    with torch.no_grad():
        nats = linear_nats(1e4 * x, weight, target)
        assert torch.allclose(nats, plain(1e4 * x, weight, target), rtol=1e-5)
        assert torch.allclose(linear_mean_nats(1e4 * x, weight, target), nats.mean())


def test_products_of_the_mean_are_those_of_the_plain_form():
    counts = []
    for form in (linear_mean_nats, plain, linear_nats):
        with FlopCounterMode(display=False) as counter:
            form(*inputs()).mean().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == counts[2] * 3 // 4


@pytest.mark.slow
def test_a_compiled_layer_gives_the_same():
    told = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)  # without checks of shapes
    assert told.stdout == "the same\n", told.stderr


@pytest.mark.parametrize("form", [linear_nats, linear_mean_nats])
def test_no_more_logits_than_a_part_exist_at_a_time(form):
    with Largest() as largest:
        form(*inputs()).mean().backward()
    assert largest.numel == CODES * WIDTH  # the gradient of the weights; a part has half as many logits
