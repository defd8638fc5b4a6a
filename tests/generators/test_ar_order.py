"""Orders of tokens: what is drawn when, a permuted pass against cached steps along the permutation, exact resume."""

import pytest
import torch
from tests.generators.test_ar import CASES, CLOSE, SAME, make, make_batch, spoken
from tests.training.test_loop import HERE, Killed, assert_same, weights

from ifsq.codes import CodeSet
from ifsq.config import InputError, build
from ifsq.generators.ar import ARConfig
from ifsq.generators.ar.fast import FastSteps, steps_of
from ifsq.generators.ar.order import draw_orders, in_order, random_share, to_raster
from ifsq.generators.ar.steps import PlainSteps
from ifsq.generators.train import GeneratorTask
from ifsq.nn.cache import KVCache
from ifsq.training import parallel
from ifsq.training.config import TrainConfig
from ifsq.training.log import Silent
from ifsq.training.loop import train
from ifsq.training.optim import OptimConfig

RANDOM = {"order": "random", "order_start": 0.25, "order_end": 0.75}


def test_the_share_of_random_orders_falls_linearly_between_two_shares_of_the_training():
    seen = [random_share(progress, 0.5, 0.75) for progress in (0.0, 0.5, 0.5625, 0.625, 0.75, 1.0)]
    assert seen == pytest.approx([1, 1, 0.75, 0.5, 0, 0])
    assert [random_share(p, 0.5, 0.5) for p in (0.0, 0.49, 0.5, 1.0)] == [1, 1, 0, 0]
    assert random_share(0.0, 0.0, 0.0) == 0


def test_orders_are_permutations_and_as_many_are_random_as_asked_for():
    order = draw_orders(2000, 12, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(order.sort(dim=1).values, torch.arange(12).expand(2000, 12))
    random = (order != torch.arange(12)).any(dim=1)
    assert 0.25 < float(random.float().mean()) < 0.35
    first = order[random, 0].bincount(minlength=12)  # each position is as likely to come first
    assert float(((first - first.sum() / 12) ** 2 / (first.sum() / 12)).sum()) < 31.3  # chi-square, 11 degrees, 0.1 %
    assert torch.equal(draw_orders(2000, 12, 0.3, torch.Generator().manual_seed(0)), order)


def test_raster_alone_draws_nothing():
    rng = torch.Generator().manual_seed(0)
    before = rng.get_state()
    assert draw_orders(5, 12, 0.0, rng) is None
    assert torch.equal(rng.get_state(), before)


def test_values_come_back_from_an_order():
    order = draw_orders(5, 12, 1.0, torch.Generator().manual_seed(0))
    values = torch.randn(5, 12, 3)
    ordered = in_order(values, order)
    assert torch.equal(ordered[2, 7], values[2, order[2, 7]])
    assert torch.equal(to_raster(ordered, order), values)


def given(model, count=3, seed=1):
    """Indices, labels and an order for each image: random ones, and the first backwards."""
    batch = make_batch(model.spec, count)
    order = draw_orders(count, model.spec.tokens, 1.0, torch.Generator().manual_seed(seed))
    order[0] = torch.arange(model.spec.tokens).flip(0)
    return model.spec.digits_to_indices(batch.content).flatten(1, 2), batch.labels, order


def logits_in(model, indices, labels, order):
    """Logits (b, t, v) of each group by the full pass, in the order of the tokens."""
    return model.head.logits(model.states(indices, labels, order=order), in_order(indices, order))


OPTIONS = [{}, {"rope_class": "zero"}, {"class_tokens": 3, "adaln": True}, {"kv_heads": 2, "qk_norm": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_cached_steps_along_an_order_equal_the_full_pass_in_it(case, options):
    model = make(case, **options, **RANDOM).eval()
    indices, labels, order = given(model)
    full, ordered = logits_in(model, indices, labels, order), in_order(indices, order)
    prefix = model.prefix(labels)
    before = prefix.shape[1] - 1
    caches = [KVCache(before + model.spec.tokens) for _ in model.layers]
    x = model.add_target_positions(prefix, order[:, :1], before)
    for position in range(model.spec.tokens):
        state = model.trunk(x, caches, condition=prefix[:, 0], rope=model.rope_along(order))[:, -1:]
        token = ordered[:, position : position + 1]
        for k, logits in enumerate(model.head.logits(state, token)):
            assert torch.allclose(logits[:, 0], full[k][:, position], **SAME), (position, k)
        if position + 1 < model.spec.tokens:
            x = model.add_target_positions(model.embed(token), order[:, position + 1 : position + 2])


@torch.no_grad()
def test_a_token_knows_those_before_it_in_its_order_and_which_comes_next():
    model = make("joint", **RANDOM).eval()
    indices, labels, order = given(model)
    before = logits_in(model, indices, labels, order)[0]
    for place in range(model.spec.tokens):
        changed = indices.clone()
        changed[:, place, 0] = (changed[:, place, 0] + 1) % model.spec.vocab_sizes[0]
        differs = (logits_in(model, changed, labels, order)[0] - before).abs().amax(-1) > 1e-6
        turn = order.argsort(dim=1)[:, place]  # when the position has its turn
        assert torch.equal(differs, torch.arange(model.spec.tokens) > turn[:, None])
    swapped = order.clone()
    swapped[:, -2:] = order[:, -2:].flip(1)  # the same tokens before it, and another position to predict
    assert not torch.allclose(logits_in(model, indices, labels, swapped)[0][:, -2], before[:, -2])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_raster_as_an_order_is_the_plain_pass(case):
    model = make(case, **RANDOM).eval()
    indices, labels, _ = given(model)
    raster = torch.arange(model.spec.tokens).expand(len(labels), -1)
    for ours, theirs in zip(logits_in(model, indices, labels, raster), model.logits(indices, labels), strict=True):
        assert torch.allclose(ours, theirs, **SAME)


@pytest.mark.parametrize("options", [{}, {"class_tokens": 3, "adaln": True}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_sampling_is_raster_and_tells_each_token_which_comes_next(case, options):
    model = make(case, **options, **RANDOM).eval()
    labels, null = torch.tensor([0, 2]), torch.full((2,), 3)
    tokens, logits = spoken(model, labels, guidance=3.0)
    full, unguided = model.logits(tokens, labels), model.logits(tokens, null)
    for k in range(len(full)):
        assert torch.allclose(logits[k], unguided[k] + 3 * (full[k] - unguided[k]), **SAME)


@pytest.mark.parametrize("class_tokens", [1, 3])
def test_every_way_of_decoding_tells_a_token_which_comes_next(class_tokens):
    model = make("chain", class_tokens=class_tokens, **RANDOM).eval()
    indices, labels, _ = given(model)
    full = model.states(indices, labels)
    packed = steps_of(model, "fp32")
    assert isinstance(packed, FastSteps)
    for steps in (PlainSteps(model), PlainSteps(model, whole=True), packed):
        with torch.no_grad():
            assert torch.allclose(steps.first(labels), full[:, 0], **SAME)
            assert torch.allclose(steps.next(indices[:, :1]), full[:, 1:2], **SAME)
            assert torch.allclose(steps.next(indices[:, 1:4]), full[:, 2:5], **SAME)
            steps.rewind(2)
            assert torch.allclose(steps.next(indices[:, 2:3]), full[:, 3:4], **SAME)


def test_the_loss_is_in_the_orders_of_its_progress_and_held_out_figures_are_in_raster():
    model = make("chain", label_dropout=0.0, **RANDOM)
    batch = make_batch(model.spec, 6)
    raster = model.nll(batch).mean() / model.spec.tokens

    def loss(progress, seed=0):
        return model.loss(batch, torch.Generator().manual_seed(seed), progress)["loss"]

    assert torch.equal(loss(0.0), loss(0.1))
    assert not torch.equal(loss(0.0), loss(0.0, seed=1))
    assert torch.allclose(loss(0.75), raster, **CLOSE)
    assert torch.equal(loss(1.0), model.loss(batch, torch.Generator())["loss"])
    rng = torch.Generator().manual_seed(0)
    torch.rand(6, generator=rng)  # of the labels
    order = draw_orders(6, model.spec.tokens, 1.0, rng)
    indices = model.spec.digits_to_indices(batch.content).flatten(1, 2)
    by_hand = model.head.nats(model.states(indices, batch.labels, order=order), in_order(indices, order)).mean()
    assert torch.allclose(loss(0.0), by_hand, **CLOSE)
    for depth in (1, 2):
        hidden = model.hidden(batch, depth, torch.Generator().manual_seed(0), 0.0)
        assert torch.equal(in_order(hidden, order), model.states(indices, batch.labels, depth, order))
    model.eval()
    assert torch.allclose(loss(0.0), raster, **CLOSE)


def test_blocks_that_run_again_have_the_same_gradients_in_an_order():
    gradients = []
    for again in (False, True):
        model = make("joint", **RANDOM)
        if again:
            parallel.recompute(model)
        model.loss(make_batch(model.spec, 4), torch.Generator().manual_seed(0), 0.0)["loss"].backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


def test_without_orders_nothing_is_drawn_and_no_parameter_is_there():
    off, on = make("joint"), make("joint", **RANDOM)
    assert on.state_dict().keys() - off.state_dict().keys() == {"target_positions.weight"}
    states = []
    for progress in (0.0, 1.0):
        rng = torch.Generator().manual_seed(0)
        off.loss(make_batch(off.spec, 2), rng, progress)
        states.append(rng.get_state())
    assert torch.equal(*states)


class Stopped(GeneratorTask):
    """Killed before a step."""

    stop_at = None

    def loss(self, model, batch, rng, step):
        if step == self.stop_at:
            raise Killed
        return super().loss(model, batch, rng, step)


def test_a_run_in_orders_goes_on_with_the_same_bits(tmp_path):
    def run(name, stop_at=None):
        model = make("joint", dropout=0.1, **RANDOM)
        digits = make_batch(model.spec, 24).content.to(torch.uint8)
        config = TrainConfig(steps=8, batch=8, log_every=4, save_every=3, ema=0.9)
        task = Stopped(model, CodeSet(model.spec, digits, torch.zeros(24, dtype=torch.int64)), None, config)
        task.stop_at = stop_at
        train(task, config, tmp_path / name, HERE, Silent(), name)
        return weights(tmp_path / name)

    with pytest.raises(Killed):
        run("cut", stop_at=5)
    whole, cut = run("whole"), run("cut")
    assert whole[0] == cut[0] == 8
    assert_same(whole[1], cut[1])


class Hearing(Silent):
    said = ""

    def say(self, line):
        self.said += line


def test_more_steps_on_a_run_in_orders_are_said_to_anneal_otherwise(tmp_path):
    model = make("joint", **RANDOM)
    digits = make_batch(model.spec, 8).content.to(torch.uint8)
    codes, heard = CodeSet(model.spec, digits, torch.zeros(8, dtype=torch.int64)), Hearing()
    for steps in (2, 3):
        config = TrainConfig(steps=steps, batch=8, optim=OptimConfig(schedule="constant"))
        train(GeneratorTask(model, codes, None, config), config, tmp_path, HERE, heard, "run")
    told = "train.steps=3, 2 until now: from here on the annealing of the tokens' orders is that of 3 steps; a run of 3"
    assert heard.said.count(told) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "spiral"}, "order='spiral': expected one of raster, random"),
        ({"order_start": 0.8, "order_end": 0.7}, "order_start=0.8, order_end=0.7: expected 0 <= start <= end <= 1"),
        ({"order_end": 1.5}, "order_start=0.5, order_end=1.5: expected 0 <= start <= end <= 1"),
    ],
)
def test_orders_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build(ARConfig, {"depth": 1, "width": 32, "heads": 4, **options}, "here")
