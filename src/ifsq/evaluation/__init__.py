"""What is measured of tokenizers and generators, each number with its protocol card, and the pictures beside."""

from ifsq.evaluation.generator import (
    draw_images,
    evenly,
    measure_likelihood,
    measure_samples,
    reconstructed,
    reference,
    sampling_card,
)
from ifsq.evaluation.protocol import AT_ONCE, spread
from ifsq.evaluation.sheets import SHEET_CLASSES, class_sheet, real_rows, reconstruction_sheet
from ifsq.evaluation.tokenizer import measure_tokenizer

__all__ = [
    "AT_ONCE",
    "SHEET_CLASSES",
    "class_sheet",
    "draw_images",
    "evenly",
    "measure_likelihood",
    "measure_samples",
    "measure_tokenizer",
    "real_rows",
    "reconstructed",
    "reconstruction_sheet",
    "reference",
    "sampling_card",
    "spread",
]
