"""A sample of the table of faults; ``make faults`` makes all of it again."""

import os
import subprocess
import sys

import pytest


def test_a_sample_of_the_table(root):
    """0 hangs, 0 tracebacks, nothing silently wrong."""
    if os.geteuid() != 0:
        pytest.skip("full and read-only disks are mounted, which needs root")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults", "--short", "--jobs", "1"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
