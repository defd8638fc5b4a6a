"""Labels, label dropout and the time embedding."""

import math

import pytest
import torch

from ifsq.generators.conditioning import LabelEmbedding, TimeEmbedding, check_guidance, drop_labels


def test_label_dropout_takes_its_share_and_follows_the_generator():
    labels = torch.arange(10).repeat(1000)
    dropped = drop_labels(labels, 10, 0.1, torch.Generator().manual_seed(0))
    assert 0.08 < float((dropped == 10).float().mean()) < 0.12
    assert torch.equal(dropped[dropped < 10], labels[dropped < 10])
    assert torch.equal(dropped, drop_labels(labels, 10, 0.1, torch.Generator().manual_seed(0)))
    assert torch.equal(drop_labels(labels, 10, 0.0, torch.Generator()), labels)


def test_null_class_has_a_row_of_its_own():
    embedding = LabelEmbedding(3, 4)
    assert torch.equal(embedding(torch.tensor([3])), embedding.embedding_table.weight[3:])


def test_time_embedding_is_cosines_then_sines():
    embedding = TimeEmbedding(256)
    seen = []
    embedding.mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    embedding(torch.tensor([0.3]))
    rates = [math.exp(-math.log(10000.0) * i / 128) for i in range(128)]
    expected = [math.cos(0.3 * r) for r in rates] + [math.sin(0.3 * r) for r in rates]
    assert seen[0][0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("guidance", [-1.0, math.inf, math.nan])
def test_guidance_that_is_no_scale_is_refused(guidance):
    with pytest.raises(ValueError, match=f"guidance={guidance}: expected a number of at least 0"):
        check_guidance(guidance)
