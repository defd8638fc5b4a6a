"""Generators of codes given a class: autoregressive, diffusion and masked, behind one face, and their registry."""

from ifsq.generators.ar import ARGenerator
from ifsq.generators.base import Generator, Sampling
from ifsq.generators.diffusion import DiffusionGenerator
from ifsq.generators.masked import MaskedGenerator
from ifsq.generators.origin import Origin

__all__ = ["ARGenerator", "DiffusionGenerator", "Generator", "MaskedGenerator", "Origin", "Sampling"]
