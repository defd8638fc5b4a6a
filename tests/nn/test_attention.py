"""Attention against the written-out formula, and the cache against the full pass."""

import pytest
import torch

from ifsq.nn.attention import Attention, KVCache, head_width
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


@pytest.mark.parametrize("first", [1, 4])
def test_cached_steps_equal_the_causal_pass(first):
    attention, rope = make(bias=False), Rotary((2, 3), 8)
    x = torch.randn(2, 6, 16)
    cache = KVCache(6)
    pieces = [x[:, :first], *x[:, first:].split(1, dim=1)]
    stepped = torch.cat([attention(piece, rope, causal=True, cache=cache) for piece in pieces], dim=1)
    assert torch.allclose(stepped, attention(x, rope, causal=True), atol=1e-5)


def test_cache_hands_out_views_of_the_filled_prefix():
    cache = KVCache(5)
    k, v = torch.randn(2, 3, 2, 1, 4)
    first = cache.append(k, v)[0]
    second, values = cache.append(k, v)
    assert second.shape == (3, 2, 2, 4)
    assert second.data_ptr() == first.data_ptr()
    assert torch.equal(second, torch.cat([k, k], dim=2))
    assert torch.equal(values, torch.cat([v, v], dim=2))


def test_cache_keeps_the_first_rows_without_a_copy():
    cache = KVCache(5)
    k, v = torch.randn(2, 4, 2, 1, 4)
    before = cache.append(k, v)[0]
    cache.keep_first(2)
    after, values = cache.append(k[:2], v[:2])
    assert torch.equal(after, torch.cat([k, k], dim=2)[:2])
    assert torch.equal(values, torch.cat([v, v], dim=2)[:2])
    assert after.data_ptr() == before.data_ptr()


def test_full_cache_refuses_more():
    cache = KVCache(1)
    k = torch.zeros(1, 1, 1, 4)
    cache.append(k, k)
    with pytest.raises(ValueError, match="position 2 of a cache of length 1"):
        cache.append(k, k)


@pytest.mark.parametrize(("width", "heads"), [(10, 3), (8, 0)])
def test_heads_that_do_not_share_the_width_are_refused(width, heads):
    with pytest.raises(ValueError, match=f"width={width}: expected a positive multiple of heads={heads}"):
        head_width(width, heads)
