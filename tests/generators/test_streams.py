"""Random numbers of images: a second implementation of Philox, distributions; one seed, one image, for every kind."""

import numpy as np
import pytest
import torch

from ifsq.codes.spec import CodeSpec
from ifsq.generators.ar import ARConfig, ARGenerator
from ifsq.generators.diffusion import DiffusionGenerator, DiTConfig
from ifsq.generators.masked import MaskedConfig, MaskedGenerator
from ifsq.generators.streams import Normals, choices, gumbels, normals, uniforms

SPEC = CodeSpec((5, 9), (1, 1), "little", "equal", (4, 2))
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2])
WORD = 2**64 - 1


def philox(key, block):
    """Four words of Philox4x64-10, as the paper of Salmon et al. has it (figure 2 and its constants)."""
    words, (low, high) = [block, 0, 0, 0], key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [(second >> 64) ^ words[1] ^ low, second & WORD, (first >> 64) ^ words[3] ^ high, first & WORD]
        low, high = (low + 0x9E3779B97F4A7C15) & WORD, (high + 0xBB67AE8584CAA73B) & WORD
    return words


def make(kind):
    torch.manual_seed(0)
    if kind == "ar":
        model = ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=8), SPEC, num_classes=3)
    elif kind == "masked":
        model = MaskedGenerator(MaskedConfig(1, 16, 2, mlp_multiple_of=8), SPEC, num_classes=3)
    else:
        model = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2), SPEC, num_classes=3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1 if kind == "diffusion" else 0.3)
    return model


def test_numbers_are_those_of_philox_under_seed_and_image_number():
    words = [word for block in (1, 2) for word in philox((7, 41), block)]
    assert uniforms(7, 40, 3, 8)[1].tolist() == [(word >> 40) / 2**24 for word in words]


def test_rows_of_an_image_share_no_number():
    """Row 2 of 5 numbers begins at the fifth block."""
    words = [word for block in (5, 6) for word in philox((7, 41), block)][:5]
    assert uniforms(7, 40, 3, 5, place=2)[1].tolist() == [(word >> 40) / 2**24 for word in words]


def test_numbers_of_an_image_are_its_own():
    whole = normals(7, 0, 6, 9)
    assert torch.equal(normals(7, 4, 2, 9), whole[4:])
    assert torch.equal(normals(7, 4, 1, 5), whole[4:5, :5])
    assert not torch.equal(normals(8, 0, 6, 9), whole)
    assert len(whole.unique()) == whole.numel()


def test_choices_of_an_image_are_its_own_and_even():
    drawn = choices(3, 60_000, 10)
    assert torch.equal(choices(3, 40, 10), drawn[:40])
    assert not torch.equal(choices(4, 40, 10), drawn[:40])
    assert (drawn.bincount(minlength=10) / 60_000 - 0.1).abs().max() < 0.005  # 4 standard deviations
    assert choices(3, 40, 1).tolist() == [0] * 40
    word = np.random.Philox(key=np.array([3, 2**63], np.uint64)).random_raw(1)[0]
    assert int(drawn[0]) == int(word >> 24) * 10 // 2**40  # no stream of an image: these end at 2**63 - 1


def test_seeds_that_differ_above_32_bits_differ():
    assert not torch.equal(uniforms(5, 0, 1, 4), uniforms(5 + 2**32, 0, 1, 4))
    assert not torch.equal(uniforms(5, 3, 1, 4), uniforms(3, 5, 1, 4))


def test_distributions():
    even, bell = uniforms(0, 0, 400, 500).flatten(), normals(0, 0, 400, 500).flatten()
    assert 0 <= even.min() < 1e-4 < 1 - 1e-4 < even.max() < 1
    assert torch.histc(even, 10, 0, 1).div(len(even)).sub(0.1).abs().max() < 0.003
    deviation = bell.sort().values - torch.special.ndtri((torch.arange(len(bell)) + 0.5).double() / len(bell)).float()
    assert deviation[1000:-1000].abs().max() < 0.02
    rows = normals(0, 0, 400, 500)
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.25  # of independent rows: 0.045 standard deviation


@pytest.mark.parametrize("kind", ["ar", "diffusion", "masked"])
@pytest.mark.parametrize("options", [{}, {"guidance": 2.5}])
def test_an_image_is_the_same_in_whatever_batch(kind, options):
    model = make(kind)
    whole = model.sample(LABELS, seed=9, **options).indices
    parts = [model.sample(LABELS[a:b], seed=9, first=a, **options).indices for a, b in ((0, 1), (1, 4), (4, 7))]
    assert torch.equal(torch.cat(parts), whole)
    others = torch.cat([LABELS[:3], 2 - LABELS[3:]])
    assert torch.equal(model.sample(others, seed=9, **options).indices[:3], whole[:3])


@pytest.mark.parametrize("kind", ["ar", "diffusion", "masked"])
def test_images_of_one_label_differ(kind):
    drawn = make(kind).sample(torch.zeros(20, dtype=torch.int64), seed=1).indices.flatten(1)
    assert len(drawn.unique(dim=0)) == 20


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", 2**63), ("first", -1)])
def test_numbers_that_no_image_has_are_refused(name, value):
    for kind in ("ar", "diffusion", "masked"):
        with pytest.raises(ValueError, match=f"{name}={value}: expected 0 to"):
            make(kind).sample(LABELS, **{name: value})


@pytest.mark.parametrize(
    ("kind", "options"),
    [("ar", {}), ("ar", {"top_p": 0.9}), ("ar", {"top_k": 2, "noise": "gumbel"}), ("diffusion", {}), ("masked", {})],
)
def test_weights_that_are_not_numbers_draw_nothing(kind, options):
    model = make(kind)
    with torch.no_grad():
        next(model.parameters())[:] = torch.nan
    with pytest.raises(ValueError, match=r"are not finite numbers: expected finite weights"):
        model.sample(LABELS, **options)


@pytest.mark.parametrize(
    ("kind", "options"), [("ar", {}), ("ar", {"guidance": 2.0, "parallel": 4}), ("diffusion", {}), ("masked", {})]
)
def test_no_labels_give_no_images(kind, options):
    model = make(kind)
    none, one = (model.sample(LABELS[:count], **options) for count in (0, 1))
    assert none.codes.shape == (0, *one.codes.shape[1:])
    if kind != "diffusion":
        assert none.indices.shape == (0, *one.indices.shape[1:])


def test_gumbel_numbers_are_rows_of_the_stream():
    """Row 2 of 5 numbers begins at the fifth block: rows of 5 take two blocks each; three words stay unused."""
    words = [word for block in (5, 6) for word in philox((7, 3), block)][:5]
    levels = [((word >> 12) + 0.5) * 2.0**-52 for word in words]
    expected = torch.tensor([-np.log(-np.log(level)) for level in levels], dtype=torch.float32)
    assert torch.allclose(gumbels(7, 3, 1, 2, 5)[0], expected, rtol=1e-6)
    assert torch.equal(gumbels(7, 2, 3, 2, 5)[1], gumbels(7, 3, 1, 2, 5)[0])


def test_gumbel_numbers_are_finite_at_both_ends_of_the_stream(monkeypatch):
    ends = np.array([[0, 2**64 - 1]], np.uint64)
    monkeypatch.setattr("ifsq.generators.streams._words", lambda *_: ends)
    least, most = gumbels(0, 0, 1, 0, 2)[0].tolist()
    assert least == pytest.approx(-np.log(53 * np.log(2)))
    assert most == pytest.approx(53 * np.log(2))


def test_gumbel_numbers_follow_their_law():
    drawn = gumbels(0, 0, 4, 0, 50000).flatten().double()
    assert abs(drawn.mean() - 0.57722) < 0.01
    assert abs(drawn.var() - np.pi**2 / 6) < 0.03
    for x in (-1.0, 0.0, 1.0, 4.0):
        assert abs((drawn <= x).double().mean() - np.exp(-np.exp(-x))) < 0.004


def test_a_stream_read_in_parts_is_the_whole():
    whole, parts = normals(3, 5, 2, 11), Normals(3, 5, 2)
    assert torch.equal(torch.cat([parts(4), parts(1), parts(6)], dim=1), whole)
    with pytest.raises(ValueError, match="seed=-1: expected"):
        Normals(-1, 0, 2)
