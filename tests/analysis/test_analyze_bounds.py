"""``ifsq analyze bounds``, as a person would take it."""

import csv
import dataclasses
import json
import subprocess
import sys

import pytest
from PIL import Image

from ifsq.analysis import bounds
from ifsq.analysis.quadrature import analyze
from ifsq.cli import main


@pytest.fixture(scope="module")
def found():
    return analyze([5, 17], 20_000, 0, checked=[5, 17])


def code_of(arguments):
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


def test_the_command_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "below" / "bounds"
    assert main(["analyze", "bounds", "--out", str(out), "--levels", "5", "4", "--samples", "2000"]) == 0
    told = capsys.readouterr().out
    for words in ("KS distance", "least-used level", "agree with the integrals", str(out)):
        assert words in told
    assert "…" not in told, "a table is wider than a terminal"
    assert {path.name for path in out.iterdir()} == {"bounds.csv", "bounds.png"}
    with Image.open(out / "bounds.png") as picture:
        assert picture.size == (1800, 1500)
    rows = list(csv.DictReader((out / "bounds.csv").read_text().splitlines()))
    # Two level counts in each of three rules, but paper cells with 4 levels for tanh alone; six distributions.
    assert len(rows) == 6 * (8 * 5 + 1)
    for row in rows:
        assert 0 <= float(row["fraction"]) <= 1.000001
        assert float(row["distortion"]) >= float(row["least_distortion"]) * 0.9999


def test_the_same_seed_writes_the_same_files(tmp_path):
    for name in ("a", "b"):
        bounds.analyze_bounds(tmp_path / name, [3], 1000, seed=3)
    for file in ("bounds.csv", "bounds.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_tables_are_complete(found):
    for table in bounds.tables(found, 17):
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
    by_title = {table.title: table for table in bounds.tables(found, 17)}
    ks = by_title["KS distance to uniform, before rounding"]
    assert ("ifsq 1.6", "0.0173", "0.1653") in [row[:3] for row in ks.rows]
    entropy = by_title["level entropy over log2 L (1: even use), L = 17"]
    assert ("ifsq 1.6", "paper", "0.9828", "0.8611") in [row[:4] for row in entropy.rows]
    assert len(entropy.rows) == 16  # symmetric cells of an odd L are the paper's


def test_sampling_that_disagrees_is_told(found):
    assert "agree with the integrals" in bounds.check(found)
    wrong = [dataclasses.replace(check, deviation=0.1) for check in found.checks]
    assert "DO NOT AGREE" in bounds.check(dataclasses.replace(found, checks=tuple(wrong)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "1"], "levels=1: expected 2 to 257"),
        (["--levels", "300", "5"], "levels=300: expected 2 to 257"),
        (["--levels", "many"], "--levels: invalid int value: 'many'"),
        (["--samples", "10"], "samples=10: expected at least 1000"),
        (["--seed", "-1"], "seed=-1: expected"),
        (["--out", "taken"], "taken: is a file, or lies below one; expected a folder"),
        (["--out", "taken/deeper"], "taken/deeper: is a file, or lies below one"),
        (["--size", "3"], "'--size': no such argument of ifsq analyze bounds"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    assert code_of(["analyze", "bounds", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("ifsq: ")
    assert told.count("\n") == 1
    assert message in told
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken").read_text() == "mine"


def test_help_and_tables_need_no_matplotlib():
    code = (
        "import json, sys\nfrom ifsq.cli import main\n"
        "try: main(['analyze', 'bounds', '--help'])\nexcept SystemExit: pass\n"
        "before = 'torch' in sys.modules\nimport ifsq.analysis.bounds\n"
        "print(json.dumps([before, 'matplotlib' in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == [False, False]
