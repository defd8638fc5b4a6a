"""RMSNorm against its formula, and its precision under autocast."""

import torch

from ifsq.nn.norm import RMSNorm


def test_norm_is_the_formula():
    norm = RMSNorm(8, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    assert torch.allclose(norm(x), expected, atol=1e-6)


def test_norm_computes_in_the_dtype_of_its_scale():
    x = torch.randn(3, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert RMSNorm(8)(x).dtype == torch.float32
    assert RMSNorm(8).bfloat16()(x).dtype == torch.bfloat16
