"""The diffusion generator on latents and on the vectors of a codebook: their scale, and what a sample of them is."""

import pytest
import torch
from tests.generators.test_diffusion import LABELS

from ifsq.codes import CodeSet, CodeSpec, LatentSpec
from ifsq.config import InputError
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig

LATENTS = LatentSpec(3, (4, 6))
BOOK = CodeSpec((11,), (1,), "little", "codebook", (4, 6))


def latents(count):
    rng = torch.Generator().manual_seed(0)
    content = torch.randn(count, 3, 4, 6, generator=rng) * torch.tensor([4.0, 0.1, 1.0]).view(3, 1, 1) + 2
    return CodeSet(LATENTS, content.half(), torch.randint(3, (count,), generator=rng))


def vectors(count):
    rng = torch.Generator().manual_seed(0)
    digits = torch.randint(11, (count, 4, 6, 1), generator=rng, dtype=torch.uint8)
    return CodeSet(BOOK, digits, torch.randint(3, (count,), generator=rng), codebook=torch.randn(11, 3, generator=rng))


@pytest.mark.parametrize(("codes", "code_dim"), [(latents, None), (vectors, 3)])
def test_latents_and_the_vectors_of_a_codebook_are_modelled(codes, code_dim):
    codes = codes(64)
    torch.manual_seed(0)
    model = DiffusionGenerator(DiTConfig(2, 32, 4, patch=2, label_dropout=0.0), codes.layout, 3, code_dim)
    model.observe(codes)
    batch = codes.batch(torch.arange(64))
    x = model.normalize(batch.codes())
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3)
    assert torch.allclose(x.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model.loss(codes.batch(torch.arange(8)), torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    again = DiffusionGenerator.from_description(model.describe(), "here")
    again.load_state_dict(model.state_dict())
    drawn, same = (one.sample(LABELS, steps=3, seed=2) for one in (model, again))
    assert torch.equal(drawn.codes, same.codes)


def test_latents_are_drawn_as_they_are_and_vectors_are_the_nearest_of_the_codebook():
    model = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2), LATENTS, 3)
    drawn = model.sample(LABELS, steps=2)
    assert drawn.indices is None
    assert drawn.codes.shape == (2, 3, 4, 6)
    codes = vectors(8)
    model = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2), BOOK, 3, 3)
    model.observe(codes)
    told = []
    drawn = model.draw(LABELS, DiffusionSampling(steps=2), 0, 0, lambda step: told.append(step.look().sampled.codes))
    free = told[-1]
    nearest = (free[:, None] - codes.codebook[:, :, None, None]).square().sum(dim=2).argmin(dim=1)
    assert torch.equal(drawn.indices[..., 0], nearest)
    assert torch.equal(drawn.codes, codes.codebook[nearest].movedim(-1, 1))
    assert model.bfloat16().codebook.dtype == torch.float32
    assert torch.equal(model.codebook, codes.codebook)


def test_statistics_that_the_cache_states_are_taken_over():
    codes = latents(8)
    stated = {"mean": [1.0, 2.0, 3.0], "std": [0.5, 0.25, 0.0]}
    model = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2), LATENTS, 3)
    model.observe(CodeSet(LATENTS, codes.content, codes.labels, statistics=stated))
    assert model.code_mean.tolist() == [1.0, 2.0, 3.0]
    assert model.code_std.tolist() == [0.5, 0.25, 1.0]


def test_a_multiplier_takes_the_place_of_statistics():
    codes = latents(8)
    stated = {"mean": [1.0, 2.0, 3.0], "std": [0.5, 0.25, 0.5]}
    model = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2, multiplier=0.4), LATENTS, 3)
    for statistics in ({}, stated):
        model.observe(CodeSet(LATENTS, codes.content, codes.labels, statistics=statistics))
        x = torch.randn(2, 3, 4, 6)
        assert torch.allclose(model.normalize(x), 0.4 * x)
        assert torch.allclose(model.denormalize(0.4 * x), x)


def test_a_multiplier_of_another_tokenizer_is_refused():
    codes = latents(8)
    for multiplier in (0.01, 2.0):
        model = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2, multiplier=multiplier), LATENTS, 3)
        with pytest.raises(
            InputError, match=rf"multiplier={multiplier}: scales codes of root mean square 3.* to .*; exp"
        ):
            model.observe(codes)


def test_a_codebook_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="codes of a codebook of 11: expected code_dim, the channels of its vectors"):
        DiffusionGenerator(DiTConfig(1, 16, 2, patch=2), BOOK, 3)
    several = CodeSpec((11, 5), (1, 1), "little", "codebook", (4, 6))
    with pytest.raises(ValueError, match="codes of 2 codebooks: expected those of one"):
        DiffusionGenerator(DiTConfig(1, 16, 2, patch=2), several, 3, 4)
    model = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2), BOOK, 3, 4)
    with pytest.raises(ValueError, match=r"codebook of shape \(11, 3\): expected \(11, 4\), the tokenizer's"):
        model.observe(vectors(4))
