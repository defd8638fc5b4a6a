"""Where the disk is full, every verb ends in one line and leaves the files that were there as they were."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from ifsq.cli import main
from ifsq.codes import CodeSpec
from ifsq.generators.ar import ARConfig, ARGenerator
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

COMMANDS = (
    "tokenizer train tok.toml --out fresh",
    "tokenizer train tok.toml --train.steps 4",
    "generator train ar.toml --out fresh",
    "tokenizer eval tok --no-judge",
    "generator eval ar --samples 2 --features",
    "generator likelihood ar --images 2",
    "encode tok pictures fresh",
    "sample ar --labels 0 1 --out good.png",
    "sample ar --labels 0 1 --out new.png",
    "reconstruct tok pictures/a --out fresh",
    "report tok ar",
    "export pretrained tok --out fresh",
    "export official official --out fresh.ckpt",
    "import official good.ckpt --config good.config.json --out fresh",
    "export official llamagen --out fresh.pt",
    "import official good.pt --heads 4 --grid 2x2 --out fresh",
    "analyze bounds --levels 3 --samples 2000 --out fresh",
)


@pytest.fixture(scope="module")
def place(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The road, and what each verb would write over."""
    folder = tmp_path_factory.mktemp("full") / "road"
    shutil.copytree(road, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            "sample ar --labels 1 0 --out good.png",
            "report tok ar",
            "export pretrained tok --out saved",
        ):
            assert main(line.split()) == 0
        Tokenizer(TokenizerConfig(ConvConfig(32, multipliers=(1, 2), blocks=1))).save_pretrained("official")
        assert main(["export", "official", "official", "--out", "good.ckpt"]) == 0
        spec = CodeSpec((5,), (1,), "little", "codebook", (2, 2))
        ARGenerator(ARConfig(1, 16, 4, rope_class="zero"), spec, 2).save_pretrained("llamagen")
        assert main(["export", "official", "llamagen", "--out", "good.pt"]) == 0
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("quick_judge")
@pytest.mark.parametrize("line", COMMANDS)
def test_nothing_is_lost_and_nothing_half_written(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flushing to the disk fails, which is where a file system says so at the latest."""
    monkeypatch.chdir(place)
    before = content_of(place)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(line.split()) == 2
    told = [said for said in capsys.readouterr().err.splitlines() if said.startswith("ifsq: ")]
    assert len(told) == 1
    assert told[0].endswith("cannot be written: no space left on device")
    assert ".partial" not in told[0]
    after = content_of(place)
    assert after == before


def test_there_was_something_to_write(place: Path) -> None:
    """Each of the verbs does what it is asked where there is room."""
    assert {"good.png", "tok/report.html", "saved/config.json", "good.ckpt", "good.pt"} <= content_of(place).keys()
