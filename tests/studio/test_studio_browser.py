"""A visit to the page of ``ifsq studio`` in a browser, on a phone and a desk; skipped where there is no Chromium."""

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from browser import CONTRAST, WIDE, browsing, executable
from ifsq.data import to_uint8
from ifsq.generators import ARGenerator, DiffusionGenerator, Generator, MaskedGenerator, Origin
from ifsq.generators.ar import ARConfig
from ifsq.generators.diffusion import DiTConfig
from ifsq.generators.masked import MaskedConfig
from ifsq.studio.guard import MOST_BYTES
from ifsq.studio.reconstruct import reconstruct_at
from ifsq.studio.runs import Rate
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

pytestmark = pytest.mark.skipif(executable() is None, reason="no chromium here; .ci/run installs it on Debian")

TALL = 80  # positions a side of a generator that draws for long enough to be waited for
STATUS = "[...document.querySelectorAll('.status')].map(each => each.textContent)"
PICTURES = "[...document.images].map(each => [each.alt, each.complete ? each.naturalWidth : 0])"
WATCHED = """
import signal, sys

def hear(event, given):
    host = given[1] if event == "socket.connect" else given[0] if event == "socket.getaddrinfo" else "127.0.0.1"
    if (host[0] if isinstance(host, tuple) else host) not in ("127.0.0.1", "localhost"):
        print(event, given, file=sys.stderr)

sys.addaudithook(hear)
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it, and so would this
from ifsq.cli import main
sys.exit(main())
"""
"""The command, which tells of every connection that it makes, or asks a name server for."""
BUTTONS = "[...document.querySelectorAll('button')].filter(each => each.textContent.trim() === '{}')"
PRESS = BUTTONS + "[{}].click()"
TICK = "[...document.querySelectorAll('[role=checkbox]')].find(each => each.textContent.startsWith('{}')).click()"


@pytest.fixture(scope="module")
def models(road, tmp_path_factory):
    """A run of a tokenizer and of a generator; of others, which nobody trained, saved models."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.from_pretrained(road / "tok")
    origin = Origin(("a", "b"), str(road / "tok"), tokenizer.digest())
    torch.manual_seed(0)
    spec, tall = (tokenizer.spec(side, side) for side in (16, 4 * TALL))
    for name, model in (
        ("diffusion", DiffusionGenerator(DiTConfig(1, 16, 2, patch=1), spec, 2)),
        ("masked", MaskedGenerator(MaskedConfig(1, 16, 2, mlp_multiple_of=16), spec, 2)),
        ("slow", ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=16), tall, 2)),
    ):
        model.origin = origin
        model.save_pretrained(folder / name)
    conv = ConvConfig(width=8, multipliers=(1, 1), blocks=1, patch=2, groups=4)
    nested = Tokenizer(TokenizerConfig(conv, QuantizerConfig(levels=(9, 9), nested_levels=(3, 9))))
    nested.save_pretrained(folder / "nested")
    return [road / "tok", folder / "nested", road / "ar", folder / "diffusion", folder / "slow", folder / "masked"]


@contextmanager
def serving(models, folder):
    """The page's address, and its process."""
    command = [sys.executable, "-c", WATCHED, "studio", *map(str, models), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("studio: http://127.0.0.1:"), process.communicate()
            yield line.split()[1], process
        finally:
            process.kill()


def test_a_visit(models, tmp_path):
    names = {"photo.png": (40, 52, 3), "small.png": (16, 16, 3)}
    for name, shape in names.items():
        Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    (tmp_path / "huge.png").write_bytes(bytes(MOST_BYTES))
    with serving(models, tmp_path) as (address, process), browsing(tmp_path / "profile") as browser:
        browser.open(address, 390, "dark")
        browser.wait("!!document.querySelector('input[type=file]')")
        see_reconstructions(browser, tmp_path, models)
        see_refusals(browser, tmp_path, address)
        see_draws(browser, models)
        see_a_line(browser, tmp_path)
        see_that_it_is_whole(browser)
        browser.open(address, 1280, "light")
        browser.wait("!!document.querySelector('input[type=file]')")
        give(browser, tmp_path / "photo.png", "photo.png: 3 of 3 rates")
        see_that_it_is_whole(browser)
        own = tuple(
            f"network: {kind}{address.removeprefix('http://')}" for kind in ("http://", "ws://", "blob:http://")
        )
        assert [line for line in browser.told if not line.startswith(own)] == []
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == "ifsq: stopped; the same command starts again\n"
    assert sorted(os.listdir(tmp_path)) == ["broken.png", "huge.png", "photo.png", "profile", "small.png"]


def see_that_it_is_whole(browser):
    assert browser.ask(WIDE) == [0, []]
    ratio, where = browser.ask(CONTRAST)
    assert ratio >= 4.5, where
    assert browser.ask("document.documentElement.lang") == "en-US"
    assert all(alt and size for alt, size in browser.ask(PICTURES))


def give(browser, file, status, part=0):
    browser.give("input[type=file]", file)
    browser.wait(f"{STATUS}[{part}] === {json.dumps(status)}")


def see_reconstructions(browser, folder, models):
    """Three rates, with the figures and the pictures that the tokenizers give."""
    give(browser, folder / "photo.png", "photo.png: 3 of 3 rates")
    picture = np.asarray(Image.open(folder / "photo.png"))
    tok, nested = (Tokenizer.from_pretrained(where) for where in models[:2])
    found = [
        reconstruct_at(rate, picture)
        for rate in (Rate("tok", tok), Rate("nested, 3 levels", nested, 3), Rate("nested, 9 levels", nested, 9))
    ]
    alts = ["the image photo.png"]
    for one in found:
        times = f"difference, {one.scale} times larger" if one.scale > 1 else "difference"
        alts += [
            f"{one.rate.name}: reconstruction, {one.psnr:.2f} dB",
            f"{one.rate.name}: {times}, black where there is none",
            f"{one.rate.name}: token map, {one.tokens.used} different of {one.tokens.count} tokens",
        ]
    browser.wait("[...document.images].every(each => each.complete)")
    assert [alt for alt, _ in browser.ask(PICTURES)] == alts
    assert np.array_equal(shown(browser, alts[4]), found[1].image)
    bars = browser.ask(
        "[...document.querySelectorAll('figure.chart svg')].map(each => each.getBoundingClientRect().width)"
    )
    assert len(bars) == 3
    assert min(bars) > 150
    assert browser.ask(WIDE) == [0, []]


def see_refusals(browser, folder, address):
    """Each ends in a line, and the next file is taken."""
    browser.give("input[type=file]", folder / "broken.png")
    browser.wait("!!document.querySelector('.status.refused')")
    (told, _) = browser.ask(STATUS)
    assert told.startswith("image broken.png cannot be read: damaged, or no image that Pillow reads as ")
    give(browser, folder / "huge.png", "that was not taken: expected one image file of at most 16 MB")
    uploads = [line for line in browser.told if "/upload/" in line]
    where = urlsplit(uploads[-1].removeprefix("network: "))
    connection = http.client.HTTPConnection(where.netloc)
    connection.putrequest("POST", where.path)
    connection.putheader("Content-Type", "multipart/form-data; boundary=z")
    connection.putheader("Content-Length", str(MOST_BYTES + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, answer.read().decode()) == (
        413,
        f"{MOST_BYTES + 1} bytes, expected at most {MOST_BYTES}\n",
    )
    connection.close()
    give(browser, folder / "small.png", "small.png: 3 of 3 rates")
    assert not browser.ask("!!document.querySelector('.status.refused')")


def see_draws(browser, models):
    """Three kinds beside each other: the images that `Generator.sample` gives, and states before them."""
    browser.ask(TICK.format("slow"))
    browser.ask(PRESS.format("draw", 0))
    browser.wait(f"{STATUS}[1] === 'drawn: a, seed 0, guidance 2'")
    alts = [alt for alt, _ in browser.ask(PICTURES)]
    for name, steps in (
        ("ar", "token 3 of 16"),
        ("diffusion", "step 3 of 16, time 0.19"),
        ("masked", "round 2 of 8, 9 % of"),
    ):
        assert f"{name}, a: image 4, drawn" in alts
        assert f"{name}, a: tokens of image 4, drawn" in alts
        assert any(alt.startswith(f"{name}, a: image 1 by then, {steps}") for alt in alts), alts
    for name, where in (("ar", models[2]), ("diffusion", models[3])):
        with torch.no_grad():
            drawn = Generator.from_pretrained(where).sample(torch.zeros(4, dtype=torch.int64), seed=0, guidance=2.0)
            images = to_uint8(Tokenizer.from_pretrained(models[0]).decode_sampled(drawn))
        assert np.array_equal(shown(browser, f"{name}, a: image 4, drawn"), images[3])
    assert "nothing drawn yet" in browser.ask("document.body.textContent")  # of the one that is not ticked


def see_a_line(browser, folder):
    """While one thing is drawn another waits, and is told so; the buttons stop what waits and what goes on."""
    for name in ("slow", "ar", "diffusion"):
        browser.ask(TICK.format(name))
    browser.ask(PRESS.format("draw", 0))
    browser.wait(f"document.body.textContent.includes(' of {TALL * TALL}')")
    give(browser, folder / "small.png", "waiting for 1 before you")
    browser.ask(PRESS.format("stop", 0))
    browser.wait(f"{STATUS}[0] === 'stopped'")
    assert browser.ask(STATUS)[1].startswith("drawing a")
    give(browser, folder / "small.png", "waiting for 1 before you")
    assert "waits for its turn" in browser.ask("document.body.textContent")  # what comes behind the slow one
    browser.ask(PRESS.format("stop", 1))
    browser.wait(f"{STATUS}[1] === 'stopped'")
    browser.wait("document.body.textContent.includes('not drawn')")
    assert "waits for its turn" not in browser.ask("document.body.textContent")
    browser.wait(f"{STATUS}[0] === 'small.png: 3 of 3 rates'")


def shown(browser, alt):
    """The pixels of a picture on the page."""
    address = browser.ask(f"[...document.images].find(each => each.alt === {json.dumps(alt)}).src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))
