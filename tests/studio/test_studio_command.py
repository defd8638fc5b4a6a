"""``ifsq studio``: what it is told wrong ends in one line, and what it opens."""

import shutil
import socket
import sys

import pytest
import torch

from ifsq.cli import main
from ifsq.studio.runs import open_shown
from ifsq.studio.serve import is_loopback, listen

CPU = torch.device("cpu")


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: RUN"),
        (["nowhere"], "nowhere: no such folder; expected a run of ifsq"),
        (["pictures"], "pictures: holds no config.json; expected a run of ifsq"),
        (["JUDGE"], "is a judge; expected a tokenizer or a generator"),
        (["tok", "./tok"], "tok: is given twice; expected each run once"),
        (["tok", "--port", "65536"], "port 65536: expected 0 (any that is free) to 65535"),
        (["tok", "--port", "TAKEN"], "give another --port"),
        (["tok", "--host", "no.such.host.invalid"], "expected a name or address of this machine"),
        (["tok", "--host", ""], "expected a name"),
        (["tok", "--device", "abacus"], "device 'abacus': expected auto, cpu, cuda or mps"),
    ],
)
def test_bad_arguments_end_in_one_line(road, taken, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(road)
    judge = str(next(road.glob("judge_*")))
    given = [{"TAKEN": taken, "JUDGE": judge}.get(word, word) for word in arguments]
    if "--port" not in given:
        given += ["--port", "0"]
    try:
        code = main(["studio", *given])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert told in said.err
    assert said.err.count("\n") == 1


def test_without_the_extra_it_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ifsq.studio.serve")
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert main(["studio", "tok"]) == 2
    assert "pip install 'ifsq[studio]'" in capsys.readouterr().err


def test_runs_are_told_apart_by_the_ends_of_their_paths(road, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one/tok", "two/tok"):
        shutil.copytree(road / "tok", name)
    shown = open_shown([tmp_path / "one/tok", tmp_path / "two/tok", road / "ar"], CPU)
    assert [rate.name for rate in shown.rates] == ["one/tok", "two/tok"]
    assert [drawer.title for drawer in shown.drawers] == [f"{road.name}/ar (autoregressive)"]
    assert shown.classes == ("a", "b")


def test_a_saved_model_is_shown_too(road, tmp_path):
    assert main(["export", "pretrained", str(road / "tok"), "--out", str(tmp_path / "saved")]) == 0
    (rate,) = open_shown([tmp_path / "saved"], CPU).rates
    assert rate.text == "levels 5 x 5, 4.644 bits a position"


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_what_others_reach_is_known(host, own):
    with listen(host, 0) as made:
        assert is_loopback(made.getsockname()[0]) == own
