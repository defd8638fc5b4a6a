#!/usr/bin/env bash
# One would guess: add_noise(images, noise, t) of any scheduler of diffusers for the same betas gives the noise of step t: alpha_t and sigma_t are
# the betas' own, and t = 0 is the least.
# What happens (diffusers 0.42.1): DPMSolverMultistep, DPMSolverSinglestep, DEIS and UniPC look t up in a list of steps. Before set_timesteps,
# as in a training, the steps run down and the sigmas up, so t gets the noise of 999 - t: t = 0 is nearly all noise, t = 999 nearly
# none, and a network learns everything backwards. After set_timesteps(10) (a sampling for a look at the training) a t that is not one of the
# ten gets the noise of the last of them. No error, no warning; DDPM, DDIM, PNDM, Euler and SASolver are right or refuse.
# Here: a path makes its own alpha and sigma, for training and sampling alike (src/ifsq/generators/diffusion/path.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys

import diffusers
import torch

print("diffusers", diffusers.__version__, "torch", torch.__version__)
t = torch.tensor([0, 10, 500, 989, 999])
kept = diffusers.DDPMScheduler().alphas_cumprod  # the default betas are alike in all of them
right = (1 - kept[t]).sqrt()
backwards = (1 - kept[999 - t]).sqrt()


def sigmas(scheduler):
    """What add_noise multiplies the noise by, at each t."""
    return scheduler.add_noise(torch.zeros(len(t), 1), torch.ones(len(t), 1), t).flatten()


def show(numbers):
    return " ".join(f"{x:.3f}" for x in numbers.tolist())


print(f"t = {t.tolist()}: noise {show(right)}")
wrong = {}
for name in ("DDPM", "DDIM", "PNDM", "SASolver", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep"):
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    before = sigmas(scheduler)
    scheduler.set_timesteps(10)
    after = sigmas(scheduler)
    print(f"{name:20} before set_timesteps {show(before)}; after {show(after)}")
    wrong[name] = torch.allclose(before, backwards, atol=1e-4) and abs(after[0] - right[0]) > 0.3
as_described = list(wrong.values()) == [False] * 4 + [True] * 4
print("as described: four of them run backwards" if as_described else "no longer as described")
sys.exit(not as_described)
PYTHON
