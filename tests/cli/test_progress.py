"""What a person sees of long work: how far it is, how fast, and how long it still takes."""

import io
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from ifsq.cli import terminal as told
from ifsq.cli.terminal import Terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock of our own: ``clock.now`` in seconds."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(told, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def watched(*, terminal: bool) -> tuple[Terminal, io.StringIO]:
    """A reporter whose stderr is a text, as of a terminal or of a file."""
    reporter, text = Terminal(), io.StringIO()
    reporter.console = Console(file=text, force_terminal=terminal, width=120, highlight=False, markup=False)
    return reporter, text


def test_lines_say_figures_and_the_time_left(clock):
    reporter, text = watched(terminal=False)
    reporter.start("tokenizer", 100, 800)
    clock.now += 20
    reporter.advance(150, {"loss": 0.5, "lr": 1.0})
    assert text.getvalue() == (
        "tokenizer: continues at 100 of 800\ntokenizer 150/800 loss 0.5 4 min left\n"  # 50 in 20 s, 650 to go
    )


def test_lines_about_work_without_figures_come_now_and_then(clock):
    reporter, text = watched(terminal=False)
    reporter.start("images", 0, 1000)
    for done in range(10, 1001, 10):
        clock.now += 0.5
        reporter.advance(done, {})
    reporter.finish({})
    lines = text.getvalue().splitlines()
    assert lines[0] == "images 200/1000 20/s 40 s left"
    assert [re.match(r"images (\d+)/", line)[1] for line in lines[:-1]] == ["200", "400", "600", "800", "1000"]
    assert lines[-2:] == ["images 1000/1000 20/s", "images: done in 50 s"]


def test_nothing_is_divided_by_work_that_has_not_begun(clock):
    reporter, text = watched(terminal=False)
    reporter.start("images", 5, 10)
    clock.now += 11
    reporter.advance(5, {})
    assert text.getvalue().splitlines()[1:] == ["images 5/10 0/s"]


@pytest.mark.parametrize(("facts", "shown"), [({}, "20/s"), ({"loss": 0.5}, "loss 0.5")])
def test_a_bar_shows_the_rate_where_there_are_no_figures(facts, shown, clock):
    reporter, text = watched(terminal=True)
    with reporter:
        reporter.start("images", 0, 1000)
        clock.now += 10
        reporter.advance(200, facts)
        reporter.advance(200, {})
        time.sleep(0)
        reporter.finish({})
    last = text.getvalue().rpartition("images")[0]
    assert shown in last
    assert "200/1000" in last
    assert ("20/s" in last) == (not facts)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119.0, "119 s"), (179.0, "2 min"), (7500.0, "2 h 5 min"), (100 * 3600.0, "4 d 4 h")],
)
def test_durations_are_said_in_two_units_at_most(seconds, text):
    assert told._duration(seconds) == text
