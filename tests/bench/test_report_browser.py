"""The page in a real browser: on a phone and a desk, light and dark. It skips where there is no Chromium."""

import itertools
import shutil

import pytest
from measured import write_grid

from browser import CONTRAST, WIDE, browsing, executable
from ifsq.cli import main
from ifsq.evaluation.record import read_evaluation, write_evaluation
from ifsq.store.run import Run

pytestmark = pytest.mark.skipif(executable() is None, reason="no chromium here; .ci/run installs it on Debian")

FIGURES = """(() => [...document.querySelectorAll('figure.chart')].map(each => {
  const drawn = each.querySelector('svg'), box = drawn && drawn.getBoundingClientRect();
  return [each.querySelector('h3').textContent, box ? box.width : 0, box ? box.height : 0,
          drawn ? drawn.querySelectorAll('path').length : 0, each.getAttribute('aria-label').length];
}))()"""
PICTURES = "[...document.images].map(each => [each.alt, each.complete ? each.naturalWidth : 0])"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def page(road, tmp_path_factory):
    """A tokenizer and two seeds of a generator, which was measured at two steps."""
    root = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        shutil.copytree(road / "tok", "tok")
        for seed in (0, 1):
            shutil.copytree(road / "ar", f"ar_s{seed}")
            run = Run.open(f"ar_s{seed}")
            config = root / f"ar_s{seed}" / "config.json"
            config.write_text(config.read_text().replace('"seed": 0', f'"seed": {seed}'))
            held = read_evaluation(run)
            for step in (1, 2):
                write_evaluation(run, held, step=step)
        assert main(["report", "tok", "ar_s0", "ar_s1", "--out", "page.html"]) == 0
    return root / "page.html"


def grid_of(root):
    """A grid's page."""
    write_grid(root)
    assert main(["report", str(root)]) == 0
    return root / "report.html"


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_grids_page_is_whole_too(browser, tmp_path_factory, width, scheme):
    page = tmp_path_factory.getbasetemp() / "grid_page" / "report.html"
    browser.told.clear()
    browser.open(page if page.is_file() else grid_of(page.parent), width, scheme)
    assert browser.ask(WIDE) == [0, []]
    figures = browser.ask(FIGURES)
    assert len(figures) == 10
    assert all(min(wide, high) > 150 and parts > 5 for _, wide, high, parts, _ in figures)
    ratio, where = browser.ask(CONTRAST)
    assert ratio >= 4.5, where
    assert browser.told == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_the_page_is_whole_on_every_screen(page, browser, width, scheme):
    browser.told.clear()
    browser.open(page, width, scheme)
    assert browser.ask("innerWidth") == width
    assert browser.ask(WIDE) == [0, []]
    figures = browser.ask(FIGURES)
    assert len(figures) == 3 + 3 * 2 + 3  # levels of three quantizers; two figures over three axes; losses
    for title, wide, high, parts, told in figures:
        assert min(wide, high) > 150, title
        assert parts > 5, title
        assert told > 20, title
    assert len(browser.ask(PICTURES)) == 1 + 3 + 2
    assert all(alt and size for alt, size in browser.ask(PICTURES))
    ratio, where = browser.ask(CONTRAST)
    assert ratio >= 4.5, where
    dark = browser.ask("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert browser.told == []


@pytest.mark.parametrize(
    ("harm", "by"),
    [
        ("figures", ("<svg aria-hidden", "<div hidden")),
        ("sideways", ("<main>", '<main><div style="width: 500px">x</div>')),
        ("console", ("<main>", '<main><img src="missing.png" alt="x">')),
    ],
)
def test_a_page_that_is_not_whole_is_seen(page, browser, tmp_path, harm, by):
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace(*by, 1))
    browser.told.clear()
    browser.open(broken, 390)
    seen = {
        "figures": lambda: any(min(size) <= 150 for _, *size, _, _ in browser.ask(FIGURES)),
        "sideways": lambda: browser.ask(WIDE)[0] > 100,
        "console": lambda: bool(browser.told) or not all(size for _, size in browser.ask(PICTURES)),
    }
    assert seen[harm]()


def test_headings_and_language_are_there(page, browser):
    browser.open(page, 390)
    assert browser.ask("document.documentElement.lang") == "en"
    levels = browser.ask("[...document.querySelectorAll('h1, h2, h3')].map(each => Number(each.tagName[1]))")
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert browser.ask("[...document.querySelectorAll('th')].every(each => each.scope === 'col')")
