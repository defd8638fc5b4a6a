"""A tokenizer from another project's config and tensors, which are compared before any memory is taken."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ifsq.config import InputError
from ifsq.store.weights import check_weights, load_weights
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig


def assemble(config: TokenizerConfig, table: Mapping[str, Tensor], where: str, described: str) -> Tokenizer:
    """The tokenizer that a config describes, with the weights of a table; float32, on the CPU, in eval mode.

    where      what to call the table in a message
    described  what to call the config

    Random numbers go on as if none had been drawn. Raises InputError when the tensors are not those of the config, or
    one is not finite; a config that is wrong by many zeros takes neither memory nor time.
    """
    blocks = config.conv.blocks * len(config.conv.multipliers)
    if blocks > len(table):
        raise InputError(
            f"{described}: describes {blocks} blocks; expected no more than the {len(table)} tensors of {where}"
        )
    try:
        with torch.device("meta"):
            model = Tokenizer(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # a size is no int64
        raise InputError(f"{described}: describes no possible model; expected sizes of a tokenizer") from error
    check_weights(model, table, where, halves=True)
    with torch.random.fork_rng(devices=[]):
        model = Tokenizer(config)
    load_weights(model, table, where, halves=True)
    return model.eval()
