"""The official DiT checkpoint's keys and ours. Called by the tests.

The names agree; the fixed position tables and the REPA projectors are not parameters of ours.
"""

from torch import Tensor

_DROPPED = ("pos_embed", "feat_rope.", "projectors.")


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official ``model`` (with its ``module.`` prefix) or ``ema`` state dict -> that of ``DiffusionGenerator.dit``."""
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: value for key, value in plain.items() if not key.startswith(_DROPPED)}
