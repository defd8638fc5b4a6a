"""Generators of codes given a class: autoregressive and diffusion, behind one face. Both kinds are registered here."""

from ifsq.generators.ar import ARGenerator
from ifsq.generators.base import Generator, Sampling
from ifsq.generators.diffusion import DiffusionGenerator
from ifsq.generators.origin import Origin

__all__ = ["ARGenerator", "DiffusionGenerator", "Generator", "Origin", "Sampling"]
