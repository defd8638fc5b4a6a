"""Sampling of the masked generator: its distribution, rounds, order, guidance, and what is refused."""

from itertools import pairwise

import pytest
import torch
from oracles import STATES, TOY, exact_conditionals, table

from ifsq.codes import CodeSpec
from ifsq.config import InputError
from ifsq.generators import MaskedGenerator
from ifsq.generators.masked import MaskedConfig, MaskedSampling

COUNT = 6_000


def make(spec=TOY, **options):
    torch.manual_seed(0)
    model = MaskedGenerator(MaskedConfig(1, 16, 2, mlp_multiple_of=16, **options), spec, 2)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def frequencies(model, **options):
    """Of the 81 images among those drawn of class 1."""
    drawn = model.sample(torch.ones(COUNT, dtype=torch.int64), seed=5, **options)
    digits = TOY.indices_to_digits(drawn.indices)
    torch.testing.assert_close(drawn.codes, TOY.digits_to_codes(digits))
    places = (digits.reshape(COUNT, 4) * torch.tensor([27, 9, 3, 1])).sum(dim=1)
    return places.bincount(minlength=len(STATES)) / COUNT


def test_one_digit_a_round_in_random_order_draws_the_distribution():
    known = table(0)
    model = exact_conditionals(make(), known)
    found, expected = frequencies(model, rounds=4, order="random"), known[1]
    chi = float((COUNT * (found - expected) ** 2 / expected).sum())
    assert chi < 125  # of 80 degrees of freedom: one in a thousand
    fewer = float((COUNT * (frequencies(model, rounds=1) - expected) ** 2 / expected).sum())
    assert fewer > 500  # each digit by its own


def test_one_round_draws_each_digit_by_its_own_distribution():
    known = table(0)
    found = frequencies(exact_conditionals(make(), known), rounds=1).double()
    for k in range(4):
        for level in range(3):
            of_level = (STATES[:, k] == level).double()
            assert float(found @ of_level) == pytest.approx(float(known[1] @ of_level), abs=0.025)


def test_confidence_reveals_the_surest_first():
    """Without noise, and with the most likely levels: those of the first rounds are the surest of what was hidden."""
    model, seen = make(), []
    plain = model.logits

    def logits(digits, hidden, labels):
        found = plain(digits, hidden, labels)
        seen.append((hidden.clone(), torch.stack(found, dim=2).softmax(dim=-1).amax(dim=-1)))
        return found

    model.logits = logits
    model.sample(torch.tensor([0]), rounds=4, order="confidence", confidence_noise=0.0, temperature=1e-9)
    for (hidden, sure), (later, _) in pairwise(seen):
        new = (hidden & ~later).flatten()
        assert int(new.sum()) == 1
        # Under a temperature of nothing all are certain: of equal ones the first.
        assert int(new.nonzero()[0, 0]) == int(hidden.flatten().nonzero()[0, 0])
        assert sure.shape == hidden.shape
    seen.clear()
    model.sample(torch.tensor([0]), rounds=4, order="confidence", confidence_noise=0.0)
    assert [int(hidden.sum()) for hidden, _ in seen] == [4, 3, 2, 1]


def test_most_confidence_is_of_what_was_drawn():
    model = make()
    sharp = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, 3.0]])  # the second digit of each position is less sure

    model.logits = lambda digits, hidden, labels: [row.expand(len(digits), 2, 3) for row in sharp]
    seen = []
    plain = model.logits
    model.logits = lambda digits, hidden, labels: seen.append(hidden) or plain(digits, hidden, labels)
    model.sample(
        torch.zeros(50, dtype=torch.int64), rounds=2, schedule="linear", order="confidence", confidence_noise=0.0
    )
    assert seen[1][:, :, 0].float().mean() < 0.05
    assert seen[1][:, :, 1].float().mean() > 0.95


def test_positions_are_revealed_whole():
    model, seen = make(CodeSpec((3, 3), (1, 1), "little", "equal", (2, 2)), mask="position"), []
    plain = model.logits
    model.logits = lambda digits, hidden, labels: seen.append(hidden) or plain(digits, hidden, labels)
    for order in ("confidence", "random"):
        model.sample(torch.tensor([0, 1]), rounds=4, order=order, schedule="linear")
    assert all(torch.equal(hidden[..., 0], hidden[..., 1]) for hidden in seen)
    assert [int(hidden[:, :, 0].sum(dim=1).unique()) for hidden in seen] == [4, 3, 2, 1] * 2


@pytest.mark.parametrize(("options", "rows"), [({}, [2, 3, 3]), ({"guidance": 3.0}, [4, 6, 6])])
def test_the_cost_is_what_the_network_is_asked_for(options, rows):
    """The first round asks for a class once, whatever the number of its images."""
    model, seen = make(), []
    plain = model.logits
    model.logits = lambda digits, hidden, labels: seen.append(len(labels)) or plain(digits, hidden, labels)
    model.sample(torch.tensor([1, 0, 1]), rounds=3, **options)
    assert seen == rows
    assert model.cost(MaskedSampling(rounds=3, **options)) == sum(count // 3 or 1 for count in rows) + (
        len(options) > 0
    )


def test_guidance_is_that_of_the_logits():
    """Far from the null class; the last rounds of an interval are those of the class alone."""
    model = make()
    labels = torch.zeros(200, dtype=torch.int64)
    told = {s: model.sample(labels, rounds=2, guidance=s, seed=1).indices for s in (1.0, 4.0)}
    assert not torch.equal(told[1.0], told[4.0])
    assert torch.equal(model.sample(labels, rounds=2, guidance=4.0, guidance_interval=0, seed=1).indices, told[1.0])
    assert torch.equal(model.sample(labels, rounds=2, guidance=4.0, guidance_interval=9, seed=1).indices, told[4.0])
    with torch.no_grad():
        model.cls_embedding.embedding_table.weight[2] = model.cls_embedding.embedding_table.weight[0]
    assert torch.equal(model.sample(labels, rounds=2, guidance=4.0, seed=1).indices, told[1.0])
    assert model.sample(labels, rounds=2, guidance=1e38, seed=1).indices.shape == (200, 1, 2, 1)
    assert model.cost(MaskedSampling(4.0, rounds=4, guidance_interval=1)) == 5


def test_a_temperature_of_nothing_draws_the_most_likely():
    model = make()
    model.logits = lambda digits, hidden, labels: [torch.tensor([0.0, 1.0, 0.5]).expand(len(digits), 2, 3)] * 2
    drawn = TOY.indices_to_digits(model.sample(torch.tensor([0, 1]), rounds=2, temperature=1e-30).indices)
    assert (drawn == 1).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rounds": 0}, "rounds=0: expected at least 1"),
        ({"rounds": 5}, "rounds=5: expected at most 4, the digits of an image"),
        ({"schedule": "square"}, "schedule='square': expected one of linear, cosine"),
        ({"order": "raster"}, "order='raster': expected one of random, confidence"),
        ({"confidence_noise": -1.0}, "confidence_noise=-1.0: expected a number of at least 0"),
        ({"confidence_noise": float("nan")}, "confidence_noise=nan"),
        ({"temperature": 0.0}, "temperature=0.0: expected a positive number"),
        ({"guidance_interval": -1}, "guidance_interval=-1: expected None or a count of rounds"),
        ({"guidance": -1.0}, "guidance=-1.0: expected a number of at least 0"),
    ],
)
def test_options_that_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        make().sample(torch.tensor([0]), **{"rounds": 2, **options})


def test_rounds_of_positions_are_counted_in_positions():
    with pytest.raises(ValueError, match="rounds=3: expected at most 2, the positions of an image"):
        make(mask="position").sample(torch.tensor([0]), rounds=3)


def test_a_card_says_how_it_was_sampled():
    assert MaskedSampling(order="confidence").sampler == (
        "rounds 8, schedule cosine, order confidence, confidence_noise 1.0, temperature 1.0"
    )
    assert "confidence_noise" not in MaskedSampling(order="random").sampler


def test_the_noise_of_confidence_falls_to_nothing_and_however_much_of_it_all_is_revealed():
    """As many digits are revealed as the schedule says; without limit the order is that of the noise alone."""
    model, seen = make(), []
    plain = model.logits
    model.logits = lambda digits, hidden, labels: seen.append(hidden) or plain(digits, hidden, labels)
    labels = torch.arange(300) % 2
    for noise in (0.0, 1.0, 1e300):
        model.sample(labels, rounds=4, order="confidence", confidence_noise=noise)
    counts = [hidden.sum(dim=(1, 2)).unique().tolist() for hidden in seen]
    assert counts == [[4], [3], [2], [1]] * 3
    assert not torch.equal(seen[2], seen[6])
    assert not torch.equal(seen[6], seen[10])
    first = (~seen[9]).flatten(1).float().mean(dim=0)
    assert first.tolist() == pytest.approx([0.25] * 4, abs=0.08)


def asked_of(model, rows):
    """What is hidden and known in each round of a network that gives each digit of a position these logits."""
    seen = []
    model.logits = lambda digits, hidden, labels: (
        seen.append((digits, hidden)) or [row.expand(len(digits), 2, 3) for row in rows]
    )
    return seen


def test_noise_of_confidence_is_gumbels():
    """Of weight 1 in the first round: a digit is revealed as often as its probability says (the Gumbel-max trick)."""
    model = make()
    seen = asked_of(model, (torch.tensor([0.0, 0.0, 40.0]), torch.zeros(3)))  # probabilities 1 and 1/3
    labels = torch.zeros(4000, dtype=torch.int64)
    model.sample(labels, rounds=4, schedule="linear", order="confidence", confidence_noise=4 / 3)
    assert float((~seen[1][1][:, :, 0]).float().sum(dim=1).mean()) == pytest.approx(0.75, abs=0.02)


def test_confidence_is_of_what_was_drawn_not_of_the_most_likely():
    model = make()
    seen = asked_of(model, [torch.tensor([3.0, 0.0, 0.0])] * 2)
    labels = torch.zeros(500, dtype=torch.int64)
    model.sample(labels, rounds=2, schedule="linear", order="confidence", confidence_noise=0.0)
    digits, hidden = seen[1]
    assert float((digits[~hidden] == 0).float().mean()) > 0.97  # of all that are drawn .91


def test_what_is_revealed_stays():
    model = make()
    seen = asked_of(model, [torch.zeros(3)] * 2)
    drawn = TOY.indices_to_digits(model.sample(torch.zeros(50, dtype=torch.int64), rounds=4).indices).flatten(1, 2)
    for digits, hidden in seen[1:]:
        assert torch.equal(digits[~hidden], drawn[~hidden])


def test_guided_logits_are_those_of_the_formula():
    """Scales below and above 1: what is drawn first is drawn from ``null + scale (class - null)``."""
    model = make()
    told, null = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.5, 0.5, -1.0])
    model.logits = lambda digits, hidden, labels: (
        [torch.where((labels == 2)[:, None, None], null, told).expand(-1, 2, 3)] * 2
    )
    labels = torch.ones(3000, dtype=torch.int64)
    for scale in (0.0, 0.5, 3.0):
        digits = TOY.indices_to_digits(model.sample(labels, rounds=1, guidance=scale).indices)
        found = digits.flatten().bincount(minlength=3) / digits.numel()
        assert found.tolist() == pytest.approx((null + scale * (told - null)).softmax(dim=0).tolist(), abs=0.02)


def test_the_first_rounds_of_an_interval_are_guided():
    model, asked = make(), []
    plain = model.logits
    model.logits = lambda digits, hidden, labels: (
        asked.append((labels == 2).any().item()) or plain(digits, hidden, labels)
    )
    model.sample(torch.tensor([0, 1]), rounds=4, guidance=3.0, guidance_interval=2)
    assert asked == [True, True, False, False]


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_an_image_is_of_its_number_and_label_alone(order):
    model, labels = make(), torch.tensor([1, 0, 0, 1, 1, 0])
    whole = model.sample(labels, seed=7, rounds=3, guidance=2.0, order=order).indices
    parts = [
        model.sample(labels[rows], seed=7, first=rows[0], rounds=3, guidance=2.0, order=order).indices
        for rows in ([0], [1, 2, 3], [4, 5])
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(model.sample(labels, seed=7, first=6, rounds=3, guidance=2.0, order=order).indices, whole)


def test_logits_that_are_no_numbers_are_refused():
    model = make()
    with torch.no_grad():
        model.output[1].weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="the logits are not finite numbers: expected finite weights"):
        model.sample(torch.tensor([0]), rounds=2)
