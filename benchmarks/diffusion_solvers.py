"""How far each solver and grid ends from a fine solution, by network evaluations, on a trained diffusion generator.

    python benchmarks/diffusion_solvers.py runs/demo/diffusion

Root of the mean square of normalised codes, at guidance 2, of 8 images a seed, three seeds; the fine solution is 30
steps of order 4. An evaluation is of the guided velocity, which asks the network for two rows. Fitted times are fitted
to 8 other noises.
"""

import sys
from itertools import product

import torch

from ifsq.generators import Generator
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling
from ifsq.generators.diffusion.grids import fit_generator_times
from ifsq.generators.diffusion.solvers import rk4, time_grid
from ifsq.generators.streams import normals

EVALUATIONS = {"euler": 1, "ab2": 1, "dpm++2m": 1, "heun": 2, "midpoint": 2, "rk4": 4}
BUDGETS = (8, 16, 32)
FITTED = (("ab2", 8), ("ab2", 16))
IMAGES, SEEDS, ITERATIONS = 8, (0, 1, 2), 15


def main(folder: str) -> None:
    model = Generator.from_pretrained(folder)
    assert isinstance(model, DiffusionGenerator)
    labels = torch.arange(IMAGES) % model.num_classes
    shape = (model.code_dim, *model.spec.grid)
    guided = DiffusionSampling(2.0)

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model.velocity(x, t, labels, guided)

    def errors(sampling: DiffusionSampling) -> str:
        with torch.inference_mode():
            found = [
                float((sampling.solve(velocity, noise, model.path) - target).square().mean().sqrt())
                for noise, target in zip(noises, targets, strict=True)
            ]
        return f"{sum(found) / len(found):.4f} ({min(found):.4f} to {max(found):.4f})"

    with torch.inference_mode():
        noises = [normals(seed, 0, IMAGES, model.code_dim * model.spec.tokens).unflatten(1, shape) for seed in SEEDS]
        targets = [rk4(velocity, noise, time_grid(30)) for noise in noises]
    print("| solver | times | " + " | ".join(f"{budget} evaluations" for budget in BUDGETS) + " |")
    print("|---|---|" + "---|" * len(BUDGETS), flush=True)
    for shift, (name, each) in product((0.0, 0.5), EVALUATIONS.items()):
        row = [errors(DiffusionSampling(2.0, n // each, name, timestep_shift=shift)) for n in BUDGETS]
        print(f"| {name} | {f'shift {shift}' if shift else 'even'} | " + " | ".join(row) + " |", flush=True)
    for name, steps in FITTED:
        fitted = fit_generator_times(model, DiffusionSampling(2.0, steps, name), IMAGES, ITERATIONS)
        shown = ", ".join(f"{t:.3f}" for t in fitted.times)
        print(
            f"{name}, {steps} steps, fitted: {errors(DiffusionSampling(2.0, solver=name, times=fitted.times))}; {shown}"
        )


if __name__ == "__main__":
    main(sys.argv[1])
