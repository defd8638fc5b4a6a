"""The autoregressive generator: model (config, loss, sampling loop), heads, block, sample (how an index is drawn)."""

from ifsq.generators.ar.model import ARConfig, ARGenerator

__all__ = ["ARConfig", "ARGenerator"]
