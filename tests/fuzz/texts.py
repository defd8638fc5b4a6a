"""Valid content of the files that are fuzzed."""

import io
from typing import Any

from PIL import Image

TOKENIZER = """
out = "tok"
[data]
source = "images"
size = 8
crop = "random"
[tokenizer.conv]
width = 8
multipliers = [1]
blocks = 1
patch = 4
groups = 4
[tokenizer.quantizer]
kind = "fsq"
levels = [5, 5]
[train]
steps = 6
batch = 4
seed = 3
optim.lr = 1e-3
optim.warmup = 2
"""
GENERATOR = """
out = "out"
tokenizer = "tok"
codes = "codes"
groups = [1, 1]
[{kind}]
depth = 1
width = 16
heads = 2
{own}
[sampling]
guidance = 1.5
[train]
steps = 6
batch = 4
"""
ALIGNED = """
[alignment]
depth = 1
weight = 0.5
[[alignment.teachers]]
source = "teacher"
"""
GRID = """
question = "Which?"
tokenizer = "tok.toml"
generators = { ar = "ar.toml" }
differ = ["train.optim.lr"]
[axes]
bits = [2, 3]
[seeds]
training = [0, 1]
[[settings]]
when = { bits = 3 }
tokenizer.tokenizer.quantizer.levels = [9, 9]
[budget]
tokenizer.images = 1000
[evaluation]
tokenizer = { judge = false }
"""
EXPERIMENTS = {
    "tok.toml": TOKENIZER,
    "ar.toml": GENERATOR.format(kind="ar", own="mlp_multiple_of = 16") + ALIGNED,
    "diffusion.toml": GENERATOR.format(kind="diffusion", own="patch = 1"),
    "masked.toml": GENERATOR.format(kind="masked", own="mlp_multiple_of = 16").replace("guidance = 1.5", "rounds = 2"),
    "grid.toml": GRID,
}
OVERRIDES = (
    "--train.steps\n100\n--data.source=photos\n--out\n2024",
    "--tokenizer.quantizer.levels\n[5, 5, 5]\n--tokenizer.conv.attention=[4]\n--train.optim.lr\n1e-3",
    "--data\n{source='a', size=16}\n--train.engine.workers=2\n--train.log_every\n3",
)
LISTS = {
    "list.txt": "a/0.png 0\na/1.png 1\na/2.png 1\n",
    "list.csv": 'path,label,split\na/0.png,cat,train\n"a/1.png",dog,val\na/2.png,dog,train\n',
    "list.tsv": "file\tclass\twidth\na/0.png\t0\t8\na/1.png\t1\t8\n",
    "list.jsonl": "".join(f'{{"path": "a/{number}.png", "label": "{"xyx"[number]}"}}\n' for number in range(3)),
}
METRICS = (
    '{"step": 2, "loss": 0.5, "seconds": 1.0, "lr": null}\n{"step": 4, "loss": 0.25, "val/loss": 0.3, "seconds": 1.5}\n'
)
SKIPPED = "1\timage a/3.png cannot be read\n2\timage b is broken\n4\timage c\n"
CARD: dict[str, Any] = {
    "metric": "PSNR, dB",
    "values": {"mean": 20.5, "std": 1.0},
    "reference": "images val",
    "reference_hash": "abc",
    "n": 4,
    "size": 8,
    "crop": "center",
    "resize_kernel": "bicubic",
    "dtype": "float32",
    "seed": 0,
    "guidance": 0.0,
    "sampler": "",
    "function_evaluations": 0,
    "features": "",
    "tokenizer_hash": "t",
    "generator_hash": "",
    "method": "",
    "labels": "",
    "samples": "",
    "samples_hash": "",
    "code_version": "1",
}
EVALUATION: dict[str, Any] = {
    "cards": [CARD, CARD | {"metric": "SSIM", "values": {"mean": 0.5}}],
    "step": 4,
    "levels": {"ifsq": {"share": [0.2, 0.2, 0.2, 0.2, 0.2], "fraction": 1.0}},
    "latent": {"mean": [0.0, 0.0], "std": [1.0, 1.0]},
    "left_out": ["LPIPS: no weights"],
    "skipped": [],
    "classes": ["a", "b"],
    "shown": ["a"],
    "weights": "average",
    "seen": 16,
    "flops": 1e9,
    "neighbours": "",
}
GRID_ABOUT: dict[str, Any] = {
    "grid": {"question": "Which?", "left_out": [{"when": {"bits": 2}, "why": "too few"}]},
    "command": ["bench", "grid.toml"],
    "equal": {"train.steps": 6},
    "differ": {"train.optim.lr": [0.1, 0.2]},
    "unequal": [],
}
DIFFUSERS: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.35",
    "act_fn": "silu",
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 64,
    "scaling_factor": 0.18215,
    "force_upcast": True,
    "shift_factor": None,
}


def measurement(seed: int) -> dict[str, Any]:
    """A line of ``measurements.jsonl``."""
    return {
        "cell": {"bits": 2 + seed},
        "seed": seed,
        "sampling_seed": None,
        "step": 4,
        "flops": 1e9,
        "metric": "PSNR, dB",
        "value": "mean",
        "figure": 20.5,
        "card": CARD,
        "stage": f"s{seed}",
        "run": "tok",
        "command": "ifsq tokenizer eval tok",
    }


def image(form: str) -> bytes:
    """A small picture in one of Pillow's formats."""
    return _saved(Image.frombytes("RGB", (6, 5), bytes(range(90))), form)


def images() -> dict[str, bytes]:
    """A small picture in every format that is read, and in what else a format may hold."""
    picture = Image.frombytes("RGB", (6, 5), bytes(range(90)))
    plain = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000")
    palette, grey = picture.quantize(8), picture.convert("L")
    turned = Image.Exif()
    turned[0x0112] = 6
    return {form: _saved(picture, form) for form in plain} | {
        "PNG with a palette": _saved(palette, "PNG", transparency=1),
        "PNG of 16 bits": _saved(Image.frombytes("I;16", (6, 5), bytes(range(60))), "PNG"),
        "PNG with transparency": _saved(picture.convert("RGBA"), "PNG"),
        "GIF of two frames": _saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "JPEG of four channels": _saved(picture.convert("CMYK"), "JPEG", progressive=True),
        "JPEG that is turned": _saved(picture, "JPEG", exif=turned),
        "TIFF of one bit": _saved(grey.convert("1"), "TIFF", compression="group4"),
        "TIFF of floats": _saved(grey.convert("F"), "TIFF"),
        "TIFF that is packed": _saved(picture, "TIFF", compression="tiff_lzw"),
        "BMP with a palette": _saved(palette, "BMP"),
        "PGM of 16 bits": _saved(Image.frombytes("I;16", (6, 5), bytes(range(60))), "PPM"),
    }


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    made = io.BytesIO()
    picture.save(made, form, **options)
    return made.getvalue()
