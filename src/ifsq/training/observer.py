"""What is looked at while a model trains: a picture in the run's folder, and figures beside those of the steps.

No weight, no optimizer and no random number of the training is touched, and its clock stands still meanwhile.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from torch import nn

from ifsq.data.transforms import write_png
from ifsq.store.files import make_folder, writing
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World, from_first


@runtime_checkable
class Observer(Protocol):
    """Looks at the averaged weights of a model, each time with the same labels, noise and images.

    Called in every process, with the whole model in eval mode; gives the same in all of them. What one refuses, all
    refuse, as InputError.
    """

    def picture(self, model: Any, world: World) -> UInt8[np.ndarray, "H W c"]:
        """A sheet for people: 8 bits a channel, one channel or three."""

    def figures(self, model: Any, world: World) -> dict[str, float]:
        """Figures by name."""


@dataclass(frozen=True)
class Observed:
    """What there was to see at a step: figures as they are logged, and the file of the picture."""

    figures: dict[str, float]
    picture: Path | None = None


class Observing:
    """An observer, when it looks (``train.sample_every``, ``train.evaluate_every``), and where its pictures lie.

    observer  None where nobody looks
    folder    of the run; pictures are ``samples/step_N.png`` there
    """

    def __init__(self, observer: Observer | None, config: TrainConfig, folder: Path, world: World) -> None:
        self.observer, self.config, self.world = observer, config, world
        self.folder = folder / "samples"

    @property
    def wanted(self) -> bool:
        """Whether there is ever anything to see."""
        return self.observer is not None and bool(self.config.sample_every or self.config.evaluate_every)

    def due(self, step: int) -> bool:
        """Whether it looks after ``step`` steps."""
        return self.wanted and (self._at(self.config.sample_every, step) or self._at(self.config.evaluate_every, step))

    def look(self, step: int, model: nn.Module) -> Observed:
        """What is due at ``step``, in every process; the first one writes the picture. Raises InputError.

        Figures are ``evaluate/NAME``; ``sample/seconds`` and ``evaluate/seconds`` say what looking has taken.
        """
        assert self.observer is not None
        found, path = {}, None
        if self._at(self.config.sample_every, step):
            began = time.perf_counter()
            sheet = self.observer.picture(model, self.world)
            path = from_first(self.world, lambda: self._write(step, sheet))
            found["sample/seconds"] = time.perf_counter() - began
        if self._at(self.config.evaluate_every, step):
            began = time.perf_counter()
            figures = self.observer.figures(model, self.world)
            found |= {f"evaluate/{name}": value for name, value in figures.items()}
            found["evaluate/seconds"] = time.perf_counter() - began
        return Observed(found, path)

    def rewind(self, step: int) -> None:
        """Remove pictures of later steps, which the run will draw again."""
        for path in self.folder.glob("step_*.png") if self.wanted else ():
            number = path.stem.removeprefix("step_")
            if number.isascii() and number.isdigit() and int(number) > step:
                with writing(path):
                    path.unlink(missing_ok=True)

    def _at(self, every: int, step: int) -> bool:
        return bool(every) and (step % every == 0 or step == self.config.steps)

    def _write(self, step: int, sheet: UInt8[np.ndarray, "H W c"]) -> Path:
        make_folder(self.folder)
        path = self.folder / f"step_{step}.png"
        write_png(sheet, path)
        return path
