"""Whatever a person names as the place of a result works, or is refused in one line before the work."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ifsq.cli import main
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

LINES = {
    "train": "tokenizer train {road}/tok.toml --data.source {road}/pictures --out {out}",
    "encode": "encode {road}/tok {road}/pictures {out}",
    "export": "export pretrained {road}/tok --out {out}",
    "import": "import official {road}/good.ckpt --config {road}/good.config.json --out {out}",
    "reconstruct": "reconstruct {road}/tok {road}/pictures/a/0.png --out {out}",
}
MADE = {"train": "config.json", "encode": "manifest.json", "export": "config.json", "import": "config.json"}


@pytest.fixture(scope="module")
def world(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places") / "road"
    shutil.copytree(road, folder)
    Tokenizer(TokenizerConfig(ConvConfig(32, multipliers=(1, 2), blocks=1))).save_pretrained(folder / "official")
    assert main(["export", "official", str(folder / "official"), "--out", str(folder / "good.ckpt")]) == 0
    return folder


@pytest.mark.parametrize("place", ["new", "deep", "empty", "link", "dangling link", "working folder", "volume"])
@pytest.mark.parametrize("verb", LINES)
def test_results_lie_where_they_are_asked_for(
    verb: str, place: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Callable[[int], Path]
) -> None:
    out = tmp_path / "out"
    if place == "volume":
        out = disk(16_384)
        (out / "lost+found").mkdir()  # as on a new one
    elif place == "deep":
        out = tmp_path / "a" / "b" / "out"
    elif place == "link":
        (tmp_path / "elsewhere").mkdir()
    elif place in ("empty", "working folder"):
        out.mkdir()
    if "link" in place:
        out.symlink_to("elsewhere")
    standing = out if place == "working folder" else tmp_path
    monkeypatch.chdir(standing)
    name = "." if place == "working folder" else str(out)
    line = LINES[verb].format(road=world, out=name)
    assert main(line.split()) == 0
    assert (out / MADE.get(verb, "0.png")).is_file()
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    assert out.is_symlink() == ("link" in place)
    assert os.path.samefile(os.getcwd(), standing)


@pytest.mark.parametrize("verb", LINES)
def test_a_file_is_no_place_for_a_folder(
    verb: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").write_text("mine")
    for out in ("out", "out/below"):
        line = LINES[verb].format(road=world, out=out)
        assert main(line.split()) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith(f"ifsq: {out}")
    assert Path("out").read_text() == "mine"
