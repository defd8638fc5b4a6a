"""The tokenizers of the official repository (FSQ, VAE, VQ), in and out of its trainer's ``.ckpt``.

The file is a pickle, opened with ``weights_only=True`` alone: ``{epoch, current_step, optimizer_state, state_dict:
{gen_model, dics_model}, ema_state_dict}``; the model's JSON lies beside it. Parameter names are those of `Tokenizer`. A
plain table of these tensors, also as safetensors, is read too.
Left out on the way in: the running mean and variance of the latent, which only its log reads, and the averages that its
EMA takes of integer tables (``_basis`` of ``[9]*6`` drifts from 59049 to 59049.59); `sidecar` keeps them for the way
out.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifsq.config import InputError, read_json
from ifsq.interop.assemble import assemble
from ifsq.interop.files import read_checkpoint
from ifsq.interop.official.checkpoint import find_weights, is_of_the_trainer
from ifsq.interop.official.sidecar import read_sidecar, write_sidecar
from ifsq.interop.official.tokenizer_config import official_config, read_official_config
from ifsq.store.files import make_folder, whole_file, write_text
from ifsq.store.model import new_folder
from ifsq.store.model_card import Provenance, code_span
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

DROPPED = re.compile(r"quantize\.(_levels|_basis|_basis_group_\d+|running_mean|running_var)")
WRAPPED_NORM = re.compile(r"(norm\w*)\.norm\.(weight|bias)$")  # a layer norm inside a module of its own


def read_official(path: Path, config_path: Path, weights: str = "ema") -> Tokenizer:
    """The tokenizer of an official checkpoint, float32, on the CPU, in eval mode.

    path     a ``.ckpt`` of the trainer; or a state dict of the model alone, by ``torch.save`` or as ``.safetensors``
    weights  of a ``.ckpt``: ``ema`` (averaged; the official trainer keeps none unless it is asked to) or ``raw``

    Raises InputError when a file is damaged, holds another model, no such weights, or tensors that are not those of the
    config or not finite.
    """
    if weights not in ("ema", "raw"):
        raise InputError(f"weights {weights!r}: expected 'ema' or 'raw'")
    config = read_official_config(config_path)
    return _tokenizer(config, read_checkpoint(path), path, config_path, weights)


def import_found(found: Any, config: TokenizerConfig, path: Path, config_path: Path, weights: str, out: Path) -> None:
    """`read_official` of what was read already, saved in the folder ``out``, whole or not at all.

    All else that a ``.ckpt`` of the trainer holds is kept beside it.
    """
    tokenizer = _tokenizer(config, found, path, config_path, weights)
    whole = is_of_the_trainer(found)
    averaged = {"ema": ", averaged weights", "raw": ", unaveraged weights"}[weights] if whole else ""
    with new_folder(out) as partial:
        tokenizer.save_pretrained(partial, Provenance(notes=(f"Imported from {code_span(path.name)}{averaged}.",)))
        if whole:
            state, size = _state(tokenizer), path.stat().st_size
            write_sidecar(partial, found, read_json(config_path), state, tokenizer.digest(), size)


def export_tokenizer(tokenizer: Tokenizer, folder: Path, path: Path) -> Path:
    """`write_official` of the tokenizer read from ``folder``; an imported one comes out tensor by tensor as it was."""
    return write_official(tokenizer, path, read_sidecar(folder, _state(tokenizer), tokenizer.digest()))


def write_official(tokenizer: Tokenizer, path: Path, kept: tuple[Any, Any] | None = None) -> Path:
    """Write ``path`` (``.ckpt``) as the official trainer does, and its config beside it, which is returned.

    kept  what `read_sidecar` gives: the checkpoint and config that are written in place of new ones

    In new ones the weights stand under both names, ``gen_model`` and ``ema_state_dict``: the official generators read
    the second, and go on with random weights where it is empty. Raises InputError for a tokenizer that the official
    classes cannot hold, and when a file is there already.
    """
    if path.suffix != ".ckpt":
        raise InputError(f"{path}: expected a name that ends in .ckpt")
    config_path = path.with_suffix(".config.json")
    saved, config = (_as_saved(tokenizer), official_config(tokenizer, path)) if kept is None else kept
    for file in (path, config_path):
        if file.exists():
            raise InputError(f"{file}: exists; choose another name or remove it")
    make_folder(path.parent)
    with whole_file(path) as partial:
        with partial.open("wb") as stream:
            torch.save(saved, stream)
        write_text(config_path, json.dumps(config, indent=1) + "\n")
    return config_path


def official_tensors(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The state of a tokenizer under its official names, float32; running statistics are those of a new model."""
    tensors = {key: value.float().cpu().contiguous() for key, value in _state(tokenizer).items()}
    if tokenizer.quantizer.lattice is None:
        return tensors
    width = (1, tokenizer.quantizer.dim, 1, 1)
    return {**tensors, "quantize.running_mean": torch.zeros(width), "quantize.running_var": torch.ones(width)}


def _state(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The tokenizer's tensors by official names."""
    return {_official_name(key): value.detach() for key, value in tokenizer.state_dict().items()}


def _official_name(key: str) -> str:
    return f"quantize.{key.removeprefix('quantizer.')}" if key.startswith("quantizer.") else key


def _own_name(key: str) -> str:
    return f"quantizer.{key.removeprefix('quantize.')}" if key.startswith("quantize.") else key


def _as_saved(tokenizer: Tokenizer) -> dict[str, Any]:
    tensors = official_tensors(tokenizer)
    return {
        "epoch": 0,
        "current_step": 0,
        "optimizer_state": {},
        "state_dict": {"gen_model": tensors, "dics_model": {}},
        "ema_state_dict": {f"module.{key}": value for key, value in tensors.items()},
    }


def _tokenizer(config: TokenizerConfig, found: Any, path: Path, config_path: Path, weights: str) -> Tokenizer:
    table = find_weights(found, weights, path)
    if levels := config.quantizer.scalar_levels:
        _check_levels(table, levels, path, config_path)
    if config.conv.norm == "layer":
        table = {WRAPPED_NORM.sub(r"\1.\2", key): value for key, value in table.items()}
    table = {_own_name(key): value for key, value in table.items() if not DROPPED.fullmatch(key)}
    return assemble(config, table, f"{path}, read by {config_path}")


def _check_levels(table: dict[str, Tensor], levels: tuple[int, ...], path: Path, config_path: Path) -> None:
    """The averaged weights hold the levels, which no shape tells."""
    key = "quantize._levels"
    if key in table and tuple(table[key].double().flatten().round().tolist()) != levels:
        found = [round(level) for level in table[key].double().flatten().tolist()]
        raise InputError(f"{path}: {key!r} is {found}; expected {list(levels)}, the levels in {config_path}")
