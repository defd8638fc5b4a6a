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
from ifsq.evaluation.options import OFFICIAL, TokenizerEvaluation
from ifsq.evaluation.protocol import AT_ONCE, at_once, from_first, spread
from ifsq.evaluation.sheets import (
    SHEET_CLASSES,
    Pairs,
    class_sheet,
    difference_sheet,
    pair_sheet,
    real_rows,
    shown_pairs,
)
from ifsq.evaluation.tokenizer import Judges, measure_tokenizer

__all__ = [
    "AT_ONCE",
    "OFFICIAL",
    "SHEET_CLASSES",
    "Judges",
    "Pairs",
    "TokenizerEvaluation",
    "at_once",
    "class_sheet",
    "difference_sheet",
    "draw_images",
    "evenly",
    "from_first",
    "measure_likelihood",
    "measure_samples",
    "measure_tokenizer",
    "pair_sheet",
    "real_rows",
    "reconstructed",
    "reference",
    "sampling_card",
    "shown_pairs",
    "spread",
]
