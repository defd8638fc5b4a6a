"""Where the files of an ``AutoencoderKL`` of diffusers are: by itself or in ``vae/`` of a pipeline, here or on the hub.

Weights are safetensors, in one file or in several with an index, in float32 or else in half precision.
"""

import re
from pathlib import Path

from torch import Tensor

from ifsq.config import InputError, read_json
from ifsq.store.hub import locate
from ifsq.store.weights import read_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLE = "diffusion_pytorch_model.bin"
INDEX = "diffusion_pytorch_model.safetensors.index"
VARIANTS = ("", ".fp16", ".bf16")
"""What a file's name says of its precision, float32 first."""
CONFIG, PIPELINE, BELOW = "config.json", "model_index.json", "vae"
PART = re.compile(r"[\w-][\w.-]*\.safetensors")


def fetch(source: str, revision: str | None = None) -> Path:
    """The autoencoder's folder; of the hub's files no more than it takes.

    source    its folder or a pipeline's, or a repository ``owner/name`` where no such folder is
    revision  of the repository

    Raises InputError when the hub does not give them.
    """
    root = locate(source, revision, (), (CONFIG, PIPELINE, f"{BELOW}/{CONFIG}"))
    below = Path(BELOW if (root / PIPELINE).is_file() else "")
    for name in _names():
        locate(source, revision, (), (str(below / name),))
        if (file := root / below / name).is_file():
            parts = set(_index(file).values()) if file.suffix == ".json" else ()
            locate(source, revision, tuple(str(below / part) for part in sorted(parts)))
            break
    return root / below


def weights_in(folder: Path) -> Path:
    """The file of weights, or the index of several. Raises InputError when there is neither."""
    found = next((folder / name for name in _names() if (folder / name).is_file()), None)
    if found is None:
        told = f"{PICKLE} alone, a pickle" if (folder / PICKLE).is_file() else "no weights"
        raise InputError(f"{folder}: holds {told}; expected {WEIGHTS}, as save_pretrained of diffusers writes it")
    return found


def read_parts(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of all that an index names. Raises InputError when they are not those it names."""
    if path.suffix != ".json":
        return read_tensors(path)
    index = _index(path)
    table: dict[str, Tensor] = {}
    for part in sorted(set(index.values())):
        found = read_tensors(path.parent / part)
        expected = {name for name, file in index.items() if file == part}
        if different := sorted(found.keys() ^ expected):
            told = "holds no" if different[0] in expected else "holds also"
            raise InputError(f"{path.parent / part}: {told} {different[0]!r}; expected what {path.name} says of it")
        table |= found
    return table


def _names() -> list[str]:
    """Of files and of indexes, in the order in which they are looked for."""
    stem, ending = WEIGHTS.split(".")
    return [name for variant in VARIANTS for name in (f"{stem}{variant}.{ending}", f"{INDEX}{variant}.json")]


def _index(path: Path) -> dict[str, str]:
    """File by tensor."""
    found = read_json(path)
    table = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(table, dict) or not table:
        raise InputError(f"{path}: holds no weight_map; expected the index of weights in several files")
    for name in table.values():
        if not isinstance(name, str) or not PART.fullmatch(name):
            raise InputError(f"{path}: weight_map: {name!r}; expected names of .safetensors files beside it")
    return table
