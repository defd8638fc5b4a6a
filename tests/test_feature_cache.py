"""Features of a teacher beside a cache of codes: of the very pictures, in their order, and what is refused of them."""

import contextlib
import itertools
import json
import os
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from safetensors.torch import load_file
from tests.ports import free_port
from torch import nn

from ifsq import pipeline
from ifsq.cli import main
from ifsq.codes import CodeCache, feature_writer
from ifsq.codes.features import FeatureCache
from ifsq.config import InputError, build
from ifsq.data import DataConfig, open_images
from ifsq.data.crops import Crops
from ifsq.data.sampler import StepSampler, iterate_items, iterate_once
from ifsq.experiment import ARExperiment, DiffusionExperiment
from ifsq.generators.repa import encode as encoding
from ifsq.pretrained.teachers import ModuleTeacher, TeacherConfig, open_teacher, opening, register_teacher
from ifsq.store import checkpoints
from ifsq.store.run import Run
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.tokenizer.online import OnlineCache

CONV = ConvConfig(width=8, multipliers=(1, 1), blocks=1, patch=2, groups=4)
MINE = TeacherConfig("mine")
WIDTH = 5


def make_teacher(config, seed=0):
    net = nn.Conv2d(3, WIDTH, 3, padding=1)
    rng = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng)
    return ModuleTeacher(net, lambda module, x: module(x), WIDTH, "mine", about=config.layer)


@pytest.fixture(autouse=True)
def _my_teacher(monkeypatch):
    monkeypatch.setattr(opening, "_LOADERS", dict(opening._LOADERS))
    register_teacher("mine", make_teacher)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tokenizer, and caches of codes of eleven images to train on, plain and with two crops and flips."""
    place = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    for number in range(12):
        path = place / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(rng.integers(0, 255, (20, 16, 3), np.uint8)).save(path)
    torch.manual_seed(0)
    Tokenizer(TokenizerConfig(CONV, QuantizerConfig(levels=(5, 7)))).save_pretrained(place / "tokenizer")
    for name, options in {"plain": {}, "several": {"flip": True, "crops": Crops("random", 2)}}.items():
        pipeline.encode(place / "tokenizer", str(place / "images"), place / name, size=16, device="cpu", **options)
    return place


def write(place, codes, out, **options):
    return pipeline.cache_features(place / codes, MINE, out, device="cpu", **options)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_features_are_those_of_the_pictures_that_the_codes_are_of(place, tmp_path):
    """Of every crop and its mirror image, row by row as the codes are, in bfloat16."""
    found, cache, teacher = (
        write(place, "several", tmp_path / "f"),
        CodeCache.open(place / "several"),
        open_teacher(MINE),
    )
    data = build(DataConfig, cache.about["data"], "test")
    crops = build(Crops, cache.about["crops"], "test")
    (images,) = crops.sources(data, 3)
    (read,) = iterate_items(images, crops.items(0, range(len(images))), 99)
    rows = found.read()
    everything = torch.arange(len(read.images))
    for mirrored in (False, True):
        pictures = read.images.flip(-1) if mirrored else read.images
        expected = teacher.features(pictures, cache.layout.grid).bfloat16()
        assert torch.equal(rows.taken(everything, torch.full_like(everything, mirrored, dtype=torch.bool)), expected)
    half = everything % 2 == 1
    straight, mirror = (rows.taken(everything, torch.full_like(half, value)) for value in (False, True))
    assert torch.equal(rows.taken(everything, half), torch.where(half[:, None, None], mirror, straight))
    train = cache.read("train")
    batch = replace(train, features=(rows,)).drawn([(1, 5), (0, 2)], torch.device("cpu"))
    assert torch.equal(batch.features[0], torch.stack([mirror[2 * 1 + (5 // 2) % 2], straight[0 + (2 // 2) % 2]]))
    assert found.about.rows == 2 * len(train)


def test_features_that_are_read_ahead_are_those_of_the_batch(place, tmp_path):
    """Whatever the number of batches; the thread ends with the batches, and what it cannot read ends them."""
    features = write(place, "several", tmp_path / "f")
    train = replace(CodeCache.open(place / "several").read("train"), features=(features.read(), features.read()))
    sampler, here = StepSampler(len(train), 4, seed=3), torch.device("cpu")
    for ahead in (0, 2):
        with contextlib.closing(train.batches(sampler, 2, here, prefetch=ahead)) as batches:
            for items, batch in zip(itertools.islice(sampler.steps_from(2), 6), batches, strict=False):
                expected = train.drawn(items, here)
                assert torch.equal(batch.content, expected.content)
                for one, other in zip(batch.features, expected.features, strict=True):
                    assert torch.equal(one, other)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("features")]
    os.truncate(tmp_path / "f" / "features_00000.safetensors", 400)
    with pytest.raises(InputError, match=r"features_00000\.safetensors: has changed since it was opened"):
        next(train.batches(sampler, 0, here))


def test_the_grid_is_that_of_the_codes_unless_another_is_asked_for(place, tmp_path):
    assert write(place, "plain", tmp_path / "f").about.grid == CodeCache.open(place / "plain").layout.grid == (4, 4)
    finer = write(place, "plain", tmp_path / "finer", grid=(8, 8))
    rows = finer.read()
    (read,) = iterate_once(open_images(DataConfig(str(place / "images"), 16), "train", labels=False), 99)
    expected = open_teacher(MINE).features(read.images, (8, 8)).bfloat16()
    assert torch.equal(rows.taken(torch.arange(len(read.images))), expected)


class Killed(BaseException):
    pass


def test_killed_and_continued_gives_the_same_bytes(place, tmp_path, monkeypatch, capsys):
    """In shards of three images; what is done stays, and other options are refused."""
    monkeypatch.setattr(feature_writer, "SHARD_BYTES", 3 * 2 * 16 * WIDTH)
    whole = bytes_of(write(place, "plain", tmp_path / "whole").folder)
    assert len(whole) > 3
    left, save = [2], feature_writer.save_features

    def save_or_die(*given):
        if not left[0]:
            raise Killed
        left[0] -= 1
        save(*given)

    monkeypatch.setattr(feature_writer, "save_features", save_or_die)
    with pytest.raises(Killed):
        write(place, "plain", tmp_path / "cut")
    assert bytes_of(tmp_path / "cut") == {}
    with pytest.raises(InputError, match="features with other options were begun there"):
        write(place, "plain", tmp_path / "cut", grid=(2, 2))
    seen, look = [], encoding._looked_at
    monkeypatch.setattr(feature_writer, "save_features", save)
    monkeypatch.setattr(encoding, "_looked_at", lambda *given: seen.append(given[2]) or look(*given))
    assert bytes_of(write(place, "plain", tmp_path / "cut").folder) == whole
    assert len(seen) == len(whole) - 1 - 2
    assert not list((tmp_path / "cut").glob(".partial*"))
    again = write(place, "plain", tmp_path / "cut")  # already there
    assert again.digest == FeatureCache.open(tmp_path / "whole").digest
    with pytest.raises(InputError, match=r"cut: holds other features \(grid"):
        write(place, "plain", tmp_path / "cut", grid=(2, 2))


def test_what_is_no_cache_of_these_features_is_refused(place, tmp_path, monkeypatch, capsys):
    command = ["features", str(place / "plain"), "--teacher", "mine", "--device", "cpu", "--out"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert main([*command, str(tmp_path / "other")]) == 2
    assert "is not empty and holds no cache of features" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "x"), "--batch", "-1"]) == 2
    assert "--batch -1: expected at least 0" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "made")]) == 0
    assert f"features: {tmp_path / 'made'}, 11 pictures, 4x4 of 5 numbers" in capsys.readouterr().out
    found = FeatureCache.open(tmp_path / "made")
    assert {value.dtype for value in load_file(tmp_path / "made" / "features_00000.safetensors").values()} == {
        torch.bfloat16
    }
    pictures = CodeCache.open(place / "plain").pictures
    found.check("mine", pictures, flips=False)
    for given, message in (
        (("yours", pictures, False), "holds features of mine; expected those of yours"),
        (("mine", "0" * 64, False), "holds features of other pictures than the codes are of"),
        (("mine", pictures, True), "has no features of the mirrored pictures, of which there are codes"),
    ):
        with pytest.raises(InputError, match=message):
            found.check(given[0], given[1], flips=given[2])
    shard = tmp_path / "made" / "features_00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-2] ^= 16
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"features_00000\.safetensors: is damaged, its SHA-256 is not the one"):
        found.read()
    with pytest.raises(InputError, match="holds no cache of features"):
        FeatureCache.open(tmp_path / "nowhere")
    monkeypatch.setattr(opening, "_LOADERS", {"mine": lambda config: make_teacher(config, seed=1)})
    with pytest.raises(InputError, match="holds other features \\(digest"):
        write(place, "plain", tmp_path / "made")


@pytest.mark.parametrize(
    ("order", "wrong"),
    [((0, 0, 2, 3), "shards.1: file 'features_00000"), ((3, 2, 1, 0), "shards.0: file 'features_00003")],
)
def test_shards_that_stand_twice_or_in_another_order_are_refused(order, wrong, place, tmp_path, monkeypatch):
    """Their rows would lie beside codes of other pictures."""
    monkeypatch.setattr(feature_writer, "SHARD_BYTES", 3 * 2 * 16 * WIDTH)
    said = write(place, "plain", tmp_path / "f").folder / "manifest.json"
    table = json.loads(said.read_text())
    said.write_text(json.dumps({**table, "shards": [table["shards"][number] for number in order]}))
    with pytest.raises(InputError, match=wrong):
        FeatureCache.open(tmp_path / "f")


def test_features_of_what_cannot_be_seen_are_refused_in_a_line(place, tmp_path, monkeypatch, capsys):
    command = ["features", str(place / "plain"), "--teacher", "mine", "--device", "cpu", "--out", str(tmp_path / "x")]
    assert main([*command, "--grid", "2000"]) == 2
    assert "teacher mine: grid 2000x2000: expected 1 to 1024 tokens a side" in capsys.readouterr().err
    assert main([*command[:-1], str(place / "several")]) == 2
    assert "several: holds a cache of codes; expected one of features" in capsys.readouterr().err
    monkeypatch.setattr(opening, "_LOADERS", {"mine": lambda config: wide_teacher()})
    assert main(command) == 2
    assert "teacher mine: mine: features of shape (11, 5, 16, 16), expected (11, 6, rows, columns)" in (
        capsys.readouterr().err
    )
    pipeline.encode(place / "tokenizer", str(place / "images"), tmp_path / "val", size=16, device="cpu", splits=["val"])
    assert main(["features", str(tmp_path / "val"), "--teacher", "mine", "--device", "cpu"]) == 2
    assert "val: has codes of val; expected a split train to be seen" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["val"]


def wide_teacher():
    return ModuleTeacher(nn.Conv2d(3, WIDTH, 3, padding=1), lambda module, x: module(x), WIDTH + 1, "mine")


def test_features_of_the_folder_where_one_is_lie_beside_it(place, tmp_path, monkeypatch):
    shutil.copytree(place / "plain", tmp_path / "codes")
    (tmp_path / "codes" / "deeper").mkdir()
    for here, name in (("codes", "."), ("codes/deeper", "..")):
        monkeypatch.chdir(tmp_path / here)
        assert encoding.features_beside(name, MINE) == tmp_path / "codes-mine"
    assert encoding.features_beside("codes", MINE).name == "codes-mine"


def test_images_that_changed_are_refused(place, tmp_path):
    shutil.copytree(place / "images", tmp_path / "images")
    codes = pipeline.encode(place / "tokenizer", str(tmp_path / "images"), tmp_path / "c", size=16, device="cpu").folder
    next(iter(sorted((tmp_path / "images" / "a").iterdir()))).unlink()
    with pytest.raises(InputError, match=r"its images are not those of .* any more; encode again"):
        pipeline.cache_features(codes, MINE, device="cpu")
    assert not (tmp_path / "c-mine").exists()


def test_images_that_could_not_be_read_are_passed_over_like_their_codes(place, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(place / "images", images)
    broken = sorted((images / "b").iterdir())[1]
    broken.write_bytes(b"no picture")
    reading = pipeline.Reading(broken="skip")
    pipeline.encode(place / "tokenizer", str(images), tmp_path / "c", size=16, device="cpu", reading=reading)
    rows = pipeline.cache_features(tmp_path / "c", MINE, device="cpu").read()
    cache = CodeCache.open(tmp_path / "c")
    names = cache.names("train")
    assert len(rows.content) == len(names) == cache.count("train")
    source = open_images(build(DataConfig, cache.about["data"], "test"), "train", labels=False)
    indices = [i for i in range(len(source)) if source.name(i) in names]
    (read,) = iterate_once(source, 99, indices=indices)
    assert torch.equal(
        rows.taken(torch.arange(len(names))), open_teacher(MINE).features(read.images, (4, 4)).bfloat16()
    )


AR = {"ar": {"depth": 2, "width": 16, "heads": 2, "mlp_multiple_of": 16}}
DIFFUSION = {"diffusion": {"depth": 2, "width": 16, "heads": 2, "patch": 2}}
ALIGNED = {"teachers": [{"source": "mine"}], "depth": 1, "weight": 0.5, "hidden": 8}


def trained(place, out, cls, model, **more):
    train = {"steps": 3, "batch": 4, "log_every": 1, "optim": {"warmup": 0}}
    table = {"out": str(out), "tokenizer": str(place / "tokenizer"), "train": train, **model, **more}
    pipeline.train_generator(build(cls, table, "test"), device="cpu")
    return checkpoints.at(checkpoints.steps_in(out / "checkpoints")[-1][1])


@pytest.mark.parametrize(("cls", "model"), [(ARExperiment, AR), (DiffusionExperiment, DIFFUSION)])
def test_generators_train_on_cached_features_without_the_teacher(cls, model, place, tmp_path, monkeypatch, capsys):
    codes = {"codes": str(place / "several")}
    for weightless in ({}, {"alignment": {**ALIGNED, "weight": 0.0}}):
        trained(place, tmp_path / f"off{len(weightless)}", cls, model, **codes, **weightless)
    off = [checkpoints.at(tmp_path / name / "checkpoints/step_3").load("model") for name in ("off0", "off1")]
    assert all(torch.equal(off[0][name], off[1][name]) for name in off[0])
    with pytest.raises(
        InputError, match=r"several-mine: holds no cache .* write it with ifsq features .* --teacher mine"
    ):
        trained(place, tmp_path / "none", cls, model, **codes, alignment=ALIGNED)
    assert not (tmp_path / "none").exists()
    third = {**ALIGNED, "teachers": [{"source": "mine", "layer": 3}], "features": [str(tmp_path / "f")]}
    with pytest.raises(InputError, match=r"write it with ifsq features .* --teacher mine --layer 3 --out .*/f$"):
        trained(place, tmp_path / "none", cls, model, **codes, alignment=third)
    features = write(place, "several", tmp_path / "f")
    huge = {**ALIGNED, "hidden": 10**11, "features": [str(tmp_path / "f")]}
    with pytest.raises(InputError, match=r"alignment\.hidden: a network of these sizes does not fit in memory"):
        trained(place, tmp_path / "none", cls, model, **codes, alignment=huge)
    monkeypatch.setattr(opening, "_LOADERS", {})
    asked = {**ALIGNED, "features": [str(tmp_path / "f")]}
    found = trained(place, tmp_path / "on", cls, model, **codes, alignment=asked)
    assert found.load("companion").keys() == {
        f"projectors.0.{n}.{end}" for n in (0, 2, 4) for end in ("weight", "bias")
    }
    run = Run.open(tmp_path / "on")
    assert run.config["data"] != CodeCache.open(place / "several").digest
    assert features.digest
    assert pipeline.load_pair(run, torch.device("cpu")).generator.kind == cls.kind


@pytest.mark.parametrize(
    ("network", "more", "cls", "model"),
    [
        ("Dinov2", {}, ARExperiment, AR),
        ("Dinov2WithRegisters", {"num_register_tokens": 2}, DiffusionExperiment, DIFFUSION),
    ],
)
def test_the_road_with_dinov2_built_from_its_configuration(network, more, cls, model, place, tmp_path):
    """At a size other than its own: 56 pixels for the 4 x 4 codes, where its table of positions is of 42."""
    transformers = pytest.importorskip("transformers", reason="the extra repa is not installed")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 42, "patch_size": 14}
    made = getattr(transformers, f"{network}Model")(getattr(transformers, f"{network}Config")(**sizes, **more))
    made.save_pretrained(tmp_path / "dino")
    teacher = TeacherConfig(str(tmp_path / "dino"))
    found = pipeline.cache_features(place / "several", teacher, tmp_path / "f", device="cpu")
    assert (found.about.grid, found.about.width, found.about.flips) == ((4, 4), 16, True)
    asked = {**ALIGNED, "teachers": [{"source": teacher.source}], "features": [str(tmp_path / "f")]}
    run = trained(place, tmp_path / "run", cls, model, codes=str(place / "several"), alignment=asked)
    assert run.load("companion")["projectors.0.4.weight"].shape == (16, 8)


def test_a_teacher_looks_at_pictures_that_are_encoded_in_training(place, tmp_path):
    data = {"source": str(place / "images"), "size": 16, "online": True, "flip": True, "crop": "random"}
    found = trained(place, tmp_path / "run", ARExperiment, AR, data=data, alignment=ALIGNED)
    assert "projectors.0.4.weight" in found.load("companion")


def test_features_of_images_that_are_encoded_in_training_are_of_the_same_pictures(place):
    """Cropped and mirrored like the ones that the codes are of."""
    tokenizer, teacher = Tokenizer.from_pretrained(place / "tokenizer"), open_teacher(MINE)
    data = DataConfig(str(place / "images"), 16, flip=True, crop="random")
    train = OnlineCache(tokenizer, data).read("train").seen_by([teacher], (4, 4))
    sampler, here = StepSampler(len(train), 6, seed=1), torch.device("cpu")
    with contextlib.closing(train.batches(sampler, 0, here)) as batches:
        batch = next(batches)
    (read,) = iterate_items(open_images(data, "train"), next(sampler.steps_from(0)), 6)
    assert torch.equal(batch.features[0], teacher.features(read.images, (4, 4)))
    assert torch.equal(batch.content, train.coded(read.images, read.labels, here).content)
    assert not torch.equal(batch.features[0], teacher.features(read.images.flip(-1), (4, 4)))


def _two(rank, port, place, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    feature_writer.SHARD_BYTES = 3 * 2 * 16 * WIDTH
    with contextlib.suppress(ValueError):
        register_teacher("mine", make_teacher)
    write(place, "plain", out)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(place, tmp_path, monkeypatch):
    mp.spawn(_two, (free_port(), place, tmp_path / "two"), nprocs=2)
    monkeypatch.setattr(feature_writer, "SHARD_BYTES", 3 * 2 * 16 * WIDTH)
    assert bytes_of(tmp_path / "two") == bytes_of(write(place, "plain", tmp_path / "one").folder)
