"""The whole road at toy size, through the command, as a person would take it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ifsq
from ifsq import pipeline
from ifsq.bench import demo
from ifsq.cli import main
from ifsq.codes import CodeCache
from ifsq.codes.checks import CHECKED
from ifsq.config import InputError
from ifsq.data.sampler import StepSampler
from ifsq.evaluation import generator
from ifsq.evaluation.protocol import sample_indices
from ifsq.generators import Generator, Origin
from ifsq.generators.train import GeneratorTask
from ifsq.metrics import ProtocolCard
from ifsq.store import checkpoints
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.log import read_metrics

TOKENIZER = """
out = "tokenizer"
[data]
source = "bundled:shapes"
size = 16
[tokenizer.conv]
width = 16
multipliers = [1, 1]
blocks = 1
patch = 2
groups = 4
[tokenizer.quantizer]
levels = [5, 5, 5]
[train]
steps = 24
batch = 8
log_every = 6
save_every = 8
optim.warmup = 2
"""
GENERATOR = """
out = "{kind}"
tokenizer = "tokenizer"
codes = "codes"
{groups}
[{kind}]
depth = 2
width = 32
heads = 2
{own}
[train]
steps = 20
batch = 8
log_every = 5
save_every = 10
optim.warmup = 2
"""


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A folder with a tokenizer, its codes and a generator of each kind; the working directory of every test here."""
    folder = tmp_path_factory.mktemp("road")
    (folder / "tokenizer.toml").write_text(TOKENIZER)
    (folder / "ar.toml").write_text(GENERATOR.format(kind="ar", groups="groups = [1, 2]", own="mlp_multiple_of = 16"))
    (folder / "masked.toml").write_text(GENERATOR.format(kind="masked", groups="", own="mlp_multiple_of = 16"))
    (folder / "diffusion.toml").write_text(
        GENERATOR.format(kind="diffusion", groups="", own="patch = 2\n[sampling]\nsteps = 3")
    )
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["tokenizer", "train", "tokenizer.toml"]) == 0
        assert main(["encode", "tokenizer", "bundled:shapes", "codes"]) == 0
        assert main(["generator", "train", "ar.toml"]) == 0
        assert main(["generator", "train", "diffusion.toml"]) == 0
        assert main(["generator", "train", "masked.toml", "--train.steps", "2", "--train.optim.warmup", "1"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def _inside(road, monkeypatch):
    monkeypatch.chdir(road)


def refused(capsys, arguments):
    """The one line that a command refuses with; what it has read may be said before."""
    assert code_of(arguments) == 2
    told = re.sub(r"\Adata: .*\n", "", capsys.readouterr().err)
    assert told.count("\n") == 1, told
    assert told.startswith("ifsq: ")
    return told


def code_of(arguments):
    """The exit code; argparse leaves by SystemExit."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


def size_of(picture):
    with Image.open(picture) as image:
        return image.size


def files_of(folder):
    """When each was written; of folders, which hold a lock for a while, that they are there.

    Without what a cache remembers of its checks, which whoever opens it may write.
    """
    paths = (path for path in Path(folder).rglob("*") if path.name != CHECKED)
    return {path: path.stat().st_mtime_ns if path.is_file() else None for path in paths}


def test_a_run_is_a_folder():
    assert {path.name for path in Path("tokenizer").iterdir()} >= {"config.json", "metrics.jsonl", "checkpoints"}
    losses = [row["loss"] for row in read_metrics(Path("tokenizer/metrics.jsonl")) if "loss" in row]
    assert losses[-1] < losses[0]
    assert any("val/psnr" in row for row in read_metrics(Path("tokenizer/metrics.jsonl")))


def test_the_cache_holds_what_the_tokenizer_says():
    tokenizer = ifsq.Tokenizer.from_pretrained("tokenizer")
    cache = CodeCache.open("codes")
    images = next(ifsq.data.iterate_once(ifsq.data.open_images(ifsq.data.DataConfig("bundled:shapes", 16), "val"), 20))
    stored = cache.read("val")
    assert torch.equal(stored.content[:20].long(), tokenizer.encode(images.images).digits)
    assert torch.equal(stored.labels[:20], images.labels)
    assert cache.about["tokenizer"] == tokenizer.digest()
    assert cache.count("train") == 5120


def test_a_cache_of_fewer_options_is_still_the_same(tmp_path):
    """An option that came later has its default in an older cache."""
    shutil.copytree("codes", tmp_path / "codes")
    manifest = json.loads((tmp_path / "codes" / "manifest.json").read_text())
    del manifest["about"]["data"]["max_pixels"]
    (tmp_path / "codes" / "manifest.json").write_text(json.dumps(manifest))
    before = files_of(tmp_path)
    assert main(["encode", "tokenizer", "bundled:shapes", str(tmp_path / "codes")]) == 0
    assert files_of(tmp_path) == before


def test_both_generators_read_the_same_digits():
    digests = {Generator.from_pretrained(run).origin.codes_digest for run in ("ar", "diffusion")}
    assert digests == {CodeCache.open("codes").digest}


@pytest.mark.parametrize("kind", ["ar", "diffusion"])
def test_public_face_of_a_generator(kind, tmp_path):
    tokenizer, generator = ifsq.Tokenizer.from_pretrained("tokenizer"), ifsq.Generator.from_pretrained(kind)
    drawn = generator.sample(torch.tensor([0, 3]), guidance=2.0, seed=0)
    assert drawn.codes.shape == (2, 3, 4, 4)
    assert tokenizer.decode(drawn.codes).shape == (2, 3, 16, 16)
    assert torch.equal(generator.sample(torch.tensor([0, 3]), guidance=2.0, seed=0).codes, drawn.codes)
    assert not torch.equal(generator.sample(torch.tensor([0, 3]), guidance=2.0, seed=1).codes, drawn.codes)
    generator.save_pretrained(tmp_path / "saved")
    again = ifsq.Generator.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.sample(torch.tensor([0, 3]), guidance=2.0, seed=0).codes, drawn.codes)


def test_public_face_of_a_tokenizer(tmp_path):
    tokenizer = ifsq.Tokenizer.from_pretrained("tokenizer")
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    encoded = tokenizer.encode(images)
    assert encoded.codes.shape == (2, 3, 4, 6)
    assert encoded.indices.shape == (2, 4, 6)
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.decode(encoded.codes), tokenizer.decode_indices(encoded.indices))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = ifsq.Tokenizer.from_pretrained(tmp_path / "saved")
    assert again.digest() == tokenizer.digest()
    with pytest.raises(ValueError, match="images of 16 x 18 pixels: expected multiples of 4"):
        tokenizer.encode(torch.zeros(1, 3, 16, 18))


def test_training_again_changes_nothing_and_going_on_ends_the_same():
    before = files_of("tokenizer/checkpoints")
    assert main(["tokenizer", "train", "tokenizer.toml"]) == 0
    assert files_of("tokenizer/checkpoints") == before


@pytest.mark.parametrize("what", ["tokenizer", "ar", "diffusion"])
def test_a_process_killed_while_training_ends_with_the_same_bits(what):
    """SIGKILL from outside, wherever it happens to hit; then the same command."""
    verb = "tokenizer" if what == "tokenizer" else "generator"
    command = [sys.executable, "-m", "ifsq", verb, "train", f"{what}.toml", "--out", f"killed_{what}"]
    command += ["--train.save_every", "8", "--train.steps", "80"]
    for steps_seen in (1, 2):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for(lambda n=steps_seen: len(read_metrics(Path(f"killed_{what}/metrics.jsonl"))) >= n, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    whole = ["--out", f"whole_{what}", "--train.save_every", "8", "--train.steps", "80"]
    assert main([verb, "train", f"{what}.toml", *whole]) == 0
    ends = [checkpoints.steps_in(Path(f"{name}_{what}/checkpoints"))[-1][1] for name in ("killed", "whole")]
    for name in ("model", "ema", "optimizer"):
        cut, unbroken = (checkpoints.at(end).load(name) for end in ends)
        assert all(torch.equal(cut[key], unbroken[key]) for key in unbroken | cut)


def test_a_stop_request_to_the_whole_group_saves_also_with_readers():
    """As torchrun and schedulers send it: to the processes that read images too."""
    command = [sys.executable, "-m", "ifsq", "tokenizer", "train", "tokenizer.toml", "--out", "stopped"]
    command += ["--train.save_every", "5000", "--train.steps", "5000", "--train.engine.workers", "1"]
    with open("stopped.txt", "w") as told:
        process = subprocess.Popen(command, stderr=told, start_new_session=True)
    wait_for(lambda: len(read_metrics(Path("stopped/metrics.jsonl"))) >= 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 130, Path("stopped.txt").read_text()
    assert "the same command continues from there" in Path("stopped.txt").read_text()
    assert len(checkpoints.steps_in(Path("stopped/checkpoints"))) == 1


def wait_for(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the process did nothing in time"
        time.sleep(0.01)


def judge_name():
    return next(path.name for path in Path("two").iterdir() if path.name.startswith("judge_"))


def test_two_processes_write_one_set_of_files_and_the_loss_falls():
    """torchrun over gloo: every verb, one folder each, the codes of one process."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "ifsq"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for verb in (
        ["tokenizer", "train", "tokenizer.toml", "--out", "two/tokenizer"],
        ["encode", "tokenizer", "bundled:shapes", "two/codes"],
        ["generator", "train", "ar.toml", "--out", "two/ar"],
        ["generator", "eval", "two/ar", "--samples", "20", "--features"],
        ["sample", "ar", "--labels", "1", "2", "--out", "two/grid.png"],
    ):
        done = subprocess.run([*run, *verb], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not [line for line in done.stderr.splitlines() if "Warning" in line]  # of torch, once a process
    assert main(["sample", "ar", "--labels", "1", "2", "--out", "two/alone.png"]) == 0
    assert Path("two/alone.png").read_bytes() == Path("two/grid.png").read_bytes()
    Path("two/alone.png").unlink()
    for folder in ("two/tokenizer", "two/ar"):
        losses = [row["loss"] for row in read_metrics(Path(folder) / "metrics.jsonl") if "loss" in row]
        assert len(losses) == 4
        assert np.isfinite(losses).all()
        assert losses[-1] < losses[0]
    assert CodeCache.open("two/codes").digest == CodeCache.open("codes").digest
    assert sorted(path.name for path in Path("two").iterdir()) == [
        "ar",
        "codes",
        "grid.png",
        judge_name(),
        "tokenizer",
    ]

    one = [row["loss"] for row in read_metrics(Path("tokenizer/metrics.jsonl")) if "loss" in row]
    two = [row["loss"] for row in read_metrics(Path("two/tokenizer/metrics.jsonl")) if "loss" in row]
    # The logged loss is the mean of both halves of the batch that the single process saw whole.
    assert two == pytest.approx(one, rel=2e-3)


def test_evaluations_and_report(capsys):
    assert main(["tokenizer", "eval", "tokenizer"]) == 0
    assert "PSNR" in capsys.readouterr().out
    for kind in ("ar", "diffusion"):
        assert main(["generator", "eval", kind, "--samples", "40", "--features"]) == 0
    cards = json.loads(Path("diffusion/evaluation.json").read_text())["cards"]
    by_name = {card["metric"]: card for card in cards}
    assert by_name["FD(judge)"]["function_evaluations"] == 6
    assert by_name["FD(judge)"]["guidance"] == 1.5
    assert by_name["class agreement"]["n"] == 40
    assert by_name["FD(judge), tokenizer alone"]["generator_hash"] == ""
    assert by_name["FD(judge), untrained generator"]["values"]["distance"] > 0
    assert main(["report", "tokenizer", "ar", "diffusion"]) == 0
    page = Path("tokenizer/report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")  # self-contained
    assert page.count("data:image/png") == 6
    assert page.count("<svg aria-hidden") == 6


def test_a_run_that_stopped_before_its_first_checkpoint_may_be_changed(tmp_path):
    out = ["--out", str(tmp_path / "run"), "--train.steps", "3"]
    assert code_of(["tokenizer", "train", "tokenizer.toml", *out, "--train.optim.lr", "1e30"]) == 2
    assert main(["tokenizer", "train", "tokenizer.toml", *out]) == 0


def test_shown_images_are_of_many_classes():
    images = ifsq.data.open_images(ifsq.data.DataConfig("bundled:shapes", 16), "val")
    chosen = sample_indices(images, 64)
    assert len(set(chosen)) == 64
    assert len({images.load(index, 0)[1] for index in chosen}) == 10


def test_a_saved_model_does_not_overwrite_a_run():
    with pytest.raises(InputError, match="tokenizer: holds a training run; save the model in another folder"):
        ifsq.Tokenizer.from_pretrained("tokenizer").save_pretrained("tokenizer")


@pytest.mark.usefixtures("few_bundled", "quick_judge")
def test_the_demo_at_toy_size_and_once_more(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "FEATURES", "pixels")  # which takes no time
    command = ["demo", "--out", str(tmp_path / "demo"), "--train.steps", "6", "--train.log_every", "3"]
    assert main(command) == 0
    weights = {path: stamp for path, stamp in files_of(tmp_path).items() if path.suffix == ".safetensors"}
    assert main(command) == 0
    assert {path: stamp for path, stamp in files_of(tmp_path).items() if path.suffix == ".safetensors"} == weights
    capsys.readouterr()
    longer = [word if word != "6" else "9" for word in command]
    assert "has 6 steps behind it, and its codes are in use; expected as many, got 9" in refused(capsys, longer)
    assert {path: stamp for path, stamp in files_of(tmp_path).items() if path.suffix == ".safetensors"} == weights
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "</html>" in page
    assert "FD(pixels" in page


def test_a_moved_run_finds_its_tokenizer_beside_it(tmp_path, monkeypatch):
    for name in ("tokenizer", "ar"):
        shutil.copytree(name, tmp_path / name)
    monkeypatch.chdir(tmp_path / "ar")
    assert main(["sample", str(tmp_path / "ar"), "--labels", "1", "--out", "one.png"]) == 0


def test_sample_writes_one_picture_and_the_seed_decides_it():
    for name, seed in (("a.png", "5"), ("b.png", "5"), ("c.png", "6")):
        assert main(["sample", "diffusion", "--labels", "0", "9", "--seed", seed, "--out", name]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()
    assert size_of("a.png") == (2 * 18 + 2, 18 + 2)


@pytest.mark.parametrize("kind", ["ar", "diffusion"])
def test_sample_writes_sets_of_any_kept_step_averaged_or_raw(kind, tmp_path, capsys):
    command = ["sample", kind, "--count", "12", "--sampling.guidance", "1"]
    assert main([*command, "--out", str(tmp_path / "set")]) == 0
    assert capsys.readouterr().out == f"samples: {tmp_path / 'set'}\n"
    assert main([*command, "--out", str(tmp_path / "set.npz"), "--batch", "12"]) == 0
    with np.load(tmp_path / "set.npz") as held:
        images, labels = held["arr_0"], held["arr_1"]
    assert labels.tolist() == [*range(10), 0, 1]
    pictures = [np.asarray(Image.open(tmp_path / "set" / f"{number:06}.png")) for number in range(12)]
    assert np.array_equal(images, pictures)
    assert (tmp_path / "set/labels.csv").read_text().splitlines()[:2] == ["path,label,class", "000000.png,0,circle"]
    card = json.loads((tmp_path / "set.json").read_text())
    assert (card["labels"], card["step"], card["weights"], card["guidance"]) == (
        "every class alike",
        20,
        "average",
        1.0,
    )
    for options, told in ((["--step", "10"], (10, "average")), (["--weights", "raw"], (20, "raw"))):
        place = tmp_path / f"{told[1]}.npz"
        assert main([*command, *options, "--out", str(place)]) == 0
        other = json.loads(place.with_suffix(".json").read_text())
        assert (other["step"], other["weights"]) == told
        assert other["generator_hash"] != card["generator_hash"]
        assert (np.load(place)["arr_0"] != images).any()
    capsys.readouterr()
    told = refused(capsys, [*command, "--step", "10", "--out", str(tmp_path / "set")])
    assert told.endswith("set: holds other samples (step 20 against 10); choose another place or remove it\n")


def test_sample_takes_labels_as_given_at_random_or_as_in_training(tmp_path):
    for name, options in (
        ("given.npz", ["--labels", "3", "circle", "3"]),
        ("random.npz", ["--count", "40", "--classes", "random"]),
        ("training.npz", ["--count", "40", "--classes", "training"]),
        ("picture.png", ["--count", "12"]),
    ):
        assert main(["sample", "ar", *options, "--out", str(tmp_path / name)]) == 0
    assert size_of(tmp_path / "picture.png") == (10 * 18 + 2, 2 * 18 + 2)
    given, drawn, like = (
        np.load(tmp_path / f"{name}.npz")["arr_1"].tolist() for name in ("given", "random", "training")
    )
    assert given == [3, 0, 3]
    assert sorted(drawn) != sorted(like)
    assert np.bincount(like).tolist() == [4] * 10


def test_reconstruct_keeps_the_size_of_a_picture(tmp_path, capsys):
    picture = tmp_path / "photo.png"
    Image.fromarray(np.full((21, 34, 3), 90, np.uint8)).save(picture)
    assert main(["reconstruct", "tokenizer", str(picture), "--out", str(tmp_path / "again")]) == 0
    assert "32 x 20 pixels" in capsys.readouterr().out
    assert size_of(tmp_path / "again" / "photo.png") == (2 * 34 + 2, 24 - 2 + 2)


def test_reconstruct_takes_folders_and_tiles(tmp_path, capsys):
    for number, name in enumerate(("a/1.png", "a/2.jpg", "b/1.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 48 + 4 * number, 3), 60, np.uint8)).save(path)
    command = ["reconstruct", "tokenizer", str(tmp_path / "images"), "--out", str(tmp_path / "again"), "--alone"]
    assert main([*command, "--tile", "16"]) == 0
    assert capsys.readouterr().out.count("dB") == 3
    found = sorted(str(path.relative_to(tmp_path / "again")) for path in (tmp_path / "again").rglob("*.*"))
    assert found == ["a/1.png", "a/2.png", "b/1.png"]
    assert size_of(tmp_path / "again" / "b" / "1.png") == (56, 40)
    assert "a/1.png: exists already" in refused(capsys, command)
    assert "tile=7: expected a positive multiple" in refused(capsys, [*command, "--tile", "7"])
    (tmp_path / "images" / "a" / "1.jpg").write_bytes((tmp_path / "images" / "a" / "2.jpg").read_bytes())
    told = refused(capsys, [*command[:-3], "--out", str(tmp_path / "third")])
    assert "two images would be written there" in told
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("kind", ["ae", "kl"])
def test_continuous_tokenizers_cache_latents_with_flips(kind, capsys):
    experiment = TOKENIZER.replace("levels = [5, 5, 5]", f'kind = "{kind}"').replace('"tokenizer"', f'"latent_{kind}"')
    Path(f"latent_{kind}.toml").write_text(experiment)
    assert main(["tokenizer", "train", f"latent_{kind}.toml", "--train.steps", "2"]) == 0
    assert main(["encode", f"latent_{kind}", "bundled:shapes", f"latents_{kind}", "--flip"]) == 0
    cache = CodeCache.open(f"latents_{kind}")
    stored = cache.read("val")
    images = next(ifsq.data.iterate_once(ifsq.data.open_images(ifsq.data.DataConfig("bundled:shapes", 16), "val"), 20))
    tokenizer = ifsq.Tokenizer.from_pretrained(f"latent_{kind}")
    with torch.no_grad():
        latent = tokenizer.latent(images.images)[:, :4]  # of a KL the first half: the means
        mirrored = tokenizer.latent(images.images.flip(-1))[:, :4]
    torch.testing.assert_close(stored.content[:20].float(), latent, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(stored.flipped[:20].float(), mirrored, atol=2e-3, rtol=2e-3)
    assert len(cache.statistics["mean"]) == 4
    capsys.readouterr()
    told = refused(capsys, ["generator", "train", "ar.toml", "--out", "new", "--codes", f"latents_{kind}"])
    assert "does not fit the tokenizer tokenizer: latents of 4 channels against digits" in told
    own = ["--tokenizer", f"latent_{kind}", "--codes", f"latents_{kind}", "--out", "new"]
    told = refused(capsys, ["generator", "train", "ar.toml", *own])
    assert "groups=[1, 2]: latents have no indices to group; expected none" in told
    told = refused(capsys, ["generator", "train", "ar.toml", *own, "--groups", "[]"])
    assert "latents of 4 channels have no indices: expected digits" in told
    told = refused(capsys, ["generator", "train", "diffusion.toml", *own, "--tokenizer", ""])
    assert f"latents_{kind}: was written by tokenizer" in told


def test_codes_of_mirrored_images_are_drawn_by_half(tmp_path):
    assert main(["encode", "tokenizer", "bundled:shapes", str(tmp_path / "codes"), "--flip"]) == 0
    codes = CodeCache.open(tmp_path / "codes").read("train")
    plain = CodeCache.open("codes").read("train")
    assert torch.equal(codes.content[:], plain.content[:])
    assert (
        main(
            [
                "generator",
                "train",
                "ar.toml",
                "--out",
                str(tmp_path / "ar"),
                "--codes",
                str(tmp_path / "codes"),
                "--train.steps",
                "2",
            ]
        )
        == 0
    )
    task = GeneratorTask.__new__(GeneratorTask)
    task.train, task.config = codes, TrainConfig(batch=512, seed=3)
    batch = next(iter(task.batches(0, World(0, 1, torch.device("cpu")))))
    rows = [index for index, _ in StepSampler(len(codes), 512, 3).items(0)]
    mirrored = (batch.content == codes.flipped[rows].long()).flatten(1).all(1)
    straight = (batch.content == codes.content[rows].long()).flatten(1).all(1)
    assert (mirrored | straight).all()
    assert 0.4 < mirrored[~(mirrored & straight)].float().mean() < 0.6


def test_a_folder_of_images_becomes_codes(tmp_path):
    for name in ("a/1.png", "a/2.jpg", "b/3.png", "b/4.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)).save(path)
    cache = pipeline.encode(Path("tokenizer"), str(tmp_path / "images"), tmp_path / "codes", size=32)
    assert cache.classes == ("a", "b")
    assert cache.spec.grid == (8, 8)
    assert cache.count("train") + cache.count("val") == 4


BAD = {
    "unknown key": (["tokenizer", "train", "tokenizer.toml", "--train.stesp", "3"], "train.stesp: unknown key; did you mean 'steps'"),
    "wrong type": (["tokenizer", "train", "tokenizer.toml", "--train.steps", "many"], "train.steps: input should be a valid integer"),
    "missing file": (["tokenizer", "train", "gone.toml"], "gone.toml: no such file"),
    "forecast of nothing": (["analyze", "forecast", "gone"], "gone: no such folder"),
    "missing folder": (["tokenizer", "train", "tokenizer.toml", "--out", "new", "--data.source", "gone"], "gone"),
    "size": (["tokenizer", "train", "tokenizer.toml", "--out", "new", "--data.size", "18"], "data.size=18: expected a multiple of the tokenizer's factor 4"),
    "levels": (["tokenizer", "train", "tokenizer.toml", "--out", "new", "--tokenizer.quantizer.levels", "[4, 5]"], "paper cells with bound='ifsq' need odd levels"),
    "nested levels": (["tokenizer", "train", "tokenizer.toml", "--out", "new", "--tokenizer.quantizer.nested_levels", "[3, 9]"], "levels=[5, 5, 5] with nested_levels=[3, 9]: expected one of these in every dimension"),
    "levels of eval": (["tokenizer", "eval", "tokenizer", "--levels", "9"], "levels 9: expected what the tokenizer was trained at, 5 x 5 x 5"),
    "levels of a cache": (["encode", "tokenizer", "bundled:shapes", "new", "--levels", "4"], "levels 4: expected what the tokenizer was trained at, 5 x 5 x 5"),
    "levels of pictures": (["reconstruct", "tokenizer", "good.png", "--out", "new", "--levels", "4"], "levels 4: expected what the tokenizer was trained at, 5 x 5 x 5"),
    "levels of a forecast": (["analyze", "forecast", "tokenizer", "--levels", "4"], "levels 4: expected what the tokenizer was trained at, 5 x 5 x 5"),
    "no levels": (["encode", "tokenizer", "bundled:shapes", "new", "--levels", "0"], "argument --levels: '0': expected a number of levels"),
    "other config": (["tokenizer", "train", "tokenizer.toml", "--train.seed", "7"], "tokenizer: holds another run (experiment.train.seed 0 against 7)"),
    "not ours": (["tokenizer", "train", "tokenizer.toml", "--out", "foreign"], "foreign: is not empty and holds no run of ifsq (letter.txt)"),
    "out is a file": (["tokenizer", "train", "tokenizer.toml", "--out", "foreign/letter.txt"], "letter.txt: is a file"),
    "device": (["tokenizer", "train", "tokenizer.toml", "--out", "new", "--device", "tpu"], "device 'tpu': expected auto, cpu, cuda or mps"),
    "no run": (["tokenizer", "eval", "gone"], "gone: no such folder"),
    "wrong kind": (["tokenizer", "eval", "ar"], "ar: holds a ar model; expected a tokenizer"),
    "wrong kind too": (["generator", "eval", "tokenizer"], "tokenizer: holds a tokenizer model; expected a generator"),
    "few samples": (["generator", "eval", "ar", "--samples", "1"], "samples 1: expected 2 to 10000000"),
    "many samples": (["generator", "eval", "ar", "--samples", "100000000000000"], "samples 100000000000000: expected 2 to 10000000"),
    "a flag for a value": (["generator", "train", "ar.toml", "--out", "--train.steps", "3"], "--out: expected a value after it"),
    "damaged config": (["tokenizer", "eval", "damaged"], "config.json: cannot be read as JSON"),
    "damaged state": (["sample", "halfway", "--labels", "0", "--out", "new.png"], "state.json: cannot be read as JSON"),
    "damaged evaluation": (["report", "unread"], "evaluation.json: cannot be read as JSON"),
    "no permission": (["reconstruct", "tokenizer", "good.png", "--out", "/proc/nothing"], "/proc/nothing: cannot be written: no such file or directory"),
    "encode elsewhere": (["encode", "tokenizer", "bundled:shapes", "foreign"], "foreign: is not empty and holds no code cache"),
    "encode something else": (["encode", "tokenizer", "bundled:digits", "codes"], "codes: holds another code cache (data.source 'bundled:shapes' against 'bundled:digits')"),
    "encode size": (["encode", "tokenizer", "bundled:shapes", "new", "--size", "30"], "size 30: expected a multiple of the tokenizer's factor 4"),
    "encode source": (["encode", "tokenizer", "bundled:cats", "new"], "bundled:cats"),
    "too deep a head": (["generator", "train", "ar.toml", "--out", "new", "--ar.head.depth", "1000000000"], "ar.head: depth=1000000000: expected at most 1000"),
    "too wide for memory": (["generator", "train", "ar.toml", "--out", "new", "--ar.mlp_multiple_of", "10000000000000"], "ar: a network of these sizes does not fit in memory; expected smaller ones"),
    "too wide for a number": (["generator", "train", "ar.toml", "--out", "new", "--ar.width", "1000000000000", "--ar.heads", "1"], "ar: a network of these sizes does not fit in memory; expected smaller ones"),
    "no cache": (["generator", "train", "ar.toml", "--out", "new", "--codes", "gone"], "gone: holds no code cache"),
    "both sections": (["generator", "train", "ar.toml", "--out", "new", "--diffusion.depth", "1", "--diffusion.width", "8", "--diffusion.heads", "1", "--diffusion.patch", "1"], "expected exactly one of the sections [ar], [diffusion] and [masked]"),
    "heads": (["generator", "train", "ar.toml", "--out", "new", "--ar.heads", "3"], "heads"),
    "patch": (["generator", "train", "diffusion.toml", "--out", "new", "--diffusion.patch", "3"], "patch=3: expected a divisor of the code grid 4x4"),
    "groups": (["generator", "train", "ar.toml", "--out", "new", "--groups", "[2, 2]"], "groups=[2, 2]: expected positive sizes that sum to the 3 levels"),
    "huge label": (["sample", "ar", "--labels", "99999999999999999999", "--out", "new.png"], "label 99999999999999999999: expected 0 to 9"),
    "seed": (["sample", "ar", "--labels", "1", "--seed", "-1", "--out", "new.png"], "seed -1: expected 0 to"),
    "not finite": (["tokenizer", "train", "tokenizer.toml", "--out", "new", "--loss.l1", "nan"], "loss.l1: nan: expected a finite number"),
    "shapeless state": (["sample", "shapeless", "--labels", "0", "--out", "new.png"], "state.json: describes no model"),
    "no origin": (["sample", "orphan", "--labels", "0", "--out", "new.png"], "orphan: its description is damaged"),
    "a run twice": (["report", "unread2", "./unread2"], "is given twice; expected each run once"),
    "label": (["sample", "ar", "--labels", "0", "10", "--out", "new.png"], "label 10: expected 0 to 9 (0 circle"),
    "no class": (["sample", "ar", "--labels", "0", "cirle", "--out", "new.png"], "label cirle: expected 0 to 9 (0 circle, "),
    "negative label": (["sample", "ar", "--labels", "-1", "--out", "new.png"], "label -1: expected 0 to 9"),
    "no images": (["sample", "ar", "--count", "0", "--out", "new"], "count 0: expected 1 to 10000000"),
    "no batch": (["sample", "ar", "--count", "3", "--batch", "0", "--out", "new"], "batch 0: expected at least 1"),
    "batch of a picture": (["sample", "ar", "--labels", "0", "--batch", "2", "--out", "new.png"], "--batch: says how a set is drawn; got one picture, new.png"),
    "labels and a law": (["sample", "ar", "--labels", "0", "--classes", "random", "--out", "new"], "--classes: says of which classes --count images are; got --labels"),
    "labels and a count": (["sample", "ar", "--labels", "0", "--count", "3", "--out", "new"], "not allowed with argument --labels"),
    "neither labels nor count": (["sample", "ar", "--out", "new"], "one of the arguments --labels --count is required"),
    "step": (["sample", "ar", "--count", "3", "--step", "15", "--out", "new"], "ar/checkpoints: step 15 is not kept; expected one of 10, 20"),
    "a file for a folder of samples": (["sample", "ar", "--count", "3", "--out", "ar/metrics"], "ar/metrics: is a file; expected a folder for the samples"),
    "a folder of other things": (["sample", "ar", "--count", "3", "--out", "foreign"], "foreign: is not empty and holds no samples (letter.txt); choose another folder"),
    "an npz of somebody": (["sample", "ar", "--count", "3", "--out", "old.npz"], "old.npz: exists, and no old.json beside it says of what; choose another name"),
    "an npz where nothing can be": (["sample", "ar", "--count", "3", "--out", "/proc/nothing/new.npz"], "/proc/nothing/new.npz: cannot be written: no such file or directory"),
    "too many for a picture": (["sample", "ar", "--count", "1001", "--out", "new.png"], "new.png: 1001 images are too many for one picture; name a folder or a .npz"),
    "picture name": (["sample", "ar", "--labels", "0", "--out", "new.txt"], "new.txt: expected a name that ends in .png or .npz, or that of a folder"),
    "guidance": (["sample", "ar", "--labels", "0", "--out", "new.png", "--sampling.guidance", "nan"], "sampling: guidance: nan: expected a finite number"),
    "negative guidance": (["sample", "ar", "--labels", "0", "--out", "new.png", "--sampling.guidance", "-2"], "sampling: guidance=-2.0: expected a number of at least 0 (1 is no guidance)"),
    "sampling of the other kind": (["sample", "ar", "--labels", "0", "--out", "new.png", "--sampling.steps", "3"], "sampling: steps: unknown key; known: "),
    "diffusion: label": (["sample", "diffusion", "--labels", "0", "10", "--out", "new.png"], "label 10: expected 0 to 9 (0 circle"),
    "diffusion: negative label": (["sample", "diffusion", "--labels", "-1", "--out", "new.png"], "label -1: expected 0 to 9"),
    "diffusion: no class": (["sample", "diffusion", "--labels", "cirle", "--out", "new.png"], "label cirle: expected 0 to 9 (0 circle, "),
    "diffusion: no images": (["sample", "diffusion", "--count", "0", "--out", "new.png"], "count 0: expected 1 to 10000000"),
    "diffusion: seed": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--seed", "-1"], "seed -1: expected 0 to"),
    "diffusion: step": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--step", "15"], "diffusion/checkpoints: step 15 is not kept; expected one of 10, 20"),
    "diffusion: few samples": (["generator", "eval", "diffusion", "--samples", "1"], "samples 1: expected 2 to 10000000"),
    "diffusion: guidance": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.guidance", "nan"], "sampling: guidance: nan: expected a finite number"),
    "diffusion: negative guidance": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.guidance", "-2"], "sampling: guidance=-2.0: expected a number of at least 0 (1 is no guidance)"),
    "diffusion: guidances of groups": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.guidance", "[2, 1]"], "sampling: guidance: input should be a valid number"),
    "diffusion: interval": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.guidance_interval", "[0.6, 0.4]"], "sampling: guidance_interval=(0.6, 0.4): expected two times, 0 <= low <= high <= 1"),
    "diffusion: schedule": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.guidance_schedule", "cosine"], "sampling: guidance_schedule='cosine': expected one of constant, linear, power-cosine"),
    "diffusion: guide": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.guide", "gone"], "gone: no such folder"),
    "diffusion: guide of another kind": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.guide", "ar"], "ar: holds a ar model; expected a model of kind diffusion"),
    "diffusion: steps": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.steps", "0"], "sampling: steps=0: expected at least 1"),
    "diffusion: shift": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.timestep_shift", "-1"], "sampling: timestep_shift=-1.0: expected 0 (none) or a positive number"),
    "diffusion: times": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.times", "[0, 0.5, 0.4, 1]"], "sampling: times=[0.0, 0.5, 0.4, 1.0]: expected times that rise from 0 to 1"),
    "diffusion: times and a shift": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.times", "[0, 1]", "--sampling.timestep_shift", "0.3"], "sampling: timestep_shift=0.3: expected 0 beside times, which say all"),
    "diffusion: snap": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.snap", "floor"], "sampling: snap='floor': expected one of nearest, none"),
    "diffusion: solver": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.solver", "rk5"], "sampling: solver='rk5': expected one of euler, heun, midpoint"),
    "diffusion: eta of another solver": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.eta", "0.5"], "sampling: eta=0.5: solver ab2 has no such option"),
    "diffusion: noise of another solver": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.solver", "heun", "--sampling.diffusion_scale", "2"], "sampling: diffusion_scale=2.0: solver heun has no such option"),
    "diffusion: steps of a solver that finds its own": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.solver", "dopri5", "--sampling.steps", "3"], "sampling: steps=3: solver dopri5 has no such option"),
    "diffusion: respacing of another path": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.solver", "ddim", "--sampling.respacing", "10", "--sampling.steps", "25"], "sampling: respacing='10': expected a generator of path ddpm, not linear"),
    "diffusion: an option of the other kind": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.temperature", "2"], "sampling: temperature: unknown key; known: "),
    "diffusion: sampling in the file": (["generator", "train", "diffusion.toml", "--out", "new", "--sampling.temperature", "2"], "sampling.temperature: unknown key"),
    "diffusion: respacing in training": (["generator", "train", "diffusion.toml", "--out", "new", "--sampling.solver", "ddim", "--sampling.respacing", "10", "--sampling.steps", "25"], "respacing='10': expected a generator of path ddpm, not linear"),
    "diffusion: groups": (["generator", "train", "diffusion.toml", "--out", "new", "--groups", "[2, 2]"], "groups=[2, 2]: expected positive sizes that sum to the 3 levels"),
    "diffusion: heads": (["generator", "train", "diffusion.toml", "--out", "new", "--diffusion.heads", "3"], "heads"),
    "diffusion: path": (["generator", "train", "diffusion.toml", "--out", "new", "--diffusion.path", "straight"], "path='straight': expected one of linear, cosine, vp, ddpm"),
    "diffusion: coupling": (["generator", "train", "diffusion.toml", "--out", "new", "--diffusion.coupling", "sinkhorn"], "coupling='sinkhorn': expected one of independent, optimal, optimal_in_class"),
    "diffusion: an option without effect": (["generator", "train", "diffusion.toml", "--out", "new", "--diffusion.time_scale", "0.5"], "time_scale=0.5: expected time_sampling = 'mode' beside it, not 'lognorm'"),
    "diffusion: guided channels": (["generator", "train", "diffusion.toml", "--out", "new", "--diffusion.guidance_channels", "4"], "guidance_channels=4: the codes have 3 channels"),
    "diffusion: multiplier": (["generator", "train", "diffusion.toml", "--out", "new", "--diffusion.multiplier", "0.01"], "diffusion.multiplier=0.01: scales codes of root mean square"),
    "diffusion: too wide for memory": (["generator", "train", "diffusion.toml", "--out", "new", "--diffusion.width", "1000000000000", "--diffusion.heads", "1"], "diffusion: a network of these sizes does not fit in memory; expected smaller ones"),
    "diffusion: no cache": (["generator", "train", "diffusion.toml", "--out", "new", "--codes", "gone"], "gone: holds no code cache"),
    "diffusion: init of another kind": (["generator", "train", "diffusion.toml", "--out", "new", "--train.init", "ar"], "train.init=ar: holds a ar model; expected a diffusion"),
    "sampling that is none": (["generator", "eval", "diffusion", "--sampling.solver", "rk5"], "sampling: solver='rk5': expected one of euler, heun, midpoint"),
    "an option of another solver": (["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.rtol", "0.1"], "sampling: rtol=0.1: solver ab2 has no such option"),
    "other options of a sample": (["sample", "ar", "--labels", "0", "--out", "new.png", "--train.steps", "3"], "'--train.steps': no such argument of ifsq sample"),
    "a temperature of nothing": (["sample", "ar", "--labels", "0", "--out", "new.png", "--sampling.temperature", "0"], "sampling: temperature=0.0: expected a positive number"),
    "values of other groups": (["sample", "ar", "--labels", "0", "--out", "new.png", "--sampling.top_p", "[0.9, 0.8, 1]"], "sampling: top_p=[0.9, 0.8, 1.0]: expected one value, or 2, one a group of the token"),
    "values of other groups in training": (["generator", "train", "ar.toml", "--out", "new", "--sampling.guidance", "[2]"], "guidance=[2.0]: expected one value, or 2, one a group of the token"),
    "sampling in the file": (["generator", "train", "ar.toml", "--out", "new", "--sampling.steps", "3"], "ar.toml: sampling.steps: unknown key"),
    "masked: mask": (["generator", "train", "masked.toml", "--out", "new", "--masked.mask", "row"], "mask='row': expected one of digit, position"),
    "masked: schedule": (["generator", "train", "masked.toml", "--out", "new", "--masked.schedule", "square"], "masked: schedule='square': expected one of linear, cosine"),
    "masked: an option of another kind": (["generator", "train", "masked.toml", "--out", "new", "--masked.order", "random"], "masked.order: unknown key"),
    "masked: no rounds": (["generator", "train", "masked.toml", "--out", "new", "--sampling.rounds", "0"], "sampling: rounds=0: expected at least 1"),
    "masked: too many rounds": (["generator", "train", "masked.toml", "--out", "new", "--sampling.rounds", "49"], "rounds=49: expected at most 48, the digits of an image"),
    "masked: order": (["generator", "train", "masked.toml", "--out", "new", "--sampling.order", "raster"], "order='raster': expected one of random, confidence"),
    "masked: noise": (["generator", "train", "masked.toml", "--out", "new", "--sampling.confidence_noise", "-1"], "confidence_noise=-1.0: expected a number of at least 0"),
    "masked: temperature": (["generator", "train", "masked.toml", "--out", "new", "--sampling.temperature", "0"], "temperature=0.0: expected a positive number"),
    "masked: several scales": (["generator", "train", "masked.toml", "--out", "new", "--sampling.guidance", "[2, 1]"], "sampling.guidance"),
    "masked: states that are read": (["generator", "train", "masked.toml", "--out", "new", "--alignment.token", "read", "--alignment.depth", "1"], "alignment"),
    "masked: too wide": (["generator", "train", "masked.toml", "--out", "new", "--masked.mlp_multiple_of", "10000000000000"], "masked: a network of these sizes does not fit in memory; expected smaller ones"),
    "graphs of a generator": (["export", "torch", "ar", "--out", "new"], "ar: holds a ar model; expected a tokenizer"),
    "graphs of other levels": (["export", "onnx", "tokenizer", "--out", "new", "--levels", "4"], "levels 4: expected what the tokenizer was trained at"),
    "masked: official": (["export", "official", "masked", "--out", "new.pt"], "masked: holds a masked model; expected a tokenizer, an ar or a diffusion generator"),
    "masked: draws": (["generator", "likelihood", "masked", "--likelihood.draws", "3"], "likelihood: draws=3: expected 0 (all sets) or an even number"),
    "masked: all sets": (["generator", "likelihood", "masked", "--likelihood.draws", "0"], "likelihood: draws=0: 48 digits or positions have too many sets; expected at most 12"),
    "masked: a sample of too many rounds": (["sample", "masked", "--labels", "0", "--out", "new.png", "--sampling.rounds", "49"], "sampling: rounds=49: expected at most 48, the digits of an image"),
    "masked: times": (["generator", "times", "masked"], "a generator of kind masked: expected diffusion, whose solver has times"),
    "likelihood options of another kind": (["generator", "likelihood", "diffusion", "--likelihood.draws", "4"], "likelihood: draws: unknown key"),
    "neither section": (["generator", "train", "tokenizer.toml", "--out", "new"], "expected exactly one of the sections [ar], [diffusion] and [masked]"),
    "broken image": (["reconstruct", "tokenizer", "foreign/letter.txt", "--out", "new"], "image foreign/letter.txt cannot be read"),
    "tiny image": (["reconstruct", "tokenizer", "tiny.png", "--out", "new"], "tiny.png: 3 x 3 pixels; expected 4 a side"),
    "same name twice": (["reconstruct", "tokenizer", "tiny.png", "tiny.png", "--out", "new"], "two images would be written there"),
    "no such verb": (["tokenise"], "invalid choice: 'tokenise'"),
    "no such option": (["sample", "ar", "--labels", "0", "--out", "new.png", "--colour"], "'--colour': no such argument of ifsq sample"),
    "override without value": (["tokenizer", "train", "tokenizer.toml", "--out"], "--out: expected a value after it"),
    "demo override": (["demo", "--out", "new", "--data.size", "64"], "--data: the demo takes --train.* only"),
    "report of nothing": (["report", "codes"], "codes"),
    "no such grid": (["bench", "gone.toml"], "gone.toml: no such file, nor a shipped grid of this name"),
    "grid's axis": (["bench", "minutes", "--out", "new", "--axes.bitz", "[2, 3]"], "axes.bitz: no setting says what 2, 3 mean; expected it of all but one"),
    "grid's folder": (["bench", "minutes", "--out", "foreign"], "foreign: is not empty and holds no grid"),
    "grid's jobs": (["bench", "minutes", "--out", "new", "--jobs", "0"], "--jobs 0: expected 1 to 64"),
    "engine": (["bench", "minutes", "--out", "new", "--engine", "make"], "--engine make: expected snakemake"),
    "no such option at all": (["--frobnicate"], "'--frobnicate': no such argument"),
    "report name": (["report", "tokenizer", "--out", "page.txt"], "page.txt: expected a name that ends in .html, .htm, .md, .csv"),
    "report format": (["report", "tokenizer", "--format", "md", "--out", "page.html"], "page.html: ends as html does; expected a name for format md"),
}  # fmt: skip


def damage(folder, **files):
    for name, text in files.items():
        path = Path(folder) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(case, capsys):
    Path("foreign").mkdir(exist_ok=True)
    Path("foreign/letter.txt").write_text("dear all")
    Path("old.npz").write_bytes(b"somebody's")
    Path("ar/metrics").touch()
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save("tiny.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("good.png")
    damage("damaged", config="{")
    damage("halfway", config='{"kind": "ar"}', **{"checkpoints/step_3/state": "{"})
    damage("unread", config='{"kind": "ar"}', evaluation="[")
    damage("shapeless", config='{"kind": "ar"}', **{"checkpoints/step_3/state": '{"step": 3}'})
    damage("orphan", config='{"kind": "model", "model": {"kind": "ar"}}')
    card = ProtocolCard("FD(judge)", {"distance": 1.0}, "images", "0", 2, 16, "center", "bicubic", "float32")
    damage(
        "unread2",
        config='{"kind": "ar"}',
        evaluation=json.dumps({"cards": [card.to_dict()], "step": 3, "classes": ["a"]}),
        **{"checkpoints/step_3/state": '{"step": 3}'},
    )
    for folder in ("unread", "unread2"):
        Path(folder, "metrics.jsonl").write_text('{"step": 1, "loss": 1, "seconds": 1}\n')
    arguments, message = BAD[case]
    before = files_of(".")
    told = refused(capsys, arguments)
    assert message in told
    assert files_of(".") == before


def change_checkpoint(run, change, old=False):
    """Change the averaged weights of a copy's newest checkpoint; ``old``: as if it had been saved without SHA-256."""
    step = checkpoints.newest(
        Path(run) / "checkpoints", json.loads(Path(run, "config.json").read_text())["run"]
    ).checkpoint
    table = step.load("ema")
    name = next(key for key, value in sorted(table.items()) if value.is_floating_point())
    table[name] = change(table[name])
    save_file(table, step.folder / "ema.safetensors")
    if old:
        kept = {key: value for key, value in step.state.items() if key in ("step", "seconds", "model", "scaler")}
        (step.folder / "state.json").write_text(json.dumps(kept))
    return step.folder, name


WITH_WEIGHTS = {
    "tokenizer eval": ("tokenizer", ["tokenizer", "eval", "RUN"]),
    "encode": ("tokenizer", ["encode", "RUN", "bundled:shapes", "new"]),
    "reconstruct": ("tokenizer", ["reconstruct", "RUN", "good.png", "--out", "new"]),
    "export official": ("tokenizer", ["export", "official", "RUN", "--out", "new.ckpt"]),
    "export a LlamaGen": ("ar", ["export", "official", "RUN", "--out", "new.pt"]),
    "export pretrained": ("tokenizer", ["export", "pretrained", "RUN", "--out", "new"]),
    "export graphs": ("tokenizer", ["export", "torch", "RUN", "--out", "new"]),
    "export a generator": ("ar", ["export", "pretrained", "RUN", "--out", "new"]),
    "sample ar": ("ar", ["sample", "RUN", "--labels", "0", "--out", "new.png"]),
    "sample diffusion": ("diffusion", ["sample", "RUN", "--labels", "0", "--out", "new.png"]),
    "generator eval ar": ("ar", ["generator", "eval", "RUN", "--samples", "20", "--features"]),
    "generator eval diffusion": ("diffusion", ["generator", "eval", "RUN", "--samples", "20", "--features"]),
    "sample masked": ("masked", ["sample", "RUN", "--labels", "0", "--out", "new.png"]),
    "likelihood of a masked one": ("masked", ["generator", "likelihood", "RUN", "--images", "2"]),
    "likelihood": ("diffusion", ["generator", "likelihood", "RUN", "--images", "2"]),
    "tokenizer train": ("tokenizer", ["tokenizer", "train", "tokenizer.toml", "--out", "RUN"]),
    "generator train": ("ar", ["generator", "train", "ar.toml", "--out", "RUN"]),
    "diffusion train": ("diffusion", ["generator", "train", "diffusion.toml", "--out", "RUN"]),
    "export a DiT": ("diffusion", ["export", "official", "RUN", "--out", "new.pt"]),
    "guide": ("diffusion", ["sample", "diffusion", "--labels", "0", "--out", "new.png", "--sampling.guide", "RUN"]),
}


def nan(value):
    return torch.where(torch.arange(value.numel()).view(value.shape) == 1, torch.nan, value)


@pytest.mark.parametrize("case", WITH_WEIGHTS)
def test_no_result_comes_of_weights_that_are_damaged_exchanged_or_not_finite(case, capsys):
    """Refused by file where the SHA-256 tells, by tensor where there is none: never a picture, a figure or a file."""
    kind, command = WITH_WEIGHTS[case]
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("good.png")
    for copy, change, old, message in (
        (
            "flipped",
            lambda value: value + 1,
            False,
            "{folder}/ema.safetensors: is damaged or of another checkpoint, its SHA-256",
        ),
        ("not_finite", nan, True, "tensor '{name}' holds values that are not finite"),
        ("integers", lambda value: value.long(), True, "tensor '{name}' is int64, expected float32"),
    ):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(kind, copy)
        folder, name = change_checkpoint(copy, change, old)
        before = files_of(".")
        assert code_of([word.replace("RUN", copy) for word in command]) == 2
        told = capsys.readouterr().err.splitlines()
        assert message.format(folder=folder, name=name) in told[-1]
        remark = f"ifsq: {folder}: was saved before checkpoints kept the SHA-256 of their files; nothing vouches for it"
        assert (remark in told) == (old and not case.endswith(" train"))
        assert files_of(".") == before


@pytest.mark.parametrize("value", [None, [], {}, "x", {"a": 1}])
def test_a_config_that_was_changed_is_one_line(value, capsys):
    """Whatever stands in its experiment; what a verb does not read is no matter to it."""
    for run, key, command in (
        ("tokenizer", "experiment", ["encode", "changed", "bundled:shapes", "new"]),
        ("tokenizer", "data", ["encode", "changed", "bundled:shapes", "new"]),
        ("tokenizer", "data", ["tokenizer", "eval", "changed", "--no-judge"]),
        ("tokenizer", "train", ["tokenizer", "eval", "changed", "--no-judge"]),
        ("tokenizer", "train.engine", ["encode", "changed", "bundled:shapes", "new"]),
        ("tokenizer", "train", ["tokenizer", "train", "tokenizer.toml", "--out", "changed"]),
        ("ar", "codes", ["generator", "eval", "changed", "--samples", "20", "--features"]),
        ("ar", "kind", ["generator", "train", "ar.toml", "--out", "changed"]),
    ):
        shutil.rmtree("changed", ignore_errors=True)
        shutil.copytree(run, "changed")
        config = json.loads(Path("changed/config.json").read_text())
        *inside, last = key.split(".")
        place = config if key in ("experiment", "kind") else config["experiment"]
        for name in inside:
            place = place[name]
        place[last] = value
        Path("changed/config.json").write_text(json.dumps(config))
        if value == {} and key in ("data", "train", "train.engine") and command[1] != "train":
            continue  # all of its options have defaults
        assert "changed" in refused(capsys, command) or (key, value) == ("codes", "x")


def test_images_that_have_changed_are_told_before_a_judge_learns_them(capsys, monkeypatch):
    monkeypatch.setattr(generator, "share_judge", lambda *_: pytest.fail("a judge was asked for"))
    monkeypatch.setattr(generator, "open_images", lambda *_, **__: SimpleNamespace(fingerprint="of other images"))
    assert "has changed since codes was written" in refused(
        capsys, ["generator", "eval", "ar", "--samples", "20", "--features"]
    )


def test_half_a_newest_checkpoint_is_passed_over_and_said_to_be(capsys):
    shutil.copytree("ar", "half")
    shutil.copytree("half/checkpoints/step_20", "half/checkpoints/step_25")
    Path("half/checkpoints/step_25/state.json").unlink()
    assert main(["sample", "half", "--labels", "0", "--out", "half.png"]) == 0
    assert (
        capsys.readouterr().err
        == "ifsq: half/checkpoints/step_25: is unfinished (state.json is missing); step_20 is used\n"
    )
    assert main(["sample", "ar", "--labels", "0", "--out", "whole.png"]) == 0
    assert Path("half.png").read_bytes() == Path("whole.png").read_bytes()


def test_more_steps_on_a_finished_run(capsys):
    more = ["tokenizer", "train", "tokenizer.toml", "--out", "longer"]
    assert main(more) == 0
    assert main([*more, "--train.steps", "32", "--train.keep", "1", "--train.save_every", "4"]) == 0
    assert (
        "train.steps=32, 24 until now: from here on the cosine schedule is that of 32 steps" in capsys.readouterr().err
    )
    assert [step for step, _ in checkpoints.steps_in(Path("longer/checkpoints"))] == [32]
    train = json.loads(Path("longer/config.json").read_text())["experiment"]["train"]
    assert (train["steps"], train["keep"], train["save_every"], train["batch"]) == (32, 1, 4, 8)
    assert "longer: has 32 steps behind it; expected train.steps of as many, got 24" in refused(capsys, more)


def test_a_cache_of_another_tokenizer_is_refused(capsys):
    assert (
        main(["tokenizer", "train", "tokenizer.toml", "--out", "other", "--train.seed", "1", "--train.steps", "2"]) == 0
    )
    capsys.readouterr()
    for kind in ("ar", "diffusion"):
        told = refused(capsys, ["generator", "train", f"{kind}.toml", "--out", "new", "--tokenizer", "other"])
        assert "codes: was written by tokenizer" in told
        assert "encode again" in told
        assert not Path("new").exists()
    more = ["--out", "third", "--tokenizer.quantizer.levels", "[5, 5]", "--train.steps", "2"]
    assert main(["tokenizer", "train", "tokenizer.toml", *more]) == 0
    capsys.readouterr()
    for kind in ("ar", "diffusion"):
        told = refused(capsys, ["generator", "train", f"{kind}.toml", "--out", "new", "--tokenizer", "third"])
        assert "does not fit the tokenizer third: levels [5, 5, 5] against [5, 5]" in told


def test_a_generator_whose_tokenizer_changed_is_refused(tmp_path):
    model = Generator.from_pretrained("ar")
    model.origin = replace(model.origin, tokenizer_digest="0" * 64)
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match="was trained behind other weights than tokenizer holds now"):
        pipeline.sample(tmp_path / "saved", [0], 0, tmp_path / "x.png")


def test_a_generator_without_a_tokenizer_is_refused_where_it_is_to_decode(tmp_path):
    model = Generator.from_pretrained("ar")
    model.origin = Origin(model.origin.classes)
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(
        InputError, match=r"saved: names no tokenizer to decode its codes with; expected one of .* codes"
    ):
        pipeline.sample(tmp_path / "saved", [0], 0, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("kind", "options", "evaluations"),
    [
        ("ar", ["--sampling.guidance", "[3, 2]", "--sampling.greedy", "true", "--sampling.guidance_interval", "4"], 20),
        (
            "diffusion",
            ["--sampling.solver", "midpoint", "--sampling.steps=4", "--sampling.guidance_interval", "[0.4, 0.8]",
             "--sampling.timestep_shift", "1.0", "--sampling.guidance", "1e6"],
            11,
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("quick_judge")
def test_sampling_is_chosen_after_training(kind, options, evaluations, tmp_path):
    before = files_of(f"{kind}/checkpoints")
    for name, more in (("plain", []), ("chosen", options)):
        assert main(["sample", kind, "--labels", "0", "1", *more, "--out", str(tmp_path / f"{name}.png")]) == 0
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "chosen.png").read_bytes()
    shutil.copytree(kind, tmp_path / kind)
    for place in ("tokenizer", "codes"):
        (tmp_path / place).symlink_to(Path(place).absolute())
    assert main(["generator", "eval", str(tmp_path / kind), "--samples", "4", *options, "--features"]) == 0
    (found,) = (tmp_path / kind).glob("evaluation_guidance_*.json")  # beside that of the run's own options
    card = json.loads(found.read_text())["cards"][0]
    assert (tmp_path / kind / "samples" / found.name.replace("evaluation", "classes")).with_suffix(".png").is_file()
    assert card["function_evaluations"] == evaluations
    told = {option.removeprefix("--sampling.").partition("=")[0] for option in options if option.startswith("--")}
    assert all(name in card["sampler"] for name in told - {"guidance"})
    assert files_of(f"{kind}/checkpoints") == before


def test_parallel_decoding_says_how_many_passes_it_took(tmp_path, capsys):
    options = ["--sampling.guidance", "2", "--sampling.precision", "fp32", "--seed", "3"]
    for name, more in (("plain", []), ("parallel", ["--sampling.parallel", "4"])):
        capsys.readouterr()
        asked = ["sample", "ar", "--count", "3", *options, *more, "--out", str(tmp_path / f"{name}.npz")]
        assert main(asked) == 0
        told = re.findall(
            r"parallel: ([0-9.]+) passes a batch for 16 tokens, ([0-9.]+) tokens", capsys.readouterr().err
        )
        passes = json.loads((tmp_path / f"{name}.json").read_text())["passes"]
        if name == "plain":
            assert told == []
            assert passes is None
        else:
            assert 2 <= passes <= 16
            assert told == [(f"{passes:.1f}", f"{16 / passes:.2f}")]
    both = [np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("plain", "parallel")]
    assert np.abs(both[0].astype(int) - both[1]).max() <= 1
    picture = ["sample", "ar", "--labels", "0", "1", "--sampling.parallel", "8", "--out", str(tmp_path / "x.png")]
    assert main(picture) == 0
    assert "passes a batch for 16 tokens" in capsys.readouterr().err


def test_a_broken_image_in_a_folder_is_named(tmp_path, capsys):
    for number in range(3):
        Image.fromarray(np.full((20, 20, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    told = refused(capsys, ["encode", "tokenizer", str(tmp_path), "new"])
    assert "1.png cannot be read" in told
    assert not Path("new").exists()


def test_broken_images_are_skipped_where_that_is_asked_and_the_run_names_them(tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(12):
            picture = Image.fromarray(np.full((20, 20, 3), 20 * number, np.uint8))
            picture.save(tmp_path / split / f"{number:02}.png")
        (tmp_path / split / "00.png").write_bytes(b"broken")
    options = ["--data.source", str(tmp_path), "--train.steps", "6", "--train.batch", "4", "--train.log_every", "3"]
    told = refused(capsys, ["tokenizer", "train", "tokenizer.toml", "--out", "refusing", *options])
    assert "00.png cannot be read" in told
    skipping = [*options, "--data.broken", "skip", "--train.engine.accumulate", "2", "--out", "skipping"]
    assert main(["tokenizer", "train", "tokenizer.toml", *skipping]) == 0
    assert "2 times an example could not be read" in capsys.readouterr().err
    lines = Path("skipping/skipped.txt").read_text().splitlines()  # two epochs of twelve images
    named = [line.partition("\t")[2].partition(": ")[0] for line in lines]
    assert named == [f"image {tmp_path}/train/00.png cannot be read"] * 2
    rows = read_metrics(Path("skipping/metrics.jsonl"))
    assert [row.get("skipped") for row in rows if "loss" in row] == [1, 2]
    assert rows[-1]["val/psnr"] > 0
    assert main(["tokenizer", "eval", "skipping", "--no-judge"]) == 0
    evaluation = json.loads(Path("skipping/evaluation.json").read_text())
    assert {card["n"] for card in evaluation["cards"]} == {11}
    assert [line.partition(" cannot")[0] for line in evaluation["skipped"]] == [f"image {tmp_path}/val/00.png"]


OTHER_BOTTLENECKS = {
    "vq": ('kind = "vq"\ncodebook_size = 16\nrevive_after = 3', {"codebook", "commitment"}, 7),
    "lfq": ('kind = "lfq"\ndim = 3', {"entropy", "commitment"}, 7),
    "residual": ('kind = "residual"\nlevels = [3, 3]\ncells = "equal"', set(), 9),
    "kl": ('kind = "kl"', {"kl"}, 3),
    "ae": ('kind = "ae"', set(), 3),
}


@pytest.mark.parametrize("kind", OTHER_BOTTLENECKS)
def test_other_bottlenecks_train_and_are_measured(kind):
    quantizer, losses, cards = OTHER_BOTTLENECKS[kind]
    experiment = TOKENIZER.replace("levels = [5, 5, 5]", quantizer).replace('"tokenizer"', f'"{kind}"')
    Path(f"{kind}.toml").write_text(experiment)
    assert main(["tokenizer", "train", f"{kind}.toml"]) == 0
    rows = [row for row in read_metrics(Path(kind) / "metrics.jsonl") if "loss" in row]
    assert losses <= set(rows[0])
    assert rows[-1]["l1"] < rows[0]["l1"]
    assert main(["tokenizer", "eval", kind]) == 0
    measured = json.loads((Path(kind) / "evaluation.json").read_text())
    assert len(measured["cards"]) == cards
    assert main(["report", kind]) == 0
    page = (Path(kind) / "report.html").read_text()
    assert {"vq": "codebook 16", "lfq": "2 x 2 x 2", "residual": "2 stages"}.get(kind, "codes continuous") in page


def test_an_option_of_another_bottleneck_is_refused(capsys):
    told = refused(capsys, ["tokenizer", "train", "tokenizer.toml", "--out", "new", "--tokenizer.quantizer.kind", "ae"])
    assert "levels=(5, 5, 5) with kind='ae': expected options of this kind, dim" in told
    assert not Path("new").exists()
