"""Writing in the background: what is kept, what a kill leaves, and what a full disk says."""

import math
import shutil
import threading

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ifsq.config import InputError
from ifsq.store.checkpoints import Checkpoint, at, steps_in
from ifsq.training import checkpoint
from ifsq.training.distributed import World
from ifsq.training.optim import OptimConfig, make_optimizer
from ifsq.training.parallel import blocks

HERE = World(0, 1, torch.device("cpu"))


def save(writer, step, value=1.0):
    writer.save(step, {"model": {"w": torch.full((3,), value)}}, {"seconds": 0.0})


def test_the_newest_are_kept_and_milestones_for_good(tmp_path):
    writer = checkpoint.Writer(tmp_path, HERE, keep=2, keep_every=20)
    for step in range(10, 80, 10):
        save(writer, step)
    writer.wait()
    assert [step for step, _ in steps_in(tmp_path)] == [20, 40, 60, 70]
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
    assert not steps_in(tmp_path)
    weights.zero_()
    go.set()
    writer.wait()
    assert torch.equal(at(tmp_path / "step_1").load("model")["w"], torch.ones(3))
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
    step = tmp_path / "step_3"
    step.mkdir()
    (step / "state.json").write_text('{"step": 3}')
    for rank in range(2):
        for name, table in checkpoint._share(whole, World(rank, 2, HERE.device)).items():
            save_file(table, step / f"{name}.safetensors")
    assert at(step).load("model").keys() == {"a", "b"}
    (step / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00001-of-00002\.safetensors: no such file; there is none before it"):
        at(step).load("model")


def test_what_is_unfinished_is_set_aside_under_a_free_name(tmp_path):
    writer = checkpoint.Writer(tmp_path, HERE, keep=2)
    save(writer, 1)
    writer.close()
    for aside in ("unfinished_step_2", "unfinished_step_2_2"):
        (tmp_path / "step_2").mkdir()
        (tmp_path / "step_2" / "half.safetensors").write_bytes(b"half")
        writer = checkpoint.Writer(tmp_path, HERE, keep=2)
        assert writer.passed_over == [f"{tmp_path / 'step_2'}: is unfinished (state.json is missing) and was set aside"]
        assert writer.checkpoint.step == 1
        assert (tmp_path / aside / "half.safetensors").read_bytes() == b"half"
        save(writer, 2)
        writer.close()
        assert at(tmp_path / "step_2").load("model").keys() == {"w"}
        shutil.rmtree(tmp_path / "step_2")


def test_what_is_not_finite_is_not_saved(tmp_path):
    """It could not be loaded again."""
    writer = checkpoint.Writer(tmp_path, HERE, keep=1)
    save(writer, 1)
    save(writer, 2, math.nan)
    message = r"step_2: is not saved: model: tensor 'w' holds values that are not finite, .*; lower train\.optim\.lr"
    with pytest.raises(InputError, match=message):
        writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    writer.close()


def moved():
    """A module whose convolution lies channels last, and the state of its optimizer after two steps."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.Flatten(), torch.nn.Linear(4, 1))
    model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, OptimConfig())
    for _ in range(2):
        model(torch.randn(2, 3, 2, 2)).square().mean().backward()
        optimizer.step()
    return model, checkpoint.flatten_optimizer(optimizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.exp_avg": torch.zeros(1)}, r"'0.exp_avg' is float32 \(1,\), expected float32 \(4, 3, 2, 2\)"),
        ({"0.exp_avg": torch.zeros(48)}, r"'0.exp_avg' is float32 \(48,\), expected float32 \(4, 3, 2, 2\)"),
        ({"0.exp_avg_sq": torch.zeros(4, 3, 2, 2, 2)}, r"'0.exp_avg_sq' is float32 \(4, 3, 2, 2, 2\), expected"),
        ({"0.exp_avg": torch.zeros(4, 3, 2, 2).double()}, r"'0.exp_avg' is float64 \(4, 3, 2, 2\), expected float32"),
        ({"0.exp_avg": torch.zeros(4, 3, 2, 2).int()}, r"'0.exp_avg' is int32 .*, expected float32"),
        ({"0.step": torch.zeros(4, 3, 2, 2)}, r"'0.step' is float32 \(4, 3, 2, 2\), expected float32 \(\)"),
        ({"0.step": torch.tensor(3.0)}, "'0.step' is 3.0, expected 0 to 2"),
        ({"0.step": torch.tensor(-1.0)}, "'0.step' is -1.0, expected 0 to 2"),
        ({"0.step": torch.tensor(math.nan)}, "'0.step' is nan, expected 0 to 2"),
        ({"0.step": torch.tensor(2)}, "'0.step' is int64"),
        ({"3.exp_avg": torch.full((1,), math.inf)}, "'3.exp_avg' holds values that are not finite"),
        ({"0.exp_avg": None}, "'0.exp_avg' is missing"),
        ({"3.step": None}, "'3.step' is missing"),
        ({f"2.{name}": None for name in ("step", "exp_avg", "exp_avg_sq")}, "'2.exp_avg' is missing"),
        ({"4.exp_avg": torch.zeros(1)}, "'4.exp_avg' belongs to no parameter of this model"),
        ({"0.momentum": torch.zeros(1)}, "'0.momentum' belongs to no parameter"),
        ({"odd": torch.zeros(1)}, "'odd' belongs to no parameter"),
        ({"-1.exp_avg": torch.zeros(1)}, "'-1.exp_avg' belongs to no parameter"),
        ({"٠.exp_avg": torch.zeros(1)}, "belongs to no parameter"),
        (None, "'0.exp_avg' is missing"),
    ],
)
def test_an_optimizer_takes_the_state_of_its_parameters_alone(change, message):
    """A fused one walks a weight and its momenta side by side in memory, whatever their sizes."""
    model, table = moved()
    damaged = {} if change is None else {key: value for key, value in {**table, **change}.items() if value is not None}
    fresh = make_optimizer(model, OptimConfig())
    with pytest.raises(InputError, match=f"^w: .*{message}"):
        checkpoint.restore_optimizer(fresh, damaged, "w", 2)
    assert not fresh.state_dict()["state"]
    checkpoint.restore_optimizer(fresh, table, "w", 2)
    again = checkpoint.flatten_optimizer(fresh)
    assert again.keys() == table.keys()
    assert all(torch.equal(again[key], value) and again[key].stride() == value.stride() for key, value in table.items())


def test_an_optimizer_that_has_not_begun_takes_no_state():
    model, table = moved()
    fresh = make_optimizer(model, OptimConfig())
    checkpoint.restore_optimizer(fresh, {}, "w", 0)
    with pytest.raises(InputError, match=r"'0.exp_avg' belongs to no parameter"):
        checkpoint.restore_optimizer(fresh, table, "w", 0)


@pytest.mark.parametrize("value", ["3", None, True, -1.0, math.inf, math.nan, 10**400, [], {}])
def test_numbers_of_a_state_are_numbers(tmp_path, value):
    found = Checkpoint(5, tmp_path / "step_5", {"step": 5, "seconds": value, "good": 0})
    assert checkpoint.number(found, "good") == 0
    for name in ("seconds", "gone"):
        with pytest.raises(InputError, match=rf"state\.json: {name}: .*, expected a number from 0 on; there is none"):
            checkpoint.number(found, name)


def test_a_loss_scale_takes_its_own_entries_alone(tmp_path):
    on, off = (torch.amp.GradScaler("cpu", enabled=enabled) for enabled in (True, False))
    good = on.state_dict()
    for scaler, state, message in (
        (off, {"scale": 2.0}, "expected nothing"),
        (off, None, "expected nothing"),
        (on, {}, "expected scale, growth_factor"),
        (on, {**good, "scale": "2"}, "scale: '2', expected as 65536.0"),
        (on, {**good, "scale": math.nan}, "scale: nan, expected as"),
        (on, {**good, "growth_interval": 2000.0}, "growth_interval: 2000.0, expected as 2000"),
        (on, {**good, "more": 1.0}, "expected scale, growth_factor"),
    ):
        found = Checkpoint(5, tmp_path / "step_5", {"step": 5, "scaler": state})
        with pytest.raises(InputError, match=rf"state\.json: scaler.*{message}"):
            checkpoint.scaler_state(found, "scaler", scaler)
    found = Checkpoint(5, tmp_path / "step_5", {"step": 5, "scaler": good})
    assert checkpoint.scaler_state(found, "scaler", on) == good


def test_blocks_are_the_innermost_elements_of_lists():
    inner = torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.Identity()])
    outer = torch.nn.ModuleList([torch.nn.Sequential(inner)])
    assert list(blocks(torch.nn.Sequential(outer))) == [inner[0]]
