"""The sizes and options of a LlamaGen: what its tensors tell, the config that its trainer wrote into the file, the
published file's name, and a person."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ifsq.config import InputError
from ifsq.generators.trunk.config import SIZES
from ifsq.interop.official.reader import Reader, count, section, shape_of

HEADS = {(size.depth, size.width): size.heads for size in SIZES.values()} | {
    (48, 2560): 40,
    (22, 2048): 32,
    (32, 4096): 32,
}
"""Heads of attention of the official sizes, by depth and width: no shape tells them."""
PUBLISHED = re.compile(r"^c2i_(?:B|L|XL|XXL|XXXL|3B)_(256|384|512)\.")
"""Names of LlamaGen's published files, with the pixels a side of their images."""
PIXELS = 16
"""Pixels a side of a code, of the published files."""
NORM_EPS = 1e-5
MULTIPLES = (256, 128, 64, 32, 16, 8, 4, 2, 1)
COLDEST = 1e-5
"""What the official sampler takes for a smaller temperature."""
TOKENIZERS = ("fsq", "cusvq", "vqvae")
"""Sections of the official trainer's config, one of which is there."""


@dataclass(frozen=True)
class Sizes:
    """What shapes tell.

    qkv         rows of the projection to queries, keys and values
    mlp         hidden width of the SwiGLU layers
    vocab       codes of each group
    factorized  blocks of the head of several groups
    """

    depth: int
    width: int
    qkv: int
    mlp: int
    vocab: tuple[int, ...]
    classes: int
    factorized: int


@dataclass(frozen=True)
class Told:
    """What the trainer's config tells; None where it tells nothing."""

    heads: int | None = None
    classes: int | None = None
    grid: tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)


def sizes_of(table: Mapping[str, Tensor], where: str) -> Sizes:
    """The sizes of a LlamaGen by its bare names. Raises InputError naming a tensor that is missing or of another kind.

    That all others have these sizes is for `check_form`.
    """
    rows, width = _shape(table, "cls_embedding.embedding_table.weight", where)
    groups = count(table, r"(\d{1,6})_emb\.weight")
    tables = [f"{k}_emb.weight" for k in range(groups)] or ["tok_embeddings.weight"]
    if rows < 2:
        raise InputError(f"{where}: cls_embedding of {rows} row; expected the classes and the null class")
    return Sizes(
        depth=count(table, r"layers\.(\d{1,6})\."),
        width=width,
        qkv=_shape(table, "layers.0.attention.wqkv.weight", where)[0],
        mlp=_shape(table, "layers.0.feed_forward.w1.weight", where)[0],
        vocab=tuple(_shape(table, name, where)[0] for name in tables),
        classes=rows - 1,
        factorized=count(table, r"factorized_blocks\.(\d{1,6})\."),
    )


def told_by(found: Any, where: str) -> Told:
    """What the config in a file of the official trainer tells; it is the trainer's YAML, or the model's arguments.

    Raises InputError for what `ARGenerator` has not, and for values of another type.
    """
    config = found.get("config") if isinstance(found, dict) else None
    if not isinstance(config, dict):
        return Told()
    model, data, sample = (section(config, name) for name in ("model", "data", "sample"))
    tokenizer = next((section(config, name) for name in TOKENIZERS if name in config), {})
    one = Reader(where)
    classes = one.whole(model, "num_classes") or one.whole(data, "num_classes")
    if (one.whole(model, "cls_token_num") or 1) != 1:
        raise InputError(f"{where}: cls_token_num: {model['cls_token_num']}; expected 1, as the official class has it")
    if one.number(model, "norm_eps", NORM_EPS) != NORM_EPS:
        raise InputError(f"{where}: norm_eps: {model['norm_eps']}; expected {NORM_EPS}")
    if one.number(model, "class_dropout_prob", 0.1) == 0:
        raise InputError(f"{where}: class_dropout_prob: 0; expected a model with a null class, of more than 0")
    return Told(one.whole(model, "n_head"), classes, _grid_told(one, model, data, tokenizer), _options(one, model),
                _sampling(one, sample))  # fmt: skip


def heads_of(sizes: Sizes, told: Told, asked: int | None, where: str) -> tuple[int, int | None]:
    """Heads of queries, and of keys and values where they are fewer. Raises InputError where nothing tells them."""
    known = told.heads or HEADS.get((sizes.depth, sizes.width))
    heads = known if asked is None else asked
    if heads is None:
        raise InputError(
            f"{where}: {sizes.depth} layers of width {sizes.width} are no official size, so that its heads are not"
            " known; give --heads"
        )
    if told.heads not in (None, heads):
        raise InputError(f"{where}: --heads {heads}; expected {told.heads}, as its config says")
    if heads < 1 or sizes.width % heads:
        raise InputError(f"{where}: {heads} heads; expected a divisor of its width {sizes.width}")
    shared = (sizes.qkv - sizes.width) / 2 / (sizes.width // heads)
    if shared < 1 or not shared.is_integer() or heads % int(shared):
        raise InputError(
            f"{where}: layers.0.attention.wqkv.weight has {sizes.qkv} rows, which {heads} heads cannot have"
        )
    return heads, None if shared == heads else int(shared)


def grid_of(told: Told, table: Mapping[str, Tensor], path: Path, asked: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of codes. Raises InputError where nothing tells them, or two things tell otherwise."""
    in_file, by_name = told.grid or _by_table(table), _by_name(path)
    if asked is None and in_file is None and by_name is None:
        raise InputError(
            f"{path}: does not say its grid of codes; give --grid, as 16x16 (of 256 pixels) or 24x24 (of 384)"
        )
    if asked is not None and in_file not in (None, asked):
        raise InputError(f"{path}: --grid {_text(asked)}; expected {_text(in_file)}, as the file says")
    if asked is not None and asked[0] != asked[1]:
        raise InputError(f"{path}: --grid {_text(asked)}; expected a square, as the official class has it")
    return asked or in_file or by_name or (0, 0)


def multiple_of(sizes: Sizes, where: str) -> int:
    """What the width of the SwiGLU layers is rounded up to. Raises InputError where nothing gives it."""
    plain = int(8 * sizes.width / 3)
    for multiple in (*MULTIPLES, sizes.mlp):
        if math.ceil(plain / multiple) * multiple == sizes.mlp:
            return multiple
    raise InputError(f"{where}: feed_forward of width {sizes.mlp}; expected 8/3 of {sizes.width}, rounded up")


def _grid_told(one: Reader, model: Any, data: Any, tokenizer: Any) -> tuple[int, int] | None:
    tokens = one.whole(model, "block_size")
    size, factor = one.whole(data, "image_size"), one.whole(tokenizer, "downsample_ratio")
    side = math.isqrt(tokens) if tokens else size // factor if size and factor else None
    if tokens and side and side * side != tokens:
        raise InputError(f"{one.where}: block_size: {tokens}; expected a square")
    return (side, side) if side else None


def _options(one: Reader, model: dict[Any, Any]) -> dict[str, Any]:
    """Of `ARConfig`. With drop path the official trainer has no other dropout but that of the embeddings."""
    drop_path = one.number(model, "drop_path_rate", 0.0)
    layers = one.number(model, "dropout_p", 0.1) if not drop_path else 0.0
    token, residual, mlp = (
        one.number(model, key, default)
        for key, default in (("token_dropout_p", 0.1), ("resid_dropout_p", layers), ("ffn_dropout_p", layers))
    )
    same = token == residual == mlp
    shares = {"dropout": token} if same else {"token_dropout": token, "residual_dropout": residual, "mlp_dropout": mlp}
    return {
        **shares,
        "drop_path": drop_path,
        "label_dropout": one.number(model, "class_dropout_prob", 0.1),
        "rope_base": one.number(model, "rope_base", 10000.0),
        "initializer_range": one.number(model, "initializer_range", 0.02),
    }


def _sampling(one: Reader, sample: dict[Any, Any]) -> dict[str, Any]:
    """Of `ARSampling`, which checks them.

    An official interval n guides the first n + 2 tokens, and -1 all; its temperature is at least `COLDEST`.
    """
    names = {"cfg_scale": "guidance", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p"}
    found = {name: sample[key] for key, name in names.items() if sample.get(key) is not None}
    if isinstance(cold := sample.get("temperature"), int | float) and 0 <= cold < COLDEST:
        found["temperature"] = COLDEST
    interval = one.number(sample, "cfg_interval", -1.0)
    return found if interval < 0 else {**found, "guidance_interval": int(interval) + 2}


def _text(grid: tuple[int, int] | None) -> str:
    return "x".join(map(str, grid or ()))


def _by_table(table: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """By the rotary table that some files hold: a row for the class, one for each code."""
    rows = next((len(value) - 1 for key, value in table.items() if key == "freqs_cis" and value.ndim), 0)
    side = math.isqrt(max(0, rows))
    return (side, side) if side and side * side == rows else None


def _by_name(path: Path) -> tuple[int, int] | None:
    match = PUBLISHED.match(path.name)
    return (int(match[1]) // PIXELS,) * 2 if match else None


def _shape(table: Mapping[str, Tensor], key: str, where: str) -> tuple[int, int]:
    rows, columns = shape_of(table, key, 2, "a LlamaGen", where)
    return rows, columns
