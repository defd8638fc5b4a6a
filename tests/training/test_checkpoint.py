"""Writing in the background: what is kept, what a kill leaves, and what a full disk says."""

import threading

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ifsq.config import InputError
from ifsq.training import checkpoint
from ifsq.training.distributed import World
from ifsq.training.parallel import blocks

HERE = World(0, 1, torch.device("cpu"))


def save(writer, step, value=1.0):
    writer.save(step, {"model": {"w": torch.full((3,), value)}}, {"seconds": 0.0})


def test_the_newest_are_kept_and_milestones_for_good(tmp_path):
    writer = checkpoint.Writer(tmp_path, HERE, keep=2, keep_every=20)
    for step in range(10, 80, 10):
        save(writer, step)
    writer.wait()
    assert [step for step, _ in checkpoint.steps_in(tmp_path)] == [20, 40, 60, 70]
    writer.close()


def test_what_is_written_is_the_state_when_it_was_asked_for(tmp_path, monkeypatch):
    """The weights move on while the file is still being written."""
    go, real = threading.Event(), checkpoint.write_tensors

    def slowly(file, table):
        assert go.wait(10)
        real(file, table)

    monkeypatch.setattr(checkpoint, "write_tensors", slowly)
    writer, weights = checkpoint.Writer(tmp_path, HERE, keep=2), torch.ones(3)
    writer.save(1, {"model": {"w": weights}}, {})
    assert not checkpoint.steps_in(tmp_path)
    weights.zero_()
    go.set()
    writer.wait()
    assert torch.equal(checkpoint.load(tmp_path / "step_1", "model")["w"], torch.ones(3))
    writer.close()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, error):
    def full(table, file, metadata):
        file.write_bytes(b"half")
        raise error

    writer = checkpoint.Writer(tmp_path, HERE, keep=2)
    save(writer, 1)
    writer.wait()
    monkeypatch.setattr("ifsq.store.files.save_file", full)
    save(writer, 2)
    with pytest.raises(InputError, match=r"step_2: cannot be written: .*[Nn]o space"):
        writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    writer.close()


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    (tmp_path / ".partial_step_5").mkdir()
    (tmp_path / ".partial_step_5" / ".written_1").touch()
    checkpoint.Writer(tmp_path, HERE, keep=1).close()
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_missing_is_named(tmp_path):
    whole = {"model": {"a": torch.ones(2), "b": torch.ones(3)}}
    writers = [checkpoint._share(whole, World(rank, 2, HERE.device)) for rank in range(2)]
    for tables in writers:
        for name, table in tables.items():
            save_file(table, tmp_path / f"{name}.safetensors")
    assert checkpoint.load(tmp_path, "model").keys() == {"a", "b"}
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00001-of-00002\.safetensors: no such file"):
        checkpoint.load(tmp_path, "model")


def test_blocks_are_the_innermost_elements_of_lists():
    inner = torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.Identity()])
    outer = torch.nn.ModuleList([torch.nn.Sequential(inner)])
    assert list(blocks(torch.nn.Sequential(outer))) == [inner[0]]
