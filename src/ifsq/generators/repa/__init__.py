"""Representation alignment of a generator of either kind (REPA, arXiv 2410.06940; paper: section 5, LlamaGen-REPA).

``config`` says to what a generator is aligned, where and for how long; ``projector`` maps its states to features of a
teacher; ``alignment`` is the loss. A projector lives beside the generator: training saves it, sampling never sees it.
"""

from ifsq.generators.repa.alignment import Alignment
from ifsq.generators.repa.config import AlignmentConfig

__all__ = ["Alignment", "AlignmentConfig"]
