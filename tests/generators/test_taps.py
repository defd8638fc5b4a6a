"""Loss and states of one pass: the loss is `loss`, the states are `hidden`, and the network has run once."""

import pytest
import torch
from torch import nn

from ifsq.codes import CodeBatch, CodeSpec
from ifsq.generators import ARGenerator, DiffusionGenerator, MaskedGenerator
from ifsq.generators.ar import ARConfig, HeadConfig
from ifsq.generators.ar.order import in_order
from ifsq.generators.diffusion import DiTConfig
from ifsq.generators.masked import MaskedConfig
from ifsq.training import parallel

SPEC = CodeSpec((5, 5, 3), (2, 1), "little", "paper", (2, 4))
AR = {"mlp_multiple_of": 16, "label_dropout": 0.5, "dropout": 0.2, "head": HeadConfig("transformer", 1)}
KINDS = {
    "ar": lambda: ARGenerator(ARConfig(3, 32, 2, **AR), SPEC, 3),
    "ar, three class positions, in orders": lambda: ARGenerator(
        ARConfig(3, 32, 2, class_tokens=3, adaln=True, order="random", **AR), SPEC, 3
    ),
    "diffusion": lambda: DiffusionGenerator(DiTConfig(3, 32, 2, patch=2, label_dropout=0.5), SPEC, 3),
    "masked": lambda: MaskedGenerator(
        MaskedConfig(3, 32, 2, mlp_multiple_of=16, label_dropout=0.5, dropout=0.2, class_tokens=2), SPEC, 3
    ),
}


def make(kind):
    torch.manual_seed(0)
    model = KINDS[kind]()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def make_batch(count=6):
    rng = torch.Generator().manual_seed(0)
    digits = torch.stack([torch.randint(L, (count, *SPEC.grid), generator=rng) for L in SPEC.levels], dim=-1)
    return CodeBatch(SPEC, digits, torch.randint(3, (count,), generator=rng))


def seeded():
    torch.manual_seed(7)  # dropout's
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_states_are_those_of_one_pass(kind, again):
    model, batch = make(kind), make_batch()
    if again:
        parallel.recompute(model)
    runs = []
    blocks = model.dit.blocks if model.kind == "diffusion" else model.layers
    blocks[0].register_forward_hook(lambda *_: runs.append(1))
    told = model.training_pass(batch, seeded(), 0.2, depths=(3, 1))
    assert runs == [1]
    assert told.losses.keys() == model.loss(batch, seeded(), 0.2).keys()
    assert torch.equal(told.losses["loss"], model.loss(batch, seeded(), 0.2)["loss"])
    assert (told.positions is not None) == ("orders" in kind)
    for depth, state in zip((3, 1), told.states, strict=True):
        hidden = model.hidden(batch, depth, seeded(), 0.2)
        assert torch.equal(state, hidden if told.positions is None else in_order(hidden, told.positions))
    told.states[1].sum().backward()
    moved = [any(p.grad is not None and bool(p.grad.any()) for p in block.parameters()) for block in blocks]
    assert moved == [True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_a_depth_that_is_none_is_refused(kind):
    with pytest.raises(ValueError, match="depth=4: expected 1 to 3, the blocks of the network"):
        make(kind).training_pass(make_batch(), torch.Generator(), depths=(1, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_all_depths_are_of_one_pass_without_dropout(kind):
    model, batch = make(kind), make_batch()
    time = 0.3 if model.noisy else None
    found = model.states_at(batch, (0, 3, 1), time, seed=5)
    assert model.training
    assert not any(state.requires_grad for state in found)
    tokens = model.token_grid[0] * model.token_grid[1]
    assert {state.shape for state in found} == {(6, tokens, 32)}
    assert model.depth == 3
    model.eval()
    again = model.states_at(batch, (1,), time, seed=5)
    assert torch.equal(found[2], again[0])
    if not model.noisy:
        with torch.no_grad():
            assert torch.equal(found[1], model.hidden(batch, 3))
        read = model.embed(batch.indices(SPEC.groups).flatten(1, 2))[:, :-1]
        if model.target_positions is None:  # beside the class, the tokens themselves
            torch.testing.assert_close(found[0][:, 1:], read)


def test_each_image_has_a_noise_of_its_own_and_less_of_it_later():
    model, batch = make("diffusion").eval(), make_batch()
    whole = model.states_at(batch, (2,), 0.5, seed=1)[0]
    part = CodeBatch(SPEC, batch.content[4:], batch.labels[4:])
    torch.testing.assert_close(model.states_at(part, (2,), 0.5, seed=1, first=4)[0], whole[4:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model.states_at(part, (2,), 0.5, seed=1)[0], whole[4:], atol=1e-3)
    clean = [model.states_at(batch, (0,), 1.0, seed)[0] for seed in (1, 2)]
    assert torch.equal(*clean)
    model.set_statistics(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0]))
    expected = model.dit.positions(model.dit.x_embedder(model.normalize(batch.codes())))
    torch.testing.assert_close(model.states_at(batch, (0,), 1.0)[0], expected.detach())


@pytest.mark.parametrize(
    ("kind", "depth", "time", "told"),
    [
        ("ar", 4, None, "depth=4: expected 0 to 3, the blocks of the network"),
        ("diffusion", -1, 0.5, "depth=-1"),
        ("masked", 1, None, "time=None: expected 0, noise, to 1, data"),
        ("ar", 1, 0.5, "time=0.5: expected none, this kind reads no noise"),
        ("diffusion", 1, None, "time=None: expected 0, noise, to 1, data"),
        ("diffusion", 1, 1.5, "time=1.5"),
    ],
)
def test_states_that_are_refused(kind, depth, time, told):
    with pytest.raises(ValueError, match=told):
        make(kind).states_at(make_batch(), (depth,), time)
