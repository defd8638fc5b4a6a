"""Codes: the contract between tokenizer and generators, and the cache that carries it."""

from ifsq.codes.cache import CodeCache
from ifsq.codes.spec import CodeSpec, LatentSpec

__all__ = ["CodeCache", "CodeSpec", "LatentSpec"]
