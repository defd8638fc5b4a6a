"""The report of damaged, foreign and hostile runs: a page or one line that names the file, never a traceback."""

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ifsq.bench import charts
from ifsq.bench.commands import evaluation_command
from ifsq.bench.runs import Reported
from ifsq.cli import main
from ifsq.config import InputError
from ifsq.evaluation.likelihood import BITS
from ifsq.evaluation.record import Evaluation, read_evaluation
from ifsq.store.run import Run


@pytest.fixture
def runs(road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of both."""
    for run in ("tok", "ar"):
        shutil.copytree(road / run, tmp_path / run)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def places_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of everything in a JSON value; of a list, of its first entry."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places_in(inner, (*path, key))


def replaced(value: Any, path: tuple[str | int, ...], by: Any) -> Any:
    if not path:
        return by
    inner = replaced(value[path[0]], path[1:], by)
    return [inner, *value[1:]] if isinstance(value, list) else value | {path[0]: inner}


ODD = [None, "x" * 1000, -1, 0, 10**400, 1e308, [], {}, [[]], {"a": 1}, True, float("nan"), "$\\frac$", ["a"] * 9]


def ends_in_a_line(capsys: pytest.CaptureFixture[str], *runs: str) -> str:
    """What a report says, if it refuses."""
    code = main(["report", *runs])
    told = capsys.readouterr().err
    assert code in (0, 2)
    assert (told.count("\n"), len(told) < 700) == (1 if code else 0, True), told
    return told


@pytest.mark.parametrize("run", ["tok", "ar"])
@pytest.mark.parametrize("name", ["evaluation.json", "config.json"])
def test_whatever_stands_in_a_record(
    run: str, name: str, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "svg", lambda _: "")  # drawing takes most of the time
    path = runs / run / name
    good = json.loads(path.read_text())
    refused = 0
    for number, place in enumerate(places_in(good)):
        for odd in ODD[number % 7 :: 7]:
            path.write_text(json.dumps(replaced(good, place, odd)))
            refused += bool(ends_in_a_line(capsys, run))
    assert refused > 5
    path.write_text(json.dumps(good))
    assert not ends_in_a_line(capsys, "tok", "ar")


CONTENTS = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "a long number": b"1" * 5000,
    "a list": b"[]\n",
    "null": b"null\n",
    "no numbers": b'{"step": 1, "loss": "x", "seconds": "y"}\n',
    "large numbers": b'{"step": 1, "loss": 1%b, "seconds": 1%b}\n' % (b"0" * 400, b"0" * 400),
    "no step": b'{"loss": 1, "seconds": 2}\n',
    "not finite": b'{"step": 2, "loss": NaN, "seconds": Infinity}\n',
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["evaluation.json", "config.json", "metrics.jsonl"])
def test_whatever_lies_in_the_place_of_a_record(
    name: str, content: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "ar" / name).write_bytes(CONTENTS[content])
    assert name in ends_in_a_line(capsys, "ar") or name == "metrics.jsonl"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "no picture", "half"])
@pytest.mark.parametrize("name", ["evaluation.json", "config.json", "metrics.jsonl", "samples/classes.png"])
def test_a_record_is_a_regular_file(name: str, kind: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs / "ar" / name
    content = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"text" if kind == "no picture" else content[: len(content) // 2])
    told = ends_in_a_line(capsys, "ar")
    no_line = name == "metrics.jsonl" and kind in ("no picture", "half")  # a kill may have cut its last line short
    assert name in told or no_line


def test_many_levels_are_drawn_at_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs / "tok" / "evaluation.json"
    table = json.loads(path.read_text())
    share = [5e-5] * 20_000
    table["levels"] = {str(n): {"share": share if n < 3 else [1.0], "fraction": 1.0} for n in range(1000)}
    path.write_text(json.dumps(table))
    assert not ends_in_a_line(capsys, "tok")


def test_a_record_is_read_as_it_was_written(runs: Path) -> None:
    for run in ("tok", "ar"):
        held = read_evaluation(Run.open(runs / run))
        assert isinstance(held, Evaluation)
        assert held.step == 2
    table = json.loads((runs / "ar" / "evaluation.json").read_text())
    del table["cards"][0]["crop"]
    (runs / "ar" / "evaluation.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"evaluation.json: protocol card: field 'crop' is missing; evaluate the run"):
        read_evaluation(Run.open(runs / "ar"))


def test_folders_are_quoted_in_the_commands(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "tok").rename(runs / "my run")
    assert not ends_in_a_line(capsys, "my run")
    page = (runs / "my run" / "report.html").read_text()
    assert "ifsq encode &#39;my run&#39; your-folder" in page
    assert "ifsq studio &#39;my run&#39;\n" in page


@pytest.mark.usefixtures("quick_judge")
def test_the_command_of_a_row_measures_the_same_again(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a guidance that is not the run's own, as a grid chooses one."""
    monkeypatch.chdir(shutil.copytree(road, tmp_path / "all"))
    line = "generator eval ar --samples 4 --no-twin --no-bits --seed 3 --sampling.guidance 3 --features"
    assert main(line.split()) == 0
    measured = Path("ar/evaluation_guidance_3.0.json")
    Path("ar/evaluation.json").write_bytes(measured.read_bytes())
    evaluation = read_evaluation(Run.open(Path("ar")))
    assert {card.guidance for card in evaluation.cards if card.sampler} == {3.0}
    assert not [card.metric for card in evaluation.cards if card.metric in BITS]
    measured.unlink()
    assert main(shlex.split(evaluation_command(Reported(Run.open(Path("ar")), [], evaluation)))[1:]) == 0
    assert json.loads(measured.read_text()) == json.loads(Path("ar/evaluation.json").read_text())
