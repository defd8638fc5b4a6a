"""Quantizers: the bottleneck between encoder and decoder. Readable in one sitting: record, bounds, cells, digits, fsq."""

from ifsq.quantizers.fsq import FSQ
from ifsq.quantizers.record import Quantized, Quantizer

__all__ = ["FSQ", "Quantized", "Quantizer"]
