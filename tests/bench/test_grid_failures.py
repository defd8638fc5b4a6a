"""A stage of a grid that always fails: the rest is done, compared, and given the seeds that its comparisons take."""

import json

import pytest
from toy_grid import write_toy_grid

from ifsq.bench.grid.command import bench
from ifsq.bench.grid.runner import FAILURES, StagesError
from ifsq.bench.grid.work import MeasureTokenizer
from ifsq.bench.measurement import MEASUREMENTS, read_measurements
from ifsq.config import InputError
from ifsq.training.log import Silent

GRID = """
tokenizer = "tok.toml"
axes.tokenizer = ["ifsq", "fsq", "narrow"]
budget.tokenizer.images = 8
evaluation.tokenizer = { judge = false }

[[settings]]
when = { tokenizer = "fsq" }
tokenizer.tokenizer.quantizer.bound = "tanh"

[[settings]]
when = { tokenizer = "narrow" }
tokenizer.tokenizer.conv.width = 4

[protocol]
looks = [2, 3]
[[compare]]
axis = "tokenizer"
against = "ifsq"
of = "tokenizer"
metric = "PSNR, dB"
value = "mean"
better = "higher"
"""


class Told(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_the_rest_gets_its_seeds_and_verdicts(tmp_path, monkeypatch):
    write_toy_grid(tmp_path)
    (tmp_path / "seeds.toml").write_text(GRID)
    measure = MeasureTokenizer.run
    tried = []

    def run(self, folder, device, reporter):
        if json.loads((self.tokenizer / "config.json").read_text())["experiment"]["tokenizer"]["conv"]["width"] == 4:
            tried.append(folder.name)
            raise InputError("no such thing")
        measure(self, folder, device, reporter)

    monkeypatch.setattr(MeasureTokenizer, "run", run)
    reporter = Told()
    with pytest.raises(StagesError, match="2 stages failed and 0 that need them were skipped"):
        bench(tmp_path / "seeds.toml", tmp_path / "out", [], "cpu", reporter)
    assert len(tried) == len(set(tried)) == 2, "each once, whatever the rounds"
    rows = [json.loads(line) for line in (tmp_path / "out" / FAILURES).read_text().splitlines()]
    assert sorted(row["stage"] for row in rows) == sorted(tried)
    seeds = {(one.cell["tokenizer"], one.seed) for one in read_measurements(tmp_path / "out" / MEASUREMENTS)}
    verdicts = [said for said in reporter.said if said.startswith("PSNR, dB: ")]
    assert len(verdicts) == 2
    assert "open, too few seeds for a look" in verdicts[1]
    decided = " above " in verdicts[0]
    assert seeds == {(name, seed) for name in ("ifsq", "fsq") for seed in range(2 if decided else 3)}
    assert decided or "not told apart" in verdicts[0]
