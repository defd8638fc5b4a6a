"""The official DiT checkpoint's keys and ours.

The names agree; the fixed position tables and the REPA projectors are not parameters of ours.
"""

from torch import Tensor

from ifsq.interop.files import bare_name

_DROPPED = ("pos_embed", "feat_rope.", "projectors.")


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official ``model`` or ``ema`` state dict -> that of ``DiffusionGenerator.dit``."""
    plain = {bare_name(key): value for key, value in state.items()}
    return {key: value for key, value in plain.items() if not key.startswith(_DROPPED)}
