"""A tokenizer from another project's config and tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ifsq.store.weights import build_with
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig


def assemble(config: TokenizerConfig, table: Mapping[str, Tensor], where: str) -> Tokenizer:
    """The tokenizer that a config describes, with the weights of a table; float32, on the CPU, in eval mode.

    where  what to call config and table in a message

    Random numbers go on as if none had been drawn. Raises InputError as `build_with`.
    """
    with torch.random.fork_rng(devices=[]):
        return build_with(lambda: Tokenizer(config), table, where, halves=True).eval()
