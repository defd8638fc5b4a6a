"""Loss and states of one pass: the loss is `loss`, the states are `hidden`, and the network has run once."""

import pytest
import torch
from torch import nn

from ifsq.codes import CodeBatch, CodeSpec
from ifsq.generators import ARGenerator, DiffusionGenerator
from ifsq.generators.ar import ARConfig, HeadConfig
from ifsq.generators.ar.order import in_order
from ifsq.generators.diffusion import DiTConfig
from ifsq.training import parallel

SPEC = CodeSpec((5, 5, 3), (2, 1), "little", "paper", (2, 4))
AR = {"mlp_multiple_of": 16, "label_dropout": 0.5, "dropout": 0.2, "head": HeadConfig("transformer", 1)}
KINDS = {
    "ar": lambda: ARGenerator(ARConfig(3, 32, 2, **AR), SPEC, 3),
    "ar, three class positions, in orders": lambda: ARGenerator(
        ARConfig(3, 32, 2, class_tokens=3, adaln=True, order="random", **AR), SPEC, 3
    ),
    "diffusion": lambda: DiffusionGenerator(DiTConfig(3, 32, 2, patch=2, label_dropout=0.5), SPEC, 3),
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
    blocks = model.layers if model.kind == "ar" else model.dit.blocks
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
