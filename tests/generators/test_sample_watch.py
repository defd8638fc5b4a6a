"""Who looks on while a generator draws: the draw is the same, what is there stays, and what is raised ends it."""

import pytest
import torch
from torch import nn

from ifsq.codes import CodeSpec
from ifsq.generators import ARGenerator, DiffusionGenerator, MaskedGenerator
from ifsq.generators.ar import ARConfig
from ifsq.generators.diffusion import DiTConfig
from ifsq.generators.masked import MaskedConfig

SPEC = CodeSpec((5, 9), (1, 1), "little", "equal", (4, 2))
BOOK = CodeSpec((11,), (1,), "little", "codebook", (2, 2))
LABELS = torch.tensor([0, 2, 1])


def made(kind, spec=SPEC):
    torch.manual_seed(0)
    model = {
        "ar": lambda: ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=8), spec, 3),
        "masked": lambda: MaskedGenerator(MaskedConfig(1, 16, 2, mlp_multiple_of=8), spec, 3),
        "diffusion": lambda: DiffusionGenerator(DiTConfig(1, 16, 2, patch=1), spec, 3),
    }[kind]()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def watched(model, **options):
    """What is drawn, how far it was at each step, and what there was then."""
    told = []
    drawn = model.sample(LABELS, seed=4, watch=lambda step: told.append((step, step.look())), **options)
    return drawn, [step for step, _ in told], [there for _, there in told]


@pytest.mark.parametrize(
    ("kind", "options", "steps"),
    [
        ("ar", {}, 8),
        ("ar", {"guidance": 2.0, "guidance_interval": 3}, 8),
        ("masked", {"rounds": 5, "guidance": 2.0}, 5),
        ("masked", {"rounds": 3, "order": "confidence"}, 3),
        ("diffusion", {"steps": 4, "guidance": 2.0}, 4),
        ("diffusion", {"steps": 3, "solver": "heun"}, 3),
        ("diffusion", {"steps": 3, "solver": "sde-euler"}, 3),
    ],
)
def test_the_draw_is_the_same_and_every_step_is_told(kind, options, steps):
    model = made(kind)
    plain = model.sample(LABELS, seed=4, **options)
    drawn, told, there = watched(model, **options)
    assert torch.equal(drawn.codes, plain.codes)
    assert torch.equal(drawn.indices, plain.indices)
    assert [(step.done, step.steps) for step in told] == [(done, steps) for done in range(1, steps + 1)]
    last = there[-1].sampled.codes
    assert torch.equal(SPEC.digits_to_codes(SPEC.codes_to_digits(last)), plain.codes)
    assert all(one.known.all() for one in there if kind == "diffusion")


@pytest.mark.parametrize(("kind", "options"), [("ar", {}), ("ar", {"parallel": 3}), ("masked", {"rounds": 6})])
def test_what_is_there_stays_and_the_rest_is_blank(kind, options):
    drawn, told, there = watched(made(kind), **options)
    shares = [one.share for one in there]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert shares[0] < 0.5
    for step, one in zip(told, there, strict=True):
        known = one.known.expand_as(drawn.codes)
        assert torch.equal(one.sampled.codes, torch.where(known, drawn.codes, 0))
        if kind == "ar":  # in raster
            assert torch.equal(one.known[0, 0].flatten(), torch.arange(8) < step.done)
            told_indices = one.sampled.indices.flatten(1, 2)
            assert torch.equal(told_indices[:, : step.done], drawn.indices.flatten(1, 2)[:, : step.done])
            assert not told_indices[:, step.done :].any()


@pytest.mark.parametrize("kind", ["ar", "masked"])
def test_numbers_of_a_codebook_have_no_codes_on_the_way_either(kind):
    drawn, _, there = watched(made(kind, BOOK), **({"rounds": 4} if kind == "masked" else {}))
    assert drawn.codes is None
    assert all(one.sampled.codes is None for one in there)
    assert [round(4 * one.share) for one in there][-1] == 4
    assert torch.equal(there[-1].sampled.indices, drawn.indices)


def test_images_that_are_solved_one_by_one_come_one_by_one():
    pytest.importorskip("torchdiffeq")
    drawn, told, there = watched(made("diffusion"), solver="dopri5", snap="none")
    assert all(step.steps is None for step in told)
    assert [step.done for step in told] == list(range(1, len(told) + 1))
    begun = [int(one.known[:, 0, 0, 0].sum()) for one in there]
    assert sorted(set(begun)) == [1, 2, 3]
    assert begun == sorted(begun)
    assert torch.equal(there[-1].sampled.codes, drawn.codes)
    ends = [at for at, step in enumerate(told) if step.time == 1]
    for image, at in enumerate(ends):
        assert torch.equal(there[at].sampled.codes[: image + 1], drawn.codes[: image + 1])
        assert not there[at].sampled.codes[image + 1 :].any()


@pytest.mark.parametrize(("kind", "options"), [("ar", {}), ("ar", {"parallel": 3}), ("masked", {}), ("diffusion", {})])
def test_what_the_watcher_raises_ends_the_drawing(kind, options):
    told, model = [], made(kind).train()

    def stop(step):
        told.append(step.done)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.sample(LABELS, watch=stop, **options)
    assert len(told) == 2
    assert model.training
