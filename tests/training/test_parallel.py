"""A model over the processes, looked at from within one of them."""

import torch
import torch.distributed as dist
from torch import nn

from ifsq.training.distributed import World
from ifsq.training.parallel import replicate


def test_torch_has_nothing_to_say_of_how_a_model_is_replicated():
    """Every process would say it; a warning is an error here."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        replicated = replicate(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), World(0, 2, torch.device("cpu")))
        assert not replicated.broadcast_buffers  # each process keeps its own running statistics
    finally:
        dist.destroy_process_group()
