"""What generators are asked for and measured on: images that batches do not change."""

import numpy as np
import pytest
import torch

from ifsq.codes.spec import CodeSpec
from ifsq.evaluation import draw_images, generator
from ifsq.generators.ar import ARConfig, ARGenerator
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import QuantizerConfig, Tokenizer, TokenizerConfig

SPEC = CodeSpec((5, 5), (2,), "little", "paper", (2, 2))


@pytest.fixture
def pair():
    """A generator of two classes and a tokenizer of its codes, with weights that make images differ."""
    torch.manual_seed(0)
    model = ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=16), SPEC, 2)
    torch.nn.init.normal_(model.head.output[0].weight)
    conv = ConvConfig(width=8, multipliers=(1, 1), blocks=1, groups=4)
    return model, Tokenizer(TokenizerConfig(conv, QuantizerConfig(levels=(5, 5)))).eval()


def test_images_of_a_seed_are_the_same_in_batches_of_any_size(pair, monkeypatch):
    labels = torch.arange(11) % 2
    whole = draw_images(*pair, labels, 5, {"guidance": 2.0})
    assert len(np.unique(whole.reshape(11, -1), axis=0)) > 8
    for size in (1, 4):
        monkeypatch.setattr(generator, "AT_ONCE", size)
        drawn = draw_images(*pair, labels, 5, {"guidance": 2.0})
        assert np.abs(drawn.astype(int) - whole).max() <= 1  # convolutions of other batches round otherwise
    assert np.abs(draw_images(*pair, labels[:3], 5, {"guidance": 2.0}).astype(int) - whole[:3]).max() <= 1
