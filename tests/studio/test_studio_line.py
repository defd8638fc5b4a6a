"""Whose turn it is: one at a time, in the order of coming; who stops while waiting does nothing."""

import asyncio
import threading
import time

import pytest

from ifsq.config import InputError
from ifsq.studio.line import Line, Stopped, Turn


def test_work_is_done_one_at_a_time_in_order_and_all_are_told_how_many_come_before():
    done, at_once, most, told = [], 0, 0, {name: [] for name in "abc"}

    def work(name):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.02)
        at_once -= 1
        done.append(name)

    async def visit():
        line = Line()
        await asyncio.gather(*(line.run(Turn(told[name].append), lambda name=name: work(name)) for name in "abc"))

    asyncio.run(visit())
    assert (done, most) == (["a", "b", "c"], 1)
    assert (told["a"][0], told["b"][0], told["c"][0]) == (0, 1, 2)
    assert told["c"][-2:] == [1, 0]


def test_who_stops_while_waiting_does_nothing_and_who_works_sees_it():
    done, working = [], threading.Event()

    async def visit():
        line, first, second, third = Line(), Turn(), Turn(), Turn()

        def long():
            working.set()
            while True:
                first.check()
                time.sleep(0.01)

        tasks = [
            asyncio.ensure_future(line.run(first, long)),
            asyncio.ensure_future(line.run(second, lambda: done.append("second"))),
            asyncio.ensure_future(line.run(third, lambda: done.append("third"))),
        ]
        await asyncio.to_thread(working.wait)
        second.stop()
        first.stop()
        return await asyncio.gather(*tasks, return_exceptions=True)

    ended = asyncio.run(visit())
    assert [type(one) for one in ended] == [Stopped, Stopped, type(None)]
    assert done == ["third"]


def test_who_stops_while_waiting_leaves_the_line_at_once():
    """The others come before, and another may wait in its place."""
    told, begun, end = [], threading.Event(), threading.Event()

    def long():
        begun.set()
        end.wait(30)

    async def visit():
        line, second = Line(most=3), Turn()
        first = asyncio.ensure_future(line.run(Turn(), long))
        await asyncio.to_thread(begun.wait)
        waits = asyncio.ensure_future(line.run(second, lambda: None))
        third = asyncio.ensure_future(line.run(Turn(told.append), lambda: None))
        await asyncio.sleep(0)
        second.stop()
        try:
            with pytest.raises(Stopped):
                await asyncio.wait_for(waits, 5)
            assert told == [2, 1]
            fourth = asyncio.ensure_future(line.run(Turn(), lambda: None))
            await asyncio.sleep(0)
            assert not first.done()
        finally:
            end.set()
        await asyncio.gather(first, third, fourth)

    asyncio.run(visit())
    assert told == [2, 1, 1, 0]


def test_an_error_is_the_visitors_own_and_the_line_goes_on():
    done = []

    def broken():
        raise InputError("no image")

    async def visit():
        line = Line()
        with pytest.raises(InputError, match="no image"):
            await line.run(Turn(), broken)
        await line.run(Turn(), lambda: done.append("next"))

    asyncio.run(visit())
    assert done == ["next"]


def test_a_line_that_is_too_long_is_refused():
    async def visit():
        line, first = Line(most=1), Turn()
        task = asyncio.ensure_future(line.run(first, lambda: time.sleep(0.05)))
        await asyncio.sleep(0)
        with pytest.raises(InputError, match="1 visitors wait already"):
            await line.run(Turn(), lambda: None)
        await task
        await line.run(Turn(), lambda: None)

    asyncio.run(visit())
