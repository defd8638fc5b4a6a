"""Whose a folder is, and what may change when a run goes on."""

import json
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from ifsq.config import InputError, to_dict
from ifsq.store.lock import BusyError
from ifsq.store.run import Run, write_config
from ifsq.training import checkpoint
from ifsq.training.claim import MAY_CHANGE, Claim, check_run, claimed
from ifsq.training.config import EngineConfig, TrainConfig
from ifsq.training.distributed import World
from ifsq.training.optim import OptimConfig

HERE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Experiment:
    out: str
    width: int = 4
    train: TrainConfig = field(default_factory=TrainConfig)


PLAIN = Experiment("here")


def record(experiment=PLAIN):
    return Claim(Path("here"), "tokenizer", experiment, "x").config


def begun(folder, steps=(500, 1000)):
    """A run with checkpoints at these steps."""
    agreed = check_run(folder, record())
    write_config(folder, agreed)
    writer = checkpoint.Writer(folder / "checkpoints", HERE, keep=9, run=agreed["run"])
    for step in steps:
        writer.save(step, {"model": {"w": torch.ones(3)}}, {})
    writer.wait()
    writer.close()
    return agreed


def test_every_run_has_an_identity_of_its_own_and_keeps_it(tmp_path):
    one, two = begun(tmp_path / "one"), begun(tmp_path / "two")
    assert len({one.pop("run"), two.pop("run")}) == 2
    assert one == two == record()
    assert check_run(tmp_path / "one", record()) is None
    assert Run.open(tmp_path / "one").step == 1000


@pytest.mark.parametrize("option", MAY_CHANGE)
def test_what_changes_no_weight_may_change_and_the_config_says_so(tmp_path, option):
    begun(tmp_path)
    other = replace(PLAIN, train=replace(PLAIN.train, **{option: 2000}))
    agreed = check_run(tmp_path, record(other))
    assert agreed == {**Run.open(tmp_path).config, "experiment": to_dict(other)}
    write_config(tmp_path, agreed)
    assert check_run(tmp_path, record(other)) is None


def test_the_layout_may_change(tmp_path):
    begun(tmp_path)
    moved = replace(PLAIN, out="there", train=replace(PLAIN.train, engine=EngineConfig(accumulate=2)))
    assert check_run(tmp_path, record(moved)) is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(PLAIN, width=5), r"experiment\.width 4 against 5"),
        (replace(PLAIN, train=TrainConfig(seed=1)), r"experiment\.train\.seed 0 against 1"),
        (
            replace(PLAIN, train=TrainConfig(optim=OptimConfig(lr=1.0))),
            r"experiment\.train\.optim\.lr 0.001 against 1.0",
        ),
        (replace(PLAIN, train=TrainConfig(ema=0.5)), r"experiment\.train\.ema 0.999 against 0.5"),
    ],
)
def test_what_changes_weights_is_another_run(tmp_path, other, message):
    begun(tmp_path)
    with pytest.raises(InputError, match=rf"holds another run \({message}.*\); choose another folder or remove it"):
        check_run(tmp_path, record(other))
    with pytest.raises(InputError, match=r"holds another run \(its data have changed since, or another build"):
        check_run(tmp_path, {**record(), "data": "y"})
    with pytest.raises(InputError, match=rf"holds another run \({message}"):
        check_run(tmp_path, {**record(other), "data": "y"})


@dataclass(frozen=True)
class OtherExperiment:
    out: str
    depth: int = 2
    train: TrainConfig = field(default_factory=TrainConfig)


def test_a_run_of_another_kind_is_told_by_its_kind(tmp_path):
    """Whose experiment has other options."""
    begun(tmp_path)
    other = Claim(Path("here"), "ar", OtherExperiment("here"), "x").config
    with pytest.raises(InputError, match=r"holds another run \(kind tokenizer against ar\); choose another folder"):
        check_run(tmp_path, other, OtherExperiment)


def test_a_run_of_options_that_are_gone_is_refused_in_words(tmp_path):
    agreed = begun(tmp_path)
    write_config(tmp_path, {**agreed, "experiment": {**agreed["experiment"], "height": 3}})
    with pytest.raises(InputError, match=r"holds a run of options that this version does not have \(.*height: unknown"):
        check_run(tmp_path, record(), Experiment)


def test_a_run_cannot_have_gone_further_than_it_is_to_go(tmp_path):
    begun(tmp_path)
    shorter = replace(PLAIN, train=TrainConfig(steps=999))
    with pytest.raises(InputError, match=r"has 1000 steps behind it; expected train\.steps of as many, got 999"):
        check_run(tmp_path, record(shorter))
    assert check_run(tmp_path, record(replace(PLAIN, train=TrainConfig(steps=1001)))) is not None


def test_before_its_first_checkpoint_all_may_change(tmp_path):
    begun(tmp_path, steps=())
    assert check_run(tmp_path, record()) is None
    agreed = check_run(tmp_path, record(replace(PLAIN, width=9)))
    assert agreed["experiment"]["width"] == 9
    assert agreed["run"] == Run.open(tmp_path).config["run"]


def test_options_that_came_later_have_their_defaults_in_an_older_run(tmp_path):
    begun(tmp_path)
    old = Run.open(tmp_path).config
    del old["run"], old["experiment"]["width"], old["experiment"]["train"]["keep_every"]
    for step in (500, 1000):
        (tmp_path / "checkpoints" / f"step_{step}" / "state.json").write_text(f'{{"step": {step}}}')
    (tmp_path / "config.json").write_text(json.dumps(old))
    agreed = check_run(tmp_path, record(), Experiment)
    assert agreed.pop("run")
    assert agreed == {**old, "experiment": {**old["experiment"], "train": record()["experiment"]["train"]}}
    with pytest.raises(InputError, match=r"holds another run \(experiment\.width 4 against 5\)"):
        check_run(tmp_path, record(replace(PLAIN, width=5)), Experiment)
    for damage in ({**old, "experiment": []}, {**old, "experiment": {"out": 3}}, {**old, "kind": []}, [old]):
        (tmp_path / "config.json").write_text(json.dumps(damage))
        with pytest.raises(InputError, match=r"config\.json: "):
            check_run(tmp_path, record(), Experiment)


def test_a_checkpoint_that_cannot_be_used_is_told_before_anything_is_written(tmp_path):
    begun(tmp_path)
    (tmp_path / "checkpoints" / "step_1000").rename(tmp_path / "checkpoints" / "step_9000")
    with pytest.raises(InputError, match="step_9000: was renamed"):
        check_run(tmp_path, record())


def claim(folder, say=pytest.fail, experiment=PLAIN, **more):
    return claimed(Claim(folder, "tokenizer", experiment, "x"), HERE, say, **more)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("experiment", [PLAIN, replace(PLAIN, width=5), replace(PLAIN, train=TrainConfig(steps=9))])
def test_a_second_run_in_a_folder_is_refused_before_it_touches_anything(tmp_path, experiment):
    folder = tmp_path / "run"
    with claim(folder) as ours:
        before = content(folder)
        with (
            pytest.raises(BusyError, match=f"^{folder}: process .* is at work there"),
            claim(folder, experiment=experiment),
        ):
            pass
        assert content(folder) == before
        ours.check()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json"]
    with claim(folder):
        assert content(folder)


def test_one_that_may_wait_comes_next(tmp_path):
    began, end = threading.Event(), threading.Event()

    def first():
        with claim(tmp_path / "run"):
            began.set()
            end.wait(60)

    other = threading.Thread(target=first)
    other.start()
    assert began.wait(60)
    told = []
    with claim(tmp_path / "run", lambda line: (told.append(line), end.set()), wait=True):
        assert "waits for process" in told[0]
    other.join()


def test_a_folder_that_was_moved_is_not_made_anew(tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    claimed_run = claim(run)
    check = claimed_run.__enter__().check
    check()
    run.rename(moved)
    with pytest.raises(InputError, match=f"^{run}: was moved or removed while the run trained"):
        check()
    assert not run.exists()
    run.mkdir()  # somebody's, by now
    with pytest.raises(InputError, match="was moved or removed"):
        claimed_run.__exit__(None, None, None)
    assert list(run.iterdir()) == []
    with claim(moved):
        pass


def test_a_config_that_went_is_written_again_and_said(tmp_path):
    claimed_run = claim(tmp_path)
    check = claimed_run.__enter__().check
    config = (tmp_path / "config.json").read_bytes()
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: was removed while the run trained; it is written again"):
        check()
    assert (tmp_path / "config.json").read_bytes() == config
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="it is written again"):
        claimed_run.__exit__(None, None, None)
    with claim(tmp_path) as ours:
        ours.check()
