"""Checkpoints on disk: damage, exchange and other people's are refused by name; what is half there is passed over."""

import json
import os
import re
import shutil

import pytest
import torch

from ifsq.config import InputError
from ifsq.store.checkpoints import at, newest, record, sealed, steps_in
from ifsq.training import checkpoint
from ifsq.training.distributed import World

HERE = World(0, 1, torch.device("cpu"))
TABLES = ("model", "ema", "optimizer")


def write(folder, run="ours", steps=(10, 20)):
    writer = checkpoint.Writer(folder, HERE, keep=9, run=run)
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        writer.save(step, {name: {"w": torch.randn(40, generator=rng)} for name in TABLES}, {"seconds": 1.0})
    writer.wait()
    writer.close()
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "checkpoints")


def refused(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load_all(folder, run="ours"):
    found = newest(folder, run).checkpoint
    return {name: found.load_checked(name) for name in TABLES}


def flip(file, bit):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("place", [0.0, 0.1, 0.4, 0.7, 0.9999])
def test_a_flipped_bit_is_found(folder, table, place):
    """In the header or in the numbers, of which no bit pattern is wrong by itself."""
    file = folder / "step_20" / f"{table}.safetensors"
    flip(file, int(place * 8 * file.stat().st_size))
    told = refused(load_all, folder)
    assert told.startswith(f"{file}: is damaged or of another checkpoint, its SHA-256 is not the one in state.json; ")
    assert told.endswith(f"remove {folder / 'step_20'} to use the one before, step_10")
    shutil.rmtree(folder / "step_20")
    assert load_all(folder).keys() == set(TABLES)  # the advice helps


@pytest.mark.parametrize(
    ("source", "target"),
    [("step_10/model", "step_20/model"), ("step_10/optimizer", "step_20/optimizer"), ("step_20/ema", "step_20/model")],
)
def test_an_exchanged_file_is_found(folder, source, target):
    shutil.copy(folder / f"{source}.safetensors", folder / f"{target}.safetensors")
    assert refused(load_all, folder).startswith(f"{folder / target}.safetensors: is damaged or of another checkpoint")


def test_folders_that_were_renamed_are_refused(folder):
    shutil.copytree(folder / "step_10", folder / "step_999")
    told = refused(newest, folder, "ours")
    assert told == (
        f"{folder / 'step_999'}: was renamed, its state.json says step 10; rename it back, or remove"
        f" {folder / 'step_999'} to use the one before, step_20"
    )
    shutil.rmtree(folder / "step_999")
    (folder / "step_10").rename(folder / "aside")
    (folder / "step_20").rename(folder / "step_10")
    (folder / "aside").rename(folder / "step_20")
    assert "step_20: was renamed, its state.json says step 10" in refused(newest, folder, "ours")


@pytest.mark.parametrize("own", ["ours", None])
def test_a_checkpoint_of_another_run_is_refused(folder, tmp_path, own):
    """Such as the same experiment with another seed, whose tensors have the same names and shapes."""
    write(tmp_path / "theirs", "theirs", (30,))
    shutil.move(tmp_path / "theirs" / "step_30", folder / "step_30")
    told = refused(newest, folder, own)
    assert told.startswith(f"{folder / 'step_30'}: was saved by another run than the one it lies in; remove")


DIGITS = "9" * 5000
STATES = {
    "no JSON": b"{",
    "no UTF-8": b"\xff" * 40,
    "nesting": b"[" * 100_000,
    "digits": f'{{"step": {DIGITS}}}'.encode(),
    "no object": b"[20]",
    "no step": b"{}",
    "a step in words": b'{"step": "20"}',
    "a step that is true": b'{"step": true}',
    "unsealed": b'{"step": 20, "files": {}}',
    "a digest alone": b'{"step": 20, "digest": ""}',
    "a run alone": b'{"step": 20, "run": "ours"}',
    "sealed without files": json.dumps(sealed({"step": 20, "run": "ours"})).encode(),
    "files in a list": json.dumps(sealed({"step": 20, "files": ["model.safetensors"]})).encode(),
    "files elsewhere": json.dumps(
        sealed({"step": 20, "files": {"../x.safetensors": {"bytes": 1, "sha256": ""}}})
    ).encode(),
    "files without records": json.dumps(sealed({"step": 20, "files": {"model.safetensors": {}}})).encode(),
    "not a number": b'{"step": 20, "seconds": NaN, "digest": ""}',
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_is_none_is_one_line(folder, case):
    (folder / "step_20" / "state.json").write_bytes(STATES[case])
    told = refused(newest, folder, "ours")
    assert told.startswith(f"{folder / 'step_20' / 'state.json'}: ")
    assert told.endswith(f"remove {folder / 'step_20'} to use the one before, step_10")
    assert len(told) < 600


@pytest.mark.parametrize("name", ["step", "run", "files", "seconds", "digest"])
def test_a_state_that_was_changed_is_found(folder, name):
    file = folder / "step_20" / "state.json"
    state = json.loads(file.read_text())
    for changed in ({**state, name: 20.5}, {key: value for key, value in state.items() if key != name}):
        file.write_text(json.dumps(changed))
        assert f"{file}: " in refused(newest, folder, "ours")


def half(path, how):
    file = path / "optimizer.safetensors"
    if how == "empty":
        shutil.rmtree(path)
        path.mkdir()
    elif how == "a file":
        shutil.rmtree(path)
        path.write_text("stray")
    elif how == "no state":
        (path / "state.json").unlink()
    elif how == "an empty state":
        (path / "state.json").write_bytes(b"")
    elif how == "a file missing":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2)


HALVES = {
    "empty": "state.json is missing",
    "a file": "state.json is missing",
    "no state": "state.json is missing",
    "an empty state": "state.json is empty",
    "a file missing": "optimizer.safetensors is missing",
    "a file cut short": "optimizer.safetensors is cut short",
}


@pytest.mark.parametrize("how", HALVES)
def test_half_a_checkpoint_is_passed_over(folder, how):
    half(folder / "step_20", how)
    found = newest(folder, "ours")
    assert found.checkpoint.step == 10
    assert found.unfinished == ((folder / "step_20", HALVES[how]),)
    half(folder / "step_10", how)  # then nothing is left, and training all over again is for a person to decide
    told = refused(newest, folder, "ours")
    assert told == (
        f"{folder / 'step_20'}: is unfinished, {HALVES[how]}; "
        + (
            f"remove {folder / 'step_20'} to use the one before, step_10"
            if how in ("an empty state", "a file missing", "a file cut short")
            else f"there is none before it, remove {folder / 'step_20'} to begin anew"
        )
    )


def test_one_of_before_is_read_and_said_to_be(folder):
    (folder / "step_20" / "state.json").write_text('{"step": 20, "seconds": 3.0, "scaler": {}}')
    found = newest(folder, "ours").checkpoint
    assert found.remark == (
        f"{folder / 'step_20'}: was saved before checkpoints kept the SHA-256 of their files; nothing vouches for it"
    )
    assert found.load_checked("model").keys() == {"w"}
    os.truncate(folder / "step_20" / "ema.safetensors", 30)
    told = refused(found.load, "ema")
    assert re.search(r"ema\.safetensors: cannot be read: .*; remove .*step_20 to use the one before, step_10$", told)
    assert not at(folder / "step_10").remark


def test_one_of_before_that_lost_its_tensors_says_so_once(tmp_path):
    place = tmp_path / "step_4"
    place.mkdir()
    (place / "state.json").write_text('{"step": 4}')
    found = newest(tmp_path, None).checkpoint
    advice = f"there is none before it, remove {place} to begin anew"
    assert refused(found.files) == f"{place}: holds no tensors; {advice}"
    assert refused(found.load, "ema") == f"{place / 'ema.safetensors'}: no such file; {advice}"


def test_names_that_are_none_are_no_checkpoints(folder):
    for name in ("step_", "step_030", "step_٣", "step_-1", f"step_{DIGITS[:200]}", "step_30.bak", ".partial_step_30"):
        (folder / name).mkdir()
    assert [step for step, _ in steps_in(folder)] == [10, 20]
    assert not steps_in(folder / "gone")
    assert newest(folder / "gone", None).checkpoint is None


def test_a_record_needs_a_file(tmp_path):
    assert "cannot be read" in refused(record, tmp_path / "gone")
