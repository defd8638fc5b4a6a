"""The first cases of every parser; ``make fuzz`` takes a million of each that is cheap."""

import json
import os
import subprocess
import sys


def test_the_first_cases_of_every_parser(root, tmp_path):
    """0 tracebacks, 0 hangs, 0 deaths; every message one tidy line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.fuzz", "--short", "--state", str(tmp_path / "state.json")]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = [tally["kinds"] for tally in json.loads((tmp_path / "state.json").read_text()).values()]
    assert len(kinds) == 16
    assert sum(kind["refused"] for kind in kinds) > sum(kind["accepted"] for kind in kinds) > 25
