"""Latents that the official DiT extracted: golden vectors, and what is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ifsq.cli import main
from ifsq.codes import CodeCache
from ifsq.config import InputError
from ifsq.interop.official.latents import features, import_latents, read_shards, read_statistics


def test_features_are_those_of_the_official_data_set(golden_folder):
    folder = golden_folder / "offline_latents"
    with safe_open(golden_folder / "offline_latents_expected.safetensors", "pt") as file:
        items = range(8)
        flipped = torch.cat([file.get_tensor(f"item{i}/flipped") for i in items]).bool()
        wanted = torch.stack([file.get_tensor(f"item{i}/feature") for i in items])
        labels = torch.cat([file.get_tensor(f"item{i}/label") for i in items])
        statistics = [file.get_tensor(f"stats/{name}") for name in ("mean", "std")]
        multiplier = float(file.metadata()["latent_multiplier"])
    assert torch.equal(features(folder, flipped, multiplier), wanted)
    assert torch.equal(torch.cat([shard.labels for shard in read_shards(folder)]), labels)
    assert all(torch.equal(a, b) for a, b in zip(read_statistics(folder), statistics, strict=True))


def test_they_become_a_cache_of_latents_with_flips(golden_folder, tmp_path, capsys):
    folder = golden_folder / "offline_latents"
    assert main(["import", "latents", str(folder), "--out", str(tmp_path / "cache")]) == 0
    assert "latents of 8 images and of their mirrors" in capsys.readouterr().out
    read = CodeCache.open(tmp_path / "cache").read("train")
    assert torch.equal(read.content[:], features(folder, False, normalize=False).half())
    assert torch.equal(read.flipped[:], features(folder, True, normalize=False).half())
    with pytest.raises(InputError, match="cache: exists; expected a new folder"):
        import_latents(folder, tmp_path / "cache")


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "latents"
    folder.mkdir()
    table = {"latents": torch.zeros(2, 3, 4, 4), "latents_flip": torch.zeros(2, 3, 4, 4), "labels": torch.arange(2)}
    save_file(table, folder / "latents_rank00_shard000.safetensors")
    statistics = {name: torch.ones(1, 3, 1, 1) for name in ("mean", "std")}
    torch.save(statistics, folder / "latents_stats.pt")
    return folder, table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "shard001.safetensors: holds no labels; expected latents, latents_flip and labels"),
        ({"labels": torch.arange(3)}, r"expected \(n, d, h, w\) twice, \(n,\)"),
        (
            {"latents": torch.zeros(2, 4, 4, 4), "latents_flip": torch.zeros(2, 4, 4, 4)},
            r"latents of .* beside .*; expected alike",
        ),
        ({"latents": torch.full((2, 3, 4, 4), 1e6)}, "expected values that float16 holds"),
        ({"latents": torch.full((2, 3, 4, 4), float("nan"))}, "expected values that float16 holds"),
        (
            {"latents": torch.zeros(2, 3, 4, 4).long()},
            "latents of torch.int64 and torch.float32; expected floats of one",
        ),
        ({"labels": torch.tensor([0, 2**40])}, "labels of 0 to 1099511627776; expected integers from 0 to 999999"),
        ({"labels": torch.tensor([0, -1])}, "labels of -1 to 0; expected integers"),
        ({"labels": torch.zeros(2)}, "labels of torch.float32; expected integers"),
        ({"labels": torch.zeros(2).bool()}, "labels of torch.bool; expected integers"),
        (
            {"labels": torch.zeros(0), "latents": torch.zeros(0, 3, 4, 4), "latents_flip": torch.zeros(0, 3, 4, 4)},
            "shapes",
        ),
    ],
)
def test_a_shard_that_does_not_fit_is_named(shards, change, message, tmp_path):
    folder, table = shards
    broken = {key: value for key, value in (table | change).items() if value is not None}
    save_file(broken, folder / "latents_rank00_shard001.safetensors")
    with pytest.raises(InputError, match=message):
        import_latents(folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"latents"}


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ([1], "mean is a NoneType; expected floats"),
        ({"mean": torch.ones(1, 3, 1, 1)}, "std is a NoneType"),
        ({"mean": 0.0, "std": 1.0}, "mean is a float"),
        ({"mean": torch.ones(1, 3, 1, 1), "std": torch.ones(3)}, r"std is torch.float32 of \(3,\)"),
        (
            {"mean": torch.ones(1, 3, 1, 1), "std": torch.zeros(1, 3, 1, 1)},
            "std has values that are not finite or, of std",
        ),
        (
            {"mean": torch.full((1, 3, 1, 1), float("nan")), "std": torch.ones(1, 3, 1, 1)},
            "mean has values that are not",
        ),
        ({name: torch.ones(1, 4, 1, 1) for name in ("mean", "std")}, "4 and 4 channels; expected 3 as latents"),
        ({name: torch.ones(1, 1, 1, 1).expand(1, 10**9, 1, 1) for name in ("mean", "std")}, "mean is torch.float32 of"),
    ],
)
def test_statistics_that_do_not_fit_are_named(shards, statistics, message, tmp_path):
    folder, _ = shards
    torch.save(statistics, folder / "latents_stats.pt")
    with pytest.raises(InputError, match=message):
        import_latents(folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"latents"}


def test_what_is_missing_or_damaged_is_named(shards, tmp_path):
    folder, _ = shards
    with pytest.raises(InputError, match="holds no latents_rank"):
        list(read_shards(tmp_path / "nothing"))
    (folder / "latents_stats.pt").unlink()
    with pytest.raises(InputError, match=r"latents_stats.pt: no such file"):
        import_latents(folder, tmp_path / "out")
    (folder / "latents_stats.pt").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"latents_stats.pt: cannot be read with weights_only=True"):
        read_statistics(folder)
    torch.save({name: torch.ones(1, 3, 1, 1) for name in ("mean", "std")}, folder / "latents_stats.pt")
    (folder / "latents_rank00_shard000.safetensors").write_bytes(json.dumps({}).encode())
    with pytest.raises(InputError, match=r"shard000.safetensors: cannot be read"):
        import_latents(folder, tmp_path / "out")
