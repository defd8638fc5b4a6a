"""What a search of the guidance scale found: the scale that a cell takes, and the figures that it was chosen by."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ifsq.bench.protocol import Better, best_setting
from ifsq.config import InputError, read_json
from ifsq.metrics.seeds import Figures, seed_means
from ifsq.store.files import make_folder, write_text

GUIDANCE = "guidance.json"
"""File of a search in the folder of its stage."""


@dataclass(frozen=True)
class Search:
    """A search of a cell's guidance scale.

    guidance       scale that was chosen
    metric, value  by which
    figures        of every scale, by training seed, one a sampling seed
    """

    guidance: float
    metric: str
    value: str
    figures: Mapping[float, Figures]

    @classmethod
    def best(cls, figures: Mapping[float, Figures], metric: str, value: str, better: Better) -> "Search":
        """The one that takes the scale with the best mean, see `best_setting`."""
        return cls(best_setting(figures, better), metric, value, figures)

    @classmethod
    def read(cls, folder: Path) -> "Search":
        """That of a stage. Raises InputError."""
        table = read_json(folder / GUIDANCE)
        try:
            figures = {
                float(scale): {int(seed): tuple(map(float, drawn)) for seed, drawn in seeds.items()}
                for scale, seeds in table["figures"].items()
            }
            found = cls(float(table["guidance"]), str(table["metric"]), str(table["value"]), figures)
            found.figures[found.guidance]  # is one of them
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            place = folder / GUIDANCE
            raise InputError(f"{place}: is damaged; remove {folder} for the stage to be done again") from error
        return found

    def write(self, folder: Path) -> None:
        """Write it as that of a stage. Raises InputError."""
        make_folder(folder)
        write_text(folder / GUIDANCE, json.dumps(vars(self), indent=1) + "\n")

    @property
    def means(self) -> dict[float, float]:
        """Of each scale, over training seeds of the means over sampling seeds; smallest scale first."""
        return {
            scale: sum(means) / len(means)
            for scale in sorted(self.figures)
            if (means := list(seed_means(self.figures[scale]).values()))
        }
