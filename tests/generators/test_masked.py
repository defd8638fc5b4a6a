"""The masked generator: its bound by enumeration, by quadrature over time and in training; what it sees; options."""

import copy
from itertools import pairwise, permutations, product

import numpy as np
import pytest
import torch
from oracles import TOY, all_images, exact_conditionals, log_likelihood, table
from torch import nn

from ifsq.codes import CodeBatch, CodeSpec, LatentSpec
from ifsq.generators import MaskedGenerator
from ifsq.generators.masked import MaskedConfig
from ifsq.generators.masked.bound import BoundOptions
from ifsq.generators.masked.schedule import SCHEDULES, bound_weights, hidden_numbers, hidden_share, left_after

EXACT = BoundOptions(draws=0)


def make(spec=TOY, **options):
    """A network with weights that say something."""
    torch.manual_seed(0)
    model = MaskedGenerator(MaskedConfig(1, 16, 2, mlp_multiple_of=16, **options), spec, 2)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def of_order(model, batch, order):
    """-log p of images whose digits are revealed one by one in an order, by as many evaluations."""
    digits = batch.content.flatten(1, 2)
    hidden, total = torch.ones_like(digits, dtype=torch.bool), 0
    for unit in order:
        place = divmod(unit, digits.shape[2])
        with torch.no_grad():
            logits = model.logits(digits, hidden, batch.labels)[place[1]][:, place[0]]
        total = total + nn.functional.cross_entropy(logits, digits[:, *place], reduction="none").double()
        hidden[:, *place] = False
    return total


def test_with_exact_conditionals_the_bound_is_the_likelihood():
    """Of any distribution: the network that knows its conditionals, in whatever order."""
    known, images = table(0), all_images()
    model = exact_conditionals(make(), known)
    torch.testing.assert_close(model.bound(images, EXACT).nats, -log_likelihood(known, images), atol=1e-5, rtol=0)
    estimate = model.bound(images, BoundOptions(64))
    assert (estimate.error > 0).all()
    assert ((estimate.nats + log_likelihood(known, images)).abs() < 5 * estimate.error).all()


def test_positions_whose_digits_are_revealed_together_cost_what_they_say_of_each_other():
    known, images = table(0), all_images()
    gap = exact_conditionals(make(mask="position"), known).bound(images, EXACT).nats + log_likelihood(known, images)
    chances = log_likelihood(known, images).exp()
    for label in range(2):
        of_class = images.labels == label
        assert (gap * chances)[of_class].sum() > 0.01  # a divergence
    alone = table(0, independent=True)
    model = exact_conditionals(make(mask="position"), alone)
    torch.testing.assert_close(model.bound(images, EXACT).nats, -log_likelihood(alone, images), atol=1e-5, rtol=0)


def test_the_bound_is_the_mean_over_all_orders_and_holds_for_their_mixture():
    model, images = make().eval(), all_images()
    orders = torch.stack([of_order(model, images, order) for order in permutations(range(4))])
    found = model.bound(images, EXACT).nats
    torch.testing.assert_close(found, orders.mean(dim=0), atol=1e-5, rtol=0)
    mixture = orders.neg().exp().mean(dim=0)
    torch.testing.assert_close(mixture.view(2, -1).sum(dim=1), torch.ones(2, dtype=torch.float64))
    assert (found + mixture.log() > 1e-4).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_integral_over_time_is_the_same_bound(schedule):
    """Of masked diffusion, each digit hidden by itself, by Gauss and Legendre: -m'/m times the cross-entropy."""
    model, images = make().eval(), all_images()
    digits = images.content.flatten(1, 2)
    points, weights = np.polynomial.legendre.leggauss(24)
    total = 0
    for hidden in product((False, True), repeat=4):
        if not any(hidden):
            continue
        mask = torch.tensor(hidden).view(1, 2, 2).expand(len(digits), 2, 2)
        integral = 0.0
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            m, step = hidden_share(schedule, point), 1e-6
            slope = (hidden_share(schedule, point + step) - hidden_share(schedule, point - step)) / (2 * step)
            integral += weight * -slope / m * m ** sum(hidden) * (1 - m) ** (4 - sum(hidden))
        with torch.no_grad():
            total = total + integral * model.nats(digits, mask, images.labels).double()
    torch.testing.assert_close(total, model.bound(images, EXACT).nats, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask", ["digit", "position"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_loss_is_an_estimate_of_the_bound(mask, schedule):
    model = make(mask=mask, schedule=schedule, label_dropout=0.0)
    one = all_images().content[40:41], torch.tensor([1])
    batch = CodeBatch(TOY, one[0].expand(6000, -1, -1, -1), one[1].expand(6000))
    expected = model.bound(CodeBatch(TOY, *one), EXACT).nats.item()
    with torch.no_grad():
        losses = model.train().loss(batch, torch.Generator().manual_seed(1))
    assert float(losses["loss"]) * TOY.tokens == pytest.approx(expected, rel=0.03)
    assert float(losses["bits_per_image"]) == pytest.approx(float(losses["loss"]) * TOY.tokens / np.log(2), rel=1e-5)


@pytest.mark.parametrize("units", [1, 5, 64])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_numbers_of_hidden_digits_follow_the_schedule(schedule, units):
    times = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    numbers = hidden_numbers(schedule, times, units)
    shares = numbers.bincount(minlength=units + 1)[1:] / len(times)
    torch.testing.assert_close(
        shares.double() * torch.arange(1, units + 1), 1 / bound_weights(schedule, units), atol=2e-3, rtol=0
    )
    assert numbers[0] == units
    assert hidden_numbers(schedule, torch.tensor([0.0, 1.0]), units).tolist() == [units, 0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_round_reveals_something_and_the_last_all(schedule):
    for units in (1, 2, 7, 30):
        for rounds in range(1, units + 1):
            left = [units, *left_after(schedule, rounds, units)]
            assert (len(left), left[-1]) == (rounds + 1, 0)
            assert all(later < before for before, later in pairwise(left))
    assert left_after("linear", 4, 8) == [6, 4, 2, 0]
    assert left_after("linear", 10, 100) == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert left_after("cosine", 4, 100) == [92, 70, 38, 0]


def test_a_step_spreads_the_numbers_of_hidden_digits_evenly_over_its_images():
    """In a batch of as many images as there are digits each number of them is hidden once."""
    model, images = make().train(), all_images()
    four = CodeBatch(TOY, images.content[:4], images.labels[:4])
    seen, plain = [], model.nats
    model.nats = lambda digits, hidden, *more: seen.append(hidden) or plain(digits, hidden, *more)
    for seed in range(5):
        model.loss(four, torch.Generator().manual_seed(seed))
    assert [sorted(hidden.sum(dim=(1, 2)).tolist()) for hidden in seen] == [[1, 2, 3, 4]] * 5


@pytest.mark.parametrize("options", [{}, {"label_dropout": 0.0}])
def test_labels_are_dropped_in_training_alone(options):
    model, images, seen = make(**options), all_images(), []
    plain = model.nats
    model.nats = lambda digits, hidden, labels, *more: seen.append(labels) or plain(digits, hidden, labels, *more)
    many = CodeBatch(TOY, images.content.repeat(10, 1, 1, 1), images.labels.repeat(10))
    with torch.no_grad():
        model.train().loss(many, torch.Generator().manual_seed(0))
        model.eval().loss(many, torch.Generator().manual_seed(0))
        model.train().bound(many, BoundOptions(2))
    share = model.config.label_dropout
    assert float((seen[0] == 2).float().mean()) == pytest.approx(share, abs=0.02)
    assert all(torch.equal(labels, many.labels) for labels in seen[1:])


def test_an_estimate_is_of_the_image_and_its_number_alone():
    model, images = make().eval(), all_images()
    whole = model.nll(images)
    part = CodeBatch(TOY, images.content[50:60], images.labels[50:60])
    torch.testing.assert_close(model.nll(part, first=50), whole[50:60])
    assert not torch.allclose(model.nll(part), whole[50:60])
    assert not torch.allclose(model.bound(images, BoundOptions(), seed=1).nats, whole)


def test_a_hidden_digit_is_not_read_and_all_that_is_known_is():
    model, images = make(label_dropout=0.0).eval(), all_images()
    digits, labels = images.content.flatten(1, 2)[:1], images.labels[:1]
    hidden = torch.tensor([[[True, False], [False, False]]])
    told = model.logits(digits, hidden, labels)[0][0, 0]
    for place in product(range(2), range(2)):
        changed = digits.clone()
        changed[:, *place] = 2 - changed[:, *place]
        again = model.logits(changed, hidden, labels)[0][0, 0]
        assert torch.equal(again, told) == (place == (0, 0)), place
    assert not torch.equal(model.logits(digits, hidden, 1 - labels)[0][0, 0], told)


def test_states_with_more_known_hide_a_part_of_the_same_digits():
    """What averaged weights look at, and what is analysed at a time."""
    model, images = make(label_dropout=0.5), all_images()
    seen = []
    plain = model.states
    model.states = lambda digits, hidden, *more, **options: (
        seen.append((hidden, more[0])) or plain(digits, hidden, *more, **options)
    )
    model.hidden(images, 1, torch.Generator().manual_seed(3))
    model.eval().hidden(images, 1, torch.Generator().manual_seed(3), cleaner=0.5)
    (hidden, dropped), (cleaner, labels) = seen
    assert (cleaner <= hidden).all()
    assert cleaner.sum() < hidden.sum()
    assert torch.equal(labels, images.labels)
    assert (dropped == 2).any()
    seen.clear()
    for time in (0.0, 0.25, 1.0):
        model.states_at(images, (1,), time, seed=4)
    assert [int(hidden.sum(dim=(1, 2)).unique()) for hidden, _ in seen] == [4, 3, 0]


def test_a_codebook_is_one_digit():
    spec = CodeSpec((40,), (1,), "little", "codebook", (2, 2))
    model = make(spec)
    batch = CodeBatch(spec, torch.arange(8).view(2, 2, 2, 1), torch.tensor([0, 1]))
    assert model.nll(batch).shape == (2,)
    drawn = model.sample(batch.labels, rounds=2)
    assert drawn.codes is None
    assert drawn.indices.shape == (2, 2, 2, 1)


def test_what_it_cannot_model_is_refused():
    with pytest.raises(ValueError, match="latents of 4 channels have no digits: expected digits"):
        make(LatentSpec(4, (2, 2)))
    with pytest.raises(ValueError, match="a digit of 2097152 levels: expected at most 1048576"):
        make(CodeSpec((2**21,), (1,), "little", "codebook", (2, 2)))
    model = make(CodeSpec((3, 3), (2,), "little", "equal", (4, 4)))
    batch = CodeBatch(model.spec, torch.zeros(1, 4, 4, 2, dtype=torch.int64), torch.tensor([0]))
    with pytest.raises(ValueError, match="draws=0: 32 digits or positions have too many sets; expected at most 12"):
        model.bound(batch, EXACT)
    latents = CodeBatch(LatentSpec(4, (4, 4)), torch.zeros(1, 4, 4, 4), torch.tensor([0]))
    with pytest.raises(ValueError, match="latents of 4 channels have no digits: expected digits"):
        model.nll(latents)


@pytest.mark.parametrize(
    ("make_options", "told"),
    [
        (lambda: MaskedConfig(1, 16, 2, mask="row"), "mask='row': expected one of digit, position"),
        (lambda: MaskedConfig(1, 16, 2, schedule="square"), "schedule='square': expected one of linear, cosine"),
        (lambda: MaskedConfig(1, 16, 3), "width=16: expected a positive multiple of heads=3"),
        (lambda: BoundOptions(3), r"draws=3: expected 0 \(all sets\) or an even number"),
        (lambda: BoundOptions(-2), "draws=-2"),
    ],
)
def test_options_that_are_refused(make_options, told):
    with pytest.raises(ValueError, match=told):
        make_options()


def test_a_copy_is_the_same(tmp_path):
    model = make(adaln=True, class_tokens=2, kv_heads=1, qk_norm=True).eval()
    model.save_pretrained(tmp_path / "saved")
    again = MaskedGenerator.from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    assert torch.equal(again.nll(all_images()), copy.deepcopy(model).nll(all_images()))
