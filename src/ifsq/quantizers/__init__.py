"""Quantizers: the bottleneck between encoder and decoder.

Read `record`, `bounds`, `cells`, `digits`, `lattice`, `fused`, `rounding`, `fsq` in this order.
"""

from ifsq.quantizers.continuous import KL, Identity
from ifsq.quantizers.fsq import FSQ
from ifsq.quantizers.lookup_free import BSQ, LFQ
from ifsq.quantizers.record import Quantized
from ifsq.quantizers.residual import ResidualFSQ
from ifsq.quantizers.vq import VQ

__all__ = ["BSQ", "FSQ", "KL", "LFQ", "VQ", "Identity", "Quantized", "ResidualFSQ"]
