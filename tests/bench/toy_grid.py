"""A grid at toy size: pictures, three experiments and the file that names them."""

from pathlib import Path

import numpy as np
from PIL import Image

TRAIN = """
[train]
steps = 4
batch = 4
log_every = 1
save_every = 4
"""
TOKENIZER = f"""
out = "unused"
[data]
source = "pictures"
size = 16
[tokenizer.conv]
width = 8
multipliers = [1]
blocks = 1
patch = 4
groups = 4
[tokenizer.quantizer]
levels = [5, 5]
{TRAIN}"""
GENERATOR = 'out = "unused"\ntokenizer = "unused"\ncodes = "unused"\n'
AR = f"{GENERATOR}[ar]\ndepth = 1\nwidth = 16\nheads = 2\nmlp_multiple_of = 16\n{TRAIN}"
DIFFUSION = f"""{GENERATOR}[diffusion]
depth = 1
width = 16
heads = 2
patch = 1
qk_norm = false
[sampling]
steps = 2
{TRAIN}"""
GRID = """
question = "Which bottleneck?"
tokenizer = "tok.toml"
generators = { ar = "ar.toml", diffusion = "diffusion.toml" }

[axes]
tokenizer = ["ifsq", "fsq", "ae"]
bits = [2, 3]

[seeds]
training = [0, 1]
sampling = [0, 5]

[[settings]]
when = { tokenizer = "fsq" }
tokenizer.tokenizer.quantizer.bound = "tanh"

[[settings]]
when = { bits = 3 }
tokenizer.tokenizer.quantizer.levels = [9, 9]

[[settings]]
when = { tokenizer = "ae" }
drop = ["tokenizer.tokenizer.quantizer"]
tokenizer.tokenizer.quantizer = { kind = "ae", dim = 2 }

[[absent]]
axis = "bits"
when = { tokenizer = "ae" }

[[left_out]]
when = { tokenizer = "ae", generator = "ar" }
why = "latents have no indices"

[budget]
tokenizer.images = 16
generator.images = 16

[evaluation]
kept = 2
tokenizer = { judge = false }
generator = { samples = 4, features = [] }
"""
SEEDS = "[seeds]\ntraining = [0, 1]\nsampling = [0, 5]\n"
"""Of the grid: what a protocol takes the place of."""
SMALL = ["--axes.tokenizer", '["ifsq"]', "--axes.bits", "[2]", "--seeds.training", "[0]"]
"""Arguments by which one tokenizer is left, from one seed, with a generator of each kind."""

SEARCH = """
[protocol]
looks = [2]
guidance = [1.5, 2.5]
[[compare]]
axis = "generator"
metric = "FD(judge)"
value = "distance"
"""
"""A protocol that searches each cell's best guidance."""


def write_toy_grid(folder: Path) -> None:
    """Write all of it into a folder."""
    for number in range(24):
        place = folder / "pictures" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 10 * number, np.uint8)).save(place / f"{number}.png")
    for name, text in (("tok", TOKENIZER), ("ar", AR), ("diffusion", DIFFUSION), ("grid", GRID)):
        (folder / f"{name}.toml").write_text(text.replace('"pictures"', f'"{folder / "pictures"}"'))
