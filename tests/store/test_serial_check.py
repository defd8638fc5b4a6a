"""The check of weights in the background makes no threads of its own: they would slow down those that train."""

import subprocess
import sys

import pytest
import torch

from ifsq.config import InputError
from ifsq.store.weights import SERIAL, refuse_infinite

COUNTED = """
import os, sys, threading, torch
from ifsq.store.weights import refuse_infinite

torch.set_num_threads(2)
values = torch.ones(1 << 20)
values.aminmax()  # the first thread has its helper
before = len(os.listdir("/proc/self/task"))


def check():
    refuse_infinite({"a": values}, "", serial=sys.argv[1] == "serial")
    print(len(os.listdir("/proc/self/task")) - before)


threading.Thread(target=check).start()
"""


def threads_made(how):
    # A process each: a thread that has ended may stand in the system's list a little longer.
    done = subprocess.run([sys.executable, "-c", COUNTED, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system lists a process's threads on Linux alone")
def test_a_check_in_the_background_makes_no_further_threads():
    assert threads_made("serial") == 1  # the thread itself
    assert threads_made("parallel") > 1  # what it is about


@pytest.mark.parametrize("place", [0, SERIAL - 1, SERIAL, 3 * SERIAL + 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_check_by_parts_finds_every_number(place, value):
    table = {"a": torch.zeros(3 * SERIAL + 5, dtype=torch.bfloat16)}
    refuse_infinite(table, "here", serial=True)
    table["a"][place] = value
    with pytest.raises(InputError, match="here: tensor 'a' holds values that are not finite"):
        refuse_infinite(table, "here", serial=True)
