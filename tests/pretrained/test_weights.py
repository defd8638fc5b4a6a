"""Where a weights file is looked for, and that a wrong one leaves nothing. No network: addresses are files here."""

import hashlib
import os

import pytest
import torch
from safetensors.torch import save_file

from ifsq.config import InputError, Remark
from ifsq.pretrained import inception, lpips
from ifsq.pretrained.weights import WeightsFile, find_weights, read_weights

BYTES = b"the weights"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("IFSQ_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def published(tmp_path):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "w.pth").write_bytes(BYTES)
    return WeightsFile("w.pth", (tmp_path / "server" / "w.pth").as_uri(), hashlib.sha256(BYTES).hexdigest())


def refused(call, *arguments):
    with pytest.raises(InputError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_download_once(cache, published, tmp_path):
    with pytest.warns(Remark, match=r"w.pth: fetching it, 0.0 MB, from file:.* into "):
        assert find_weights(published) == cache / "w.pth"
    assert (cache / "w.pth").read_bytes() == BYTES
    assert os.listdir(cache) == ["w.pth"]
    (tmp_path / "server" / "w.pth").unlink()
    assert find_weights(published) == cache / "w.pth"


def test_order(cache, published, tmp_path, monkeypatch):
    """An explicit path before the folder before the cache."""
    with pytest.warns(Remark):
        find_weights(published)
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("IFSQ_WEIGHTS", str(own))
    assert find_weights(published) == cache / "w.pth"  # the folder does not have it
    (own / "w.pth").write_bytes(BYTES)
    assert find_weights(published) == own / "w.pth"
    (tmp_path / "other").write_bytes(b"anything")
    assert find_weights(published, tmp_path / "other") == tmp_path / "other"
    assert "no such file" in refused(find_weights, published, tmp_path / "absent")


def test_wrong_checksum_of_a_download_leaves_nothing(cache, published, tmp_path):
    (tmp_path / "server" / "w.pth").write_bytes(b"a login page")
    with pytest.warns(Remark):
        assert "nothing was kept" in refused(find_weights, published)
    assert os.listdir(cache) == []


def test_wrong_checksum_of_a_found_file(cache, published, tmp_path, monkeypatch):
    """Is refused, not replaced and not passed over: it is the user's."""
    monkeypatch.setenv("IFSQ_WEIGHTS", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "w.pth").write_bytes(b"cut sh")
    assert str(tmp_path / "own" / "w.pth") in refused(find_weights, published)
    assert (tmp_path / "own" / "w.pth").read_bytes() == b"cut sh"


def test_offline(cache):
    absent = WeightsFile("w.pth", "https://name.invalid/w.pth", "0" * 64)
    message = refused(find_weights, absent)
    for part in ("w.pth", absent.url, str(cache), "IFSQ_WEIGHTS"):
        assert part in message
    assert os.listdir(cache) == []


def test_cache_that_cannot_be_written(tmp_path, published, monkeypatch):
    monkeypatch.delenv("IFSQ_WEIGHTS", raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "file"))
    assert "w.pth" in refused(find_weights, published)


@pytest.mark.parametrize("file", [lpips.VGG16, lpips.HEADS, inception.INCEPTION])
def test_published_files(file):
    """torch's own habit: a name ends in the first eight digits of the SHA-256."""
    assert file.url.startswith("https://")
    assert len(file.sha256) == 64
    if "-" in file.name:
        assert file.name.removesuffix(".pth").rsplit("-", 1)[1] == file.sha256[:8]


def test_read(tmp_path):
    table = {"a": torch.arange(3.0)}
    torch.save(table, tmp_path / "new.pth")
    torch.save(table, tmp_path / "old.pth", _use_new_zipfile_serialization=False)  # as VGG16's file is
    save_file(table, tmp_path / "safe.safetensors")
    for name in ("new.pth", "old.pth", "safe.safetensors"):
        assert torch.equal(read_weights(tmp_path / name)["a"], table["a"])


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut", b"\x80\x02}q"])
def test_damaged_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    assert refused(read_weights, path).startswith(f"{path}: cannot be read")


def test_pickled_code_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harmful()}, "w.pth")
    refused(read_weights, tmp_path / "w.pth")
    assert not (tmp_path / "harmed").exists()


def test_other_content_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    assert "found list" in refused(read_weights, tmp_path / "list.pth")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "nested.pth")
    assert "expected a state dict" in refused(read_weights, tmp_path / "nested.pth")
