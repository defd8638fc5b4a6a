"""Quantizers: the bottleneck between encoder and decoder. Readable in one sitting: bounds, digits, fsq."""

from ifsq.quantizers.fsq import FSQ, Quantized

__all__ = ["FSQ", "Quantized"]
