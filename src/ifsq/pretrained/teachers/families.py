"""The families of published networks that teachers are opened from, by the ``model_type`` of their ``config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ifsq.pretrained.teachers.preprocessing import CLIP_MEAN, CLIP_STD, HALF, Preprocessing


@dataclass(frozen=True)
class Family:
    """What is the same for all networks of a family.

    name      as people write it
    model     class in transformers
    pixels    preprocessing where a folder does not say it: of the family's image processor there
    table     of learned positions, as the network's embeddings call it; "" where there is none to resample here
    leading   vectors before those of the patches: the class token
    resizes   whether the network must be told to resample its positions
    packed    whether the network is given patches, not images
    left_out  beginnings of the names of tensors that such files hold beside the network: heads, decoders, text towers
    """

    name: str
    model: str
    pixels: Preprocessing = field(default_factory=Preprocessing)
    table: str = ""
    leading: int = 1
    resizes: bool = False
    packed: bool = False
    left_out: tuple[str, ...] = ()


_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
_DINOV2 = Family("DINOv2", "Dinov2Model", table="position_embeddings", left_out=("classifier.",))
_REGISTERS = Family(
    "DINOv2 with registers",
    "Dinov2WithRegistersModel",
    table="position_embeddings",
    left_out=("classifier.",),
)
_DINOV3 = Family("DINOv3", "DINOv3ViTModel", Preprocessing(kernel="bilinear"))
_CLIP = Family(
    "CLIP",
    "CLIPVisionModel",
    Preprocessing(CLIP_MEAN, CLIP_STD),
    table="position_embedding",
    resizes=True,
    left_out=_TEXT,
)
_SIGLIP = Family(
    "SigLIP",
    "SiglipVisionModel",
    Preprocessing(HALF, HALF),
    table="position_embedding",
    leading=0,
    resizes=True,
    left_out=_TEXT,
)
_SIGLIP2 = Family(
    "SigLIP 2 of any aspect ratio",
    "Siglip2VisionModel",
    Preprocessing(HALF, HALF, "bilinear"),
    leading=0,
    packed=True,
    left_out=_TEXT,
)
_MAE = Family("MAE", "ViTMAEModel", table="position_embeddings", resizes=True, left_out=("decoder.",))

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "dinov2": _DINOV2,
        "dinov2_with_registers": _REGISTERS,
        "dinov3_vit": _DINOV3,
        "clip": _CLIP,
        "clip_vision_model": _CLIP,
        "siglip": _SIGLIP,  # SigLIP 2 of a fixed size too
        "siglip_vision_model": _SIGLIP,
        "siglip2": _SIGLIP2,
        "siglip2_vision_model": _SIGLIP2,
        "vit_mae": _MAE,
    }
)

_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
SHORT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        **{f"dinov2-vit-{key}": f"facebook/dinov2-{size}" for key, size in _SIZES.items()},
        **{f"dinov2reg-vit-{key}": f"facebook/dinov2-with-registers-{size}" for key, size in _SIZES.items()},
        **{f"dinov3-vit-{key}": f"facebook/dinov3-vit{key}16-pretrain-lvd1689m" for key in "sbl"},
        "siglip2-vit-b": "google/siglip2-base-patch16-256",
        "siglip2-vit-l": "google/siglip2-large-patch16-256",
        "clip-vit-b": "openai/clip-vit-base-patch16",
        "clip-vit-l": "openai/clip-vit-large-patch14",
        "mae-vit-b": "facebook/vit-mae-base",
        "mae-vit-l": "facebook/vit-mae-large",
    }
)
"""Repositories of the hub by short names, those of DINOv2 as the official code spells them."""
