"""The Triton kernels against the eager arithmetic: interpreted on a CPU, compiled on a GPU (`make gpu`)."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import ifsq
from ifsq.quantizers.rounding import Rounding

OPTIONS = [
    {"levels": [17] * 4},
    {"levels": [17] * 4, "groups": [1, 3], "digit_order": "big"},
    {"levels": [8, 8, 8, 5], "bound": "tanh"},
    {"levels": [300, 5], "bound": "gaussian", "cells": "equal", "num_codebooks": 2},
    {"levels": [9, 4, 2, 6], "bound": "clamp", "cells": "symmetric", "groups": [2, 2]},
    {"levels": [17] * 4, "bound": "standardized", "cells": "equal", "keep_num_codebooks_dim": True},
    {"levels": [5] * 4, "dim": 6},
]


def compare(device: str) -> None:
    """Every option, image and sequence, three types, contiguous and channels-last: codes, digits, indices, gradient."""
    rng = torch.Generator().manual_seed(0)
    for options in OPTIONS:
        q = ifsq.FSQ(**options).to(device).eval()
        for shape in ((2, q.dim, 7, 9), (3, 50, q.dim)):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                if q.has_projections and dtype != torch.float32:
                    continue
                for memory in (torch.contiguous_format, torch.channels_last)[: len(shape) - 2]:
                    z = (1.5 * torch.randn(shape, generator=rng)).to(device, dtype)
                    z = z.contiguous(memory_format=memory) if z.ndim == 4 else z
                    weight = torch.randn(shape, generator=rng).to(device, dtype)
                    got, kernel = run(q, z, weight, True)
                    expected, eager = run(q, z, weight, False)
                    assert torch.equal(got.packed_digits, expected.packed_digits), options
                    assert torch.equal(got.indices, expected.indices), options
                    assert got.indices.shape == expected.indices.shape
                    torch.testing.assert_close(got.codes, expected.codes)
                    torch.testing.assert_close(kernel, eager, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=1e-2)

    q = ifsq.FSQ([17] * 4, bound="tanh").to(device)
    z = torch.randn(5, 4, device=device)
    z[2, 1] = float("nan")
    q.rounding._has_kernels = lambda *_: True
    q.validate = False
    with torch.inference_mode():  # what is kept from here must serve training
        assert q(z).codes.isnan().sum() == 1
    q(z.requires_grad_()).codes[0].sum().backward()
    q.round_by(Rounding(replace(q.lattice, cells="equal")))
    q.rounding._has_kernels = lambda *_: True
    assert torch.equal(q(z).digits[0], ifsq.FSQ([17] * 4, bound="tanh", cells="equal").to(device)(z[:1]).digits[0])


def run(q: ifsq.FSQ, z: torch.Tensor, weight: torch.Tensor, kernels: bool):
    z = z.detach().clone().requires_grad_()
    q.rounding._has_kernels = lambda *_: kernels
    out = q(z)
    (out.codes * weight).sum().backward()
    return out, z.grad


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton comes with CUDA builds of torch alone")
def test_interpreted():
    # The interpreter is chosen when the kernels are first imported, so it takes a process of its own.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_triton; test_triton.compare('cpu')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
def test_compiled_on_a_gpu():
    compare("cuda")
