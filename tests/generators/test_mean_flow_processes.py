"""Average velocities in compiled blocks and over two processes: the loss and the gradients are those of one."""

import os

import pytest
import torch
import torch.multiprocessing as mp
from tests.generators.test_diffusion import make_batch
from tests.generators.test_mean_flow import gradients, mean_model

from ifsq.store.weights import whole
from ifsq.training import parallel
from ifsq.training.distributed import join
from ports import free_port


def _compiled(rank):
    torch.set_num_threads(1)
    for derivative in ("exact", "difference"):
        torch._dynamo.reset()
        options = {"trained_guidance": 3.0, "derivative": derivative}
        expected, compiled = gradients(mean_model(**options)), mean_model(**options)
        for block in compiled.dit.blocks:
            block.compile(backend="aot_eager")
        found = gradients(compiled)
        torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
        for name, grad in expected[1].items():
            torch.testing.assert_close(found[1][name], grad, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_compiled_blocks_have_the_same_derivative():
    mp.spawn(_compiled, nprocs=1)  # a process without the checks of shapes, which no compiler can follow


def _in_two(rank, port, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    with join("cpu") as world:
        for derivative in ("exact", "difference"):
            results = []
            for how in ("alone", "replicated", "sharded"):
                model = mean_model(trained_guidance=3.0, derivative=derivative)
                called = model.loss
                if how == "sharded":
                    parallel.recompute(model)
                    parallel.shard(model, world)
                    called = model.loss
                elif how == "replicated":
                    model.forward = model.loss  # type: ignore[method-assign]
                    called = parallel.replicate(model, world)
                loss = called(make_batch(8), torch.Generator().manual_seed(0))["loss"]
                loss.backward()
                results.append((loss.detach(), {name: whole(p.grad) for name, p in model.named_parameters()}))
            for found in results[1:]:
                torch.testing.assert_close(found[0], results[0][0])
                for name, grad in results[0][1].items():
                    torch.testing.assert_close(found[1][name], grad, atol=1e-5, rtol=1e-4)
        if rank == 0:
            (folder / "done").write_text("")


@pytest.mark.slow
def test_replicated_and_sharded_weights_have_the_gradients_of_one_process(tmp_path):
    mp.spawn(_in_two, args=(free_port(), tmp_path), nprocs=2)
    assert (tmp_path / "done").is_file()
