"""The pages hold together: links lead somewhere, the site has all pages, the reference all options and names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.blocks import FENCE, PAGES, ROOT, blocks
from tests.test_surface import configs

import ifsq
from ifsq.bench.grid.config import Grid
from ifsq.experiment import EXPERIMENTS, TokenizerExperiment
from ifsq.pretraining.config import TeacherExperiment

LINK = re.compile(r"\]\(([^)\s]+)\)")
DOCS = ROOT / "docs"


def heading_id(title: str) -> str:
    """As GitHub and the site make them."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def headings(page: Path) -> set[str]:
    return {heading_id(title) for title in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)}


@pytest.mark.parametrize(
    "page", [*PAGES, DOCS / "log.md", ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if heading:
            assert heading in headings(target), link


def test_every_page_is_in_the_table_of_the_site():
    trees = [block.text for block in blocks(DOCS / "index.md") if block.language == "{toctree}"]
    named = set(re.findall(r"^[\w./]+$", "\n".join(trees), re.MULTILINE))
    pages = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")} - {"index"}
    assert pages <= named, pages - named


def test_the_reference_has_every_option():
    told = (DOCS / "reference/options.md").read_text()
    for experiment in (TokenizerExperiment, TeacherExperiment, Grid, *EXPERIMENTS):
        for config in configs(experiment):
            assert f".. autoclass:: {config.__module__}.{config.__qualname__}\n" in told


def test_the_reference_has_every_public_name():
    told = (DOCS / "reference/python.md").read_text()
    for name in ifsq.__all__:
        assert re.search(rf"^\.\. auto\w+:: ifsq\.{name}$", told, re.MULTILINE), name


def test_the_picture_is_small():
    assert (DOCS / "demo.png").stat().st_size < 200_000


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="make docs installs it")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", DOCS, ROOT, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()
