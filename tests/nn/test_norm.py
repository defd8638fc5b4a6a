"""RMSNorm against its formula, and its precision under autocast."""

import torch

from ifsq.nn.norm import RMSNorm


def test_norm_is_the_formula():
    norm = RMSNorm(8, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    assert torch.allclose(norm(x), expected, atol=1e-6)


def test_the_gradient_in_one_step_is_that_of_the_formula():
    norm = RMSNorm(8, eps=1e-5).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, x)
    slope = torch.randn(3, 5, 8, dtype=torch.float64)
    theirs = torch.nn.functional.rms_norm(x, (8,), norm.weight, 1e-5)
    for got, expected in zip(
        *(torch.autograd.grad(y, (x, norm.weight), slope) for y in (norm(x), theirs)), strict=True
    ):
        torch.testing.assert_close(got, expected)
    half = x.detach().bfloat16().requires_grad_()
    assert torch.autograd.grad(norm.float()(half).sum(), half)[0].dtype == torch.bfloat16


def test_norm_computes_in_the_dtype_of_its_scale():
    x = torch.randn(3, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert RMSNorm(8)(x).dtype == torch.float32
    assert RMSNorm(8).bfloat16()(x).dtype == torch.bfloat16


def test_a_norm_in_half_precision_computes_in_float32_where_it_trains_too():
    norm, x = RMSNorm(256).bfloat16(), torch.randn(8, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        expected = norm(x)
    assert torch.equal(norm(x), expected)


def test_transforms_of_functions_pass_through_a_norm():
    norm = RMSNorm(8, eps=1e-5).double()
    x, along = torch.randn(2, 3, 8, dtype=torch.float64).unbind()

    def formula(x):
        return torch.nn.functional.rms_norm(x, (8,), norm.weight, 1e-5)

    for transform in (
        lambda f: torch.func.jvp(f, (x,), (along,))[1],
        lambda f: torch.func.grad(lambda x: f(x).square().sum())(x),
        lambda f: torch.func.vmap(torch.func.jacrev(f))(x),
    ):
        torch.testing.assert_close(transform(norm), transform(formula))
