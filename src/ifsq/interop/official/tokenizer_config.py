"""The model's JSON of the official tokenizer trainer, in and out."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ifsq.config import InputError, build, read_json
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

# Our kind of bottleneck by the official class; the first name of a kind is the one that is written.
CLASSES = {
    "ImageFSQVAEModel": "fsq",
    "ImageFSQVAE": "fsq",
    "ImageVAEModel": "kl",
    "ImageVAE": "kl",
    "ImageVQVAEModel": "vq",
    "ImageVQVAE": "vq",
}
OWN_KEYS = {
    "fsq": ("levels", "do_simple_bound", "act_fun", "factorized_bits", "scale", "shift"),
    "vq": ("n_e", "beta"),
    "kl": (),
}
SLOPES = {"scale_sigmoid_16": 1.6, "scale_sigmoid_20": 2.0}
NORM_GROUPS = 32
RESOLUTION = 256  # the official default, at which ``attn_resolutions`` are counted
VQ_DEFAULTS = {"n_e": 16384, "beta": 0.5}


@dataclass(frozen=True)
class OfficialConfig:
    """The model's JSON, by its own names; what has one value that is understood here may be absent.

    levels            level counts (FSQ alone, as the next three)
    act_fun           slope 1.6 or 2 of the sigmoid; without ``do_simple_bound`` it is there and not used
    do_simple_bound   False: the bound of the first FSQ
    factorized_bits   sizes of the index groups
    n_e               codes of the codebook, 16384 (VQ alone, as the next)
    beta              weight of ``mean((code - sg[z])^2)``, 0.5: taming's legacy order, so that the other term has 1
    norm_type         ``groupnorm``; ``layernorm`` and ``rmsnorm`` are one and the same layer norm
    attn_resolutions  sides of the maps that have attention, for an image of ``resolution`` pixels a side (256)
    """

    hidden_size: int
    hidden_size_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    embed_dim: int
    levels: tuple[int, ...] | None = None
    do_simple_bound: bool | None = None
    act_fun: Literal["scale_sigmoid_16", "scale_sigmoid_20"] | None = None
    factorized_bits: tuple[int, ...] | None = None
    n_e: int | None = None
    beta: float | None = None
    encoder_resnet_blocks: tuple[str, ...] | None = None
    encoder_spatial_downsample: tuple[str, ...] | None = None
    decoder_resnet_blocks: tuple[str, ...] | None = None
    decoder_spatial_upsample: tuple[str, ...] | None = None
    encoder_mid_resnet: str | None = None
    decoder_mid_resnet: str | None = None
    encoder_conv_in: str | None = None
    encoder_conv_out: str | None = None
    decoder_conv_in: str | None = None
    decoder_conv_out: str | None = None
    norm_type: Literal["groupnorm", "layernorm", "rmsnorm"] | None = None
    attn_resolutions: tuple[int, ...] | None = None
    resolution: int | None = None
    dropout: float | None = None
    double_z: bool | None = None
    use_quant_layer: bool | None = None
    # The one class of attention there is, and what nothing reads.
    encoder_attention: str | None = None
    decoder_attention: str | None = None
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None

    def understood(self) -> dict[str, Any]:
        """The only values that `Tokenizer` can reproduce, by key."""
        n = len(self.hidden_size_mult)
        return {
            **({} if self.levels is None else {"embed_dim": len(self.levels)}),
            "encoder_resnet_blocks": ("ResnetBlock2D",) * n,
            "encoder_spatial_downsample": ("Downsample",) * (n - 1) + ("",),
            "decoder_resnet_blocks": ("ResnetBlock2D",) * n,
            "decoder_spatial_upsample": ("",) + ("Upsample",) * (n - 1),
            "encoder_mid_resnet": "ResnetBlock2D",
            "decoder_mid_resnet": "ResnetBlock2D",
            "encoder_conv_in": "Conv2d",
            "encoder_conv_out": "Conv2d",
            "decoder_conv_in": "Conv2d",
            "decoder_conv_out": "Conv2d",
            "double_z": True,
            "use_quant_layer": True,
            # The official encoder's attention has a group norm whatever the norm_type, its decoder's has not.
            **({"attn_resolutions": ()} if self.norm_type not in (None, "groupnorm") else {}),
            **({"encoder_attention": "AttnBlock2D", "decoder_attention": "AttnBlock2D"} if self.attends else {}),
        }

    @property
    def attends(self) -> bool:
        """Whether there is attention anywhere."""
        return bool(self.attn_resolutions)


def read_official_config(path: Path) -> TokenizerConfig:
    """The architecture that an official ``config.json`` describes. Raises InputError when `Tokenizer` has no such."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, the config of an official tokenizer")
    name = found.get("_class_name", next(iter(CLASSES)))
    if not isinstance(name, str) or name not in CLASSES:
        written = ", ".join(repr(known) for known in CLASSES if known.endswith("Model"))
        raise InputError(f"{path}: _class_name: {name!r}; expected one of {written}")
    official = build(OfficialConfig, {k: v for k, v in found.items() if not k.startswith("_")}, str(path))
    _check(official, CLASSES[name], name, path)
    table = {
        "conv": {
            "width": official.hidden_size,
            "multipliers": official.hidden_size_mult,
            "blocks": official.num_res_blocks,
            "groups": NORM_GROUPS,
            "latent": official.z_channels,
            "norm": "group" if official.norm_type in (None, "groupnorm") else "layer",
            "attention": _attention_factors(official, path),
            "dropout": official.dropout or 0.0,
        },
        "quantizer": {"kind": CLASSES[name], **_quantizer_table(official, CLASSES[name])},
    }
    return build(TokenizerConfig, table, str(path))


def official_config(tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """The JSON of a tokenizer. Raises InputError, naming ``path``, for what the official classes cannot hold."""
    described = build(TokenizerConfig, tokenizer.describe()["config"], str(path))
    conv, quantizer = described.conv, described.quantizer
    _refuse_unknown_there(described, path)
    official = OfficialConfig(
        hidden_size=conv.width,
        hidden_size_mult=conv.multipliers,
        num_res_blocks=conv.blocks,
        z_channels=conv.latent,
        embed_dim=tokenizer.quantizer.dim,
        attn_resolutions=tuple(RESOLUTION // factor for factor in conv.attention) or None,
        resolution=RESOLUTION if conv.attention else None,
        dropout=conv.dropout or None,
        **_official_quantizer(quantizer),
    )
    named = ("resnet_blocks", "spatial_downsample", "spatial_upsample")  # the class defaults are those of four levels
    blocks = {key: value for key, value in official.understood().items() if key.endswith(named)}
    table = {key: value for key, value in asdict(official).items() if value is not None}
    name = next(name for name, kind in CLASSES.items() if kind == quantizer.kind)
    return {"_class_name": name, **{key: plain(value) for key, value in {**table, **blocks}.items()}}


def plain(value: Any) -> Any:
    """Tuples as JSON's lists."""
    return list(value) if isinstance(value, tuple) else value


def _check(official: OfficialConfig, kind: str, name: str, path: Path) -> None:
    required = ("levels", "do_simple_bound", "act_fun") if kind == "fsq" else ()
    for key in required:
        if getattr(official, key) is None:
            raise InputError(f"{path}: {key}: is required")
    for key in (key for other, keys in OWN_KEYS.items() if other != kind for key in keys):
        if getattr(official, key) is not None:
            raise InputError(f"{path}: {key}: {plain(getattr(official, key))!r}; expected no such key of {name!r}")
    for key, value in official.understood().items():
        if getattr(official, key) not in (None, value):
            raise InputError(f"{path}: {key}: {plain(getattr(official, key))!r}; expected {plain(value)!r}")


def _attention_factors(official: OfficialConfig, path: Path) -> tuple[int, ...]:
    """Absolute resolutions -> down-sampling factors, finest first."""
    size = official.resolution or RESOLUTION
    sides = {size // 2**level: 2**level for level in range(len(official.hidden_size_mult))}
    for side in official.attn_resolutions or ():
        if side not in sides:
            raise InputError(f"{path}: attn_resolutions: {side}; expected sides among {', '.join(map(str, sides))}")
    return tuple(sorted({sides[side] for side in official.attn_resolutions or ()}))


def _quantizer_table(official: OfficialConfig, kind: str) -> dict[str, Any]:
    if kind == "kl":  # the weight of its divergence is the official trainer's, not the model's
        return {"dim": official.embed_dim}
    if kind == "vq":
        return {
            "dim": official.embed_dim,
            "codebook_size": VQ_DEFAULTS["n_e"] if official.n_e is None else official.n_e,
            "commitment_weight": 1.0,
            "codebook_weight": VQ_DEFAULTS["beta"] if official.beta is None else official.beta,
        }
    assert official.act_fun is not None
    return {
        "levels": official.levels,
        "groups": official.factorized_bits or (),
        # Without the simple bound the official class computes the first FSQ, whatever its act_fun.
        **({"alpha": SLOPES[official.act_fun]} if official.do_simple_bound else {"bound": "tanh"}),
    }


def _official_quantizer(quantizer: Any) -> dict[str, Any]:
    if quantizer.kind == "kl":
        return {}
    if quantizer.kind == "vq":
        return {"n_e": quantizer.codebook_size, "beta": quantizer.codebook_weight}
    simple = quantizer.bound == "ifsq"
    return {
        "levels": quantizer.levels,
        "do_simple_bound": simple,
        "act_fun": "scale_sigmoid_16" if simple and quantizer.alpha == 1.6 else "scale_sigmoid_20",
        "factorized_bits": quantizer.groups if len(quantizer.groups) > 1 else None,
    }


def _refuse_unknown_there(described: TokenizerConfig, path: Path) -> None:
    conv, quantizer = described.conv, described.quantizer
    own: dict[str, tuple[tuple[str, Any, tuple[Any, ...]], ...]] = {
        "fsq": (
            ("bound", quantizer.bound, ("ifsq", "tanh")),
            ("alpha", quantizer.alpha if quantizer.bound == "ifsq" else 2.0, tuple(SLOPES.values())),
            ("cells", quantizer.cells, ("paper",)),
            ("digit_order", quantizer.digit_order, ("little",)),
        ),
        "vq": (
            ("commitment_weight", quantizer.commitment_weight, (1.0,)),
            ("normalize", quantizer.normalize, (False,)),
            ("ema", quantizer.ema, (False,)),
            ("revive_after", quantizer.revive_after, (0,)),
        ),
        "kl": (),
    }
    for name, value, expected in (
        ("kind", quantizer.kind, tuple(own)),
        ("patch", conv.patch, (1,)),
        ("in_channels", conv.in_channels, (3,)),
        ("norm", conv.norm, ("group",)),  # the names of its layer norm's tensors were never seen
        ("groups of the norm", conv.groups, (NORM_GROUPS,)),
        ("double_latent", conv.double_latent, (True,)),
        ("middle_blocks", conv.middle_blocks, (None, conv.blocks)),
        ("middle_attention", conv.middle_attention, (False,)),
        ("attention", conv.attention, (tuple(f for f in conv.attention if f <= RESOLUTION),)),
        *own.get(quantizer.kind, ()),
    ):
        if value not in expected:
            raise InputError(
                f"{path}: the official tokenizer has no {name}={value!r}; expected {' or '.join(map(repr, expected))}"
            )
