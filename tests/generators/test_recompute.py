"""Blocks that run again in the backward pass: the same loss and gradients, in less memory, compiled and sharded too."""

import os

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from ifsq.codes import CodeBatch, CodeSpec
from ifsq.config import InputError
from ifsq.generators.ar import ARConfig, ARGenerator
from ifsq.generators.diffusion import DiffusionGenerator, DiTConfig
from ifsq.generators.masked import MaskedConfig, MaskedGenerator
from ifsq.store.weights import whole
from ifsq.training import parallel
from ifsq.training.distributed import join
from ports import free_port

SPEC = CodeSpec((5, 3), (1, 1), "little", "paper", (4, 6))


def make(kind, depth=3):
    torch.manual_seed(0)
    if kind == "diffusion":
        model = DiffusionGenerator(DiTConfig(depth, 32, 4, patch=2), SPEC, num_classes=3)
    elif kind == "masked":
        model = MaskedGenerator(MaskedConfig(depth, 32, 4, mlp_multiple_of=8, dropout=0.3), SPEC, num_classes=3)
    else:
        options = {"adaln": True, "kv_heads": 2, "qk_norm": True} if kind == "ar with options" else {}
        config = ARConfig(depth, 32, 4, mlp_multiple_of=8, dropout=0.3, drop_path=0.5, **options)
        model = ARGenerator(config, SPEC, num_classes=3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15)
    return model.train()


def batch():
    rng = torch.Generator().manual_seed(1)
    digits = torch.stack([torch.randint(L, (8, *SPEC.grid), generator=rng) for L in SPEC.levels], dim=-1)
    return CodeBatch(SPEC, digits, torch.arange(8) % 3)


def trained(model):
    """Loss, gradients, and the bytes that were kept between the passes."""
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model.loss(batch(), torch.Generator().manual_seed(0))["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, kept


@pytest.mark.parametrize("kind", ["ar", "ar with options", "diffusion", "masked"])
def test_loss_and_gradients_are_the_same_bits_and_less_is_kept(kind):
    plain, again = make(kind, depth=8), make(kind, depth=8)
    parallel.recompute(again)
    expected, found = trained(plain), trained(again)
    assert torch.equal(found[0], expected[0])
    for name, grad in expected[1].items():
        assert torch.equal(found[1][name], grad), name
    assert found[2] < expected[2] / 3


def test_nothing_runs_twice_in_evaluation_or_without_gradients():
    model, calls = make("ar"), []
    parallel.recompute(model)
    model.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    model.eval().loss(batch(), torch.Generator())["loss"].backward()
    assert len(calls) == 1
    with torch.no_grad():
        model.train().loss(batch(), torch.Generator())
    assert len(calls) == 2
    model.loss(batch(), torch.Generator())["loss"].backward()
    assert len(calls) == 4


def test_a_model_without_such_blocks_is_refused():
    with pytest.raises(InputError, match=r"engine\.recompute=true: this model has no blocks that can run again"):
        parallel.recompute(nn.Sequential(nn.Linear(2, 2)))


def _compiled(rank):
    torch.set_num_threads(1)
    for recompute in (False, True):
        torch._dynamo.reset()
        plain, compiled = make("ar with options", 6), make("ar with options", 6)
        if recompute:
            parallel.recompute(compiled)
        for block in compiled.layers:  # the first has no drop path
            block.compile(backend="aot_eager", fullgraph=True)
        with torch._dynamo.config.patch(recompile_limit=2):  # a third graph is an error
            found = trained(compiled)
        expected = trained(plain)
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
        for name, grad in expected[1].items():
            torch.testing.assert_close(found[1][name], grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_blocks_of_unlike_drop_paths_are_one_graph_without_a_break():
    mp.spawn(_compiled, nprocs=1)  # a process without the checks of shapes, which no compiler can follow


def _sharded(rank, port, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    with join("cpu") as world:
        results = []
        for recompute in (False, True):
            model = make("ar with options")
            if recompute:
                parallel.recompute(model)
            parallel.shard(model, world)
            torch.manual_seed(5 + rank)
            loss = model.loss(batch(), torch.Generator().manual_seed(rank))["loss"]
            loss.backward()
            results.append((loss.detach(), {name: whole(p.grad) for name, p in model.named_parameters()}))
        assert torch.equal(results[0][0], results[1][0])
        for name, grad in results[0][1].items():
            assert torch.equal(results[1][1][name], grad), name
        if rank == 0:
            (folder / "done").write_text("")


@pytest.mark.slow
def test_sharded_blocks_run_again_with_the_same_bits(tmp_path):
    mp.spawn(_sharded, args=(free_port(), tmp_path), nprocs=2)
    assert (tmp_path / "done").is_file()
