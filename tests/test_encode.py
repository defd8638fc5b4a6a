"""Codes of every tokenizer in a cache, as generators see them; an encoding that is killed and goes on."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq import pipeline
from ifsq.analysis import codes as analysis_codes
from ifsq.cli import main
from ifsq.codes import CodeCache, CodeSet, Sampled, writer
from ifsq.config import InputError
from ifsq.data import DataConfig, Reading, iterate_once, open_images
from ifsq.experiment import ARExperiment, DiffusionExperiment
from ifsq.generators.ar import ARConfig
from ifsq.generators.diffusion import DiTConfig
from ifsq.sources import check_cache
from ifsq.tokenizer import encode as encoding
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

CONV = ConvConfig(width=8, multipliers=(1, 1), blocks=1, patch=2, groups=4)
KINDS = {
    "fsq": QuantizerConfig(levels=(5, 7)),
    "lfq": QuantizerConfig(kind="lfq", dim=3),
    "bsq": QuantizerConfig(kind="bsq", dim=3, groups=(2, 1)),
    "residual": QuantizerConfig(kind="residual", levels=(3, 7), cells="equal", stages=3),
    "vq": QuantizerConfig(kind="vq", codebook_size=300),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten images to train on, one held out."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(11):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 16, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(autouse=True)
def _shards_of_four(monkeypatch):
    monkeypatch.setattr(writer, "SHARD", 4)


def save_tokenizer(folder, config):
    torch.manual_seed(0)
    Tokenizer(TokenizerConfig(CONV, config)).save_pretrained(folder)
    return Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_holds_the_codes_and_their_mirror_images(kind, images, tmp_path):
    tokenizer = save_tokenizer(tmp_path / "tokenizer", KINDS[kind])
    cache = pipeline.encode(tmp_path / "tokenizer", str(images), tmp_path / "codes", 16, flip=True)
    check_cache(cache, tokenizer, "tokenizer")
    source = open_images(DataConfig(str(images), 16), "train")
    read = next(iterate_once(source, len(source)))
    stored = cache.read("train")
    assert torch.equal(stored.labels, read.labels)
    for digits, pictures in ((stored.content[:], read.images), (stored.flipped[:], read.images.flip(-1))):
        with torch.no_grad():
            encoded = tokenizer.encode(pictures)
        indices = cache.spec.digits_to_indices(digits.long())
        if kind != "residual":  # whose own indices are those of its stages
            assert torch.equal(indices.squeeze(-1) if indices.shape[-1] == 1 else indices, encoded.indices)
        if kind != "vq":
            assert torch.equal(cache.spec.digits_to_codes(digits.long()), encoded.codes)


@pytest.mark.parametrize("kind", ["bsq", "residual", "vq"])
@pytest.mark.parametrize("which", ["ar", "diffusion"])
def test_generators_take_every_layout_of_digits(kind, which):
    tokenizer = Tokenizer(TokenizerConfig(CONV, KINDS[kind]))
    spec, book = tokenizer.spec(16, 16), tokenizer.codebook()
    places = {"out": "out", "tokenizer": kind, "codes": "codes"}
    experiment = (
        ARExperiment(**places, ar=ARConfig(1, 32, 2))
        if which == "ar"
        else DiffusionExperiment(**places, diffusion=DiTConfig(1, 32, 2, patch=1))
    )
    model = experiment.make(spec, 2, None if book is None else book.shape[1]).eval()
    digits = torch.zeros(1, *spec.shape, dtype=torch.uint8)
    model.observe(CodeSet(spec, digits, torch.zeros(1, dtype=torch.int64), codebook=book))
    drawn = model.sample(torch.tensor([0, 1]), seed=0)
    assert tokenizer.decode_sampled(drawn).shape == (2, 3, 16, 16)
    if kind == "vq":
        assert (drawn.codes is None) == (which == "ar")
        torch.testing.assert_close(
            tokenizer.decode_sampled(Sampled(None, drawn.indices)), tokenizer.decode_sampled(drawn)
        )
        assert torch.equal(
            tokenizer.quantizer.indices_to_codes(drawn.indices[..., 0]), book[drawn.indices[..., 0]].movedim(-1, 1)
        )
        return
    assert torch.equal(spec.digits_to_codes(spec.codes_to_digits(drawn.codes)), drawn.codes)
    if kind == "bsq":  # on the unit sphere
        torch.testing.assert_close(drawn.codes.square().sum(1), torch.ones(2, 4, 4))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QuantizerConfig(kind="vq", codebook_size=70000), r"levels=\[70000\]"),
        (QuantizerConfig(kind="residual", levels=(17, 17), cells="equal", stages=5), r"levels=\[1419857, 1419857\]"),
        (QuantizerConfig(levels=(65537,)), r"levels=\[65537\]"),
    ],
)
def test_codes_that_fit_no_cache_are_refused(config, message, images, tmp_path):
    save_tokenizer(tmp_path / "tokenizer", config)
    with pytest.raises(InputError, match=f"{message}: a cache holds digits of 16 bits; expected at most 65536"):
        pipeline.encode(tmp_path / "tokenizer", str(images), tmp_path / "codes", 16)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_levels_are_counted_a_few_images_at_a_time(images, tmp_path, monkeypatch):
    save_tokenizer(tmp_path / "tokenizer", KINDS["vq"])
    pipeline.encode(tmp_path / "tokenizer", str(images), tmp_path / "codes", 16)
    at_once = analysis_codes.analyze_codes(tmp_path / "codes", "train")
    monkeypatch.setattr(analysis_codes, "COUNTED_AT_ONCE", 3)
    assert analysis_codes.analyze_codes(tmp_path / "codes", "train") == at_once
    assert at_once[1].rows[0][1] == "300"


KILLED = """
import os, signal, sys
from ifsq.codes import CodeSet, Sampled, writer
writer.SHARD = 4
write, left = writer.write_text, [int(sys.argv[1])]
def write_or_die(path, text):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    write(path, text)
writer.write_text = write_or_die
from ifsq.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("written", [7, 8, 9])
def test_killed_and_continued_gives_the_same_bytes(written, images, tmp_path, monkeypatch, capsys):
    """It ends before the names or a checksum of the third shard are written: nothing vouches for it yet."""
    monkeypatch.chdir(tmp_path)
    save_tokenizer("tokenizer", KINDS["fsq"])
    command = ["encode", "tokenizer", str(images), "codes", "--size", "16", "--flip"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(written), *command], check=False, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    hidden = Path("codes/.partial_codes")
    vouched = {path.stem for path in hidden.glob("*.sha256")} - {"train_00002.names"}
    assert vouched == {f"train_0000{number}{end}" for number in (0, 1) for end in ("", ".names")}
    before = {path.name: path.stat().st_mtime_ns for path in hidden.glob("train_0000[01].safetensors")}
    assert main(command) == 0
    assert "codes: goes on with the shards that are there" in capsys.readouterr().err
    assert before == {name: (Path("codes") / name).stat().st_mtime_ns for name in before}
    pipeline.encode(Path("tokenizer"), str(images), Path("once"), 16, flip=True)
    assert bytes_of("codes") == bytes_of("once")
    assert sorted(os.listdir()) == ["codes", "once", "tokenizer"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_says_what_its_images_are_called(workers, images, tmp_path, monkeypatch):
    """In the order of their codes, without those that cannot be read; as long as there are names at all."""
    monkeypatch.chdir(tmp_path)
    save_tokenizer("tokenizer", KINDS["fsq"])
    shutil.copytree(images, "copy")
    source = open_images(DataConfig("copy", 16), "train")
    Path("copy", source.name(5)).write_bytes(b"broken")
    reading = Reading(broken="skip", workers=workers)
    cache = pipeline.encode(Path("tokenizer"), "copy", Path("codes"), 16, reading=reading)
    names = cache.names("train")
    assert names == [source.name(index) for index in range(len(source)) if index != 5]
    assert cache.names("val") == open_images(DataConfig("copy", 16), "val").names
    tokenizer = Tokenizer.from_pretrained("tokenizer")
    for name, digits in zip(names, cache.read("train").content, strict=True):
        alone = Path("alone", name)
        alone.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("copy", name), alone)
        pictures = next(iterate_once(open_images(DataConfig(str(alone.parent), 16), "all"), 1)).images
        assert torch.equal(tokenizer.encode(pictures).digits[0], digits.long())
        alone.unlink()
    bundled = pipeline.encode(Path("tokenizer"), "bundled:shapes", Path("shapes"), 16, splits=["val"])
    assert bundled.names("val") == [str(index) for index in range(bundled.count("val"))]


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def encode(images, out, *options):
    return main(["encode", "tokenizer", str(images), str(out), "--size", "16", *options])


@pytest.fixture
def tokenizer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tokenizer("tokenizer", KINDS["fsq"])


@pytest.mark.parametrize("place", ["empty folder", "link", "dangling link", "working folder", "new volume"])
def test_a_cache_lies_wherever_it_is_asked_for(place, images, tmp_path, tokenizer, monkeypatch, disk):
    """What could only fail at the end, after all the work, does not."""
    out = tmp_path / "codes"
    if place == "new volume":
        out = disk(1024)
        (out / "lost+found").mkdir()
    elif place == "link":
        (tmp_path / "elsewhere").mkdir()
    if "link" in place:
        out.symlink_to("elsewhere")
    elif place != "new volume":
        out.mkdir()
    if place == "working folder":
        monkeypatch.chdir(out)
        assert main(["encode", "../tokenizer", str(images), ".", "--size", "16"]) == 0
    else:
        assert encode(images, out) == 0
    left = sorted(path.name for path in out.iterdir() if path.name != "lost+found")
    shards = [*(f"train_0000{number}" for number in range(3)), "val_00000"]
    assert left == ["manifest.json", *(f"{shard}{end}" for shard in shards for end in (".names.json", ".safetensors"))]
    assert len(CodeCache.open(out).read("train")) == 10


def test_where_nothing_can_be_written_is_told_before_the_first_image(images, tokenizer, monkeypatch, disk, capsys):
    volume = disk(64)
    subprocess.run(["mount", "-o", "remount,ro", volume], check=True)

    def first_image(*_, **__):
        raise AssertionError

    monkeypatch.setattr(encoding, "iterate_once", first_image)
    for out in (volume, volume / "codes"):
        assert encode(images, out) == 2
        assert capsys.readouterr().err.endswith(f"{out}: cannot be written: read-only file system\n")


def test_a_full_disk_leaves_no_cache_and_goes_on_later(images, tokenizer, disk, capsys):
    volume = disk(20)
    assert encode(images, volume / "codes") == 2
    told = capsys.readouterr().err
    assert told.endswith("cannot be written: no space left on device\n")
    assert "Traceback" not in told
    assert not (volume / "codes" / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=1024k", volume], check=True)
    assert encode(images, volume / "codes") == 0


def test_an_interrupted_encoding_with_other_options_stays(images, tokenizer, tmp_path, capsys):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "3", "encode", "tokenizer", str(images), "codes", "--size", "16"], check=False
    )
    assert done.returncode == -signal.SIGKILL
    before = bytes_of("codes/.partial_codes")
    assert encode(images, "codes", "--flip") == 2
    assert "(flips None against True); give the same options to go on" in capsys.readouterr().err
    assert bytes_of("codes/.partial_codes") == before
    assert encode(images, "codes") == 0


def test_a_second_encoding_is_refused_and_the_first_unharmed(images, tokenizer, monkeypatch, capsys):
    told = []
    write_shards = writer.write_shards

    def while_writing(*arguments, **options):
        told.append(encode(images, "codes"))
        write_shards(*arguments, **options)

    monkeypatch.setattr(writer, "write_shards", while_writing)
    assert encode(images, "codes") == 0
    assert told == [2, 2]
    assert "codes: process" in capsys.readouterr().err
    assert len(CodeCache.open("codes").read("train")) == 10


def test_a_refused_encoding_leaves_no_folder(tokenizer, tmp_path, capsys):
    for number in range(3):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"no picture")
    assert encode(tmp_path / "broken", "codes") == 2
    assert sorted(os.listdir()) == ["broken", "tokenizer"]


def test_a_generator_of_digits_needs_some_that_are_held_out(road, tmp_path, monkeypatch, capsys):
    shutil.copytree(road, tmp_path / "road")
    monkeypatch.chdir(tmp_path / "road")
    assert main(["encode", "tok", "pictures", "half", "--split", "train"]) == 0
    capsys.readouterr()
    assert main(["generator", "train", "ar.toml", "--codes", "half", "--out", "new"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "ifsq: half: has no split 'val'; expected one of train"
    assert not Path("new").exists()


def test_a_run_whose_config_names_another_kind_is_refused(road, tmp_path, monkeypatch, capsys):
    shutil.copytree(road / "ar", tmp_path / "odd")
    monkeypatch.chdir(tmp_path)
    config = Path("odd/config.json")
    config.write_text(config.read_text().replace('"kind": "ar"', '"kind": "diffusion"', 1))
    assert main(["sample", "odd", "--labels", "0", "--out", "new.png"]) == 2
    told = "odd/config.json: kind 'diffusion', and its weights are of kind 'ar'"
    assert told in capsys.readouterr().err
