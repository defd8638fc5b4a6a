"""Quantizers and tokenizers of many settings compiled one after another in one process, without a reset between them.

A compiler takes a module's numbers as constants the first time and, where it meets the same attribute with another
value, as symbols: what it does wrong with those shows at the second module only. Each sequence runs in a process of its
own, which also keeps the tests' shape checks away, for a compiler cannot trace them.

    python tests/quantizers/test_compiled_in_turn.py --order 1 --dynamic default
"""

import argparse
import copy
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import ifsq
from ifsq.quantizers import BSQ, FSQ, KL, LFQ, VQ, ResidualFSQ
from ifsq.quantizers.bounds import BOUNDS
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import TokenizerConfig

IMAGE, SEQUENCE = (2, 0, 3, 4), (2, 6, 0)  # shapes of latents; 0 stands for the channels

# What is compiled, and on what. Level counts, slopes, weights and shapes differ from one to the next.
QUANTIZERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "5 levels": (lambda: FSQ([5] * 3), (2, 16, 0)),
    "9 levels": (lambda: FSQ([9] * 3), SEQUENCE),
    "17 levels, three groups": (lambda: FSQ([17] * 6, groups=[1, 2, 3]), IMAGE),
    "17 levels, big": (lambda: FSQ([17] * 4, digit_order="big", alpha=1.7), IMAGE),
    "mixed levels": (lambda: FSQ([3, 5, 33], alpha=1.5), IMAGE),
    "tanh, 4 levels": (lambda: FSQ([4] * 3, bound="tanh"), SEQUENCE),
    "tanh, 8 levels": (lambda: FSQ([8] * 3, bound="tanh"), IMAGE),
    "tanh, mixed levels": (lambda: FSQ([8, 5, 6], bound="tanh"), SEQUENCE),
    "gaussian, symmetric": (lambda: FSQ([6] * 4, bound="gaussian", cells="symmetric"), IMAGE),
    "clamp, equal": (lambda: FSQ([16] * 4, bound="clamp", cells="equal"), SEQUENCE),
    "two codebooks, projected": (lambda: FSQ([33] * 2, dim=6, num_codebooks=2, orthogonal_rotation=True), SEQUENCE),
    "noise": (lambda: FSQ([65] * 3, noise_dropout=0.3, quantization_dropout=0.1), IMAGE),
    "more noise": (lambda: FSQ([129] * 2, cells="equal", noise_dropout=0.6, quantization_dropout=0.2), SEQUENCE),
    "standardized": (lambda: fitted(FSQ([17] * 4, bound="standardized")), IMAGE),
    "standardized, mixed levels": (lambda: fitted(FSQ([8, 16, 4], bound="standardized", cells="equal")), SEQUENCE),
    "quantile": (lambda: fitted(FSQ([16] * 3, bound="quantile", cells="equal")), SEQUENCE),
    "quantile, 9 levels": (lambda: fitted(FSQ([9] * 4, bound="quantile")), IMAGE),
    "learned": (lambda: fitted(FSQ([33] * 3, bound="learned")), SEQUENCE),
    "learned, equal": (lambda: fitted(FSQ([8] * 4, bound="learned", cells="equal")), IMAGE),
    "residual": (lambda: ResidualFSQ([4] * 3, 3), IMAGE),
    "residual, standardized": (lambda: fitted(ResidualFSQ([5, 3], 4, bound="standardized")), SEQUENCE),
    "VQ": (lambda: spread(VQ(12, 4)), IMAGE),
    "VQ, averages": (lambda: spread(VQ(9, 3, ema=True, ema_decay=0.9, commitment_weight=0.5)), SEQUENCE),
    "VQ, unit sphere, revived": (lambda: spread(VQ(32, 5, normalize=True, revive_after=1)), IMAGE),
    "LFQ": (lambda: LFQ(6, temperature=0.3, diversity_gamma=0.7), IMAGE),
    "LFQ, groups": (lambda: LFQ(5, temperature=0.5, groups=[2, 3], entropy_weight=0.2), SEQUENCE),
    "BSQ": (lambda: BSQ(7, commitment_weight=0.5), IMAGE),
    "KL": (lambda: KL(3, weight=1e-3), IMAGE),
}

CONV = {"width": 8, "blocks": 1, "groups": 4, "multipliers": (1,), "patch": 4}
TOKENIZERS: dict[str, TokenizerConfig] = {
    name: TokenizerConfig(ConvConfig(**(CONV | conv)), QuantizerConfig(**quantizer))
    for name, conv, quantizer in (
        ("tokenizer, 17 levels", {"multipliers": (1, 2), "patch": 2}, {"levels": (17,) * 4}),
        ("tokenizer, tanh, 8 levels", {"norm": "layer"}, {"levels": (8,) * 3, "bound": "tanh"}),
        (
            "tokenizer, standardized",
            {"norm": "rms", "attention": (4,)},
            {"levels": (9,) * 4, "bound": "standardized"},
        ),
        (
            "tokenizer, residual",
            {"middle_attention": True},
            {"kind": "residual", "levels": (3, 4), "bound": "quantile", "cells": "equal"},
        ),
        ("tokenizer, VQ", {"patch": 2}, {"kind": "vq", "dim": 3, "codebook_size": 16, "ema": True}),
    )
}

# The short form: of each fault that was ever found one case, and whether it is compiled in training.
SHORT = {
    **dict.fromkeys(["5 levels", "9 levels", "tanh, 4 levels", "tanh, 8 levels"], False),
    **dict.fromkeys(["noise", "standardized", "learned"], True),
}
ORDERS = (0, 1, 2)
DYNAMIC = {"default": None, "static": False, "dynamic": True}


def fitted(q: nn.Module) -> nn.Module:
    """With a bound that is not the one it starts from."""
    rng = torch.Generator().manual_seed(5)
    q.bound.fit(0.3 + torch.randn(500, q.bound.channels, generator=rng).abs())
    return q


def spread(q: VQ) -> VQ:
    """With codes as far apart as latents are."""
    with torch.no_grad():
        q.embedding.weight.copy_(torch.randn(q.embedding.weight.shape, generator=torch.Generator().manual_seed(5)))
    return q


def random_images(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_latents(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 1.5 + 0.5


def in_order(order: int) -> list[tuple[str, bool]]:
    """Every name, in evaluation and in training: as they stand, backwards, or shuffled."""
    cases = [(name, training) for name in (*QUANTIZERS, *TOKENIZERS) for training in (False, True)]
    if order < 2:
        return cases[::-1] if order else cases
    return random.Random(order).sample(cases, len(cases))


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).abs().max()) / (float(expected.abs().max()) or 1.0)


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def step(call: Callable[[Tensor], object], module: nn.Module, z: Tensor, seed: int) -> tuple[object, dict[str, Tensor]]:
    """What a module returns for a latent (or images), and the gradients of some loss of it."""
    torch.manual_seed(seed)
    z = z.clone().requires_grad_()
    if isinstance(module, ifsq.Tokenizer):  # Inductor of torch 2.13 cannot sort strides of a size divided by the factor
        torch._dynamo.mark_static(z, (2, 3))
    module.zero_grad()
    out = call(z)
    values = out.images if isinstance(module, ifsq.Tokenizer) else out.codes
    weight = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed)).to(values)
    ((values * weight).sum() + sum(out.losses.values())).backward()
    return out, {"input": z.grad} | {k: p.grad for k, p in module.named_parameters() if p.grad is not None}


def step_in_float64(module: nn.Module, z: Tensor, seed: int) -> dict[str, Tensor]:
    """The gradients of the same loss in float64, with the random numbers of float32."""
    uniform, normal = torch.rand_like, torch.randn_like
    draws = {
        "rand_like": lambda x: uniform(x.float()).to(x.dtype),
        "randn_like": lambda x: normal(x.float()).to(x.dtype),
    }
    with mock.patch.multiple(torch, **draws):
        return step(module, module, z.double(), seed)[1]


def compare_gradients(got: dict[str, Tensor], right: dict[str, Tensor], together: bool) -> list[str]:
    """What is off by more than 1e-5 of the largest; ``together``: of all of them, since a key's bias has none."""
    wrong = [] if got.keys() == right.keys() else [f"gradients of {sorted(got)}, not of {sorted(right)}"]
    whole = max(float(value.abs().max()) for value in right.values())
    for key in got.keys() & right.keys():
        share = float(right[key].abs().max()) / whole if together else 1.0
        off = difference(got[key], right[key]) * share
        if not off < 1e-5:
            wrong.append(f"gradient of {key} off by {off:.1e}")
    return wrong


def compare(name: str, dynamic: bool | None, training: bool, device: str = "cpu") -> list[str]:
    """Compile one of the tables and say where it differs from the eager module, and its gradients from float64's."""
    torch.manual_seed(0)
    is_tokenizer = name in TOKENIZERS
    module = ifsq.Tokenizer(TOKENIZERS[name]) if is_tokenizer else QUANTIZERS[name][0]()
    module.train(training).to(device)
    eager, exact = copy.deepcopy(module), copy.deepcopy(module).double()
    shape = (2, 3, 16, 16) if is_tokenizer else tuple(n or module.width for n in QUANTIZERS[name][1])
    wrong: list[str] = []
    if is_tokenizer:
        images, (one, other) = random_images(shape, 3).to(device), (copy.deepcopy(module) for _ in range(2))
        with torch.no_grad():
            got, expected = torch.compile(one.encode, dynamic=dynamic)(images), other.encode(images)
        keys = ("indices", "digits")
        wrong += [f"{key} differ" for key in keys if not same(getattr(got, key), getattr(expected, key))]
        if not training:
            return wrong
    elif not training and module.levels is not None:
        indices = eager(torch.randn(shape).to(device)).indices
        codes = torch.compile(module.indices_to_codes, fullgraph=True, dynamic=dynamic)(indices)
        wrong += ["decoded codes differ"] * (not difference(codes, eager.indices_to_codes(indices)) < 1e-6)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic)
    for seed in (1, 2):  # the second sees the state that the first has left
        z = (random_images if is_tokenizer else random_latents)(shape, seed).to(device)
        (out, gradients), (expected, _) = step(compiled, module, z, seed), step(eager, eager, z, seed)
        wrong += compare_gradients(gradients, step_in_float64(exact, z, seed), is_tokenizer)
        integers = () if is_tokenizer else ("indices", "packed_digits")
        wrong += [f"{key} differ" for key in integers if not same(getattr(out, key), getattr(expected, key))]
        floats = {"images": (out.images, expected.images)} if is_tokenizer else {"codes": (out.codes, expected.codes)}
        losses, state = out.losses, module.state_dict()
        floats |= {f"loss {key}": (losses[key], value) for key, value in expected.losses.items() if key in losses}
        floats |= {f"state {key}": (state[key], value) for key, value in eager.state_dict().items()}
        wrong += ["losses differ"] * (losses.keys() != expected.losses.keys())
        off = {key: difference(*pair) for key, pair in floats.items()}
        wrong += [f"{key} off by {value:.1e}" for key, value in off.items() if not value < 1e-5]
    return wrong


def run(cases: Iterable[tuple[str, bool]], dynamic: bool | None, device: str) -> bool:
    """Compile them in turn; prints a line each. True where all are right."""
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._inductor.config.fallback_random = True  # eager's numbers
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)
    good = True
    for name, training in cases:
        start = time.perf_counter()
        try:
            wrong = compare(name, dynamic, training, device)
        except torch._dynamo.exc.TorchDynamoException as error:
            wrong = [f"{type(error).__name__}: {str(error).splitlines()[0]}"]
        good &= not wrong
        mode, seconds = "training" if training else "evaluation", time.perf_counter() - start
        print(f"{name}, {mode}: {'; '.join(wrong) or 'right'}, {seconds:.1f} s", flush=True)
    return good


def in_a_process(*options: str) -> None:
    command = [sys.executable, __file__, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wrong = [line for line in done.stdout.splitlines() if ": right, " not in line]
    assert done.returncode == 0, "\n".join([*wrong, done.stderr[-2000:]])
    assert done.stdout


def test_tables_are_complete():
    assert len(QUANTIZERS) >= 20
    assert len(TOKENIZERS) >= 5
    assert all(any(bound in name for name in QUANTIZERS) for bound in set(BOUNDS) - {"ifsq"})


def test_a_few_quantizers():
    in_a_process("--short")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_quantizer_and_tokenizer_on_a_gpu():
    in_a_process("--device", "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dynamic", DYNAMIC)
def test_every_quantizer_and_tokenizer(order, dynamic):
    in_a_process("--order", str(order), "--dynamic", dynamic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--order", type=int, default=0, choices=ORDERS)
    parser.add_argument("--dynamic", default="default", choices=DYNAMIC)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    cases = SHORT.items() if options.short else in_order(options.order)
    sys.exit(not run(cases, DYNAMIC[options.dynamic], options.device))


if __name__ == "__main__":
    main()
