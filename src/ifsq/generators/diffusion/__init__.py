"""The diffusion generator.

``config`` sizes, ``network`` the velocity network (DiT), ``path`` from noise to data, ``solvers`` and ``sde`` along it,
``sampling`` their options, ``generator`` loss and sampling.
"""

from ifsq.generators.diffusion.config import DiTConfig
from ifsq.generators.diffusion.generator import DiffusionGenerator
from ifsq.generators.diffusion.sampling import DiffusionSampling

__all__ = ["DiTConfig", "DiffusionGenerator", "DiffusionSampling"]
