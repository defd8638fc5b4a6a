"""Statistics that a cache of latents states: believed where a sample of the latents has them, refused else."""

import json
import shutil

import pytest
import torch

from ifsq.codes import CodeCache, LatentSpec, writer
from ifsq.codes.checks import CHECKED
from ifsq.codes.stated import SAMPLE, check_stated
from ifsq.config import InputError

SPEC = LatentSpec(3, (2, 4))


def drawn(count, seed=0):
    """Latents whose images differ more among each other than within, as real ones do; classes follow by turns."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 3, 1, 1, generator=rng) + 2.0 * (torch.arange(count) % 2).view(-1, 1, 1, 1)
    return image + 0.2 * torch.randn(count, *SPEC.shape, generator=rng)


def check(latents, mean, std):
    check_stated(lambda rows: latents[rows][:, None], len(latents), mean.tolist(), std.tolist(), "here")


def statistics(latents, unbiased=True):
    return latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3), correction=int(unbiased))


@pytest.mark.parametrize("count", [1, 2, SAMPLE, 2 * SAMPLE])
@pytest.mark.parametrize("unbiased", [False, True])
def test_its_own_are_believed(count, unbiased):
    for seed in range(3):
        latents = drawn(count, seed) if count > 1 else drawn(1, seed).repeat(1, 1, 4, 4)
        check(latents, *statistics(latents, unbiased))


@pytest.mark.parametrize("count", [30, 2 * SAMPLE])
@pytest.mark.parametrize("channel", [0, 2])
def test_others_are_refused_by_channel(count, channel):
    latents = drawn(count)
    mean, std = statistics(latents)
    for wrong_mean, wrong_std in ((1.0, 1.0), (0.0, 1.4), (0.0, 0.6), (0.0, 0.0)):
        other_mean, other_std = mean.clone(), std.clone()
        other_mean[channel] += wrong_mean
        other_std[channel] *= wrong_std
        told = rf"here: states mean .* of channel {channel}; {min(count, SAMPLE)} of its {count} images have mean"
        with pytest.raises(InputError, match=told):
            check(latents, other_mean, other_std)


def test_a_channel_that_never_varies_has_no_spread():
    latents = drawn(20)
    latents[:, 1] = 3.0
    check(latents, *statistics(latents))
    with pytest.raises(InputError, match="channel 1"):
        check(latents, statistics(latents)[0], torch.tensor([1.0, 0.5, 1.0]) * statistics(drawn(20))[1])


@pytest.fixture
def cache(tmp_path):
    """Two crops of each image, and the mirrored ones, which lie elsewhere: all of them count."""
    partial = tmp_path / "partial"
    partial.mkdir()
    content, labels = drawn(20), torch.arange(10) % 3
    writer.save_part(partial / "train_00000.safetensors", writer.Part(content, labels, content + 1), SPEC)
    about = {"tokenizer": "", "data": {}, "fingerprints": {}, "flips": True, "crops": {"kind": "random", "count": 2}}
    names = {"train": ["train_00000.safetensors"]}
    writer.write_manifest(partial, tmp_path / "codes", SPEC, ("a", "b", "c"), names, about)
    return partial


def test_a_cache_that_contradicts_itself_is_refused_whoever_reads_it(cache, tmp_path):
    assert len(CodeCache.open(cache).read("train")) == 10
    assert "statistics" in json.loads((cache / CHECKED).read_text())["facts"]
    manifest = json.loads((cache / "manifest.json").read_text())
    for name, factor in (("std", 1.5), ("mean", 2.0)):
        other = shutil.copytree(cache, tmp_path / name)
        numbers = [factor * value for value in manifest["statistics"][name]]
        changed = {**manifest, "statistics": {**manifest["statistics"], name: numbers}}
        (other / "manifest.json").write_text(json.dumps(changed))
        told = f"{name}/manifest.json: states mean .* of channel 0; 10 of its 10 images have mean"
        for _ in range(2):
            with pytest.raises(InputError, match=told):
                CodeCache.open(other).read("train")
