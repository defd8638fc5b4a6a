"""The judge: it learns, and its view of a picture does not depend on the others in the batch."""

import itertools

import pytest
import torch

from ifsq.data import DataConfig, ImageBatches, StepSampler, open_images
from ifsq.evaluation.judge import JudgeNet


@pytest.mark.parametrize("size", [16, 32, 64])
def test_shapes_and_size(size: int) -> None:
    judge = JudgeNet(num_classes=7, width=8)
    images = torch.zeros(3, 3, size, size)
    assert judge.features(images).shape == (3, judge.feature_dim) == (3, 32)
    assert judge.logits(images).shape == (3, 7)
    assert 100_000 < sum(p.numel() for p in JudgeNet(10).parameters()) < 200_000


def test_a_picture_is_judged_alone() -> None:
    torch.manual_seed(0)
    judge, images = JudgeNet(10, width=8), torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(judge.features(images)[2:3], judge.features(images[2:3]))


def test_luminance_is_grey_rgb() -> None:
    torch.manual_seed(0)
    judge, images = JudgeNet(10, width=8), torch.randn(4, 1, 32, 32)
    assert torch.equal(judge.features(images), judge.features(images.repeat(1, 3, 1, 1)))


def test_it_learns_digits_in_a_few_steps() -> None:
    torch.manual_seed(0)
    source = open_images(DataConfig(source="bundled:digits", size=16), "train")
    judge = JudgeNet(10, width=8)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-2)
    accuracies = []
    for batch in itertools.islice(ImageBatches(source, StepSampler(len(source), 64, 0)), 60):
        scores = judge.loss(batch.images, batch.labels)
        optimizer.zero_grad()
        scores["loss"].backward()
        optimizer.step()
        accuracies.append(float(scores["accuracy"]))
    assert sum(accuracies[:5]) / 5 < 0.4
    assert sum(accuracies[-5:]) / 5 > 0.7


def test_a_judge_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes=1"):
        JudgeNet(1)
