"""The keys of a DiT, the official trainer's and those of the published DiT and SiT, and ours.

The names agree. The fixed position tables are tensors there, and no parameters of ours; REPA's projectors lie beside
the model.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ifsq.config import InputError
from ifsq.generators.diffusion.network import DiT
from ifsq.interop.files import bare_name
from ifsq.interop.official.projectors import PROJECTORS

OURS = "dit."
"""Of the network in the state of a `DiffusionGenerator`."""
POSITIONS = "pos_embed"
TURNS = "feat_rope."
OUTPUTS = ("final_layer.linear.weight", "final_layer.linear.bias")
CLOSE = 1e-2  # of tables in half precision


def is_weight(key: str) -> bool:
    """Whether a bare name is one of the network's parameters."""
    return not key.startswith((PROJECTORS, TURNS)) and key != POSITIONS


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official ``model`` or ``ema`` state dict -> that of ``DiffusionGenerator.dit``."""
    plain = {bare_name(key): value for key, value in state.items()}
    return {key: value for key, value in plain.items() if is_weight(key)}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of a `DiffusionGenerator` -> the parameters of its network by their official names."""
    return {key.removeprefix(OURS): value for key, value in state.items() if key.startswith(OURS)}


def tables_of(network: DiT) -> dict[str, Tensor]:
    """The fixed tables by their official names: positions, and cosines and sines twice, as for each of a pair."""
    tables = {POSITIONS: network.positions.table[None]}
    if network.rope is not None:
        for name, part in zip(("cos", "sin"), network.rope.table.unbind(-1), strict=True):
            tables[f"{TURNS}freqs_{name}"] = part.repeat_interleave(2, dim=1)
    return {key: value.detach().float().cpu().contiguous() for key, value in tables.items()}


def check_tables(table: Mapping[str, Tensor], network: DiT, where: str) -> None:
    """Raise InputError naming a fixed table of a file that is not the network's own."""
    own = tables_of(network)
    for key in (key for key in table if key == POSITIONS or key.startswith(TURNS)):
        if key not in own:
            raise InputError(f"{where}: tensor {key!r} is not part of this model")
        given, grid = table[key].float(), "x".join(map(str, network.tokens))
        if given.shape != own[key].shape or not torch.allclose(given, own[key], atol=CLOSE, rtol=0):
            raise InputError(f"{where}: tensor {key!r} is not the fixed table of a grid of {grid} tokens")


def first_half(table: Mapping[str, Tensor], channels: int, patch: int) -> dict[str, Tensor]:
    """The same with an output of so many channels in place of twice as many; others' shapes are left as they are."""
    halved = dict(table)
    for key in OUTPUTS:
        value = table.get(key)
        if value is not None and value.shape[:1] == (patch**2 * 2 * channels,):
            halved[key] = value.unflatten(0, (patch**2, 2 * channels))[:, :channels].flatten(0, 1).contiguous()
    return halved
