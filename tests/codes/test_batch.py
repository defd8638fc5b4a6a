"""A batch of codes in its two views, whatever the tokenizer, and how it is taken from a split."""

import pytest
import torch

from ifsq.codes import CodeBatch, CodeSet, CodeSpec, LatentSpec

LATTICE = CodeSpec((5, 3, 5), (2, 1), "little", "paper", (2, 3))
BOOK = CodeSpec((300,), (1,), "little", "codebook", (2, 3))
LATENTS = LatentSpec(4, (2, 3))
LABELS = torch.arange(6) % 3


def digits(spec, count=6):
    rng = torch.Generator().manual_seed(0)
    columns = [torch.randint(L, (count, *spec.grid), generator=rng) for L in spec.levels]
    return torch.stack(columns, dim=-1).to(spec.digit_dtype)


def test_digits_of_a_lattice_have_indices_and_codes():
    stored = digits(LATTICE)
    batch = CodeSet(LATTICE, stored, LABELS).batch(torch.tensor([4, 1]))
    assert torch.equal(batch.content, stored[[4, 1]].long())
    assert torch.equal(batch.labels, LABELS[[4, 1]])
    assert torch.equal(batch.indices(), LATTICE.digits_to_indices(batch.content))
    assert torch.equal(batch.indices((1, 1, 1)), batch.content)
    assert batch.indices((3,)).shape == (2, 2, 3, 1)
    assert torch.equal(batch.codes(), LATTICE.digits_to_codes(batch.content))


def test_numbers_of_a_codebook_have_codes_where_it_is_known():
    stored, book = digits(BOOK), torch.randn(300, 4)
    batch = CodeSet(BOOK, stored, LABELS, codebook=book).batch(torch.arange(6))
    assert stored.dtype == torch.uint16
    assert torch.equal(batch.indices()[..., 0], stored[..., 0].long())
    assert torch.equal(batch.codes()[3, :, 1, 2], book[int(stored[3, 1, 2, 0])])
    with pytest.raises(ValueError, match="digits of a codebook of 300 codes: expected its tokenizer"):
        CodeBatch(BOOK, batch.content, batch.labels).codes()


def test_latents_are_their_own_codes_and_have_no_indices():
    stored = torch.randn(6, *LATENTS.shape).half()
    batch = CodeSet(LATENTS, stored, LABELS).batch(torch.arange(6))
    assert batch.codes().dtype == torch.float32
    assert torch.equal(batch.codes(), stored.float())
    with pytest.raises(ValueError, match="latents of 4 channels have no indices: expected digits"):
        batch.indices()


@pytest.mark.parametrize("layout", [LATTICE, BOOK, LATENTS])
def test_mirrored_rows_are_those_of_the_mirrored_images_where_there_are_any(layout):
    stored = torch.randn(6, *layout.shape).half() if layout is LATENTS else digits(layout)
    rows, mirrored = torch.tensor([5, 0, 2]), torch.tensor([True, False, True])
    other = stored.flip(0)
    batch = CodeSet(layout, stored, LABELS, other).batch(rows, mirrored=mirrored)
    expected = torch.stack([other[5], stored[0], other[2]])
    assert torch.equal(batch.content, expected.to(batch.content.dtype))
    plain = CodeSet(layout, stored, LABELS).batch(rows, mirrored=mirrored)
    assert torch.equal(plain.content, stored[rows].to(plain.content.dtype))


def test_layouts_say_how_they_differ():
    assert LATENTS.differs_from(LATENTS) == ""
    assert LATENTS.differs_from(LatentSpec(4, (2, 2))) == "grid [2, 3] against [2, 2]"
    assert LATENTS.differs_from(LATTICE) == "latents of 4 channels against digits"
    assert LATTICE.differs_from(BOOK) == "levels [5, 3, 5] against [300]"
