"""Properties of the quantizer over levels, groups, layouts, bounds, cells, types; bad inputs, each by its message."""

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ifsq
from ifsq.quantizers.bounds import BOUNDS
from ifsq.quantizers.cells import CELLS
from ifsq.quantizers.digits import check_digits

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@st.composite
def quantizers(draw) -> ifsq.FSQ:
    cells = draw(st.sampled_from(CELLS))
    bound = draw(st.sampled_from(BOUNDS))
    levels = st.integers(2, 65)
    if cells == "paper" and bound != "tanh":
        levels = levels.map(lambda L: L + 1 - L % 2)
    levels = draw(st.lists(levels, min_size=1, max_size=6))
    groups, left = [], len(levels)
    while left:
        groups.append(draw(st.integers(1, left)))
        left -= groups[-1]
    return ifsq.FSQ(
        levels,
        bound=bound,
        cells=cells,
        groups=groups,
        num_codebooks=draw(st.integers(1, 3)),
        keep_num_codebooks_dim=draw(st.sampled_from([None, True])),
        digit_order=draw(st.sampled_from(["little", "big"])),
        channel_first=draw(st.booleans()),
    ).eval()


@st.composite
def latents(draw, q: ifsq.FSQ) -> torch.Tensor:
    inner = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    shape = [draw(st.integers(1, 3)), *inner]
    axis = 1 if q.channel_axis == 1 or len(shape) >= 3 else len(shape)
    shape.insert(axis, q.dim)
    scale = draw(st.sampled_from([0.1, 1.0, 30.0]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return (scale * torch.randn(shape, generator=rng)).to(draw(st.sampled_from(DTYPES)))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_quantizer_is_consistent(data):
    q = data.draw(quantizers())
    z = data.draw(latents(q))
    out = q(z)
    axis = q.axis_of(z.ndim)
    space = [n for k, n in enumerate(z.shape) if k != axis]

    assert out.codes.shape == z.shape
    assert out.codes.dtype == z.dtype
    assert out.codes.abs().max() <= 1
    books = [q.num_codebooks] * (q.num_codebooks > 1)
    assert out.digits.shape == (*space, *books, len(q.levels))
    kept = [q.num_codebooks] * q.keep_num_codebooks_dim
    assert out.indices.shape == (*space, *kept, *([len(q.groups)] * (len(q.groups) > 1)))

    levels = torch.tensor(q.levels)
    assert (out.digits >= 0).all()
    assert (out.digits < levels).all()
    assert (out.indices < math.prod(q.levels)).all()
    digits = q.indices_to_digits(out.indices.view(out.digits.shape[:-1] + out.indices.shape[-1:] * (len(q.groups) > 1)))
    assert torch.equal(digits, out.digits)
    assert torch.equal(q.codes_to_indices(out.codes), out.indices)
    if z.dtype == torch.float32:
        assert torch.equal(q.indices_to_codes(out.indices), out.codes)
        # a lattice point is its own nearest one
        assert torch.equal(q.digits_to_codes(out.digits).flatten(len(space)).movedim(-1, axis), out.codes)
    elif z.dtype != torch.float64:
        assert torch.equal(out.digits, q(z.float()).digits)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_quantizing_is_monotone_in_each_dimension(data):
    q = data.draw(quantizers())
    z = data.draw(latents(q)).float()
    more = z + data.draw(st.floats(0, 3))
    assert (q(more).digits >= q(z).digits).all()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_positions_do_not_touch_each_other(data):
    """Reversing the batch reverses everything."""
    q = data.draw(quantizers())
    z = data.draw(latents(q))
    assert torch.equal(q(z.flip(0)).codes, q(z).codes.flip(0))
    assert torch.equal(q(z.flip(0)).indices, q(z).indices.flip(0))


def test_construction_is_quick_and_small():
    """[17]*8 has 7e9 codes: peers ask for 56 GB here."""
    ifsq.FSQ([17] * 8)
    start = time.perf_counter()
    for _ in range(20):
        q = ifsq.FSQ([17] * 8)
    assert (time.perf_counter() - start) / 20 < 0.01
    assert sum(t.numel() * t.element_size() for t in q.buffers()) < 1000


def test_without_indices_the_codes_are_the_same():
    z = torch.randn(2, 4, 5, 5)
    out = ifsq.FSQ([17] * 4, return_indices=False)(z)
    assert torch.equal(out.codes, ifsq.FSQ([17] * 4)(z).codes)
    assert out.indices is out.digits is None


def test_the_record_unpacks_like_a_pair():
    out = ifsq.FSQ([5] * 2)(torch.randn(3, 2))
    codes, indices = out
    assert codes is out[0] is out.codes
    assert indices is out[1] is out.indices
    assert len(out) == 2
    assert out.loss == 0


def test_channels_on_a_named_axis():
    z = torch.randn(2, 6, 5, 4)
    last = ifsq.FSQ([9] * 4, channel_axis=-1)(z)
    assert torch.equal(last.indices, ifsq.FSQ([9] * 4)(z.movedim(-1, 1)).indices)
    assert torch.equal(ifsq.FSQ([9] * 4, channel_axis=-1).indices_to_codes(last.indices), last.codes)


def test_module_in_bfloat16_with_projections():
    q = ifsq.FSQ([9] * 3, dim=8).bfloat16()
    out = q(torch.randn(2, 5, 8).bfloat16())
    assert torch.equal(q.indices_to_codes(out.indices), out.codes)


def test_autocast_does_not_reach_the_rounding():
    q = ifsq.FSQ([33] * 4, orthogonal_rotation=True)
    z = torch.randn(2, 4, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = q(z)
    assert torch.equal(out.indices, q(z).indices)


def test_values_are_checked_on_request_only_off_the_cpu():
    free = ifsq.FSQ([17] * 2, validate=False)
    free(torch.tensor([[math.nan, 0.0]]))
    free.indices_to_codes(torch.tensor([[0]]))
    assert ifsq.FSQ([17] * 2)._checks(torch.zeros(1))
    assert not ifsq.FSQ([17] * 2)._checks(torch.zeros(1, device="meta"))
    assert ifsq.FSQ([17] * 2, validate=True)._checks(torch.zeros(1, device="meta"))


def test_what_is_done_to_the_module_does_not_reach_the_rounding():
    """Built on the meta device, averaged, cast: levels are no state."""
    z = torch.randn(2, 4, 5, 5)
    for levels in ([8, 5, 5, 5], [17] * 4):
        expected = ifsq.FSQ(levels, bound="tanh")(z).indices
        with torch.device("meta"):
            empty = ifsq.FSQ(levels, bound="tanh")
        assert torch.equal(empty.to_empty(device="cpu")(z).indices, expected)
        model = torch.nn.ModuleDict({"q": ifsq.FSQ(levels, bound="tanh"), "other": torch.nn.BatchNorm1d(1)})
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
        for _ in range(100):
            average.update_parameters(model)
        assert torch.equal(average.module["q"](z).indices, expected)
        assert torch.equal(ifsq.FSQ(levels, bound="tanh").half()(z).indices, expected)


def test_no_user_tensor_is_written_to():
    q = ifsq.FSQ([5, 5], validate=False)
    digits, codes = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, -1.0]])
    q.digits_to_codes(digits), q.codes_to_indices(codes)
    assert digits.tolist() == [[0.0, 1.0]]
    assert codes.tolist() == [[0.5, -1.0]]


def test_digits_of_the_cache_are_taken():
    """uint16 is the cache's type above 256 levels."""
    q = ifsq.FSQ([300] * 2, cells="equal")
    digits = torch.tensor([[1, 299]], dtype=torch.uint16)
    assert torch.equal(q.digits_to_codes(digits), q.digits_to_codes(digits.long()))
    assert torch.equal(q.digits_to_indices(digits), q.digits_to_indices(digits.long()))


@pytest.mark.parametrize("shape", [(0, 4), (2, 4, 0, 3)])
@pytest.mark.parametrize("bound", BOUNDS)
def test_an_empty_batch(shape, bound):
    q = ifsq.FSQ([9] * 4, bound=bound).train()
    before = {k: v.clone() for k, v in q.state_dict().items()}
    assert q(torch.empty(shape)).codes.shape == shape
    for key, value in q.state_dict().items():
        assert torch.equal(value, before[key])


def test_large_values_are_not_taken_for_infinite():
    z = torch.full((4, 2), 3e38)
    assert ifsq.FSQ([17] * 2)(z).digits.min() == 16


BAD = [
    (lambda: ifsq.FSQ(5), r"levels=5: expected a list of integers"),
    (lambda: ifsq.FSQ([5, 5], groups=2), r"groups=2: expected a list of integers"),
    (lambda: ifsq.FSQ([5], num_codebooks=2.0), r"num_codebooks=2.0: expected an integer of at least 1"),
    (lambda: ifsq.FSQ([5], dim=4.0), r"dim=4.0: expected an integer of at least 1"),
    (lambda: ifsq.FSQ([5], channel_axis="x"), r"channel_axis='x': expected an integer"),
    (lambda: ifsq.FSQ([2**26 + 1]), r"levels=\[67108865\]: expected at most 4194304, which float32 codes keep apart"),
    (lambda: ifsq.FSQ([5], force_quantization_f32=False), r"force_quantization_f32=False: expected True"),
    (lambda: ifsq.FSQ([5] * 2).quantize(torch.zeros(3, 4)), r"latents of shape \(3, 4\): expected a last axis of 2"),
    (
        lambda: ifsq.FSQ([5] * 2).quantize(torch.zeros(3, 2).long()),
        r"latents of dtype torch.int64: expected a floating",
    ),
    (lambda: ifsq.FSQ([5] * 2).quantize(torch.full((1, 2), math.nan)), r"latents of shape \(1, 2\) holds nan"),
    (
        lambda: ifsq.FSQ([5] * 2, num_codebooks=2, bound="learned").quantize(torch.zeros(1, 2)),
        r"num_codebooks=2 with bound='learned': expected one codebook",
    ),
    (
        lambda: ifsq.FSQ([5] * 2).codes_to_digits(torch.zeros(3, 4)),
        r"codes of shape \(3, 4\): expected a last axis of 2",
    ),
    (
        lambda: ifsq.FSQ([5] * 2, channel_axis=3).codes_to_indices(torch.zeros(3, 2)),
        r"codes of shape \(3, 2\): expected 2",
    ),
    (
        lambda: ifsq.FSQ([5] * 2, keep_num_codebooks_dim=True).indices_to_codes(torch.zeros(2, 3).long()),
        r"indices of shape \(2, 3\): expected an axis of 1 codebooks",
    ),
    (
        lambda: ifsq.FSQ([5] * 2, num_codebooks=2).indices_to_codes(torch.zeros(2, 3).long()),
        r"indices of shape \(2, 3\): expected an axis of 2 codebooks",
    ),
    (lambda: ifsq.FSQ([5] * 2, num_codebooks=2).indices_to_codes(torch.tensor(0)), r"indices of shape \(\): expected"),
    (lambda: ifsq.FSQ([9, 1]), r"levels=\[9, 1\]: expected a list of integers of at least 2"),
    (lambda: ifsq.FSQ([9.0]), r"levels=\[9.0\]: expected a list of integers"),
    (lambda: ifsq.FSQ([True, 9]), r"levels=\[True, 9\]: expected a list of integers"),
    (lambda: ifsq.FSQ([9] * 3, groups=[]), r"groups=\[\]: expected positive sizes that sum to the 3 levels"),
    (lambda: ifsq.FSQ([9] * 3, groups=[3, 0]), r"groups=\[3, 0\]"),
    (lambda: ifsq.FSQ([9], num_codebooks=0), r"num_codebooks=0: expected an integer of at least 1"),
    (lambda: ifsq.FSQ([9], dim=0), r"dim=0: expected an integer of at least 1"),
    (
        lambda: ifsq.FSQ([9], num_codebooks=2, keep_num_codebooks_dim=False),
        r"keep_num_codebooks_dim=False with num_codebooks=2",
    ),
    (lambda: ifsq.FSQ([9], cells="equal", preserve_symmetry=True), r"preserve_symmetry=True with cells='equal'"),
    (lambda: ifsq.FSQ([9], channel_first=True, channel_axis=2), r"channel_first=True with channel_axis=2"),
    (lambda: ifsq.FSQ([9], noise_dropout=1.5), r"noise_dropout=1.5: expected a rate from 0 to 1"),
    (lambda: ifsq.FSQ([9], quantization_dropout=-0.1), r"quantization_dropout=-0.1: expected a rate from 0 to 1"),
    (lambda: ifsq.FSQ([9], alpha=math.inf), r"alpha=inf: the slope of the ifsq bound must be a positive number"),
    (
        lambda: ifsq.FSQ([9], bound="sigmoid"),
        r"bound='sigmoid': expected one of tanh, ifsq, gaussian, clamp, standardized",
    ),
    (lambda: ifsq.FSQ([4, 9], bound="quantile"), r"paper cells with bound='quantile' need odd levels"),
    (lambda: ifsq.FSQ([9] * 2)(torch.zeros(2)), r"latent of shape \(2,\): expected 2 channels"),
    (lambda: ifsq.FSQ([9] * 2)(torch.zeros(3, 3)), r"latent of shape \(3, 3\): expected 2 channels on axis 1"),
    (
        lambda: ifsq.FSQ([9] * 2)(torch.zeros(1, 3, 2, 2)),
        r"latent of shape \(1, 3, 2, 2\): expected 2 channels on axis 1",
    ),
    (
        lambda: ifsq.FSQ([9] * 2)(torch.zeros(2, 2).long()),
        r"latent of dtype torch.int64: expected a floating point type",
    ),
    (lambda: ifsq.FSQ([9])(torch.tensor([[math.nan]])), r"latent of shape \(1, 1\) holds nan: expected finite values"),
    (lambda: ifsq.FSQ([9])(torch.tensor([[0.0], [-math.inf]])), r"latent of shape \(2, 1\) holds -inf"),
    (
        lambda: ifsq.FSQ([9] * 2).indices_to_codes(torch.tensor([[81]])),
        r"index 81 in indices of shape \(1, 1\): expected 0 to 80",
    ),
    (lambda: ifsq.FSQ([9] * 2).indices_to_codes(torch.tensor([[-3]])), r"index -3 in indices .*: expected 0 to 80"),
    (
        lambda: ifsq.FSQ([9] * 2).indices_to_codes(torch.tensor([[0.5]])),
        r"indices of dtype torch.float32: expected integers",
    ),
    (
        lambda: ifsq.FSQ([9] * 3, groups=[1, 2]).indices_to_codes(torch.tensor([[[9, 0]]])),
        r"index 9 in indices of shape \(1, 1, 2\): expected 0 to 8",
    ),
    (
        lambda: ifsq.FSQ([9] * 3, groups=[1, 2]).indices_to_digits(torch.tensor([[0, 1, 2]])),
        r"indices of shape \(1, 3\): expected a last axis of 2 groups",
    ),
    (
        lambda: ifsq.FSQ([9] * 2).digits_to_codes(torch.tensor([[0, 9]])),
        r"digit 9 in dimension 1 of .*: expected 0 to 8",
    ),
    (
        lambda: ifsq.FSQ([9] * 2).digits_to_indices(torch.tensor([[-1, 0]])),
        r"digit -1 in dimension 0 of .*: expected 0 to 8",
    ),
    (lambda: ifsq.FSQ([9] * 2).digits_to_indices(torch.tensor([[0.0, 0.0]])), r"digits of dtype torch.float32"),
    (
        lambda: ifsq.FSQ([9] * 2).digits_to_indices(torch.tensor([[0]])),
        r"digits of shape \(1, 1\): expected a last axis of 2",
    ),
    (
        lambda: ifsq.FSQ([9] * 2).codes_to_indices(torch.zeros(1, 3)),
        r"codes of shape \(1, 3\): expected 2 channels on axis 1",
    ),
    (lambda: ifsq.FSQ([9]).codes_to_indices(torch.tensor([[math.nan]])), r"codes of shape \(1, 1\) holds nan"),
    (
        lambda: ifsq.FSQ([17] * 16).digits_to_indices(torch.zeros(1, 16).long()),
        r"a group of 48661191875666868481 codes has no index: more than 2\*\*63 do not fit an int64; use digits, or",
    ),
    (lambda: ifsq.FSQ([17] * 16).indices_to_digits(torch.zeros(1).long()), r"has no index"),
    (lambda: check_digits(torch.zeros(3).long(), [9, 9]), r"digits of shape \(3,\): expected a last axis of 2 digits"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
