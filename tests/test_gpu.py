"""The same road on an accelerator: `make gpu`."""

import json

import pytest
import torch

from ifsq.cli import main


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_demo_runs_unchanged(tmp_path):
    arguments = ["demo", "--out", str(tmp_path / "demo"), "--device", "cuda", "--train.steps", "100"]
    assert main(arguments) == 0
    assert (tmp_path / "demo" / "report.html").is_file()
    cards = json.loads((tmp_path / "demo" / "ar" / "evaluation.json").read_text())["cards"]
    assert cards[0]["n"] == 1000
