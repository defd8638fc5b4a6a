"""Files of torch.save: no bit of a tensor may have flipped, no code runs, nothing waits."""

import os
import random
import zipfile
from argparse import Namespace

import pytest
import torch

from ifsq.config import InputError
from ifsq.interop.official.latents import read_statistics
from ifsq.pretrained.weights import read_weights
from ifsq.store.pickles import read_pickle

TABLE = {"a": torch.arange(1000.0), "b": torch.ones(3), "names": ["x"], "step": 3}


def flip(content, bit):
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


@pytest.mark.parametrize("zipped", [True, False])
def test_what_was_saved(zipped, tmp_path):
    torch.save(TABLE, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = read_pickle(tmp_path / "x.pt")
    assert found.keys() == TABLE.keys()
    assert torch.equal(found["a"], TABLE["a"])
    assert (found["names"], found["step"]) == (["x"], 3)


def test_a_flipped_bit_of_a_tensor_is_told(tmp_path):
    """torch.load takes it for the value."""
    torch.save(TABLE, tmp_path / "x.pt")
    whole, draws = (tmp_path / "x.pt").read_bytes(), random.Random(0)
    values = TABLE["a"].numpy().tobytes()
    for _ in range(40):
        bit = 8 * whole.index(values) + draws.randrange(8 * len(values))
        (tmp_path / "x.pt").write_bytes(flip(whole, bit))
        torch.load(tmp_path / "x.pt", weights_only=True)
        with pytest.raises(InputError, match=r"x\.pt: damaged: the checksum of x/data/0 is not that of its bytes"):
            read_pickle(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("reader", "name", "table"),
    [
        (read_weights, "w.pth", {"mean": torch.ones(1, 5, 1, 1)}),
        (
            lambda path: read_statistics(path.parent),
            "latents_stats.pt",
            {k: torch.ones(1, 5, 1, 1) for k in ("mean", "std")},
        ),
    ],
)
def test_who_reads_them_looks_at_the_checksums(reader, name, table, tmp_path):
    torch.save(table, tmp_path / name)
    reader(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(flip(whole, 8 * whole.index(torch.ones(5).numpy().tobytes())))
    with pytest.raises(InputError, match=f"{name}: damaged: the checksum of"):
        reader(tmp_path / name)


def test_an_archive_that_is_compressed_is_not_unpacked(tmp_path):
    torch.save(TABLE, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as plain,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for part in plain.infolist():
            small.writestr(part.filename, bytes(1 << 20))
    with pytest.raises(InputError, match=r"y\.pt: is compressed; expected a file as torch\.save writes it"):
        read_pickle(tmp_path / "y.pt")


def test_an_archive_that_says_that_it_begins_before_the_file(tmp_path):
    torch.save(TABLE, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    place = whole.rindex(b"PK\6\6") + 48  # where the list of its parts begins
    (tmp_path / "x.pt").write_bytes(whole[:place] + (2**40).to_bytes(8, "little") + whole[place + 8 :])
    with pytest.raises(InputError, match=r"x\.pt: cannot be read: invalid argument; expected a file of torch\.save"):
        read_pickle(tmp_path / "x.pt")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_the_arguments_of_a_command_are_values(tmp_path):
    arguments = Namespace(lr=0.1, name="x")
    torch.save({"args": arguments, "steps": 3}, tmp_path / "x.pt")
    assert read_pickle(tmp_path / "x.pt") == {"args": arguments, "steps": 3}


def test_code_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harmful()}, "x.pt")
    with pytest.raises(InputError, match=r"x\.pt: cannot be read with weights_only=True \(.*posix.mkdir.*\)") as told:
        read_pickle(tmp_path / "x.pt")
    assert str(told.value).isprintable()  # torch's words have the codes that terminals obey
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut", b"\x80\x02}q", b"\x80\x02}q\x00."])
def test_what_is_no_such_file(content, tmp_path):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt: cannot be read with weights_only=True") as told:
        read_pickle(tmp_path / "x.pt")
    assert "\n" not in str(told.value)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for name, told in (("pipe.pt", "is no regular file"), ("gone.pt", "no such file"), ("", "is no regular file")):
        with pytest.raises(InputError, match=f"{told}; expected a file of torch.save"):
            read_pickle(tmp_path / name)
