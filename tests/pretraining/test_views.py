"""Views: where they are taken, and that the same place is found in two of them; Barlow Twins in closed form."""

import pytest
import torch

from ifsq.pretraining.train import barlow_twins
from ifsq.pretraining.views import Frame, common_places, draw_frames, features_at, recolour, take


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def coordinates(count, side):
    """An image whose channels are its own coordinates, (x, y), at the centres of pixels."""
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    return torch.stack([centres.expand(side, side), centres[:, None].expand(side, side)]).expand(count, 2, side, side)


def test_a_view_of_all_is_the_image_and_a_mirrored_one_is_mirrored():
    images = torch.rand(2, 3, 8, 8, generator=rng())
    whole = Frame(torch.zeros(2, 2), torch.ones(2, 2))
    torch.testing.assert_close(take(images, whole), images)
    mirrored = Frame(torch.zeros(2, 2), torch.tensor([[-1.0, 1.0]] * 2))
    torch.testing.assert_close(take(images, mirrored), images.flip(3))


def test_frames_lie_inside_and_have_both_directions():
    frames = draw_frames(500, 0.5, rng())
    assert (frames.centre.abs() + frames.half.abs()).max() <= 1 + 1e-6
    assert frames.half.abs().min() >= 0.5
    assert frames.half[:, 0].abs().equal(frames.half[:, 1])
    assert 0.4 < float((frames.half[:, 0] < 0).float().mean()) < 0.6


def test_the_same_place_is_found_in_both_views():
    images, one, two = coordinates(20, 64), draw_frames(20, 0.5, rng(1)), draw_frames(20, 0.5, rng(2))
    places = common_places(one, two, 30, rng(3))
    for frame in (one, two):
        inside = frame.inside(places)
        assert inside.abs().max() <= 1 + 1e-5
        found = features_at(take(images, frame), inside)
        torch.testing.assert_close(found, places, atol=2 / 64, rtol=0)  # within a pixel, at the borders too
        middle = inside.abs().amax(dim=2) < 0.9
        torch.testing.assert_close(found[middle], places[middle], atol=1e-4, rtol=0)


def test_random_numbers_are_those_of_the_generator():
    images = torch.rand(2, 3, 8, 8, generator=rng())
    assert recolour(images, 0.4, 0.1, rng(5)).equal(recolour(images, 0.4, 0.1, rng(5)))
    assert recolour(images, 0.0, 0.0, rng(5)).sub(images).abs().max() < 1e-5
    one, two = draw_frames(3, 0.5, rng(5)), draw_frames(3, 0.5, rng(5))
    assert one.half.equal(two.half)


def test_barlow_twins_equals_a_second_implementation():
    one, two = torch.randn(50, 4, generator=rng(1)), torch.randn(50, 4, generator=rng(2))
    two = two * 0.3 + one
    found = barlow_twins(one, two, 0.2)
    both = torch.corrcoef(torch.cat([one, two], 1).double().T)[:4, 4:]
    alike = sum((1 - float(both[i, i])) ** 2 for i in range(4)) / 4
    redundant = sum(float(both[i, j]) ** 2 for i in range(4) for j in range(4) if i != j) / 4
    assert float(found["unlike_views"]) == pytest.approx(alike, rel=1e-2)  # but for `MARGIN`
    assert float(found["redundant"]) == pytest.approx(redundant, rel=1e-2)
    assert float(found["loss"]) == pytest.approx(float(found["unlike_views"]) + 0.2 * float(found["redundant"]))


def test_barlow_twins_of_what_it_asks_for_is_zero_and_of_a_collapse_is_not():
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])  # uncorrelated
    assert float(barlow_twins(signs, 3 * signs + 1, 1.0)["loss"]) == pytest.approx(0, abs=1e-6)
    constant = torch.ones(4, 2)
    assert float(barlow_twins(constant, constant, 1.0)["loss"]) == 1
    repeated = signs[:, :1].expand(-1, 3)  # one feature three times
    assert float(barlow_twins(repeated, repeated, 0.5)["loss"]) == pytest.approx(0.5 * 6 / 3, rel=1e-3)
    single = barlow_twins(constant[:1], constant[:1], 1.0)  # what is left of a batch of unreadable images
    assert float(single["loss"]) == 1


def test_barlow_twins_is_float32_under_autocast():
    one = torch.randn(8, 4, generator=rng()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert barlow_twins(one, one, 0.1)["loss"].dtype == torch.float32
