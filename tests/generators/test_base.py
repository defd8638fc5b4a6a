"""The registry of kinds, the options of sampling, and a generator's form on disk."""

import copy

import pytest
import torch

import ifsq
from ifsq.codes import CodeSpec, LatentSpec
from ifsq.config import InputError
from ifsq.generators import ARGenerator, DiffusionGenerator, Generator, MaskedGenerator, Origin
from ifsq.generators.ar import ARConfig, ARSampling, HeadConfig
from ifsq.generators.diffusion import DiffusionSampling, DiTConfig
from ifsq.generators.masked import MaskedConfig
from ifsq.generators.train import training_flops
from ifsq.training import parallel

SPEC = CodeSpec((5, 5), (2,), "little", "paper", (2, 2))


def ar():
    return ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=8), SPEC, 3)


def diffusion():
    return DiffusionGenerator(DiTConfig(1, 16, 2, patch=1), SPEC, 3)


def masked():
    return MaskedGenerator(MaskedConfig(1, 16, 2, mlp_multiple_of=8), SPEC, 3)


def test_every_kind_is_registered():
    assert ifsq.Generator.kinds == {"ar": ARGenerator, "diffusion": DiffusionGenerator, "masked": MaskedGenerator}
    assert all(kind == cls.kind and cls.title for kind, cls in Generator.kinds.items())


@pytest.mark.parametrize("make", [ar, diffusion, masked])
def test_a_description_gives_the_same_generator(make, tmp_path):
    model = make()
    model.origin = Origin(("a", "b", "c"), "tok", "0" * 64, "1" * 64, {"guidance": 2.0})
    again = Generator.from_description(model.describe(), "here")
    assert (type(again), again.config, again.spec, again.origin) == (type(model), model.config, SPEC, model.origin)
    model.save_pretrained(tmp_path / "saved")
    saved = Generator.from_pretrained(tmp_path / "saved")
    assert saved.origin == model.origin
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in saved.state_dict().items())
    assert type(type(model).from_pretrained(tmp_path / "saved")) is type(model)
    other = next(cls for cls in Generator.kinds.values() if cls is not type(model))
    with pytest.raises(InputError, match=f"holds a {model.kind} model; expected a model of kind {other.kind}"):
        other.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("kind", [None, 3, ["ar"], {"ar": 1}, "judge"], ids=str)
def test_a_description_of_no_kind_is_one_line(kind):
    with pytest.raises(InputError, match=r"here: holds a .* model; expected a generator"):
        Generator.from_description(ar().describe() | {"kind": kind}, "here")


def test_a_description_from_before_heads_had_options_of_their_own():
    config = ARConfig(1, 16, 2, mlp_multiple_of=8, head=HeadConfig("transformer", 1, None))
    described = ARGenerator(config, SPEC, 3).describe()
    described["config"] |= {"head": "transformer", "head_depth": 1, "head_width": None}
    assert Generator.from_description(described, "here").config == config
    described["config"] |= {"head_depth": 0}
    with pytest.raises(InputError, match=r"head.*depth=0: expected at least 1"):
        Generator.from_description(described, "here")


def test_a_generator_may_stand_without_a_tokenizer(tmp_path):
    ar().save_pretrained(tmp_path / "saved")
    saved = Generator.from_pretrained(tmp_path / "saved")
    assert saved.origin == Origin(("0", "1", "2"))
    assert saved.sample(torch.tensor([0, 2])).codes.shape == (2, 2, 2, 2)


def test_options_are_given_as_one_thing_or_by_name():
    model, labels = ar(), torch.tensor([0, 1, 2])
    torch.nn.init.normal_(model.head.output[0].weight)
    whole = model.sample(labels, ARSampling(3.0, temperature=0.5), seed=4)
    assert torch.equal(model.sample(labels, seed=4, guidance=3.0, temperature=0.5).codes, whole.codes)
    assert torch.equal(model.sample(labels, ARSampling(3.0), seed=4, temperature=0.5).codes, whole.codes)
    assert not torch.equal(model.sample(labels, seed=4).codes, whole.codes)
    with pytest.raises(TypeError, match="steps"):
        model.sample(labels, steps=3)
    with pytest.raises(TypeError, match="DiffusionSampling: expected ARSampling"):
        model.sample(labels, DiffusionSampling())


def test_a_runs_own_options_have_others_on_top():
    model = diffusion()
    model.origin = Origin(("a", "b", "c"), sampling={"guidance": 2, "steps": 7})
    assert model.sampling() == DiffusionSampling(2.0, 7)
    over = {"solver": "midpoint", "guidance_interval": [0.1, 0.9], "timestep_shift": 0.3}
    assert model.sampling(over) == DiffusionSampling(2.0, 7, "midpoint", 0.3, (0.1, 0.9))
    with pytest.raises(InputError, match=r"sampling: top_k: unknown key; known: .*guidance, .*solver"):
        model.sampling({"top_k": 3})
    with pytest.raises(InputError, match="sampling: steps: input should be a valid integer, got 'many'"):
        model.sampling({"steps": "many"})


def test_a_card_says_how_it_was_sampled():
    assert ARSampling().sampler == "temperature 1.0, top_k 0, top_p 1.0"
    assert ARSampling(2.0, greedy=True, guidance_interval=5).sampler.endswith("greedy True, guidance_interval 5")
    told = ARSampling((2.0, 1.0), (1.0, 0.9), min_p=0.1, guidance_schedule="power-cosine").sampler
    assert told == (
        "temperature (1.0, 0.9), top_k 0, top_p 1.0, min_p 0.1, guidance_schedule power-cosine, guidance_power 2.75"
    )
    assert DiffusionSampling(2.0).sampler == "steps 16, solver ab2"
    assert DiffusionSampling(timestep_shift=2.0).sampler.endswith("timestep_shift 2.0")


@pytest.mark.parametrize(("kind", "expected"), [("ar", 369e6), ("diffusion", 80e6), ("masked", 342e6)])
def test_the_cost_of_training_is_that_of_the_demo(kind, expected):
    """As it was counted for docs/control.md, of these sizes; nothing is computed and nothing is drawn."""
    spec = CodeSpec((17,) * 4, (1,) * 4, "little", "equal", (8, 8))
    if kind == "ar":
        config = ARConfig(4, 128, 4, mlp_multiple_of=32, head=HeadConfig(width=96, depth=1))
        model = ARGenerator(config, spec, 30)
    elif kind == "masked":
        model = MaskedGenerator(MaskedConfig(4, 128, 4, mlp_multiple_of=32), spec, 30)
    else:
        model = DiffusionGenerator(DiTConfig(4, 128, 4, patch=2), spec, 30)
    before = torch.get_rng_state()
    assert training_flops(model) == pytest.approx(expected, abs=0.5e6)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())
    counted = training_flops(model)
    assert training_flops(copy.deepcopy(model).to("meta")) == counted
    parallel.recompute(model)
    assert training_flops(model) == counted  # what is computed again counts once


def test_the_cost_of_training_by_hand():
    """6 a parameter of a matrix and token, and attention's two products over all pairs of positions, three times."""
    spec = CodeSpec((33,), (1,), "little", "equal", (8, 8))
    model = ARGenerator(ARConfig(3, 64, 4), spec, 5)
    inside = sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "embed" not in name)
    assert training_flops(model) == 6 * inside * 64 + 3 * 3 * (2 * 2 * 64 * 64 * 64)


def test_the_cost_of_training_a_masked_one_by_hand():
    """As above; the blocks see the class beside the grid, the output layer does not."""
    spec = CodeSpec((33,), (1,), "little", "equal", (8, 8))
    model = MaskedGenerator(MaskedConfig(3, 64, 4), spec, 5)
    inside = sum(p.numel() for p in model.layers.parameters() if p.ndim > 1)
    assert training_flops(model) == 6 * (inside * 65 + 64 * 33 * 64) + 3 * 3 * (2 * 2 * 65 * 65 * 64)


@pytest.mark.parametrize("codes", ["vq", "latents"])
def test_the_cost_of_training_is_known_of_every_layout(codes):
    spec = LatentSpec(4, (4, 4)) if codes == "latents" else CodeSpec((33,), (1,), "little", "codebook", (4, 4))
    model = DiffusionGenerator(DiTConfig(2, 32, 2, patch=1), spec, 5, code_dim=4)
    assert training_flops(model) > 6 * 16 * sum(p.numel() for p in model.dit.blocks.parameters() if p.ndim > 1) / 2
