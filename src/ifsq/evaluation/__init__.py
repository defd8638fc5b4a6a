"""What is measured of tokenizers and generators, each number with its protocol card, and the pictures beside."""

from ifsq.evaluation.generator import (
    draw_images,
    measure_likelihood,
    measure_samples,
    reconstructed,
    reference,
    sampling_card,
)
from ifsq.evaluation.labels import BALANCED, LIKE_REFERENCE, labels_balanced, labels_like
from ifsq.evaluation.options import OFFICIAL, TokenizerEvaluation
from ifsq.evaluation.protocol import AT_ONCE, at_once, spread
from ifsq.evaluation.sheets import (
    SHEET_CLASSES,
    Pairs,
    class_sheet,
    difference_sheet,
    pair_sheet,
    real_sheet,
    shown_pairs,
)
from ifsq.evaluation.tokenizer import Judges, measure_tokenizer

__all__ = [
    "AT_ONCE",
    "BALANCED",
    "LIKE_REFERENCE",
    "OFFICIAL",
    "SHEET_CLASSES",
    "Judges",
    "Pairs",
    "TokenizerEvaluation",
    "at_once",
    "class_sheet",
    "difference_sheet",
    "draw_images",
    "labels_balanced",
    "labels_like",
    "measure_likelihood",
    "measure_samples",
    "measure_tokenizer",
    "pair_sheet",
    "real_sheet",
    "reconstructed",
    "reference",
    "sampling_card",
    "shown_pairs",
    "spread",
]
