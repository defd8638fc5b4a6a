#!/usr/bin/env bash
# One would guess: a residual quantizer of vector-quantize-pytorch is straight through like a quantizer of one stage: its output stands for
# its input, so the gradient reaches the encoder as it is, however many stages there are.
# What happens (vector-quantize-pytorch 1.32.0): every stage passes the whole gradient to the input, and the residual between stages is
# detached, so n stages give the encoder n times the gradient: ResidualVQ, ResidualSimVQ and ResidualLFQ exactly, ResidualFSQ but for what
# its clamps hold back. With quantize_dropout the factor is another at every step. Adam hides it where reconstruction is the only loss;
# beside a loss on the latent (alignment, commitment), or under a clip of the gradient's norm, the balance moves with n. ResidualVQ alone has
# a way out, quant_grad_frac=1.0, which its README does not name.
# Here: `ResidualFSQ` of src/ifsq/quantizers/residual.py has the gradient of its bound alone, for any number of stages.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 vector-quantize-pytorch==1.32.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from vector_quantize_pytorch import ResidualFSQ, ResidualLFQ, ResidualSimVQ, ResidualVQ

print("vector-quantize-pytorch", version("vector-quantize-pytorch"), "torch", torch.__version__)
torch.manual_seed(0)
z = 0.01 * torch.randn(8, 16, 4)  # small, so that no clamp weakens the gradient
kinds = {
    "ResidualVQ": lambda n: ResidualVQ(dim=4, codebook_size=16, num_quantizers=n, rotation_trick=False),
    "ResidualSimVQ": lambda n: ResidualSimVQ(dim=4, codebook_size=16, num_quantizers=n, rotation_trick=False),
    "ResidualLFQ": lambda n: ResidualLFQ(dim=4, codebook_size=16, num_quantizers=n),
    "ResidualFSQ": lambda n: ResidualFSQ(levels=[5, 5, 5, 5], num_quantizers=n),
}


def slope(quantizer, **options):
    """Mean derivative of the output's sum by the input; 1 is straight through."""
    x = z.clone().requires_grad_()
    return torch.autograd.grad(quantizer(x, **options)[0].sum(), x)[0].mean().item()


stages = (1, 2, 4, 8)
found = {name: [slope(kind(n)) for n in stages] for name, kind in kinds.items()}
print("gradient that reaches the encoder, by stages", *stages, "(straight through: 1)")
for name, slopes in found.items():
    print(f"{name:14}", *(f"{s:.2f}" for s in slopes))
whole = ResidualVQ(dim=4, codebook_size=16, num_quantizers=8, rotation_trick=False, quant_grad_frac=1.0)
print(f"ResidualVQ, 8 stages, quant_grad_frac=1.0: {slope(whole):.2f}")
dropping = ResidualFSQ(levels=[5, 5, 5, 5], num_quantizers=8, quantize_dropout=True)
print("ResidualFSQ, 8 stages, quantize_dropout, six steps:", *(f"{slope(dropping, rand_quantize_dropout_fixed_seed=i):.2f}" for i in range(6)))
as_described = all(0.8 * n < s < 1.01 * n for slopes in found.values() for n, s in zip(stages, slopes))
print("as described: multiplied by the stages" if as_described else "no longer as described")
sys.exit(not as_described)
PYTHON
