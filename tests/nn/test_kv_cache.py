"""The cache of keys and values against the full pass."""

import pytest
import torch
from tests.nn.test_attention import make

from ifsq.nn.cache import KVCache
from ifsq.nn.embed import Rotary


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (4, 1, 1), (1, 3, 2)])
def test_cached_steps_equal_the_causal_pass(sizes, whole):
    attention, rope = make(bias=False), Rotary((2, 3), 8)
    x = torch.randn(2, 6, 16)
    cache = KVCache(6, whole=whole)
    stepped = torch.cat([attention(piece, rope, causal=True, cache=cache) for piece in x.split(sizes, dim=1)], dim=1)
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


@pytest.mark.parametrize("whole", [False, True])
def test_a_cache_that_went_back_forgets_what_came_after(whole):
    attention, rope = make(bias=False), Rotary((2, 3), 8)
    x, cache = torch.randn(2, 6, 16), KVCache(6, whole=whole)
    attention(x[:, :2], rope, causal=True, cache=cache)
    attention(torch.randn(2, 3, 16), rope, causal=True, cache=cache)
    cache.rewind(2)
    stepped = attention(x[:, 2:], rope, causal=True, cache=cache)
    assert torch.allclose(stepped, attention(x, rope, causal=True)[:, 2:], atol=1e-5)


@pytest.mark.parametrize("position", [-1, 2])
def test_a_cache_goes_back_to_positions_that_it_has(position):
    cache = KVCache(3)
    cache.append(*torch.zeros(2, 1, 1, 1, 4))
    with pytest.raises(ValueError, match=f"position {position}: expected 0 to 1, those of the cache that are filled"):
        cache.rewind(position)


def test_full_cache_refuses_more():
    cache = KVCache(1)
    k = torch.zeros(1, 1, 1, 4)
    cache.append(k, k)
    with pytest.raises(ValueError, match="position 2 of a cache of length 1"):
        cache.append(k, k)


def test_a_whole_cache_hands_out_one_shape_and_says_what_counts():
    cache = KVCache(5, whole=True)
    k, v = torch.randn(2, 3, 2, 2, 4)
    keys, values = cache.append(k, v)
    assert keys.shape == values.shape == (3, 2, 5, 4)
    place = keys.data_ptr()
    assert cache.mask(2).tolist() == [[True] + [False] * 4, [True] * 2 + [False] * 3]
    keys, _ = cache.append(k[:, :, :1], v[:, :, :1])
    assert keys.data_ptr() == place
    assert torch.equal(keys[:, :, :3], torch.cat([k, k[:, :, :1]], dim=2))
    assert cache.mask(1).tolist() == [[True] * 3 + [False] * 2]
    assert int(cache.position) == 3
    cache.append(k, v)
    with pytest.raises((IndexError, RuntimeError)):
        cache.append(k, v)
