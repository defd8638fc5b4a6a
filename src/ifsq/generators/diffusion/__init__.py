"""The diffusion generator: model (config, velocity network), flow (loss and sampling), sample (solvers and cost)."""

from ifsq.generators.diffusion.flow import DiffusionGenerator
from ifsq.generators.diffusion.model import DiTConfig
from ifsq.generators.diffusion.sample import function_evaluations

__all__ = ["DiTConfig", "DiffusionGenerator", "function_evaluations"]
