"""ifsq: image tokenizers with improved finite scalar quantization, and generators of their codes.

``FSQ`` is the quantizer for other people's models; `Tokenizer` and `Generator` open what the ``ifsq`` command trained.
The names are loaded when they are first used, so that ``import ifsq`` and ``ifsq --help`` do not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifsq.calibration.calibrate import calibrate as calibrate
    from ifsq.codes import CodeCache as CodeCache
    from ifsq.codes import CodeSpec as CodeSpec
    from ifsq.config import InputError as InputError
    from ifsq.generators import Generator as Generator
    from ifsq.interop.bottlenecks import convert as convert
    from ifsq.quantizers import FSQ as FSQ
    from ifsq.quantizers import Quantized as Quantized
    from ifsq.tokenizer.model import Tokenizer as Tokenizer

__version__ = version("ifsq")

_HOMES = {
    "FSQ": "ifsq.quantizers",
    "Quantized": "ifsq.quantizers",
    "calibrate": "ifsq.calibration.calibrate",
    "convert": "ifsq.interop.bottlenecks",
    "Tokenizer": "ifsq.tokenizer.model",
    "Generator": "ifsq.generators",
    "CodeCache": "ifsq.codes",
    "CodeSpec": "ifsq.codes",
    "InputError": "ifsq.config",
}
__all__ = ["FSQ", "CodeCache", "CodeSpec", "Generator", "InputError", "Quantized", "Tokenizer", "calibrate", "convert"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ifsq' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
