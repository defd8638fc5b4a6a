"""What the command says: on full disks, to readers that are gone, and of names that terminals obey."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ifsq.cli import main
from ifsq.cli.terminal import Terminal

TINY = """
out = "run"
[data]
source = "bundled:shapes"
size = 16
[tokenizer.conv]
width = 8
multipliers = [1]
blocks = 1
patch = 4
groups = 4
[tokenizer.quantizer]
levels = [5, 5]
[train]
steps = 4
batch = 4
log_every = 1
"""
FULL = Path("/dev/full")
COMMAND = [sys.executable, "-m", "ifsq"]
needs_full = pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)


@needs_full
def test_a_training_whose_log_is_on_a_full_disk_goes_on() -> None:
    with FULL.open("w") as full:
        done = subprocess.run([*COMMAND, "tokenizer", "train", "tiny.toml"], stderr=full, check=False)
    assert done.returncode == 0
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) >= 4


@needs_full
def test_results_that_cannot_be_printed_are_one_line() -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [*COMMAND, "tokenizer", "train", "tiny.toml"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.endswith("ifsq: standard output: cannot be written: No space left on device\n")
    assert "Traceback" not in done.stderr


def test_a_standard_output_that_is_closed_is_one_line() -> None:
    command = f"{sys.executable} -m ifsq analyze bounds --levels 3 >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    said = [
        line for line in done.stderr.splitlines() if not line.startswith("bounds")
    ]  # how far it was, if it took long
    assert (done.returncode, said) == (2, ["ifsq: standard output: is closed; expected somewhere to write to"])


def test_a_reader_that_is_gone_is_one_line() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "tokenizer", "train", "tiny.toml"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.returncode == 2
    assert done.stderr.endswith("ifsq: standard output: cannot be written: Broken pipe\n")


def test_names_are_said_on_one_line_and_rule_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "eval", "a\x1b[31m\nb\x07\udce9"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("ifsq: a\\x1b[31m b\\x07\\udce9: ")
    assert told.count("\n") == 1


def test_rates_are_said_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Terminal()
    watcher.start("generator", 0, 10)
    watcher.advance(5, {"loss": 1.5, "lr": 1.0, "examples_per_second": 20.0, "tokens_per_second": 1280.0, "mfu": 0.25})
    assert "generator 5/10 loss 1.5 examples/s 20 tokens/s 1280 mfu 0.25" in capsys.readouterr().err


def test_a_long_line_keeps_its_beginning_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "eval", "a" * 2000]) == 2
    told = capsys.readouterr().err
    assert len(told) < 600
    assert told.startswith("ifsq: aaa")


def test_letters_that_a_terminal_has_not_are_written_as_numbers() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    Path("tiny.toml").write_text(TINY.replace('"run"', '"lauf_ü"'))
    done = subprocess.run(
        [*COMMAND, "tokenizer", "train", "tiny.toml"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "run: lauf_\\xfc" in done.stdout


@needs_full
def test_a_full_disk_under_the_figures_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/metrics.jsonl").symlink_to(FULL)
    assert main(["tokenizer", "train", "tiny.toml"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("line", ["analyze alignment run", "compare a b", "export official run --out x.pt"])
def test_what_one_process_does_is_refused_under_torchrun(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    verb = " ".join(["ifsq", *line.split()[: 1 if line.startswith("compare") else 2]])
    assert main(line.split()) == 2
    assert capsys.readouterr().err == f"ifsq: {verb}: runs in one process; start it without torchrun\n"
