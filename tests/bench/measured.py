"""Measurements of a grid that nobody ran, of given means and spreads."""

import random
from dataclasses import asdict
from itertools import product

from ifsq.bench.measurement import MEASUREMENTS, Measurement, write_measurements
from ifsq.metrics import ProtocolCard

CARD = ProtocolCard(
    metric="", values={}, reference="pictures train", reference_hash="a", n=10, size=16, crop="center",
    resize_kernel="bicubic", dtype="float32", tokenizer_hash="t", code_version="1",
)  # fmt: skip


def measurement(cell, seed, metric, value, figure, *, sampling=None, step=20, flops=None, **card):
    held = ProtocolCard(**{**asdict(CARD), "metric": metric, "values": {value: figure}, **card})
    run = "stages/" + "_".join(map(str, (*cell.values(), seed)))
    name = f"ifsq bench grid.toml --only {run}"
    return Measurement(cell, seed, sampling, step, flops, metric, value, figure, held.to_dict(), run, run, name)


def write_grid(folder, seeds=3, spread=0.1, gap=2.0):
    """Two tokenizers at three rates, and two generators of each, measured at three steps by two seeds of sampling."""
    noise, found = random.Random(0), []
    for tokenizer, bits, seed in product(("fsq", "ifsq"), (2, 3, 4), range(seeds)):
        cell = {"data": "photos", "tokenizer": tokenizer, "bits": bits}
        better = 0.5 if tokenizer == "ifsq" else 0.0
        psnr = 20.0 + 2 * bits + better + noise.gauss(0, spread)
        found.append(measurement(cell, seed, "PSNR, dB", "mean", psnr))
        found.append(
            measurement(cell, seed, "rFD(judge)", "distance", 9.0 / bits - better + abs(noise.gauss(0, spread)))
        )
        for generator, step, sampling in product(("ar", "diffusion"), (10, 20, 40), (0, 1)):
            base = 4.0 + abs(bits - 3) + (gap if generator == "ar" else 0.0) + 40.0 / step
            distance = base + noise.gauss(0, spread)
            flops = step * (1e11 if generator == "ar" else 2.5e10)
            given = {"sampling": sampling, "step": step, "flops": flops, "seed": sampling, "generator_hash": "g"}
            given["guidance"] = 2.0 if generator == "ar" else 1.5
            given["sampler"] = "multinomial" if generator == "ar" else "euler 25 steps"
            whole = {**cell, "generator": generator}
            found.append(_drawn(whole, seed, "FD(judge)", "distance", distance, given))
            share = 1.0 - distance / 20
            found.append(_drawn(whole, seed, "class agreement", "share", share, given))
    folder.mkdir(parents=True, exist_ok=True)
    write_measurements(folder / MEASUREMENTS, found)
    return found


def _drawn(cell, seed, metric, value, figure, given):
    card = {name: given[name] for name in ("seed", "generator_hash", "guidance", "sampler")}
    held = ProtocolCard(**{**asdict(CARD), "metric": metric, "values": {value: figure}, **card})
    run = "stages/" + "_".join(map(str, (*cell.values(), seed)))
    name = f"ifsq bench grid.toml --only {run}"
    numbers = (given["sampling"], given["step"], given["flops"])
    return Measurement(cell, seed, *numbers, metric, value, figure, held.to_dict(), run, run, name)
