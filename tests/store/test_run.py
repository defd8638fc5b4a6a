"""A run is opened once, and says what its folder holds in one line where it cannot be used."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ifsq.config import InputError
from ifsq.store import run as store
from ifsq.store.run import Run, write_config
from ifsq.training.checkpoint import Writer
from ifsq.training.distributed import World


@dataclass(frozen=True)
class Data:
    source: str
    size: int = 32


@dataclass(frozen=True)
class Experiment:
    data: Data


CONFIG = {"kind": "tokenizer", "experiment": {"data": {"source": "photos"}}, "data": "of these", "run": "this"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_config(tmp_path / "run", CONFIG)
    return tmp_path / "run"


def test_a_run_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(folder)
    monkeypatch.setattr(store, "read_json", lambda _: pytest.fail("was read again"))
    assert (run.kind, run.data, run.trained, run.step) == ("tokenizer", "of these", True, None)
    assert run.experiment(Experiment) == Experiment(Data("photos"))
    assert run.experiment(Data, "data") == Data("photos")  # options that came later have their defaults
    with pytest.raises(InputError, match=rf"^{folder}: holds no checkpoint yet; train it first$"):
        run.weights()


def test_a_section_that_is_not_there_is_named(folder: Path) -> None:
    for place in (("train", "engine"), ("data", "source")):
        with pytest.raises(InputError, match=rf"config\.json: experiment\.{'.'.join(place)}: expected a table"):
            Run.open(folder).table(*place)
    write_config(folder, {"kind": "model", "model": {}})
    assert not Run.open(folder).trained
    with pytest.raises(InputError, match=rf"^{folder}: is not a training run; what it was trained on is not known"):
        Run.open(folder).experiment(Data, "data")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "is not a run of ifsq; expected a JSON object with a kind"),
        ({"kind": 3}, "is not a run of ifsq"),
        (CONFIG | {"experiment": []}, "experiment: expected a JSON object"),
        (CONFIG | {"run": 3}, "run: expected text"),
        (CONFIG | {"data": None}, "data: expected text"),
    ],
)
def test_what_is_no_run_is_refused(config: object, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"config\.json: {message}"):
        Run.open(folder)


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json; expected a run of ifsq"):
        Run.open(tmp_path)
    with pytest.raises(InputError, match="gone: no such folder; expected a run of ifsq"):
        Run.open(str(tmp_path / "gone"))


@pytest.fixture
def trained(folder: Path) -> Run:
    """A run that keeps the steps 4 and 8, whose tensor is the step, and a tenth of it on average."""
    writer = Writer(folder / "checkpoints", World(0, 1, torch.device("cpu")), keep=9, run="this")
    for step in (4, 8):
        tables = {"model": {"w": torch.tensor([float(step)])}, "ema": {"w": torch.tensor([step / 10])}}
        writer.save(step, tables, {"seconds": 1.0, "model": {"kind": "tokenizer"}})
    writer.wait()
    writer.close()
    return Run.open(folder)


@pytest.mark.parametrize(
    ("asked", "step", "value"), [({}, 8, 0.8), ({"step": 4}, 4, 0.4), ({"step": 4, "average": False}, 4, 4.0)]
)
def test_weights_of_any_kept_step_averaged_or_raw(asked: dict[str, int], step: int, value: float, trained: Run) -> None:
    found = trained.weights(**asked)
    assert (found.step, found.load()["w"].item()) == (step, pytest.approx(value))
    assert trained.kept == (4, 8)


def test_a_step_that_is_not_kept_is_refused(trained: Run, folder: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoints: step 5 is not kept; expected one of 4, 8$"):
        trained.weights(5)
    (folder / "checkpoints/step_4/ema.safetensors").unlink()
    with pytest.raises(InputError, match=r"step_4: is unfinished, ema.safetensors is missing; expected another step"):
        trained.weights(4)
    assert trained.kept == (8,)
    write_config(folder, {"kind": "model", "model": {}})
    for asked, told in (({"step": 4}, "step 4"), ({"average": False}, "weights raw")):
        with pytest.raises(InputError, match=rf"is a saved model with one set of weights; got {told}$"):
            Run.open(folder).weights(**asked)


def test_evaluations_of_steps_are_in_a_folder_of_their_own(folder: Path) -> None:
    run = Run.open(folder)
    assert run.evaluated == ()
    for step in (12, 4):
        run.write_evaluation({"cards": [step]}, step=step)
    run.write_evaluation({"cards": [0]}, "_raw", step=8)
    assert run.evaluated == (4, 12)  # what was measured otherwise is no point of the curve
    assert run.evaluation(4) == {"cards": [4]}
    assert run.evaluation(8) is None
    assert (folder / "evaluations/step_8_raw.json").is_file()


def test_evaluations_are_beside_it(folder: Path) -> None:
    run = Run.open(folder)
    assert run.evaluation() is None
    run.write_evaluation({"cards": [1]})
    run.write_evaluation({"cards": [2]}, "_val_9")
    assert run.evaluation() == {"cards": [1]}
    assert json.loads((folder / "evaluation_val_9.json").read_text()) == {"cards": [2]}
    for other in (None, [], {"cards": {}}):
        (folder / "evaluation.json").write_text(json.dumps(other))
        with pytest.raises(InputError, match=r"evaluation\.json: holds no cards; expected what eval wrote, evaluate"):
            run.evaluation()
