"""Rows that lie on the disk are those that were written, and what was found good once is read again when it changed."""

import dataclasses
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ifsq.codes import CodeSet, checks, writer
from ifsq.codes import cache as caches
from ifsq.codes.cache import CodeCache
from ifsq.codes.checks import CHECKED, Checked
from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.codes.writer import Part, finish, prepare, write_shards
from ifsq.config import InputError, digest

LAYOUTS = {
    "bytes": CodeSpec((17, 5), (2,), "little", "equal", (2, 3)),
    "words": CodeSpec((300,), (1,), "little", "codebook", (2, 3)),
    "latents": LatentSpec(2, (2, 3)),
}


def stored(layout, seed):
    rng = torch.Generator().manual_seed(seed)
    if isinstance(layout, LatentSpec):
        return torch.randn(25, *layout.shape, generator=rng).half()
    return torch.stack([torch.randint(L, (25, *layout.grid), generator=rng) for L in layout.levels], dim=-1)


def write(folder, layout, monkeypatch):
    monkeypatch.setattr(writer, "SHARD", 10)
    content, flipped, labels = stored(layout, 0), stored(layout, 1), torch.arange(25) % 3
    prepare(folder / "partial", {})

    def encode(a, b):
        return Part(content[a:b], labels[a:b], flipped[a:b])

    write_shards(folder / "partial", "train", 25, encode, range(3), layout, flips=True)
    about = {"tokenizer": "t", "flips": True}
    cache = finish(folder / "partial", folder / "codes", layout, ("a", "b", "c"), {"train": 25}, about)
    return cache, CodeSet(layout, content, labels, flipped)


@pytest.fixture
def written(tmp_path, monkeypatch):
    return write(tmp_path, LAYOUTS["bytes"], monkeypatch)[0]


@pytest.fixture
def settled(monkeypatch):
    """As if every file had been written long ago."""
    monkeypatch.setattr(checks, "SETTLED", -10.0)


@pytest.fixture
def hashed(monkeypatch):
    """Names of the shards whose bytes are read as a whole, as they are."""
    names, take = [], caches.sha256_of

    def counted(handle, path):
        names.append(path.name)
        return take(handle, path)

    monkeypatch.setattr(caches, "sha256_of", counted)
    return names


SHARDS = [f"train_0000{number}.safetensors" for number in range(3)]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("most", [1, 1000])
def test_batches_from_the_disk_are_those_from_memory(name, most, tmp_path, monkeypatch):
    """Whatever the order, across shards, with repetitions, and with one file open at a time."""
    cache, whole = write(tmp_path, LAYOUTS[name], monkeypatch)
    read = cache.read("train")
    read.content.files.close()
    read.content.files.most = most
    rng = torch.Generator().manual_seed(2)
    for count in (0, 1, 7, 100):
        rows = torch.randint(25, (count,), generator=rng)
        for mirrored in (None, torch.rand(count, generator=rng) < 0.5):
            mine, theirs = read.batch(rows, mirrored=mirrored), whole.batch(rows, mirrored=mirrored)
            assert mine.content.dtype == theirs.content.dtype
            assert torch.equal(mine.content, theirs.content)
            assert torch.equal(mine.labels, theirs.labels)
    assert len(read.content.files._open) <= most


def test_stored_rows_are_taken_as_from_a_tensor(written, tmp_path):
    rows, whole = written.read("train").content, stored(LAYOUTS["bytes"], 0)
    assert (len(rows), tuple(rows.shape), rows.dtype) == (25, (25, 2, 3, 2), torch.uint8)
    for part in (slice(None), slice(8, 21), slice(3, 20, 4), slice(30, 40), 0, -1, [3, 24], torch.tensor([9, 10, 11])):
        assert torch.equal(rows[part].long(), whole[part])
    assert torch.equal(rows[20:2:-3].long(), whole[range(20, 2, -3)])
    assert torch.equal(torch.stack(list(rows)).long(), whole)
    for wrong in (25, -26, [25], [-1]):
        with pytest.raises(IndexError):
            rows[wrong]


def test_neighbours_are_read_together(written, monkeypatch):
    rows, calls, read = written.read("train").content, [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: (calls.append(len(given[1][0])), read(*given))[1])
    rows[:]
    assert calls == [120, 120, 60]  # 12 bytes an image
    rows[[4, 5, 6, 2, 3, 9, 10]]
    assert calls[3:] == [36, 24, 12, 12]


def test_a_shard_is_hashed_once_for_every_state(written, settled, hashed):
    written.read("train")
    assert hashed == SHARDS
    assert json.loads((written.folder / CHECKED).read_text())["manifest"] == written.digest
    for _ in range(2):
        CodeCache.open(written.folder).read("train")
    assert hashed == SHARDS
    (written.folder / SHARDS[1]).touch()
    written.read("train")
    assert hashed[3:] == SHARDS[1:2]
    written.read("train")
    assert len(hashed) == 4


def test_what_was_written_just_now_is_not_remembered(written, hashed):
    """A second write within the same tick of the clock would leave no trace."""
    for _ in range(2):
        written.read("train")
    assert hashed == SHARDS * 2
    assert not (written.folder / CHECKED).exists()


def damage(path):
    """Another byte, with the size and the time of modification that there were."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    return before, bytes(content)


@pytest.mark.parametrize("how", ["in place", "exchanged", "moved in"])
def test_a_damaged_shard_is_never_taken_for_the_one_that_was_good(how, written, settled, tmp_path):
    written.read("train")
    path = written.folder / SHARDS[2]
    before, content = damage(path)
    place = path if how == "in place" else tmp_path / "other"
    if how == "exchanged":
        path.unlink()
        place = path
    place.write_bytes(content)
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(place, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(InputError, match=rf"{SHARDS[2]}: is damaged, its SHA-256"):
        CodeCache.open(written.folder).read("train")


@pytest.mark.parametrize("field", range(4))
def test_each_part_of_a_state_counts(field, written, settled, hashed):
    written.read("train")
    path = written.folder / CHECKED
    table = json.loads(path.read_text())
    table["files"][SHARDS[0]][field] += 1
    del table["digest"]
    path.write_text(json.dumps({**table, "digest": digest(table)}))
    written.read("train")
    assert hashed[3:] == SHARDS[:1]


def test_a_copied_cache_is_checked_and_then_remembered_too(written, settled, hashed, tmp_path):
    written.read("train")
    shutil.copytree(written.folder, tmp_path / "copy")
    for _ in range(2):
        CodeCache.open(tmp_path / "copy").read("train")
    assert hashed == SHARDS * 2


ODD = [b"", b"{", b"[]", b"null", b"{}", b'{"digest": 3}', b"\xff\xfe", b"[" * 9999, "pipe", "folder", "link", "other"]


@pytest.mark.parametrize("content", ODD, ids=lambda content: str(content[:13]))
def test_a_note_of_any_content_is_passed_over(content, written, settled, hashed):
    """And written again where it can be; a folder that cannot be written is checked each time."""
    written.read("train")
    path = written.folder / CHECKED
    good = json.loads(path.read_text())
    path.unlink()
    if content == "pipe":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    elif content == "link":
        path.symlink_to("/dev/zero")
    elif content == "other":  # of another manifest
        table = {**good, "manifest": "0" * 64}
        del table["digest"]
        path.write_text(json.dumps({**table, "digest": digest(table)}))
    else:
        path.write_bytes(content)
    for _ in range(2):
        written.read("train")
    assert hashed == SHARDS * (3 if content in ("pipe", "folder", "link") else 2)


def test_every_flipped_bit_of_a_note_is_seen(written, settled):
    written.read("train")
    path = written.folder / CHECKED
    content = path.read_bytes()
    draw = np.random.default_rng(0)
    for place in draw.integers(len(content) - 1, size=100):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(draw.integers(7))
        path.write_bytes(flipped)
        remembered = Checked.read(written.folder, written.digest)
        assert not remembered.files or json.loads(flipped) == json.loads(content)


def test_a_shard_that_is_touched_or_removed_is_read_on(written, hashed):
    codes, rows = written.read("train"), torch.tensor([3, 12])
    before = codes.batch(rows)
    (written.folder / SHARDS[0]).touch()
    (written.folder / SHARDS[1]).unlink()
    for _ in range(2):
        assert torch.equal(codes.batch(rows).content, before.content)
    assert hashed[3:] == SHARDS[:2]  # both look changed, and neither's bytes are


@pytest.mark.parametrize("harm", ["cut", "changed", "removed", "exchanged", "a pipe"])
def test_a_shard_that_becomes_another_while_it_is_used_is_refused(harm, written):
    codes = written.read("train")
    codes.batch(torch.tensor([3]))
    path = written.folder / SHARDS[0]
    if harm in ("cut", "changed"):
        content = damage(path)[1]
        with path.open("r+b") as file:
            file.write(content[: 40 if harm == "cut" else None])
            file.truncate(len(content) - (100 if harm == "cut" else 0))
    else:
        codes.content.files.close()  # as when other shards were read meanwhile
        content = damage(path)[1]
        path.unlink()
        if harm == "a pipe":
            os.mkfifo(path)
        elif harm == "exchanged":
            path.write_bytes(content)
    told = {"removed": "cannot be read: no such file", "a pipe": "is no regular file"}.get(harm, "has changed since it")
    with pytest.raises(InputError, match=f"{SHARDS[0]}: {told}"):
        codes.batch(torch.tensor([3]))


def test_a_shard_that_ends_early_is_one_line(written, monkeypatch):
    codes = written.read("train")
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(InputError, match=f"{SHARDS[0]}: ends before it should"):
        codes.batch(torch.tensor([3]))


def test_what_the_server_has_forgotten_is_one_line(written, monkeypatch):
    codes = written.read("train")

    def forgotten(*_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "preadv", forgotten)
    with pytest.raises(InputError, match=f"{SHARDS[0]}: cannot be read: stale file handle"):
        codes.batch(torch.tensor([3]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_moments_are_computed_once_and_remembered_to_the_bit(name, tmp_path, monkeypatch):
    cache, whole = write(tmp_path, LAYOUTS[name], monkeypatch)
    books = [torch.randn(300, 3, generator=torch.Generator().manual_seed(n)) for n in (0, 1)]
    for book in books if name == "words" else [None]:
        expected = dataclasses.replace(whole, codebook=book).moments()
        codes = (
            whole.batch(torch.arange(25)).codes() if book is None else book[whole.content[..., 0].long()].movedim(-1, 1)
        )
        torch.testing.assert_close(expected[0], codes.double().mean((0, 2, 3)))
        torch.testing.assert_close(expected[1], codes.double().var((0, 2, 3), correction=0))
        read = [CodeCache.open(cache.folder).read("train", book) for _ in range(2)]
        for codes in read:
            assert all(map(torch.equal, codes.moments(), expected))
            monkeypatch.setattr(CodeSet, "_moments", None)  # not again
        monkeypatch.undo()


def test_moments_that_cannot_be_remembered_are_computed(written):
    (written.folder / CHECKED).mkdir()
    mean, _ = written.read("train").moments()
    assert torch.equal(mean, written.read("train").moments()[0])


def test_a_cache_that_is_read_stays_out_of_memory(tmp_path, monkeypatch):
    """64 MiB of codes, every row of them read, as in the first epoch of a training."""
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("needs the proc file system")
    monkeypatch.setattr(writer, "SHARD", 4096)
    layout = CodeSpec((5, 5, 5, 5), (4,), "little", "paper", (32, 32))
    prepare(tmp_path / "partial", {})

    def encode(a, b):
        return Part(torch.zeros(b - a, *layout.shape, dtype=torch.uint8), torch.zeros(b - a))

    write_shards(tmp_path / "partial", "train", 16384, encode, range(4), layout)
    cache = finish(tmp_path / "partial", tmp_path / "codes", layout, ("a",), {"train": 16384}, {"tokenizer": "t"})
    monkeypatch.setattr(caches, "CHECKED_AT_ONCE", 1 << 20)

    def resident():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    cache.read("train").batch(torch.arange(64))  # what the libraries take
    before = resident()
    codes = cache.read("train")
    for rows in torch.randperm(16384, generator=torch.Generator().manual_seed(0)).split(64):
        codes.batch(rows)
    assert resident() - before < 16


def test_another_process_opens_the_shards_for_itself(written):
    """The number of an open file means another file there: here, after this process has closed its own."""
    codes = written.read("train")
    expected = codes.content[:]
    copy = pickle.loads(pickle.dumps(codes))  # noqa: S301
    codes.content.files.close()
    codes.flipped.files.close()
    assert torch.equal(copy.content[:], expected)
    assert torch.equal(copy.batch(torch.tensor([24, 3])).content, codes.batch(torch.tensor([24, 3])).content)
