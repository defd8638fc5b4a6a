"""A LlamaGen as an `ARGenerator`, and such a generator as a LlamaGen.

The class token's row of the official rotary table is zero: its queries and keys are 0, which ``rope_class = "zero"``
keeps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ifsq.codes import CodeSpec
from ifsq.config import InputError, build
from ifsq.generators import ARGenerator, Origin
from ifsq.generators.ar import ARConfig, ARSampling
from ifsq.interop.official.form import check_form, made_of
from ifsq.interop.official.llamagen import from_official, is_weight, to_official
from ifsq.interop.official.llamagen_config import (
    NORM_EPS,
    Sizes,
    Told,
    grid_of,
    heads_of,
    multiple_of,
    sizes_of,
)
from ifsq.interop.official.projectors import projector_arguments
from ifsq.quantizers.lattice import CODEBOOK
from ifsq.tokenizer.model import Tokenizer

CARRIED = {
    *("depth", "width", "heads", "size", "mlp_multiple_of", "rope_base", "initializer_range", "label_dropout"),
    *("dropout", "token_dropout", "residual_dropout", "mlp_dropout", "drop_path", "order_start", "order_end"),
}
"""Options of which the official class has any value, or that another decides."""
WHY = {
    "rope_class": "the official class multiplies the class token's queries and keys by 0",
    "head.kind": "the official class predicts the groups of a token by a transformer",
    "grid": "the official class has square grids",
    "order": "the official class has no embeddings of the position to predict",
    "kv_heads": "the official sampler allocates its cache for as many heads of keys as of queries",
    "digit_order": "official indices begin with the least significant digit",
}


@dataclass(frozen=True)
class Choices:
    """What a person says of a LlamaGen.

    grid       rows and columns of codes; None: as the file says
    heads      of attention; None: as the file says, or of the official size
    tokenizer  folder of the tokenizer that it was trained behind; empty: none, and samples are indices alone
    """

    grid: tuple[int, int] | None = None
    heads: int | None = None
    tokenizer: str = ""


def read_llamagen(
    table: Mapping[str, Tensor], told: Told, choices: Choices, path: Path, place: str = ""
) -> ARGenerator:
    """The generator of a table by bare names, float32, on the CPU, in eval mode.

    told   by the config of its trainer
    place  of the table in the file ``path``

    Raises InputError for what is missing, left over, of another shape or type or not finite, for sizes that nothing
    tells, and for a tokenizer of other codes.
    """
    where = f"{path}: {place}".rstrip(": ")
    sizes = sizes_of(table, where)
    if told.classes not in (None, sizes.classes):
        raise InputError(
            f"{where}: cls_embedding of {sizes.classes} classes and the null class; its config says {told.classes}"
        )
    heads, kv_heads = heads_of(sizes, told, choices.heads, where)
    spec, digest = _layout(sizes, grid_of(told, table, path, choices.grid), choices.tokenizer, where)
    config = build(ARConfig, _config(sizes, heads, kv_heads, told, where), where)
    build(ARSampling, told.sampling, f"{where}: config: sample")
    weights = {key: value for key, value in table.items() if is_weight(key)}

    def make() -> ARGenerator:
        return ARGenerator(config, spec, sizes.classes)

    check_form(make, to_official, weights, where)
    model = made_of(make, from_official(weights), where)
    classes = tuple(map(str, range(sizes.classes)))
    model.origin = Origin(classes, choices.tokenizer, digest, sampling=told.sampling)
    return model


def official_tensors(model: ARGenerator) -> dict[str, Tensor]:
    """The state of a generator by its official names, float32, on the CPU."""
    return {key: value.detach().float().cpu().contiguous() for key, value in to_official(model.state_dict()).items()}


def official_file(
    model: ARGenerator, projectors: Mapping[str, Tensor], depth: int | None, where: str
) -> dict[str, Any]:
    """What the official trainer would save: the weights under ``model`` and ``ema``, its arguments under ``config``.

    depth  blocks behind which the projectors read the states; None where nothing tells it

    Raises InputError, naming ``where``, for a generator that the official class cannot hold.
    """
    _refuse_unknown_there(model, where)
    tensors = {**official_tensors(model), **projectors}
    arguments = {**_arguments(model), **projector_arguments(projectors, depth)}
    return {"model": tensors, "ema": dict(tensors), "opt": {}, "config": {"model": arguments}}


def _config(sizes: Sizes, heads: int, kv_heads: int | None, told: Told, where: str) -> dict[str, Any]:
    several = len(sizes.vocab) > 1
    return {
        "depth": sizes.depth,
        "width": sizes.width,
        "heads": heads,
        "kv_heads": kv_heads,
        "mlp_multiple_of": multiple_of(sizes, where),
        "rope_class": "zero",
        **({"head": {"kind": "transformer", "depth": sizes.factorized}} if several else {}),
        **told.options,
    }


def _layout(sizes: Sizes, grid: tuple[int, int], folder: str, where: str) -> tuple[CodeSpec, str]:
    """The layout of the codes, and the digest of the tokenizer; without one the codes are numbers alone."""
    if not folder:
        try:
            return CodeSpec(sizes.vocab, (1,) * len(sizes.vocab), "little", CODEBOOK, grid), ""
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error
    tokenizer = Tokenizer.from_pretrained(folder)
    spec = tokenizer.spec(grid[0] * tokenizer.factor, grid[1] * tokenizer.factor)
    groups = groups_of(spec, sizes.vocab)
    if groups is None:
        codes, own = (" + ".join(map(str, numbers)) for numbers in (sizes.vocab, spec.vocab_sizes))
        raise InputError(f"{where}: predicts {codes} codes; {folder} has {own}: expected the tokenizer of its training")
    return replace(spec, groups=groups), tokenizer.digest()


def groups_of(spec: CodeSpec, vocab: tuple[int, ...]) -> tuple[int, ...] | None:
    """Sizes of the groups of neighbouring dimensions that have so many codes each; None where there are none."""
    groups: list[int] = []
    levels = list(spec.levels)
    for codes in vocab:
        product, size = 1, 0
        while product < codes and levels:
            product, size = product * levels.pop(0), size + 1
        if product != codes or not size:
            return None
        groups.append(size)
    return None if levels else tuple(groups)


def _arguments(model: ARGenerator) -> dict[str, Any]:
    """The official ``ModelArgs``, but for those of projectors."""
    config, vocab = model.config, list(model.spec.vocab_sizes)
    return {
        "dim": config.width,
        "n_layer": config.depth,
        "n_head": config.heads,
        "multiple_of": config.mlp_multiple_of,
        "vocab_size": vocab if len(vocab) > 1 else vocab[0],
        "block_size": model.spec.tokens,
        "num_classes": model.num_classes,
        "cls_token_num": 1,
        "class_dropout_prob": config.label_dropout or 0.1,  # without any, the official table has no null class
        "token_dropout_p": config.dropouts.token,
        "attn_dropout_p": 0.0,
        "resid_dropout_p": config.dropouts.residual,
        "ffn_dropout_p": config.dropouts.mlp,
        "drop_path_rate": config.drop_path,
        "rope_base": config.rope_base,
        "norm_eps": NORM_EPS,
        "initializer_range": config.initializer_range,
        "factorized_n_layer": config.head.depth,
    }


def _refuse_unknown_there(model: ARGenerator, where: str) -> None:
    """Whatever is not `CARRIED` must have its default, or the one value that is the official one."""
    config, spec = model.config, model.spec
    own = {"rope_class": "zero", "kv_heads": None, "head": config.head}
    wanted: list[tuple[str, Any, Any]] = [
        (one.name, getattr(config, one.name), own.get(one.name, one.default))
        for one in fields(config)
        if one.name not in CARRIED
    ]
    if config.kv_heads == config.heads:
        wanted = [one for one in wanted if one[0] != "kv_heads"]
    if len(spec.groups) > 1:
        wanted.append(("head.kind", config.head.kind, "transformer"))
    wanted += [("grid", spec.grid, (spec.grid[0],) * 2), ("digit_order", spec.digit_order, "little")]
    for name, value, expected in wanted:
        if value != expected:
            why = WHY.get(name, "the official class has no such option")
            raise InputError(f"{where}: {name}={value!r}: {why}; expected {expected!r}")
