"""Codes: the contract between tokenizer and generators, and the cache that carries it."""

from ifsq.codes.batch import CodeBatch, Sampled
from ifsq.codes.cache import CodeCache, CodeSet
from ifsq.codes.spec import CodeSpec, LatentSpec

__all__ = ["CodeBatch", "CodeCache", "CodeSet", "CodeSpec", "LatentSpec", "Sampled"]
