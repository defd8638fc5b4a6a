"""Attention against the written-out formula."""

import pytest
import torch

from ifsq.nn.attention import Attention, head_width
from ifsq.nn.cache import KVCache
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


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_grouped_queries_are_full_attention_with_repeated_keys_and_values(kv_heads, causal):
    """Values and gradients; heads that follow each other share."""
    torch.manual_seed(0)
    x, rope, times = torch.randn(2, 6, 32), Rotary((2, 3), 8), 4 // kv_heads
    grouped, full = Attention(32, 4, bias=True, kv_heads=kv_heads), Attention(32, 4, bias=True)
    assert grouped.qkv.out_features == (4 + 2 * kv_heads) * 8

    def repeated(rows):
        q, k, v = rows.split([32, kv_heads * 8, kv_heads * 8])
        repeat = [part.unflatten(0, (kv_heads, 8)).repeat_interleave(times, 0).flatten(0, 1) for part in (k, v)]
        return torch.cat([q, *repeat])

    with torch.no_grad():
        for ours, theirs in zip(grouped.qkv.parameters(), full.qkv.parameters(), strict=True):
            theirs.copy_(repeated(ours))
        for ours, theirs in zip(grouped.proj.parameters(), full.proj.parameters(), strict=True):
            theirs.copy_(ours)
    for run in (grouped, full):
        run.input = x.clone().requires_grad_()
        run.output = run(run.input, rope, causal=causal)
        run.output.square().sum().backward()
    assert torch.allclose(grouped.output, full.output, atol=1e-6, rtol=1e-5)
    assert torch.allclose(grouped.input.grad, full.input.grad, atol=1e-5, rtol=1e-4)


def test_the_cache_of_grouped_queries_holds_their_own_heads_alone():
    attention, cache = Attention(32, 4, bias=False, kv_heads=2), KVCache(6)
    x = torch.randn(3, 6, 32)
    with torch.no_grad():
        steps = torch.cat([attention(x[:, t : t + 1], causal=True, cache=cache) for t in range(6)], dim=1)
        assert torch.allclose(steps, attention(x, causal=True), atol=1e-6)
    keys, values = cache.append(torch.zeros(3, 2, 0, 8), torch.zeros(3, 2, 0, 8))
    assert keys.shape == values.shape == (3, 2, 6, 8)


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


@pytest.mark.parametrize("kv_heads", [3, 0])
def test_heads_that_do_not_share_keys_evenly_are_refused(kv_heads):
    with pytest.raises(ValueError, match=f"kv_heads={kv_heads}: expected a divisor of heads=4"):
        Attention(32, 4, bias=False, kv_heads=kv_heads)
