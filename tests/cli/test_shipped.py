"""Experiments that are shipped are found by their names where there is no checkout."""

import pytest

from ifsq.bench.shipped import experiment_file
from ifsq.cli import main


@pytest.mark.parametrize("name", ["experiments/demo/{}.toml", "demo/{}.toml"])
@pytest.mark.parametrize(("verb", "kind"), [("tokenizer", "tokenizer"), ("generator", "ar"), ("teacher", "teacher")])
def test_a_shipped_experiment_is_found_by_its_name(name, verb, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([verb, "train", name.format(kind), "--train.steps", "-1"]) == 2
    taken, refused = capsys.readouterr().err.splitlines()
    shipped = experiment_file(f"demo/{kind}.toml")
    assert taken == f"ifsq: {name.format(kind)}: taken from those that are shipped with ifsq, {shipped}"
    assert "steps=-1" in refused


def test_a_file_of_ones_own_comes_first_and_other_names_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/tokenizer.toml").write_text("mine = 1\n")
    assert main(["tokenizer", "train", "demo/tokenizer.toml"]) == 2
    assert capsys.readouterr().err.startswith("ifsq: demo/tokenizer.toml: ")
    assert main(["tokenizer", "train", "experiments/demo/tokenizers.toml"]) == 2
    assert capsys.readouterr().err.startswith("ifsq: experiments/demo/tokenizers.toml: no such file")
