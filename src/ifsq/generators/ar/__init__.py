"""The autoregressive generator.

``config`` sizes, ``block`` and ``network`` trunk, ``heads/`` from a state to indices, ``order`` of the tokens in
training, ``draw`` from logits to an index, ``noise`` its random numbers, ``steps`` through the network with keys and
values kept, ``fast`` and ``packing`` the same near the rate of a CPU's memory, ``graphs`` on CUDA, ``guidance`` its
scale at each token, ``decode`` token by token, ``speculative`` several at once, ``generator`` loss and sampling.
"""

from ifsq.generators.ar.config import ARConfig, HeadConfig
from ifsq.generators.ar.draw import ARSampling
from ifsq.generators.ar.generator import ARGenerator

__all__ = ["ARConfig", "ARGenerator", "ARSampling", "HeadConfig"]
