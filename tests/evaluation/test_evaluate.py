"""`ifsq evaluate` and `ifsq compare`: figures against second implementations, processes, and what is refused."""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq.cli import main
from ifsq.config import InputError
from ifsq.evaluation import ImageEvaluation, measure_images
from ifsq.metrics import ProtocolCard, frechet_distance
from ifsq.metrics.inception_score import InceptionScore
from ifsq.metrics.kernel import kernel_distance
from ifsq.metrics.neighbours import neighbours
from ifsq.pretrained.efficientnet_lite import load_efficientnet_lite
from ifsq.pretrained.pixels import Pixels
from ifsq.training.distributed import World
from ifsq.training.log import Silent

RNG = np.random.default_rng(0)


def blobs(n, low):
    """Images of a few smooth colours."""
    coarse = RNG.integers(low, 256, (n, 4, 4, 3))
    return np.kron(coarse, np.ones((1, 8, 8, 1))).astype(np.uint8)


A, B = blobs(300, 0), blobs(350, 20)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """``a.npz`` and ``b.npz``, the folder ``b``, and ``c.npz`` of other samples."""
    folder = tmp_path_factory.mktemp("sets")
    np.savez(folder / "a.npz", A, np.arange(300) % 5)
    np.savez_compressed(folder / "b.npz", B)
    np.savez(folder / "c.npz", blobs(300, 0))
    (folder / "b").mkdir()
    for number, image in enumerate(B):
        Image.fromarray(image).save(folder / "b" / f"{number:03}.png")
    return folder


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    monkeypatch.setenv("IFSQ_CACHE", str(tmp_path / "cache"))


def evaluated(*arguments):
    assert main(["evaluate", *arguments, "--out", "cards.json"]) == 0
    table = json.loads(Path("cards.json").read_text())
    return {card["metric"]: card for card in table["cards"]}, table


def evaluate(words):
    assert main(["evaluate", *words.split()]) == 0


def features(network, images, name):
    return torch.cat([network(few, (name,))[name] for few in torch.from_numpy(images).movedim(-1, 1).split(50)])


def test_figures_are_those_of_the_formulas():
    cards, table = evaluated("a.npz", "--reference", "b.npz", "--features", "pixels", "efficientnet-lite0@32")
    assert table["left_out"] == table["skipped"] == []
    for network in (Pixels(), load_efficientnet_lite(side=32)):
        a, b = (features(network, images, network.pooled) for images in (A, B))
        name = network.name
        assert cards[f"FD({name})"]["values"]["distance"] == pytest.approx(frechet_distance(a, b), rel=1e-5)
        assert cards[f"KD({name})"]["values"]["distance"] == pytest.approx(kernel_distance(a, b).value, rel=1e-5)
        for share, values in vars(neighbours(b, a)).items():
            card = cards[f"{share}({name})"]
            assert card["values"]["mean"] == pytest.approx(float(values.mean()), abs=0.01)
            assert card["values"]["low"] <= card["values"]["mean"] <= card["values"]["high"]
    score = InceptionScore(1000)
    score.add(features(network, A, "logits").double().softmax(dim=1), 0)
    assert cards[f"IS({name})"]["values"]["mean"] == pytest.approx(float(score.values().mean()), rel=1e-5)
    a, b = (features(network, images, "spatial") for images in (A, B))
    assert cards[f"sFD({name})"]["values"]["distance"] == pytest.approx(frechet_distance(a, b), rel=1e-5)
    for card in cards.values():
        assert (card["n"], card["size"], card["samples"], card["reference"]) == (300, 32, "a.npz", "b.npz")
        assert card["samples_hash"] != card["reference_hash"] != ""
        assert card["features"].startswith(("pixels ", "efficientnet-lite0@32 "))


def test_a_folder_gives_what_a_file_of_its_images_gives(capsys):
    file, _ = evaluated("a.npz", "--reference", "b.npz", "--features", "pixels")
    folder, _ = evaluated("a.npz", "--reference", "b", "--features", "pixels")
    for metric, card in file.items():
        for name in ("distance", "mean"):  # a folder is looked at in another order, and other rows are kept
            if name in card["values"]:
                assert folder[metric]["values"][name] == pytest.approx(card["values"][name], rel=1e-9)
    assert folder["FD(pixels)"]["reference"] == "b all"
    told = capsys.readouterr()
    assert "FD(pixels)" in told.out
    assert "cards: cards.json" in told.out


def test_few_of_the_images_can_be_asked_for(capsys):
    cards, _ = evaluated("b", "--reference", "a.npz", "--features", "pixels", "--count", "40", "--pairs", "0")
    assert list(cards) == ["FD(pixels)"]
    assert "pixels: 40 images for 192 features: the distance is far too large" in capsys.readouterr().err
    assert cards["FD(pixels)"]["n"] == 40
    assert "40 images for 192 features" in cards["FD(pixels)"]["method"]


def test_what_statistics_do_not_allow_is_said(capsys, monkeypatch):
    monkeypatch.setattr(Pixels, "name", "inception-like")
    b = features(Pixels(), B, "192").double().numpy()
    np.savez("statistics.npz", mu=b.mean(axis=0), sigma=np.cov(b, rowvar=False))
    cards, table = evaluated("a.npz", "--reference", "statistics.npz", "--features", "pixels")
    assert list(cards) == ["FD(inception-like)"]
    expected = frechet_distance(features(Pixels(), A, "192"), torch.from_numpy(b))
    assert cards["FD(inception-like)"]["values"]["distance"] == pytest.approx(expected, rel=1e-6)
    assert cards["FD(inception-like)"]["method"].startswith("reference statistics as its file gives them")
    (line,) = table["left_out"]
    assert line.startswith("KD(inception-like), precision(inception-like), recall(")
    assert line.endswith("the reference holds statistics alone; expected its images")
    assert line in capsys.readouterr().err


def processes(number, folder, *arguments):
    many = ["-m", "torch.distributed.run", f"--nproc-per-node={number}", "--standalone"] if number > 1 else []
    command = [sys.executable, *many, "-m", "ifsq", "evaluate", *arguments, "--out", f"{folder}/{number}.json"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_two_processes_find_what_one_does(tmp_path):
    """Also where a covariance is singular, of 120 images for 192 features; and from a stream, `b.npz`."""
    found = []
    for number in (1, 2):
        asked = ["a.npz", "--reference", "b.npz", "--features", "pixels", "--count", "120", "--no-cache"]
        done = processes(number, tmp_path, *asked)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / f"{number}.json").read_text()))
    assert len(found[0]["cards"]) == 6
    for mine, theirs in zip(found[0]["cards"], found[1]["cards"], strict=True):
        values = theirs.pop("values")
        assert values == pytest.approx(mine.pop("values"), rel=1e-9), mine["metric"]
        assert theirs == mine
    assert found[0] == found[1]


@pytest.mark.slow
def test_what_one_process_refuses_both_refuse(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(20):
        Image.fromarray(A[number]).save(tmp_path / "pictures" / f"{number:02}.png")
    (tmp_path / "pictures" / "07.png").write_bytes(b"no picture")
    arguments = [str(tmp_path / "pictures"), "--reference", "b.npz", "--features", "pixels"]
    done = processes(2, tmp_path, *arguments)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith(("ifsq: ", "ifsq (process 1): "))]
    assert len(lines) == 2
    assert all("07.png cannot be read" in line for line in lines)
    assert not list(tmp_path.glob("*.json"))


def test_processes_that_read_other_images_are_refused():
    """As on machines whose copies of a file differ."""

    class Beside(World):
        def gather(self, value):
            (mine, reference), refused = value
            return [value, ((mine[::-1], reference), refused)]

    with pytest.raises(InputError, match=r"^a\.npz, b\.npz: are not the same for every process; expected equal files"):
        measure_images(ImageEvaluation("a.npz", "b.npz"), Beside(0, 2, torch.device("cpu")), Silent())


def test_a_generator_run_is_sampled(road, monkeypatch):
    monkeypatch.chdir(road)
    cards, _ = evaluated("ar", "--reference", "pictures", "--features", "pixels", "--count", "12")
    again, _ = evaluated("ar", "--reference", "pictures", "--features", "pixels", "--count", "12")
    other, _ = evaluated("ar", "--reference", "pictures", "--features", "pixels", "--count", "12", "--seed", "7")
    card = cards["FD(pixels)"]
    assert again["FD(pixels)"] == card != other["FD(pixels)"]
    assert (card["n"], card["seed"], other["FD(pixels)"]["seed"]) == (12, 0, 7)
    assert card["samples"] == "ar, 12 drawn"
    assert len(card["generator_hash"]) == len(card["tokenizer_hash"]) == 64
    assert card["function_evaluations"] > 0
    given, _ = evaluated(
        "ar", "--reference", "pictures", "--features", "pixels", "--count", "12", "--sampling.guidance", "3"
    )
    assert given["FD(pixels)"]["guidance"] == 3


def test_samples_of_ours_say_on_the_card_how_they_were_drawn(road, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(road)
    options = ["--count", "24", "--seed", "3", "--sampling.guidance", "2.5"]
    run, _ = evaluated("ar", "--reference", "pictures", "--features", "pixels", *options)
    for out in (tmp_path / "s.npz", tmp_path / "set"):
        assert main(["sample", "ar", *options, "--out", str(out)]) == 0
        cards, _ = evaluated(str(out), "--reference", "pictures", "--features", "pixels")
        mine, theirs = cards["FD(pixels)"], run["FD(pixels)"]
        assert mine["values"]["distance"] == pytest.approx(theirs["values"]["distance"], rel=1e-6)
        for field in ("seed", "guidance", "sampler", "function_evaluations", "labels", "generator_hash", "dtype"):
            assert mine[field] == theirs[field] != ""
    whole, part = (
        evaluated(str(out), "--reference", "pictures", "--features", "pixels", "--size", "8", "--pairs", "0", *more)[0]
        for more in ([], ["--split", "train"])
    )
    assert (whole["FD(pixels)"]["seed"], part["FD(pixels)"]["seed"]) == (3, 0)  # the card is of all of them
    with np.load(tmp_path / "s.npz") as held:
        np.savez(tmp_path / "s.npz", held["arr_0"][:20])
    for arguments, told in (
        ([str(tmp_path / "s.npz")], r"s\.json: is the card of 24 samples, and .*s\.npz holds 20"),
        ([str(out), "--out", str(tmp_path / "s.json")], r"s\.json: says of what samples are; choose another name"),
        ([str(out), "--out", str(tmp_path)], "is a folder; expected the name of a file"),
        (
            [str(out), "--out", str(tmp_path / "s.json/x.json")],
            r"x\.json: cannot be written into .*s\.json; expected a fo",
        ),
    ):
        capsys.readouterr()
        assert main(["evaluate", *arguments, "--reference", "pictures", "--features", "pixels"]) == 2
        assert re.search(told, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("gone.npz --reference b.npz", r"gone\.npz: no such file"),
        ("gone --reference b.npz", "gone: expected a folder of images, found nothing"),
        ("a.npz --reference gone.npz", r"gone\.npz: no such file"),
        ("float.npz --reference b.npz", r"float\.npz: arr_0: is of float64; expected uint8"),
        ("cut.npz --reference b.npz", r"cut\.npz: is no whole \.npz, it is damaged or was cut off"),
        ("objects.npz --reference b.npz", "holds pickled objects, which may run any code"),
        ("a.npz --reference large.npz", r"large\.npz: is of 64 pixels, a\.npz of 32; expected one size"),
        ("a.npz --reference b --size 16", r"a\.npz: is of 32 pixels, which --size 16 cannot change"),
        ("a.npz --reference b.npz --count 301", r"count 301: expected 6 to 300, the images of a\.npz"),
        ("few.npz --reference b.npz", r"few\.npz: 5 images; expected at least 6"),
        ("a.npz --reference few.npz", r"few\.npz: 5 images; expected at least 6"),
        ("labels.npz --reference b.npz", r"labels\.npz: arr_1: labels from -1 to 8; expected 0 and above"),
        ("a.npz --reference b.npz --features nothing", "features 'nothing': expected one of inception"),
        ("a.npz --reference b.npz --features pixels pixels", "features pixels pixels: expected different names"),
        ("a.npz --reference b.npz --count 3", "count 3: expected at least 6"),
        ("a.npz --reference b.npz --weights w.pth", r"w\.pth given, expected none"),
        (
            "a.npz --reference b.npz --sampling.guidance 2",
            r"sampling\.guidance: is of a generator run, and a\.npz is none",
        ),
        ("a.npz --reference b.npz --step 2", r"step 2: is of a generator run, and a\.npz is none"),
        ("a.npz --reference b.npz --seed 2", r"seed 2: is of a generator run, and a\.npz is none"),
        ("b --reference b.npz --classes random", "classes random: is of a generator run, and b is none"),
        (
            "a.npz --reference b.npz --split val",
            r"split val: is of a folder or another data source, and a\.npz has none",
        ),
        ("a.npz --reference b.npz --reference-split val", r"split val: is of a folder .*, and b\.npz has none"),
        ("small.npz --reference small.npz", r"small\.npz: is of 4 pixels; pixels expects at least 8 a side"),
        ("a.npz --reference run", "run: is a run; expected images, or their statistics, as a reference"),
        ("bundled:digits --reference b.npz", "bundled:digits: has no size of its own; give --size"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, told, capsys, place):
    np.savez("float.npz", A / 255)
    np.savez("large.npz", np.zeros((20, 64, 64, 3), np.uint8))
    np.savez("small.npz", np.zeros((20, 4, 4, 3), np.uint8))
    np.savez("few.npz", A[:5])
    np.savez("labels.npz", A[:10], np.arange(10) - 1)
    np.savez("objects.npz", np.array([{}], dtype=object))
    Path("cut.npz").write_bytes(Path("a.npz").read_bytes()[:-100])
    Path("run").mkdir(exist_ok=True)
    Path("run/config.json").write_text("{}")
    words = arguments.split()
    assert (
        main(["evaluate", *words, *([] if "--features" in words else ["--features", "pixels"]), "--out", "x.json"]) == 2
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ifsq: ")
    assert re.search(told, error), error
    assert not Path("x.json").exists()


def test_cards_are_not_written_over_images(capsys, tmp_path):
    np.savez(tmp_path / "mine.npz", A[:10])
    before = (tmp_path / "mine.npz").read_bytes()
    where = str(tmp_path / "mine.npz")
    assert main(["evaluate", where, "--reference", "b.npz", "--features", "pixels", "--out", where]) == 2
    assert "mine.npz: is there and holds no cards; choose another name for them" in capsys.readouterr().err
    assert (tmp_path / "mine.npz").read_bytes() == before


def test_broken_images_of_a_reference_are_named_and_their_lack_is_not_kept(capsys, tmp_path):
    for number in range(40):
        Image.fromarray(B[number]).save(tmp_path / f"{number:02}.png")
    (tmp_path / "13.png").write_bytes((tmp_path / "13.png").read_bytes()[:100])
    arguments = ["a.npz", "--reference", str(tmp_path), "--features", "pixels"]
    for _ in range(2):  # the second time too
        _, table = evaluated(*arguments, "--broken", "skip")
        (line,) = table["skipped"]
        assert "13.png" in line
        assert "skipped: 1 images; the first: " in capsys.readouterr().err
    assert main(["evaluate", *arguments]) == 2
    assert "13.png" in capsys.readouterr().err


def test_without_weights_and_network_it_says_what_to_do(capsys, monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("IFSQ_WEIGHTS", raising=False)
    assert main(["evaluate", "a.npz", "--reference", "b.npz"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for told in (
        "pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        f"put it into {tmp_path}",
        "--features efficientnet-lite0 works without",
    ):
        assert told in line


def compared(*arguments):
    return main(["compare", *arguments])


def test_cards_are_put_side_by_side(capsys):
    for name in ("a", "c"):
        evaluate(f"{name}.npz --reference b.npz --features pixels --out {name}.json")
    evaluations = [json.loads(Path(f"{name}.json").read_text())["cards"] for name in ("a", "c")]
    capsys.readouterr()
    assert compared("a.json", "c.json") == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if "FD(pixels)" in line)
    mine, theirs = (cards[0]["values"]["distance"] for cards in evaluations)
    assert [float(cell) for cell in row[1:4]] == pytest.approx([mine, theirs, theirs - mine], rel=1e-3)
    assert row[4] in ("overlap", "apart")


def test_unlike_cards_are_refused_by_the_name_of_the_field(capsys):
    evaluate("a.npz --reference b.npz --features pixels --out a.json")
    evaluate("c.npz --reference b.npz --features pixels --count 100 --out d.json")
    capsys.readouterr()
    assert compared("a.json", "d.json") == 2
    assert "a.json and d.json: FD(pixels): cards do not compare: n 300 against 100" in capsys.readouterr().err
    assert compared("a.json", "d.json", "--allow", "n", "method") == 0
    table = json.loads(Path("a.json").read_text())
    table["cards"][0]["values"] = {}
    Path("empty.json").write_text(json.dumps(table))
    for arguments, told in (
        (["a.json"], "1 evaluations: expected two at least"),
        (["a.json", "d.json", "--allow", "m"], "allow m: is no field of a card; expected some of code_version"),
        (["a.json", "empty.json"], "empty.json: FD(pixels): has no values; evaluate the run again"),
        (["a.json", "gone.json"], "gone.json: no such file"),
        (["a.json", "b"], "b: holds no config.json; expected a run of ifsq"),
    ):
        assert compared(*arguments) == 2
        assert told in capsys.readouterr().err
    Path("damaged.json").write_text('{"cards": 3}')
    assert compared("a.json", "damaged.json") == 2
    assert "damaged.json: holds no cards" in capsys.readouterr().err


def test_cards_without_a_figure_in_common_are_refused(capsys):
    evaluate("a.npz --reference b.npz --features pixels --pairs 0 --out a.json")
    evaluate("a.npz --reference b.npz --features efficientnet-lite0@32 --pairs 0 --out e.json")
    assert compared("a.json", "e.json") == 2
    assert "a.json and e.json: have no figure in common" in capsys.readouterr().err


def test_runs_are_compared_by_their_evaluations(road, monkeypatch, capsys):
    monkeypatch.chdir(road)
    assert compared("ar", "ar") == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(row.split()[:1] == ["FD(judge)"] and "+0" in row for row in rows)


def test_a_card_of_before_reads_and_compares():
    old = ProtocolCard("FD(x)", {"distance": 1.0}, "r", "h", 5, 32, "", "", "")
    raw = old.to_dict()
    for name in ("samples", "samples_hash"):
        del raw[name]
    assert ProtocolCard.from_dict(raw) == old
