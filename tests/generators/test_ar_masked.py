"""The masked head: what it is trained by, what it draws, and the likelihood of what it draws."""

import math
from itertools import permutations

import pytest
import torch
from torch import nn

from ifsq.codes import CodeBatch, CodeSpec
from ifsq.generators.ar import ARConfig, ARGenerator, HeadConfig
from ifsq.generators.ar.heads.masked import MaskedHead

SIZES = (3, 2, 4)


def random_head(steps=None, seed=0):
    torch.manual_seed(seed)
    head = MaskedHead(8, SIZES, hidden=12, depth=2, steps=steps)
    for parameter in head.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return head


def nats_in_order(head, state, token, order):
    """-log p of one token whose groups are told one after the other, from the network itself."""
    told = head.from_state(head.norm(state))
    known = [torch.tensor(v) for v in SIZES]
    total = torch.zeros(())
    for k in order:
        logits = head.output[k](head._through(told, known))
        total -= logits.log_softmax(-1)[token[k]]
        known[k] = token[k]
    return total


@torch.no_grad()
def test_the_loss_is_the_mean_over_all_orders():
    head, state, token = random_head(), torch.randn(8), torch.tensor([2, 0, 3])
    each = torch.stack([nats_in_order(head, state, token, order) for order in permutations(range(3))])
    assert each.std() > 0.05  # the orders disagree, so that a wrong weight would show
    rng = torch.Generator().manual_seed(0)
    draws = torch.stack([head.loss(state.expand(64, 300, 8), token.expand(64, 300, 3), rng) for _ in range(12)])
    assert abs(draws.mean() - each.mean()) < 4 * draws.std() / math.sqrt(len(draws))
    assert draws.std() / math.sqrt(len(draws)) < 0.01
    mixture = -(-each).exp().mean().log()
    assert mixture <= each.mean()  # what the loss bounds


@torch.no_grad()
def test_nats_follow_the_fixed_order():
    head, state, token = random_head(), torch.randn(8), torch.tensor([1, 1, 2])
    nats = head.nats(state[None, None], token[None, None])
    assert torch.allclose(nats[0, 0], nats_in_order(head, state, token, range(3)), atol=1e-5)


@pytest.mark.parametrize(("steps", "parts"), [(None, [[0], [1], [2]]), (2, [[0, 1], [2]]), (1, [[0, 1, 2]])])
@torch.no_grad()
def test_what_is_drawn_in_any_number_of_steps_has_the_likelihood_that_nats_gives(steps, parts):
    head, state = random_head(steps), torch.randn(1, 8)
    assert head.parts == parts
    every = torch.cartesian_prod(*(torch.arange(v) for v in SIZES))
    nats = head.nats(state.expand(1, 24, 8), every[None])
    assert float((-nats).exp().sum()) == pytest.approx(1.0, abs=1e-5)
    evaluations = []
    head.last_norm.register_forward_hook(lambda *_: evaluations.append(1))
    for token, expected in zip(every, nats[0], strict=True):
        log_p, order = [], iter(token.tolist())

        def pick(logits, group, order=order, log_p=log_p):
            chosen = next(order)
            log_p.append(logits.log_softmax(-1)[0, chosen])
            return torch.tensor([chosen])

        assert torch.equal(head.draw(state, pick)[0], token)
        assert torch.allclose(-sum(log_p), expected, atol=1e-5)
    assert len(evaluations) == 24 * len(parts)


@torch.no_grad()
def test_fewer_steps_cost_what_the_groups_say_of_each_other():
    head, state = random_head(1), torch.randn(1, 8)
    every = torch.cartesian_prod(*(torch.arange(v) for v in SIZES))
    joint = random_head().nats(state.expand(1, 24, 8), every[None]).neg().exp()[0].view(SIZES)
    drawn = head.nats(state.expand(1, 24, 8), every[None]).neg().exp()[0].view(SIZES)
    first = joint.sum((1, 2))
    assert torch.allclose(drawn.sum((1, 2)), first, atol=1e-6)  # the first group as in the whole chain
    assert torch.allclose(drawn, first[:, None, None] * drawn.sum((0, 2))[:, None] * drawn.sum((0, 1)), atol=1e-6)
    assert (drawn - joint).abs().max() > 1e-3


def masked_model(steps=None, groups=(1, 1)):
    spec = CodeSpec((3, 2), groups, "little", "equal", (1, 2))
    torch.manual_seed(0)
    config = ARConfig(1, 16, 2, mlp_multiple_of=8, head=HeadConfig("masked", 1, 8, steps))
    model = ARGenerator(config, spec, num_classes=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("steps", [None, 1])
def test_probabilities_of_all_images_sum_to_one(steps):
    model = masked_model(steps)
    every = torch.cartesian_prod(*(torch.arange(L) for L in (3, 2, 3, 2))).reshape(36, 1, 2, 2)
    nll = model.nll(CodeBatch(model.spec, every, torch.ones(36, dtype=torch.int64)))
    assert float((-nll).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_held_out_figures_are_likelihoods_and_those_of_training_a_bound():
    model = masked_model()
    every = torch.cartesian_prod(*(torch.arange(L) for L in (3, 2, 3, 2))).reshape(36, 1, 2, 2)
    batch = CodeBatch(model.spec, every, torch.ones(36, dtype=torch.int64))
    trained = [model.loss(batch, torch.Generator().manual_seed(seed))["loss"].item() for seed in (0, 0, 1)]
    assert trained[0] == trained[1] != trained[2]
    held_out = [model.eval().loss(batch, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert held_out[0]["loss"] == held_out[1]["loss"]
    bits = model.nll(batch).mean().item() / math.log(2)
    assert held_out[0]["bits_per_image"].item() == pytest.approx(bits, rel=1e-5)
    assert held_out[0]["bits_per_token"].item() == pytest.approx(bits / 2, rel=1e-5)


def test_tokens_of_one_group_are_refused():
    with pytest.raises(
        ValueError, match=r"head\.kind='masked': the tokens have one group of 6 codes; expected several"
    ):
        masked_model(groups=(2,))


def test_more_steps_than_groups_and_steps_of_another_head_are_refused():
    with pytest.raises(ValueError, match=r"head.steps=3: expected at most 2, the groups of a token"):
        masked_model(3)
    with pytest.raises(ValueError, match="steps=2: the chain head has none; expected kind = 'masked'"):
        HeadConfig(steps=2)
    with pytest.raises(ValueError, match="steps=0: expected at least 1"):
        HeadConfig("masked", steps=0)
