#!/usr/bin/env bash
# One would guess: EMAModel(model.parameters(), model_cls, model_config).save_pretrained(folder) of diffusers writes the model as ema.copy_to shows
# it: averaged parameters, and the buffers that the model has (statistics of a BatchNorm, a codebook that moves by averages).
# What happens (diffusers 0.42.1): it builds a new model from the config and puts the averaged parameters in, so the file has the buffers
# that a model is born with. An AutoencoderKLFlux2, whose BatchNorm holds the mean and variance that latents are normalised with, is saved
# with mean 0 and variance 1. Evaluation during training is right, as copy_to changes parameters alone; the folder is wrong and loads
# without a word. diffusers' training scripts write such a folder at every checkpoint.
# Here: an average is of the whole state, integers taken over, and is saved as it is evaluated (src/ifsq/training/ema.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys
import tempfile

import diffusers
import torch
from diffusers import AutoencoderKLFlux2
from diffusers.training_utils import EMAModel

print("diffusers", diffusers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
model = AutoencoderKLFlux2(
    block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    layers_per_block=1, latent_channels=1, norm_num_groups=4,
)  # fmt: skip
ema = EMAModel(model.parameters(), model_cls=AutoencoderKLFlux2, model_config=model.config)
for _ in range(100):  # latents of mean 5 and variance 9
    model.bn(5 + 3 * torch.randn(64, 4, 2, 2))
    ema.step(model.parameters())
with tempfile.TemporaryDirectory() as folder:
    ema.save_pretrained(folder)
    saved = AutoencoderKLFlux2.from_pretrained(folder)
ema.copy_to(model.parameters())


def show(name, network):
    mean, var = network.bn.running_mean.tolist(), network.bn.running_var.tolist()
    print(f"{name:30} mean {[round(x, 1) for x in mean]}, variance {[round(x, 1) for x in var]}")


show("in training, after copy_to:", model)
show("from the folder it saved:", saved)
alike = all(torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True))
print("parameters alike:", alike)
as_described = alike and not saved.bn.running_mean.any() and bool((model.bn.running_mean > 4).all())
print("as described: the buffers are those of a new model" if as_described else "no longer as described")
sys.exit(not as_described)
PYTHON
