"""``import official``: what a checkpoint holds, told by its tensors, and its import.

A tokenizer of the official trainer, with its config beside it, or LlamaGen's tokenizer. Whatever else a file holds is
kept in the folder, so that its export is the file again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifsq.config import InputError
from ifsq.interop.files import read_checkpoint
from ifsq.interop.official.checkpoint import choose_weights, kind_of
from ifsq.interop.official.llamagen_vq import own_tensors, read_vq
from ifsq.interop.official.sidecar import write_sidecar
from ifsq.interop.official.tokenizer import import_found
from ifsq.interop.official.tokenizer_config import read_official_config
from ifsq.store.files import check_free
from ifsq.store.model import new_folder
from ifsq.store.model_card import Provenance, code_span
from ifsq.store.weights import tensors_digest

READ = {"llamagen": "a LlamaGen", "llamagen vq": "a tokenizer of LlamaGen"}
OTHERS = {
    "dit": "an official DiT, which is not read; expected a tokenizer or a LlamaGen",
    "llamagen t2i": "a text-conditional LlamaGen, which is not read; expected a class-conditional one",
}


@dataclass(frozen=True)
class Asked:
    """What a person says of a checkpoint.

    config   JSON of a tokenizer of the official trainer, which has none inside
    weights  ``ema`` or ``raw``; None: the averaged ones, of other files than that trainer's where they have any
    """

    config: Path | None = None
    weights: str | None = None


def import_checkpoint(path: Path, out: Path, asked: Asked | None = None) -> list[str]:
    """Read a checkpoint and save its model in the folder ``out``, whole or not at all; returns lines about it.

    Raises InputError when ``out`` is taken, a file is damaged or holds something else, or says too little.
    """
    asked = asked or Asked()
    check_free(out)
    config = None if asked.config is None else read_official_config(asked.config)
    found = read_checkpoint(path)
    kind = kind_of(found)
    if kind in OTHERS:
        raise InputError(f"{path}: holds {OTHERS[kind]}")
    if kind == "tokenizer":
        if config is None or asked.config is None:
            raise InputError(f"{path}: holds no model by its own tensors; of an official tokenizer expected --config")
        import_found(found, config, path, asked.config, asked.weights or "ema", out)
        return [f"tokenizer: {out}"]
    if kind == "llamagen":
        raise InputError(f"{path}: holds a LlamaGen, which is not read yet; expected a tokenizer")
    if config is not None:
        raise InputError(f"{path}: holds {READ[kind]}, whose tensors tell its sizes; expected no --config")
    return _import_vq(found, path, asked, out)


def _import_vq(found: Any, path: Path, asked: Asked, out: Path) -> list[str]:
    place, table = choose_weights(found, asked.weights, path)
    tokenizer = read_vq(table, _where(path, place))
    with new_folder(out) as partial:
        tokenizer.save_pretrained(partial, Provenance(notes=(_note(path, place),)))
        own = own_tensors(tokenizer)
        write_sidecar(partial, found, {}, own, tensors_digest(own), path.stat().st_size)
    config = tokenizer.config
    size = f"f{tokenizer.factor}, {config.quantizer.codebook_size} codes of {config.quantizer.dim}"
    return [f"tokenizer: {out}, LlamaGen's of {size}"]


def _where(path: Path, place: str) -> str:
    return f"{path}: {place}".rstrip(": ")


def _note(path: Path, place: str) -> str:
    which = {"": "", "ema": ", averaged weights"}.get(place, ", unaveraged weights")
    return f"Imported from {code_span(path.name)}{which}."
