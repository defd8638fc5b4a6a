"""The cache: what is written is read, and whatever is damaged is refused."""

import json

import pytest
import torch

from ifsq.codes import cache
from ifsq.codes.cache import CodeCache, finish, write_shards
from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError

SPEC = CodeSpec((17, 300), (2,), "little", "equal", (2, 3))


@pytest.fixture
def digits():
    rng = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(L, (25, 2, 3), generator=rng) for L in SPEC.levels], dim=-1)


@pytest.fixture
def written(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 10)
    partial = tmp_path / "partial"
    partial.mkdir()
    labels = torch.arange(25) % 3
    for split in ("train", "val"):
        for rank in (0, 1):
            shards = iter(range(rank, 3, 2))
            write_shards(partial, split, 25, lambda a, b: (digits[a:b], labels[a:b]), shards, SPEC)
    return finish(partial, tmp_path / "codes", SPEC, ("a", "b", "c"), {"train": 25, "val": 25}, {"tokenizer": "t"})


def test_reads_what_was_written_by_two_processes(written, digits):
    codes = CodeCache.open(written.folder).read("train")
    assert codes.digits.dtype == torch.uint16
    assert torch.equal(codes.digits.long(), digits)
    assert torch.equal(codes.labels, torch.arange(25) % 3)
    assert (written.count("train"), len(codes)) == (25, 25)
    assert written.spec == SPEC
    assert written.classes == ("a", "b", "c")


def test_the_digest_is_that_of_the_content(written, tmp_path, digits):
    again = CodeCache.open(written.folder)
    assert again.digest == written.digest
    manifest = json.loads((written.folder / "manifest.json").read_text())
    manifest["splits"]["train"][0]["sha256"] = "0" * 64
    assert CodeCache(written.folder, manifest).digest != written.digest


def test_one_flipped_bit_is_refused(written):
    path = written.folder / "train_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train_00001.safetensors: is damaged"):
        written.read("train")
    assert len(written.read("val")) == 25


def test_a_missing_shard_or_split_is_named(written):
    (written.folder / "val_00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"val_00002.safetensors: cannot be read"):
        written.read("val")
    with pytest.raises(InputError, match="has no split 'test'; expected one of train, val"):
        written.read("test")


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 7}', "[]"])
def test_a_folder_that_is_no_cache_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest.json: (is not a manifest|format 7; expected 1)"):
        CodeCache.open(tmp_path)
    with pytest.raises(InputError, match="holds no code cache"):
        CodeCache.open(tmp_path / "elsewhere")
