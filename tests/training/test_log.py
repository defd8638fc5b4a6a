"""Logs: written again from a checkpoint, and no end of a run whatever their bytes."""

import json
import os
import random

import pytest
import torch

from ifsq.config import InputError
from ifsq.training.distributed import World
from ifsq.training.log import MetricsLog, SkippedLog, read_metrics

HERE = World(0, 1, torch.device("cpu"))
GOOD = [json.dumps({"step": step, "loss": step / 2, "val/x": None}) for step in (1, 2, 3, 4)]


def test_metrics_survive_a_line_cut_short(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.write(step, {"loss": step})
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2, 3]
    assert log.rewind(2) == ""
    assert log.path.read_text().splitlines() == [json.dumps({"step": step, "loss": step}) for step in (1, 2)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_skipped_examples_of_all_processes_are_written_in_the_order_of_the_steps(tmp_path):
    log = SkippedLog(tmp_path / "skipped.txt")

    class Two(World):
        def gather(self, value):
            return [value, [(2, "b"), (9, "d")]]

    log.add(2, ("a",))
    log.add(5, ("c", "c"))
    log.write(Two(0, 2, torch.device("cpu")))
    assert (tmp_path / "skipped.txt").read_text() == "2\ta\n2\tb\n5\tc\n5\tc\n9\td\n"
    assert log.count == 5
    with (tmp_path / "skipped.txt").open("a") as file:
        file.write("10\tcut sh")
    again = SkippedLog(tmp_path / "skipped.txt")
    again.rewind(5)
    assert (tmp_path / "skipped.txt").read_text() == "2\ta\n2\tb\n5\tc\n5\tc\n"
    assert again.count == 4


DAMAGED = {
    "no JSON": b"steps and losses",
    "half": b'{"step": 2, "los',
    "zeros": b"\0" * 300,
    "no UTF-8": b'{"step": 2, "loss\xff": 1}',
    "nesting": b"[" * 100_000,
    "digits": b'{"step": ' + b"9" * 5000 + b"}",
    "a list": b"[1, 2]",
    "a number": b"2",
    "no step": b'{"loss": 1}',
    "a step in words": b'{"step": "2"}',
    "a step that is true": b'{"step": true}',
    "half a step": b'{"step": 2.5}',
    "words": b'{"step": 2, "loss": "low"}',
    "tables": b'{"step": 2, "loss": {}}',
    "nothing": b"",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_lines_are_named_or_set_aside(tmp_path, case):
    """Reading names them; a run that goes on sets them aside and keeps the others as they are."""
    path, damage = tmp_path / "metrics.jsonl", DAMAGED[case]
    path.write_bytes(b"\n".join([GOOD[0].encode(), damage, *(line.encode() for line in GOOD[1:]), damage, b""]))
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is damaged \(.*\); remove it, or train on") as caught:
        read_metrics(path)
    assert "\n" not in str(caught.value)
    assert MetricsLog(path).rewind(3) == f"{path}: 2 damaged lines are set aside in metrics.jsonl.damaged"
    assert path.read_text().splitlines() == GOOD[:3]
    shown = damage.decode(errors="backslashreplace")
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == f"{shown}\n{shown}\n"
    assert MetricsLog(path).rewind(3) == ""


@pytest.mark.parametrize(
    "line", [b"", b"3", b"3 x", b"-1\tx", b"\tx", b"3\t\xff", "٣\tx".encode(), b"\0\0", b"9" * 5000 + b"\tx"]
)
def test_damaged_lines_of_what_was_skipped_are_set_aside(tmp_path, line):
    path = tmp_path / "skipped.txt"
    path.write_bytes(b"1\ta\n" + line + b"\n2\tb\n5\tc\n6\tcut sh")
    log = SkippedLog(path)
    assert log.rewind(4) == f"{path}: 1 damaged lines are set aside in skipped.txt.damaged"
    assert log.count == 2
    assert path.read_bytes() == b"1\ta\n2\tb\n"


def test_any_bytes_at_all(tmp_path):
    """Ten kinds of bytes that matter to a parser, at random."""
    draw = random.Random(0)
    for _ in range(300):
        content = bytes(draw.choice(b'{}[]",:\n\t0123\xff\0estp') for _ in range(draw.randrange(60)))
        for name, log in (("metrics.jsonl", MetricsLog), ("skipped.txt", SkippedLog)):
            (tmp_path / name).write_bytes(content)
            log(tmp_path / name).rewind(2)
            assert log(tmp_path / name).rewind(2) == ""
        assert read_metrics(tmp_path / "metrics.jsonl") is not None


@pytest.mark.parametrize("log", [MetricsLog, SkippedLog])
def test_a_log_that_is_no_file_is_named(tmp_path, log):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputError, match="is no regular file; remove it"):
            log(path).rewind(3)
    assert log(tmp_path / "gone").rewind(3) == ""
    assert not (tmp_path / "gone").exists()


def test_a_name_of_many_lines_is_one_line(tmp_path):
    """A file may be called anything but nothing and a slash."""
    log = SkippedLog(tmp_path / "skipped.txt")
    log.add(1, ("image a\nb\t\udcff é.png cannot be read",))
    log.write(HERE)
    assert log.path.read_text() == "1\timage a\\nb\\t\\udcff é.png cannot be read\n"
    assert SkippedLog(log.path).rewind(1) == ""
