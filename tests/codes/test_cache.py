"""The cache: what is written is read, and whatever is damaged is refused."""

import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from ifsq.codes import writer
from ifsq.codes.cache import CodeCache
from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.codes.writer import Part, finish, prepare, write_shards
from ifsq.config import InputError, digest
from ifsq.store.files import sha256

SPEC = CodeSpec((17, 300), (2,), "little", "equal", (2, 3))


@pytest.fixture
def digits():
    rng = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(L, (25, 2, 3), generator=rng) for L in SPEC.levels], dim=-1)


@pytest.fixture
def written(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(writer, "SHARD", 10)
    partial = tmp_path / "partial"
    partial.mkdir()
    labels = torch.arange(25) % 3
    for split in ("train", "val"):
        for rank in (0, 1):
            shards = iter(range(rank, 3, 2))
            write_shards(partial, split, 25, lambda a, b: Part(digits[a:b], labels[a:b]), shards, SPEC)
    return finish(partial, tmp_path / "codes", SPEC, ("a", "b", "c"), {"train": 25, "val": 25}, {"tokenizer": "t"})


def test_reads_what_was_written_by_two_processes(written, digits):
    codes = CodeCache.open(written.folder).read("train")
    assert codes.content.dtype == torch.uint16
    assert torch.equal(codes.content[:].long(), digits)
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
    told = r"manifest.json: (is not a manifest|cannot be read as JSON|format 7; expected one of \(1, 2, 3, 4\))"
    with pytest.raises(InputError, match=told):
        CodeCache.open(tmp_path)
    with pytest.raises(InputError, match="holds no code cache"):
        CodeCache.open(tmp_path / "elsewhere")


def test_a_cache_of_the_first_format_is_read(written, digits):
    """It had no content, no flips and no counts of what was left out."""
    path = written.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["content"]
    path.write_text(json.dumps(manifest | {"format": 1}))
    codes = CodeCache.open(written.folder).read("val")
    assert torch.equal(codes.content[:].long(), digits)
    assert codes.flipped is None


@pytest.fixture
def named(tmp_path, digits, monkeypatch):
    """The same codes as `written`, with names."""
    monkeypatch.setattr(writer, "SHARD", 10)
    partial = tmp_path / "named_partial"
    partial.mkdir()
    labels, names = torch.arange(25) % 3, [f"a/\u00e9 {number}.png" for number in range(25)]

    def encode(a, b):
        return Part(digits[a:b], labels[a:b], names=tuple(names[a:b]))

    for split in ("train", "val"):
        write_shards(partial, split, 25, encode, range(3), SPEC, named=True)
    about = {"tokenizer": "t"}
    return names, finish(partial, tmp_path / "named", SPEC, ("a", "b", "c"), {"train": 25, "val": 25}, about)


def test_names_of_images_lie_beside_their_codes_and_decide_no_token(named, written):
    names, cache = named
    assert CodeCache.open(cache.folder).names("train") == names
    assert cache.digest == written.digest  # of the same codes without names
    for number in range(3):
        shard = f"train_0000{number}.safetensors"
        assert (cache.folder / shard).read_bytes() == (written.folder / shard).read_bytes()
    with pytest.raises(InputError, match="has no split 'test'; expected one of train, val"):
        cache.names("test")


def test_a_cache_of_the_second_format_has_no_names_and_the_same_digest(written):
    path = written.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format": 2}))
    older = CodeCache.open(written.folder)
    assert older.digest == written.digest == digest(manifest | {"format": 2})
    assert len(older.read("train")) == 25
    with pytest.raises(InputError, match="codes: does not say what its images are called; encode again"):
        older.names("train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["b"]', "is damaged, its SHA-256 is not the one in manifest.json"),
        (None, "names.json: cannot be read"),
    ],
)
def test_names_that_are_damaged_are_refused(named, content, message):
    _, cache = named
    path = cache.folder / "val_00001.names.json"
    path.unlink() if content is None else path.write_text(content)
    assert len(cache.names("train")) == 25
    with pytest.raises(InputError, match=message):
        cache.names("val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list of names"),
        ('["a", 3]', "expected a list of names"),
        (json.dumps(["a\nb"] * 10), "expected a list of names"),
        (json.dumps(["a"] * 9), "names 9 images; expected 10, the count in manifest.json"),
        ("[", "cannot be read as JSON"),
    ],
)
def test_names_that_a_manifest_vouches_for_are_looked_at_too(named, content, message):
    _, cache = named
    path = cache.folder / "val_00001.names.json"
    path.write_text(content)
    manifest = json.loads((cache.folder / "manifest.json").read_text())
    manifest["splits"]["val"][1]["names_sha256"] = sha256(path)
    (cache.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=f"val_00001.names.json: {message}"):
        CodeCache.open(cache.folder).names("val")


def test_a_shard_of_an_earlier_version_gets_its_names(digits, tmp_path):
    folder = tmp_path / "partial"
    folder.mkdir()
    write_shards(folder, "train", 3, lambda a, b: Part(digits[a:b], torch.zeros(b - a)), [0], SPEC)
    calls = []

    def again(a, b):
        calls.append((a, b))
        return Part(digits[a:b], torch.zeros(b - a), names=("x", "y", "z"))

    for _ in range(2):
        write_shards(folder, "train", 3, again, [0], SPEC, named=True)
    assert calls == [(0, 3)]


LATENTS = LatentSpec(3, (2, 4))
NAMES = tuple(str(number) for number in range(25))


@pytest.fixture
def latents(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD", 10)
    values = torch.randn(25, 3, 2, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    partial = tmp_path / "partial"
    prepare(partial, {})

    def encode(a, b):
        kept = slice(a + 1, b)  # the first image of every shard cannot be read
        return Part(values[kept], torch.arange(25)[kept], values[kept].flip(-1))

    for split, count in (("train", 25), ("val", 4)):
        write_shards(partial, split, count, encode, range(3 if split == "train" else 1), LATENTS)
    about = {"tokenizer": "t", "flips": True}
    return values, finish(partial, tmp_path / "latents", LATENTS, NAMES, {"train": 25, "val": 4}, about)


def test_latents_with_flips_and_their_statistics(latents):
    values, cache = latents
    kept = torch.tensor([i for i in range(25) if i % 10])
    read = cache.read("train")
    assert torch.equal(read.content[:], values[kept].half())
    assert torch.equal(read.flipped[:], values[kept].flip(-1).half())
    assert torch.equal(read.labels, kept)
    assert (len(read), cache.count("val")) == (22, 3)
    stored = torch.cat([values[kept], values[kept].flip(-1)]).half().double()
    rows = stored.movedim(1, -1).reshape(-1, 3)
    assert cache.statistics["mean"] == pytest.approx(rows.mean(0).tolist(), rel=1e-12)
    assert cache.statistics["std"] == pytest.approx(rows.std(0, correction=0).tolist(), rel=1e-12)


def test_latents_are_no_digits_and_digits_no_latents(latents, written):
    with pytest.raises(InputError, match="holds latents of a continuous tokenizer; expected digits"):
        _ = latents[1].spec
    assert isinstance(written.layout, CodeSpec)


def test_latents_that_float16_cannot_hold_are_refused(tmp_path):
    prepare(tmp_path / "p", {})
    part = Part(torch.full((1, 3, 2, 4), 1e5), torch.zeros(1))
    with pytest.raises(InputError, match=r"latents up to 1e\+05: expected values that float16 holds"):
        write_shards(tmp_path / "p", "train", 1, lambda a, b: part, range(1), LATENTS)
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["about.json"]


def test_a_writer_goes_on_where_it_was_killed(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(writer, "SHARD", 10)
    asked, labels = [], torch.zeros(25, dtype=torch.int64)

    def encode(a, b):
        asked.append(a)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return Part(digits[a:b], labels[a:b])

    partial = tmp_path / "partial"
    assert not prepare(partial, {"tokenizer": "t"})
    with pytest.raises(KeyboardInterrupt):
        write_shards(partial, "train", 25, encode, range(3), SPEC)
    (partial / ".partial_train_00002.safetensors_1").write_bytes(b"half")
    assert prepare(partial, {"tokenizer": "t"})
    write_shards(partial, "train", 25, encode, range(3), SPEC)
    assert asked == [0, 10, 20, 20]
    cache = finish(partial, tmp_path / "codes", SPEC, ("a",), {"train": 25}, {"tokenizer": "t"})
    assert torch.equal(cache.read("train").content[:].long(), digits)
    assert {path.name for path in cache.folder.iterdir()} == {
        "manifest.json",
        *(f"train_0000{i}.safetensors" for i in range(3)),
    }


def test_a_shard_that_was_damaged_while_others_were_written_is_written_again(tmp_path, digits, monkeypatch):
    """Its checksum is that of what was written, not of what lay there at the end."""
    monkeypatch.setattr(writer, "SHARD", 10)
    partial, labels = tmp_path / "partial", torch.zeros(25, dtype=torch.int64)
    prepare(partial, {})
    for _ in range(2):
        write_shards(partial, "train", 25, lambda a, b: Part(digits[a:b], labels[a:b]), range(3), SPEC)
        shard = partial / "train_00001.safetensors"
        content = bytearray(shard.read_bytes())
        content[-3] ^= 1
        shard.write_bytes(content)
    cache = finish(partial, tmp_path / "codes", SPEC, ("a",), {"train": 25}, {"tokenizer": "t"})
    with pytest.raises(InputError, match=r"train_00001.safetensors: is damaged"):
        cache.read("train")


def test_a_writer_killed_at_its_end_goes_on(tmp_path, digits, monkeypatch):
    """Some shards have their final names by then, and its notes are gone."""
    monkeypatch.setattr(writer, "SHARD", 10)
    partial, out, about = tmp_path / "codes" / ".partial_codes", tmp_path / "codes", {"tokenizer": "t"}
    labels = torch.zeros(25, dtype=torch.int64)
    prepare(partial, about)
    write_shards(partial, "train", 25, lambda a, b: Part(digits[a:b], labels[a:b]), range(3), SPEC)
    replace = os.replace

    def kill(source, target):
        if (out / "train_00000.safetensors").exists():
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        finish(partial, out, SPEC, ("a",), {"train": 25}, about)
    monkeypatch.setattr(os, "replace", replace)
    assert not (out / "manifest.json").exists()
    with pytest.raises(InputError, match="other options was interrupted there"):
        prepare(partial, {"tokenizer": "u"})
    assert prepare(partial, about)
    assert writer.is_complete(partial)
    cache = finish(partial, out, SPEC, ("a",), {"train": 25}, about)
    assert torch.equal(cache.read("train").content[:].long(), digits)
    assert not partial.exists()


def test_a_writer_killed_behind_its_manifest_leaves_no_notes(tmp_path, digits):
    out, about = tmp_path / "codes", {"tokenizer": "t"}
    partial = out / ".partial_codes"
    prepare(partial, about)
    write_shards(partial, "train", 25, lambda a, b: Part(digits[a:b], torch.zeros(b - a, dtype=torch.int64)), [0], SPEC)
    notes = [path for path in partial.iterdir() if path.suffix != ".safetensors"]
    kept = {path: path.read_bytes() for path in notes}
    writer.write_manifest(partial, out, SPEC, ("a",), {"train": ["train_00000.safetensors"]}, about)
    for path, content in kept.items():  # as if it had not come to remove them
        path.write_bytes(content)
    finish(partial, out, SPEC, ("a",), {"train": 25}, about)
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "train_00000.safetensors"]


def test_images_that_are_all_unreadable_leave_no_cache(tmp_path):
    prepare(tmp_path / "partial", {})
    none = Part(torch.empty(0, *SPEC.shape), torch.empty(0))
    write_shards(tmp_path / "partial", "train", 25, lambda a, b: none, range(1), SPEC)
    with pytest.raises(InputError, match="codes: none of the images of 'train' can be read"):
        finish(tmp_path / "partial", tmp_path / "codes", SPEC, ("a",), {"train": 25}, {"tokenizer": "t"})
    assert not (tmp_path / "codes").exists()


def test_shards_of_other_codes_are_neither_used_nor_removed(tmp_path, digits):
    partial = tmp_path / ".partial_codes"
    assert not prepare(partial, {"tokenizer": "s"})
    assert not prepare(partial, {"tokenizer": "t"})  # no shard is lost
    write_shards(partial, "train", 25, lambda a, b: Part(digits[a:b], torch.zeros(25)), range(1), SPEC)
    before = {path.name: path.read_bytes() for path in partial.iterdir()}
    with pytest.raises(InputError, match=r"\(tokenizer 't' against 'u'\); give the same options .* or remove .*codes"):
        prepare(partial, {"tokenizer": "u"})
    assert {path.name: path.read_bytes() for path in partial.iterdir()} == before


def test_a_shard_that_says_something_else_is_refused(written):
    """Its checksum is right, its content is not what the manifest describes."""
    manifest = json.loads((written.folder / "manifest.json").read_text())
    manifest["spec"]["levels"] = [17, 200]
    with pytest.raises(InputError, match=r"digits is torch.uint16 .*; expected torch.uint8"):
        CodeCache(written.folder, manifest).read("train")
    manifest["spec"]["levels"] = [9, 300]
    with pytest.raises(InputError, match="a digit of dimension 0 is not below its level count"):
        CodeCache(written.folder, manifest).read("train")


def test_a_label_that_is_no_class_is_refused(tmp_path, digits):
    """Three classes have the labels 0, 1 and 2; a generator would take 3 for images of no class."""
    partial = tmp_path / "partial"
    prepare(partial, {"tokenizer": "t"})
    labels = torch.arange(25) % 4
    write_shards(partial, "train", 25, lambda a, b: Part(digits[a:b], labels[a:b]), range(1), SPEC)
    cache = finish(partial, tmp_path / "codes", SPEC, ("a", "b", "c"), {"train": 25}, {"tokenizer": "t"})
    with pytest.raises(InputError, match=r"train_00000.safetensors: label 3: expected 0 to 2"):
        cache.read("train")


def test_latents_that_are_not_finite_are_refused(latents):
    cache = latents[1]
    path = cache.folder / "val_00000.safetensors"
    table = load_file(path)
    table["latents_flipped"][0, 0, 0, 0] = float("nan")
    save_file(table, path)
    manifest = json.loads((cache.folder / "manifest.json").read_text())
    manifest["splits"]["val"][0]["sha256"] = sha256(path)
    with pytest.raises(InputError, match=r"val_00000.safetensors: latents_flipped: expected finite numbers"):
        CodeCache(cache.folder, manifest).read("val")


FIRST = ("splits", "train", 0)
LIES = [
    *((*FIRST, "count", value) for value in (10**12, 10**30, -1, "10", 10.0, True, None, 9, 0)),
    *((*FIRST, "file", value) for value in ("/dev/zero", "../codes/train_00000.safetensors", ".", "", "a\0b", 3)),
    (*FIRST, "file", "train_00001.safetensors"),
    *((*FIRST, "sha256", value) for value in ("", 0, "0" * 63, ["a"])),
    *((*FIRST, "skipped", value) for value in ("line", [1], None)),
    *(("splits", "train", value) for value in ([], {}, None, [None], ["train_00000.safetensors"])),
    *(("splits", value) for value in ({}, [], None)),
    *(("spec", "grid", value) for value in ([4], [2, 3, 4], [2, -3], [10**12, 10**12], [2.0, 3], "23", None)),
    *(("spec", "levels", value) for value in ([], [17], [17, 10**12], [17, 1], ["17", 300], [10**4000], None)),
    *(("spec", "groups", value) for value in ([1], [3], [0, 2], None)),
    *(("spec", key, value) for key in ("digit_order", "cells", "scale") for value in ("odd", [], None, -1)),
    *(("spec", value) for value in ([], None, {}, {"odd": 1})),
    *(("classes", value) for value in ([], None, "abc", ["a", 1], ["a\nb"], ["\ud800"], [["a"]])),
    *(("about", value) for value in ({}, None, [], {"tokenizer": 1}, {"tokenizer": "", "flips": "yes"})),
    *(("about", "crops", value) for value in ({}, 3, {"kind": "ten", "count": 4}, {"kind": "random", "count": 10**9})),
    *(("about", "data", value) for value in ([], None, 3)),
    *(("content", value) for value in ("latents", "odd", None, 2)),
    *(("statistics", value) for value in ([], {"mean": 3}, {"mean": ["a"]}, {"mean": [float("nan")]})),
    *(("format", value) for value in (0, 5, "2", True, None, 2.5, [2])),
    ("odd", 1),
]


@pytest.mark.parametrize(("name", "value"), [("mean", 1e39), ("mean", -7e4), ("std", -1.0), ("std", 1e39)])
def test_statistics_that_no_stored_latents_have_are_refused(latents, name, value):
    folder = latents[1].folder
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["statistics"][name][0] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"statistics\.{name}: .*: expected "):
        CodeCache.open(folder)


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: " ".join(str(part)[:20] for part in lie))
def test_a_manifest_that_says_what_cannot_be_is_refused(written, lie):
    """Before memory is taken on its word, and with a line that names it."""
    path = written.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    place = manifest
    for key in lie[:-2]:
        place = place[key]
    place[lie[-2]] = lie[-1]
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=str(written.folder)) as caught:
        CodeCache.open(written.folder).read("train")
    assert len(str(caught.value)) < 600


def test_a_shard_stands_once(written):
    manifest = json.loads((written.folder / "manifest.json").read_text())
    for split in ("train", "val"):
        twice = json.loads(json.dumps(manifest))
        twice["splits"][split].append(manifest["splits"]["train"][0])
        with pytest.raises(InputError, match=r"train_00000\.safetensors stands twice"):
            CodeCache(written.folder, twice)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "device", "endless link"])
def test_a_shard_is_a_regular_file_in_its_folder(written, tmp_path, kind):
    path = written.folder / "train_00000.safetensors"
    content = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "endless link":
        path.symlink_to(path.name)
    else:
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"train_00000.safetensors: (is no|leads out|cannot be read)"):
        written.read("train")


def test_a_manifest_is_a_regular_file(written):
    path = written.folder / "manifest.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"manifest\.json: is no regular file"):
        CodeCache.open(written.folder)


ODD = [b"", b"{", b"[]", b"null", b'"text"', b"{}", b"\xff\xfe", b"[" * 9999, b"1" * 5000, "pipe", "folder", "link"]


@pytest.mark.parametrize("content", ODD, ids=lambda content: str(content[:8]))
@pytest.mark.parametrize("name", ["about.json", "train_00000.sha256", "train_00000.safetensors"])
def test_a_hidden_folder_of_any_content_is_used_again_or_refused(tmp_path, digits, name, content):
    partial, about = tmp_path / "codes" / ".partial_codes", {"tokenizer": "t"}

    def write():
        prepare(partial, about)
        write_shards(partial, "train", 25, lambda a, b: Part(digits[a:b], torch.zeros(25)), range(1), SPEC)

    write()
    (partial / name).unlink()
    if content == "pipe":
        os.mkfifo(partial / name)
    elif content == "folder":
        (partial / name).mkdir()
    elif content == "link":
        (partial / name).symlink_to("/dev/zero")
    else:
        (partial / name).write_bytes(content)
    if name == "about.json" or content in ("pipe", "folder", "link"):
        with pytest.raises(InputError, match=re.escape(f"remove {partial} to begin anew")):
            write()
        return
    write()
    cache = finish(partial, tmp_path / "codes", SPEC, ("a",), {"train": 25}, about)
    assert torch.equal(cache.read("train").content[:].long(), digits)


def test_a_shard_of_another_layout_in_a_hidden_folder_is_written_again(tmp_path, digits):
    """Its checksum is right."""
    partial, about = tmp_path / "codes" / ".partial_codes", {"tokenizer": "t"}
    prepare(partial, about)
    labels = torch.zeros(25)
    write_shards(partial, "train", 25, lambda a, b: Part(digits[a:b, :1], labels), range(1), SPEC)
    write_shards(partial, "train", 25, lambda a, b: Part(digits[a:b], labels), range(1), SPEC)
    cache = finish(partial, tmp_path / "codes", SPEC, ("a",), {"train": 25}, about)
    assert torch.equal(cache.read("train").content[:].long(), digits)
