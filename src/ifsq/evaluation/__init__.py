"""What is measured of tokenizers and generators, each number with its protocol card, and the pictures beside."""

from ifsq.evaluation.compare import Compared, compare_evaluations
from ifsq.evaluation.evaluate_images import ImageEvaluation, measure_images
from ifsq.evaluation.generator import GeneratorEvaluation, hold, measure_steps, suffix_of
from ifsq.evaluation.in_training import observe_generator, observe_tokenizer
from ifsq.evaluation.likelihood import measure_bits
from ifsq.evaluation.networks import load_networks
from ifsq.evaluation.options import TokenizerEvaluation, images_to_measure
from ifsq.evaluation.record import check_cards, read_evaluation, read_evaluations, write_cards, write_evaluation
from ifsq.evaluation.samples import asked_for, draw_images, draw_picture, write_samples
from ifsq.evaluation.sheets import shown_pairs, write_pairs
from ifsq.evaluation.tokenizer import held_out_figures, measure_tokenizer

__all__ = [
    "Compared",
    "GeneratorEvaluation",
    "ImageEvaluation",
    "TokenizerEvaluation",
    "asked_for",
    "check_cards",
    "compare_evaluations",
    "draw_images",
    "draw_picture",
    "held_out_figures",
    "hold",
    "images_to_measure",
    "load_networks",
    "measure_bits",
    "measure_images",
    "measure_steps",
    "measure_tokenizer",
    "observe_generator",
    "observe_tokenizer",
    "read_evaluation",
    "read_evaluations",
    "shown_pairs",
    "suffix_of",
    "write_cards",
    "write_evaluation",
    "write_pairs",
    "write_samples",
]
