"""`analyze alignment`: figures found in a second way, any batches, resuming, the file, the picture, bad input."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from ifsq import pipeline
from ifsq.cli import main
from ifsq.codes import CodeBatch, CodeCache
from ifsq.config import InputError
from ifsq.data import open_images
from ifsq.data.images import DataConfig
from ifsq.evaluation.alignment import analyze, measure, record
from ifsq.evaluation.alignment.record import AlignmentAnalysis, read_alignment
from ifsq.generators import Generator
from ifsq.metrics.alignment import cka_of_rows, cknna, mutual_neighbours, nearest, unit_rows
from ifsq.pretrained.teachers import opening
from ifsq.pretrained.teachers.config import TeacherConfig
from ifsq.pretrained.teachers.face import ImageTeacher
from ifsq.tokenizer.model import Tokenizer

# So many levels that codes of an untrained encoder differ: of images with equal ones any would be near.
TOKENIZER = """
out = "tok"
[data]
source = "pictures"
val_source = "held"
size = 16
[tokenizer.conv]
width = 8
multipliers = [1, 1]
blocks = 1
patch = 2
groups = 4
[tokenizer.quantizer]
levels = [32, 32]
cells = "equal"
[train]
steps = 2
batch = 4
save_every = 1
keep_every = 1
"""
GENERATOR = """
out = "{kind}"
tokenizer = "tok"
codes = "codes"
[{kind}]
depth = 2
width = 16
heads = 2
{own}
[train]
steps = 2
batch = 4
save_every = 1
keep_every = 1
"""
KINDS = {"ar": "mlp_multiple_of = 16", "diffusion": "patch = 2"}
COUNT = 24


class Cells(ImageTeacher):
    """Means over cells of two pixels, and their squares."""

    name, digest, width, smallest = "cells", "0" * 64, 6, 8

    def maps(self, images, grid):
        means = F.adaptive_avg_pool2d(images, grid)
        return torch.cat([means, means.square()], dim=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tokenizer, its codes and both generators, each with two steps, behind pictures of two classes."""
    folder = tmp_path_factory.mktemp("alignment")
    draw = np.random.default_rng(0)
    for name, count in (("pictures", 12), ("held", COUNT)):
        for number in range(count):
            path = folder / name / "ab"[number % 2] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = draw.integers(0, 90, (16, 16, 3), np.uint8)
            Image.fromarray(noise + (60 if number % 2 else 90) * (number % 3 > 0)).save(path)
    (folder / "tok.toml").write_text(TOKENIZER)
    for kind, own in KINDS.items():
        (folder / f"{kind}.toml").write_text(GENERATOR.format(kind=kind, own=own))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            "tokenizer train tok.toml",
            "encode tok pictures codes --val-source held",
            "generator train ar.toml",
            "generator train diffusion.toml",
            "export pretrained ar --out saved",
        ):
            assert main(line.split()) == 0, line
    return folder


@pytest.fixture
def drawn():
    """Ask for the picture, which takes longer than all else here."""


@pytest.fixture(autouse=True)
def _here(place, monkeypatch, request):
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(analyze, "write_curves", lambda file, found: file.with_suffix(".png").touch())
    monkeypatch.chdir(place)
    monkeypatch.setitem(opening._LOADERS, "cells", lambda config: Cells())


def ask(**options):
    return AlignmentAnalysis(**({"teacher": TeacherConfig("cells"), "neighbours": 3} | options))


def analysis(run, tmp_path, steps=None, **options):
    return pipeline.analyze_alignment(Path(run), ask(**options), tmp_path / "found.json", "cpu", steps=steps)[1]


def rows_of(found):
    return {(row.step, row.layer, row.time): row.values for row in found.rows}


def held_out(null=True):
    """The held-out images in the order of their files, their codes as the cache has them, what the teacher sees."""
    data = DataConfig("pictures", 16, val_source="held")
    images = open_images(data, "val")
    pixels = torch.stack([torch.tensor(images.load(i, 0)[0]) for i in range(len(images))])
    pixels = pixels.movedim(-1, 1).float() / 127.5 - 1
    batch = CodeCache.open("codes").read("val").batch(torch.arange(len(images)))
    labels = batch.labels
    batch = CodeBatch(batch.layout, batch.content, torch.full_like(labels, 2)) if null else batch
    return pixels, batch, labels


@pytest.mark.parametrize("kind", KINDS)
def test_figures_of_a_generator_are_those_of_its_states(kind, tmp_path):
    found = analysis(kind, tmp_path, times=(1.0,) if kind == "diffusion" else ())
    pixels, batch, labels = held_out()
    model = Generator.from_pretrained(Path(kind))
    time = 1.0 if kind == "diffusion" else None
    patches = Cells().features(pixels, model.token_grid).double()
    taught = patches.mean(dim=1).float()
    for depth, state in enumerate(model.states_at(batch, (0, 1, 2), time)):
        told = rows_of(found)[2, str(depth), time]
        seen = state.double().mean(dim=1).float()
        assert told["cknna"] == pytest.approx(cknna(seen, taught, 3), abs=1e-5)
        assert told["cknna_biased"] == pytest.approx(cknna(seen, taught, 3, unbiased=False), abs=1e-5)
        ours, theirs = unit_rows(seen), unit_rows(taught)
        assert told["cknna_cosine"] == pytest.approx(cknna(ours, theirs, 3), abs=1e-5)
        assert told["mutual"] == pytest.approx(mutual_neighbours(nearest(ours, 3), nearest(theirs, 3)))
        assert told["cka"] == pytest.approx(cka_of_rows(seen, taught), abs=1e-5)
        assert told["cka_biased"] == pytest.approx(cka_of_rows(seen, taught, unbiased=False), abs=1e-5)
        if kind == "diffusion":
            same = cka_of_rows(state.double().flatten(0, 1), patches.flatten(0, 1))
            assert told["patch_cka"] == pytest.approx(same, abs=1e-5)
            assert "read_patch_cka" not in told
            assert "next_token" not in told
            continue
        tokens = model.embed(batch.indices(model.spec.groups).flatten(1, 2)).detach()
        behind = state[:, 1:].double().flatten(0, 1)
        assert told["patch_cka"] == pytest.approx(cka_of_rows(behind, patches[:, 1:].flatten(0, 1)), abs=1e-5)
        assert told["read_patch_cka"] == pytest.approx(cka_of_rows(behind, patches[:, :-1].flatten(0, 1)), abs=1e-5)
        own = F.cosine_similarity(state[:, 1:], tokens[:, :-1], dim=-1).mean()
        assert told["own_token"] == pytest.approx(float(own), abs=1e-5)
        predicted = F.cosine_similarity(state[:, :-1], tokens[:, :-1], dim=-1).mean()
        assert told["next_token"] == pytest.approx(float(predicted), abs=1e-5)
    assert rows_of(found)[2, "0", time]["own_token"] == pytest.approx(1)
    assert found.beside["chance"] == 0.5
    assert labels.tolist() == [0] * 12 + [1] * 12


def test_the_probe_is_sklearns(tmp_path):
    found = analysis("ar", tmp_path, layers=("1",))
    (row,) = found.rows
    _, batch, labels = held_out()
    order = torch.from_numpy(measure_order())
    seen = Generator.from_pretrained(Path("ar")).states_at(batch, (1,))[0].double().mean(dim=1).float()[order]
    labels, right = labels[order], 0
    by_class = labels.argsort(stable=True)
    for fold in range(5):
        out = torch.zeros(COUNT, dtype=torch.bool)
        out[by_class[fold::5]] = True
        scaler = StandardScaler().fit(seen[~out])
        model = RidgeClassifier(alpha=0.01 * int((~out).sum())).fit(scaler.transform(seen[~out]), labels[~out])
        right += int((model.predict(scaler.transform(seen[out])) == labels[out].numpy()).sum())
    assert row.values["probe"] == right / COUNT


def measure_order():
    """The order in which images are measured."""
    from ifsq.data import sample_order

    return sample_order(0, 0, COUNT)


def test_layers_of_a_tokenizer(tmp_path):
    found = analysis("tok", tmp_path)
    assert found.layers == ("down 1", "down 2", "middle", "latent", "codes")
    assert found.steps == (2,)
    assert found.times == (None,)
    pixels, _, _ = held_out()
    tokenizer = Tokenizer.from_pretrained(Path("tok"))
    taught = Cells().features(pixels, (4, 4)).mean(dim=1)
    with torch.no_grad():
        latent = tokenizer.latent(pixels)
        codes = tokenizer.encode(pixels).codes
        fine = tokenizer.encoder.down[0](tokenizer.encoder.conv_in(F.pixel_unshuffle(pixels, 2)))
    for name, maps in (("down 1", fine), ("latent", latent), ("codes", codes)):
        told = rows_of(found)[2, name, None]
        assert told["cka"] == pytest.approx(cka_of_rows(maps.mean(dim=(2, 3)), taught), abs=1e-5)
        assert "own_token" not in told


@pytest.mark.parametrize("run", ["tok", *KINDS])
def test_batches_do_not_change_the_figures(run, tmp_path, monkeypatch):
    whole = analysis(run, tmp_path / "whole")
    monkeypatch.setattr(measure, "max_batch", lambda *_: 5)
    parts = analysis(run, tmp_path / "parts")
    assert rows_of(whole).keys() == rows_of(parts).keys()
    for key, values in rows_of(whole).items():
        assert rows_of(parts)[key] == pytest.approx(values, rel=1e-4, abs=1e-4), key


def test_noise_follows_the_seed_and_the_time(tmp_path):
    found = {seed: rows_of(analysis("diffusion", tmp_path / str(seed), times=(0.0, 1.0), seed=seed)) for seed in (0, 1)}
    assert found[0].keys() == {(2, layer, time) for layer in "012" for time in (0.0, 1.0)}
    for key in found[0]:
        same = found[0][key]["cka"] == pytest.approx(found[1][key]["cka"], abs=1e-9)
        assert same == (key[2] == 1.0), key


@pytest.mark.usefixtures("drawn")
def test_the_command_prints_a_table_and_writes_file_and_picture(tmp_path, capsys):
    out = tmp_path / "new" / "mine.json"
    line = f"analyze alignment ar --teacher cells --neighbours 3 --step all --count 20 --out {out}"
    assert main(line.split()) == 0
    told = capsys.readouterr().out
    assert "held val, 20 drawn: 20 images, teacher cells" in told
    assert "CKNNA" in told
    assert f"curves: {out.with_suffix('.png')}" in told
    found = read_alignment(out)
    assert found is not None
    assert found.steps == (1, 2)
    assert found.layers == ("0", "1", "2")
    assert {len(digest) for digest in found.hashes.values()} == {64}
    card = found.card
    assert (card.n, card.labels, card.reference) == (20, "the null class", "held val, 20 drawn")
    assert card.reference_hash == open_images(DataConfig("pictures", 16, val_source="held"), "val").fingerprint
    assert "3 neighbours" in card.method
    assert "patches of the first 20 images" in card.method
    assert card.features == "cells (000000000000)"
    assert found.teacher_digest == "0" * 64
    with Image.open(out.with_suffix(".png")) as picture:
        assert min(picture.size) > 300
    assert sorted(path.name for path in out.parent.iterdir()) == ["mine.json", "mine.png"]


def test_where_files_lie_by_default(place, tmp_path):
    shutil.copytree("diffusion", tmp_path / "diffusion")
    for name in ("tok", "codes", "pictures", "held"):
        (tmp_path / name).symlink_to(place / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        line = "analyze alignment diffusion --teacher cells --neighbours 3 --times 0.5 --layers 1"
        assert main(line.split()) == 0
        assert main([*line.split(), "--data", "pictures", "--split", "all"]) == 0
        images = open_images(DataConfig("pictures", 16), "all", labels=False).fingerprint[:8]
    made = {path.name for path in (tmp_path / "diffusion").glob("alignment*")}
    names = ("alignment_cells", f"alignment_cells_all_{images}")
    assert made == {f"{name}{ending}" for name in names for ending in (".json", ".png")}
    found = read_alignment(tmp_path / "diffusion" / "alignment_cells.json")
    assert [(row.layer, row.time) for row in found.rows] == [("1", 0.5)]


def test_steps_that_are_known_are_not_measured_again(tmp_path, monkeypatch):
    looked = []
    states = measure.measure_layers

    def counted(layers, taught, asked, step, reporter):
        looked.append(step)
        if len(looked) == 2 and step == 2 and interrupt:
            raise KeyboardInterrupt
        return states(layers, taught, asked, step, reporter)

    monkeypatch.setattr(analyze, "measure_layers", counted)
    interrupt = True
    with pytest.raises(KeyboardInterrupt):
        analysis("ar", tmp_path, ())
    assert read_alignment(tmp_path / "found.json").steps == (1,)
    assert not (tmp_path / "found.png").exists()
    interrupt = False
    looked.clear()
    found = analysis("ar", tmp_path, ())
    assert looked == [2]
    assert found.steps == (1, 2)
    looked.clear()
    assert analysis("ar", tmp_path, ()) == found
    assert looked == []
    analysis("ar", tmp_path, (), neighbours=4)  # another protocol
    assert looked == [1, 2]
    looked.clear()
    other = read_alignment(tmp_path / "found.json")
    wrong = replace(other, hashes={**other.hashes, "1": "0" * 64})  # step 1 was of other weights
    record.write_alignment(tmp_path / "found.json", wrong)
    analysis("ar", tmp_path, (), neighbours=4)
    assert looked == [1]
    looked.clear()
    few = analysis("ar", tmp_path, (), neighbours=4, layers=("2", "1"))
    assert looked == []
    assert few.layers == ("1", "2")
    assert few.rows == tuple(row for row in other.rows if row.layer != "0")
    analysis("ar", tmp_path, (), neighbours=4)  # of the file, which holds two layers alone
    assert looked == [1, 2]
    assert analysis("ar", tmp_path, (2, 1, 2), neighbours=4) == other  # each once, in their order


def test_labels_of_the_class_and_images_without_any(tmp_path):
    told = analysis("ar", tmp_path / "a", labels="class")
    assert told.left_out == ("probe: the network is told the classes; expected --labels null",)
    assert "probe" not in told.rows[0].values
    assert told.card.labels == "their own classes"
    null = analysis("ar", tmp_path / "b")
    assert null.rows[2].values["cka"] != told.rows[2].values["cka"]
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(Path("held").rglob("*.png")):
        shutil.copy(path, flat / f"{number}.png")
    without = analysis("ar", tmp_path / "c", source=str(flat))
    assert without.left_out == ("probe: the images have no classes to tell apart",)
    assert without.beside == {}
    assert without.card.n == COUNT


def test_broken_images_are_left_out_and_named(tmp_path):
    images = tmp_path / "images"
    shutil.copytree("held", images)
    (images / "a" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png"):
        analysis("tok", tmp_path, source=str(images))
    reading = record.Reading(broken="skip")
    found = analysis("tok", tmp_path, source=str(images), reading=reading)
    assert found.card.n == COUNT
    assert len(found.skipped) == 1
    assert "broken.png" in found.skipped[0]
    whole = analysis("tok", tmp_path / "whole", source="held", split="all")
    assert found.rows[0].values["cka"] == pytest.approx(whole.rows[0].values["cka"], abs=1e-9)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ar --count 0", "count 0: expected at least 1"),
        ("ar --count 999", f"count 999: expected 1 to {COUNT}, the images that there are"),
        ("ar --neighbours 24", "k=24 neighbours among 24 images: expected 1 to 23"),
        ("ar --neighbours 0", "k=0 neighbours"),
        ("ar --count 3 --neighbours 2", "3 images: expected at least 4"),
        ("ar --layers 1 7", "layer '7': expected some of 0, 1, 2"),
        ("tok --layers 1", "layer '1': expected some of down 1, down 2, middle, latent, codes"),
        ("ar --layers 1 1", "expected each once"),
        ("ar --times 0.5", "time=0.5: expected none, this kind reads no noise"),
        ("tok --times 0.5", "time 0.5: expected none, a tokenizer reads no noise"),
        ("diffusion --times 0.5 1.5", "time=1.5: expected 0, noise, to 1, data"),
        ("tok --labels class", "labels class: a tokenizer is told no classes"),
        ("ar --data bundled:shapes --labels class", "labels class: the images have other classes"),
        ("ar --teacher nobody", "teacher 'nobody'"),
        ("ar --teacher=", "source=''"),
        ("ar --step 99", "99"),
        ("ar --split nowhere", "nowhere"),
        ("ar --data nowhere", "nowhere"),
        ("saved", "saved: is not a training run and has no images of its own; give --data"),
        ("nowhere", "nowhere"),
        ("ar --seed -1", "seed"),
        ("ar --out found.txt", "found.txt: expected a name that ends in .json"),
        ("ar --out tok/config.json", "holds no alignment; choose another name"),
        ("ar --out pictures", "pictures: expected a name that ends in .json"),
    ],
)
def test_bad_input_ends_in_a_line(line, told, capsys, place):
    before = sorted(place.rglob("*"))
    teacher = [] if "--teacher" in line else ["--teacher", "cells"]
    neighbours = [] if "--neighbours" in line else ["--neighbours", "3"]
    assert main(["analyze", "alignment", *line.split(), *teacher, *neighbours]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in said
    assert said.startswith("ifsq: ")
    assert sorted(place.rglob("*")) == before


def test_several_processes_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["analyze", "alignment", "ar"]) == 2
    assert "runs in one process" in capsys.readouterr().err


class Sideways(Cells):
    """Answers with other positions than it was asked for."""

    def features(self, seen, grid):
        return super().features(seen, grid)[:, 1:]


class Nothing(Cells):
    def maps(self, images, grid):
        return super().maps(images, grid) * torch.nan


class Large(Cells):
    smallest = 32


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        (Sideways, r"teacher cells: features of \(24, 15, 6\), expected \(24, 16, 6\), one a position of the grid 4x4"),
        (Nothing, "teacher cells: features are not finite numbers"),
        (Large, "teacher images of 16x16 pixels: cells expects at least 32 a side"),
    ],
)
def test_teachers_that_are_refused(teacher, told, monkeypatch, tmp_path):
    monkeypatch.setitem(opening._LOADERS, "cells", lambda config: teacher())
    with pytest.raises(InputError, match=told):
        analysis("ar", tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_refused(tmp_path, monkeypatch):
    states = Generator.kinds["ar"].states_at

    def infinite(self, *given):
        first, *others = states(self, *given)
        return (first, *(state * math.inf for state in others))

    monkeypatch.setattr(Generator.kinds["ar"], "states_at", infinite)
    with pytest.raises(InputError, match="step 2, layer 1: features are not finite numbers"):
        analysis("ar", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_null_class_that_was_never_trained_is_refused(tmp_path, place):
    shutil.copytree("saved", tmp_path / "saved")
    (tmp_path / "tok").symlink_to(place / "tok")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config["model"]["config"]["label_dropout"] = 0.0
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="label_dropout is 0, so that no null class was trained"):
        analysis(tmp_path / "saved", tmp_path, source="held", split="all")
    found = analysis(tmp_path / "saved", tmp_path, source="held", split="all", labels="class")
    assert found.steps == (None,)


@pytest.mark.parametrize("text", ['{"rows": []}', '{"rows": [1]}', "[]", "{"])
def test_a_damaged_file_is_refused(text, tmp_path):
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(InputError, match=r"found\.json"):
        analysis("ar", tmp_path)
    assert (tmp_path / "found.json").read_text() == text


def test_the_usual_teacher_is_not_the_stage_that_generators_are_aligned_to():
    assert AlignmentAnalysis().teacher == TeacherConfig("efficientnet-lite0", layer=4)
