"""The official LlamaGen checkpoint's keys and ours.

A rename but for the SwiGLU: the official ``w1`` (gate) and ``w3`` (value) are the two halves of our ``w12``.
"""

import re

import torch
from torch import Tensor

from ifsq.interop.files import bare_name

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
_DROPPED = (".kv_cache.", "projectors.", "freqs_cis")


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official ``model`` or ``ema`` state dict -> that of `ARGenerator` (a REPA projector and caches are left out)."""
    plain = {bare_name(key): value for key, value in state.items()}
    ours: dict[str, Tensor] = {}
    for key, value in plain.items():
        if any(part in key for part in _DROPPED):
            continue
        if key.endswith("feed_forward.w1.weight"):
            value = torch.cat([value, plain[key.replace(".w1.", ".w3.")]])
            key = key.replace(".w1.", ".w12.")
        elif key.endswith("feed_forward.w3.weight"):
            continue
        else:
            key = key.replace("feed_forward.w2.", "feed_forward.w3.")
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        ours[key] = value
    return ours
