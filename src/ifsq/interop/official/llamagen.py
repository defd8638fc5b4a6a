"""A LlamaGen's keys, the official trainer's and the published files', and ours.

A rename but for the SwiGLU: the official ``w1`` (gate) and ``w3`` (value) are the two halves of our ``w12``.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ifsq.interop.files import bare_name
from ifsq.interop.official.projectors import PROJECTORS

_RENAMES = (
    (r"^(\d+)_emb\.", r"tok_embeddings.\1."),
    (r"^tok_embeddings\.weight", "tok_embeddings.0.weight"),
    (r"^factorized_blocks\.", "head.blocks."),
    (r"^norm\.", "head.norm."),
    (r"^output\.weight", "head.output.0.weight"),
    (r"^output\.", "head.output."),
    (r"\.attention\.wqkv\.", ".attention.qkv."),
    (r"\.attention\.wo\.", ".attention.proj."),
)
_BACK = (
    (r"^head\.blocks\.", "factorized_blocks."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.output\.", "output."),
    (r"\.attention\.qkv\.", ".attention.wqkv."),
    (r"\.attention\.proj\.", ".attention.wo."),
)
GATE, VALUE, OUT = ".feed_forward.w1.weight", ".feed_forward.w3.weight", ".feed_forward.w2.weight"
"""Of REPA's heads, which only training needs."""
CACHES = (".kv_cache.",)
"""Of what decoding has left in the module."""
TABLES = ("freqs_cis",)
"""Of what is computed anew."""


def is_weight(key: str) -> bool:
    """Whether a bare name is one of the model itself."""
    return not key.startswith(PROJECTORS) and not any(part in key for part in (*CACHES, *TABLES))


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official ``model`` or ``ema`` state dict -> that of `ARGenerator` (a REPA projector and caches are left out)."""
    plain = {bare_name(key): value for key, value in state.items()}
    ours: dict[str, Tensor] = {}
    for key, value in plain.items():
        if not is_weight(key):
            continue
        if key.endswith(GATE):
            value = torch.cat([value, plain[key.replace(GATE, VALUE)]])
            key = key.replace(".w1.", ".w12.")
        elif key.endswith(VALUE):
            continue
        elif key.endswith(OUT):
            key = key.replace(".w2.", ".w3.")
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        ours[key] = value
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `from_official`: the state of an `ARGenerator` whose token has one group, or the official head."""
    theirs: dict[str, Tensor] = {}
    single = "tok_embeddings.1.weight" not in state
    for key, value in state.items():
        for pattern, replacement in _BACK:
            key = re.sub(pattern, replacement, key)
        if key.endswith(".feed_forward.w12.weight"):
            gate, up = value.chunk(2)
            theirs[key.replace(".w12.", ".w1.")], theirs[key.replace(".w12.", ".w3.")] = gate, up
            continue
        if key.endswith(".feed_forward.w3.weight"):
            key = key.replace(".w3.", ".w2.")
        if single:
            key = re.sub(r"^(tok_embeddings|output)\.0\.", r"\1.", key)
        theirs[re.sub(r"^tok_embeddings\.(\d+)\.", r"\1_emb.", key)] = value
    return theirs


def without_caches(found: object) -> object:
    """A checkpoint without what decoding has left in its tables; the same object where there is nothing of it."""
    if not isinstance(found, dict):
        return found
    return {
        key: without_caches(value) if isinstance(value, dict) else value
        for key, value in found.items()
        if not (isinstance(key, str) and isinstance(value, Tensor) and any(part in key for part in CACHES))
    }
