"""``ifsq analyze codes`` against a cache whose use of levels is known."""

import pytest
import torch

from ifsq.cli import main
from ifsq.codes.spec import CodeSpec
from ifsq.codes.writer import Part, finish, prepare, write_shards


@pytest.fixture
def cache(tmp_path):
    """Two dimensions: the first uses two of its five levels alike, the second one of three."""
    spec = CodeSpec((5, 3), (1, 1), "little", "equal", (1, 2))
    digits = torch.tensor([[[[0, 1], [4, 1]]]]).expand(6, 1, 2, 2)
    prepare(tmp_path / "partial", {})
    write_shards(tmp_path / "partial", "train", 6, lambda a, b: Part(digits, torch.zeros(6)), range(1), spec)
    return finish(tmp_path / "partial", tmp_path / "codes", spec, ("a",), {"train": 6}, {"tokenizer": "t"}).folder


def test_the_table_says_what_is_there(cache, capsys):
    assert main(["analyze", "codes", str(cache)]) == 0
    told = capsys.readouterr().out
    assert "train: 6 images, 12 positions" in " ".join(told.split())
    rows = [line.split() for line in told.splitlines()]
    assert ["0", "5", "1.000", "0.4307", "3"] in rows
    assert ["1", "3", "0.000", "0.0000", "2"] in rows
    assert ["0", "5", "2", "0.4000", "2.0"] in rows


def test_what_is_no_cache_is_named(cache, tmp_path, capsys):
    assert main(["analyze", "codes", str(tmp_path)]) == 2
    assert "holds no code cache" in capsys.readouterr().err
    assert main(["analyze", "codes", str(cache), "--split", "val"]) == 2
    assert "has no split 'val'; expected one of train" in capsys.readouterr().err
