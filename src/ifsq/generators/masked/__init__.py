"""The masked generator: digits are hidden in training, and sampling reveals them in a few rounds."""

from ifsq.generators.masked.config import MaskedConfig
from ifsq.generators.masked.generator import MaskedGenerator
from ifsq.generators.masked.sampling import MaskedSampling

__all__ = ["MaskedConfig", "MaskedGenerator", "MaskedSampling"]
