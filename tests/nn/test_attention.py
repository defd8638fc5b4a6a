"""Attention against the written-out formula."""

import pytest
import torch

from ifsq.nn.attention import Attention, head_width
from ifsq.nn.embed import Rotary


def make(**options):
    torch.manual_seed(0)
    attention = Attention(16, 2, **options)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_the_written_out_formula(causal, qk_norm):
    attention, rope = make(bias=True, qk_norm=qk_norm), Rotary((2, 3), 8)
    x = torch.randn(2, 6, 16)
    q, k, v = (part.reshape(2, 6, 2, 8).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    if qk_norm:
        q, k = (
            y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
            for y, norm in ((q, attention.q_norm), (k, attention.k_norm))
        )
    scores = rope(q) @ rope(k).transpose(-1, -2) / 8**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    expected = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 16))
    assert torch.allclose(attention(x, rope, causal=causal), expected, atol=2e-5, rtol=1e-4)


def test_short_sequences_in_bf16_attend_in_float32_while_they_train(monkeypatch):
    attention, x = make(bias=True), torch.randn(2, 6, 16)

    def gradient(dtype):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = attention(x, causal=True)
        attention.zero_grad()
        out.float().square().sum().backward()
        return out.detach().float(), attention.qkv.weight.grad

    seen = []
    whole = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "ifsq.nn.attention.F.scaled_dot_product_attention",
        lambda q, *rest, **o: (seen.append(q.dtype), whole(q, *rest, **o))[1],
    )
    ours = gradient(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        attention(x, causal=True)
    assert seen == [torch.float32, torch.bfloat16]
    for got, expected in zip(ours, gradient(torch.float32), strict=True):
        torch.testing.assert_close(got, expected, atol=0.03 * expected.abs().max().item(), rtol=0.03)


@pytest.mark.parametrize(("width", "heads"), [(10, 3), (8, 0)])
def test_heads_that_do_not_share_the_width_are_refused(width, heads):
    with pytest.raises(ValueError, match=f"width={width}: expected a positive multiple of heads={heads}"):
        head_width(width, heads)
