"""Sets of samples: killed, continued, in other batches and processes; their labels, and what their card says."""

import hashlib
import os
import re
import signal
import threading
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError
from ifsq.data.image_sets import NpzFile, PngFolder
from ifsq.evaluation.samples import AskedFor, asked_for, image_shape, samples_card, write_samples
from ifsq.generators.ar import ARConfig, ARGenerator, ARSampling, noise
from ifsq.sources import Pair
from ifsq.store.lock import lock
from ifsq.store.run import Run
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.distributed import World
from ifsq.training.log import Silent

ALONE = World(0, 1, torch.device("cpu"))
SAMPLING = ARSampling(2.0)
COUNT = 22
RUN = Run(Path("run"), "run", {"kind": "ar"})


@pytest.fixture
def pair():
    """A generator of two classes and a tokenizer of its codes, with weights that make images differ."""
    torch.manual_seed(0)
    model = ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=16), CodeSpec((5, 5), (2,), "little", "paper", (2, 2)), 2)
    torch.nn.init.normal_(model.head.output[0].weight)
    conv = ConvConfig(width=8, multipliers=(1, 1), blocks=1, groups=4)
    return Pair(model.eval(), Tokenizer(TokenizerConfig(conv, QuantizerConfig(levels=(5, 5)))).eval())


def write(pair, out, world=ALONE, batch=4, seed=5, sampling=SAMPLING, reporter=None):
    asked = asked_for(RUN, pair.generator, (), COUNT, "balanced", seed)
    kind = NpzFile if out.suffix == ".npz" else PngFolder
    place = kind(out, COUNT, image_shape(pair.generator, pair.tokenizer))
    card = samples_card(pair, asked, sampling, seed, place.kind, 7, average=True)
    write_samples(pair, asked.labels, sampling, card, place, world, reporter or Silent(), batch)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed_at(write_it, number):
    """Run it in a child of this process, which gets a SIGKILL while it keeps its n-th file."""
    pid = os.fork()
    if pid == 0:
        kept = iter(range(number))
        rename = os.replace

        def replace_or_die(source, target):
            if next(kept, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = replace_or_die
        write_it()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize(("name", "kills"), [("set", (0, 3, 1, 6, 5, 18)), ("set.npz", (0, 3, 1, 5, 1, 2, 1))])
def test_killed_and_continued_gives_the_bytes_of_the_unbroken_run(pair, name, kills, tmp_path):
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    write(pair, tmp_path / "whole" / name)
    for number in kills:  # in the middle of a batch of PNGs too, and at the end while names are given
        killed_at(lambda: write(pair, tmp_path / "cut" / name), number)
        named = {path: held for path, held in content(tmp_path / "cut").items() if not path.startswith((".", "set/."))}
        assert named.items() <= content(tmp_path / "whole").items()
    write(pair, tmp_path / "cut" / name)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert len(content(tmp_path / "whole")) == (COUNT + 2 if name == "set" else 2)


class Beside(World):
    """One of several threads that gather as processes do."""

    def gather(self, value):
        SLOTS[self.rank] = value
        MEETING.wait(60)
        values = list(SLOTS)
        MEETING.wait(60)
        return values

    def barrier(self):
        MEETING.wait(60)


MEETING = threading.Barrier(2)
SLOTS: list = [None, None]


def in_two(act):
    threads = [threading.Thread(target=act, args=(Beside(rank, 2, torch.device("cpu")),)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def streams(monkeypatch):
    """The random numbers that reached each image, by its number."""
    seen, draw = {}, noise.uniforms

    def uniforms(seed, first, images, count):
        drawn = draw(seed, first, images, count)
        seen.update({first + row: drawn[row].tolist() for row in range(images)})
        return drawn

    monkeypatch.setattr(noise, "uniforms", uniforms)
    return seen


@pytest.mark.parametrize("batch", [4, 5, 22])
def test_the_same_random_numbers_reach_each_image_in_other_batches_and_processes(pair, batch, streams, tmp_path):
    write(pair, tmp_path / "one.npz")
    of_one = dict(streams)
    streams.clear()
    in_two(lambda world: write(pair, tmp_path / "two.npz", world, batch))
    assert streams == of_one
    assert sorted(of_one) == list(range(COUNT))
    one, two = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("one", "two"))
    assert np.abs(one.astype(int) - two).max() <= 1  # convolutions of other batches round otherwise
    if batch == 4:  # whole batches are dealt out
        assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_what_one_process_refuses_all_refuse_and_an_empty_set_leaves_nothing(pair, tmp_path, monkeypatch):
    told = []

    def refuse(*_, **__):
        raise InputError("no more")

    def act(world):
        with pytest.raises(InputError, match="no more"):
            write(pair, tmp_path / "set", world)
        told.append(world.rank)

    monkeypatch.setattr(pair.generator, "sample", refuse)
    in_two(act)
    assert sorted(told) == [0, 1]
    assert not list(tmp_path.iterdir())


def test_processes_that_hold_other_weights_are_refused(pair, tmp_path):
    """As where a step of a run in training is saved while they open it."""
    later, told = deepcopy(pair), []
    later.generator.cls_embedding.embedding_table.weight.data += 1

    def act(world):
        with pytest.raises(InputError, match=r"set: the processes would draw unlike images .generator_hash .* --step$"):
            write(pair if world.first else later, tmp_path / "set", world)
        told.append(world.rank)

    in_two(act)
    assert sorted(told) == [0, 1]
    assert not list(tmp_path.iterdir())


def test_more_than_the_memory_is_refused_and_what_is_there_stays(pair, tmp_path, monkeypatch):
    drawn = pair.generator.sample

    def sample(labels, *given, first, **options):
        if first >= 8:
            raise torch.OutOfMemoryError("CUDA")
        return drawn(labels, *given, first=first, **options)

    monkeypatch.setattr(pair.generator, "sample", sample)
    with pytest.raises(InputError, match=r"^4 images at once need more memory than there is; give --batch$"):
        write(pair, tmp_path / "set")
    assert len(list((tmp_path / "set/.partial_samples").glob("*.png"))) == 8


@pytest.mark.parametrize("name", ["set", "set.npz"])
def test_the_same_request_returns_at_once_and_another_is_refused(pair, name, tmp_path, monkeypatch):
    write(pair, tmp_path / name)
    before = content(tmp_path)
    monkeypatch.setattr(pair.generator, "sample", lambda *_, **__: pytest.fail("was drawn again"))
    write(pair, tmp_path / name, batch=7)
    for other, told in (
        ({"seed": 6}, "seed 5 against 6"),
        ({"sampling": ARSampling(1.5)}, "sampling.guidance 2.0 against 1.5"),
        ({"sampling": replace(SAMPLING, temperature=0.5)}, "sampling.temperature 1.0 against 0.5"),
    ):
        with pytest.raises(InputError, match=rf"{name}: holds other samples \({told}.*\); choose another place or re"):
            write(pair, tmp_path / name, **other)
    pair.generator.cls_embedding.embedding_table.weight.data += 1
    with pytest.raises(InputError, match=r"holds other samples .generator_hash"):
        write(pair, tmp_path / name)
    assert content(tmp_path) == before


def test_an_interrupted_set_is_gone_on_with_in_other_batches_but_not_with_other_options(pair, tmp_path):
    out = tmp_path / "set.npz"
    killed_at(lambda: write(pair, out), 3)  # the note and two batches
    with pytest.raises(
        InputError, match=r"set.npz: samples of other options were interrupted there \(seed 5 against 6"
    ):
        write(pair, out, seed=6)
    told = []
    reporter = Silent()
    reporter.start = lambda what, done, total: told.append((what, done, total))
    reporter.advance = lambda done, facts: told.append(done)
    write(pair, out, batch=6, reporter=reporter)
    assert told == [("samples", 8, COUNT), 12, 18, COUNT]
    write(pair, tmp_path / "whole.npz")
    one, two = (np.load(path)["arr_0"] for path in (out, tmp_path / "whole.npz"))
    assert np.abs(one.astype(int) - two).max() <= 1


@pytest.mark.parametrize("name", ["set", "set.npz"])
def test_one_process_at_a_time_writes_a_set(pair, name, tmp_path):
    out = tmp_path / name
    held = out if name == "set" else tmp_path / ".partial_set.npz"
    held.mkdir()
    with (
        lock(held / ".lock", pytest.fail),
        pytest.raises(InputError, match=rf"{name}: another process writes it; wait until it ends$"),
    ):
        write(pair, out)


def test_a_card_says_what_the_set_is_of(pair):
    labels = torch.tensor([1, 0, 1])
    card = samples_card(pair, AskedFor(labels, "as given"), SAMPLING, 3, "png", None, average=False)
    found = card.to_dict()
    assert found["labels_hash"] == hashlib.sha256(np.array([1, 0, 1], "<i8").tobytes()).hexdigest()
    assert (card.count, card.step, card.weights, card.seed, card.guidance) == (3, None, "raw", 3, 2.0)
    assert (card.size, card.function_evaluations, card.dtype) == ((4, 4), 8, "float32")
    assert re.fullmatch("[0-9a-f]{64}", card.generator_hash)
    assert card.differs_from(found | {"code_version": "another"}) == ""
    assert card.differs_from({}) == "count None against 3"
    earlier = {name: value for name, value in found.items() if name != "guide_hash"}
    assert card.differs_from(earlier) == ""
    assert card.differs_from(found | {"guide_hash": "0" * 64}) == f"guide_hash {'0' * 64!r} against None"


def test_labels_by_law(pair):
    pair.generator.num_classes = 3
    assert asked_for(RUN, pair.generator, (), 7, "balanced", 0).labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    drawn = asked_for(RUN, pair.generator, (), 300, "random", 4)
    assert drawn.law == "each of random class"
    assert drawn.labels[:9].tolist() == asked_for(RUN, pair.generator, (), 9, "random", 4).labels.tolist()
    assert set(drawn.labels.tolist()) == {0, 1, 2}
    for count in (0, -1, 10**8):
        with pytest.raises(InputError, match=rf"^count {count}: expected 1 to 10000000$"):
            asked_for(RUN, pair.generator, (), count, "balanced", 0)
