"""Muon: torch's as a second implementation, which parameters it takes, exact resume, and what is refused."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from ifsq.config import InputError
from ifsq.training import checkpoint, muon
from ifsq.training.config import EngineConfig, TrainConfig
from ifsq.training.distributed import World
from ifsq.training.log import Silent
from ifsq.training.loop import Task, train
from ifsq.training.muon import Muon, orthogonal
from ifsq.training.optim import OptimConfig, hidden_matrices, lr_at, make_optimizer
from ifsq.training.precision import computes_bfloat16
from ifsq.training.preparing import check_batch
from ifsq.training.trainee import Trainee

MUON = OptimConfig(kind="muon", lr=1e-2, muon_lr=0.02, weight_decay=0.1, warmup=2)


class Block(nn.Module):
    not_hidden = ("gate",)

    def __init__(self):
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(24, 8)
        self.gate = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.gate(x).sigmoid() * self.narrow(torch.relu(self.wide(self.norm(x))))


class Net(nn.Module):
    """An embedding, blocks and an output in a module list, as generators have them."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(5, 8)])
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.output = nn.ModuleList([nn.Linear(8, 5)])

    def forward(self, x):
        x = self.tables[0](x)
        for block in self.blocks:
            x = block(x)
        return self.output[0](x)


class Copying(Task):
    """Say what was read."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = Net()

    def batches(self, start, world):
        step = start
        while True:
            yield torch.randint(5, (16,), generator=torch.Generator().manual_seed(step))
            step += 1

    def loss(self, model, batch, rng, step):
        return {"loss": nn.functional.cross_entropy(model(batch), batch)}

    def validate(self, model, world):
        return {}

    def describe(self):
        return {"kind": "copying"}


def trained(folder, **options):
    config = replace(TrainConfig(steps=8, log_every=4, save_every=3, keep=9, optim=MUON), **options)
    task = Copying()
    train(task, config, folder, World(0, 1, torch.device("cpu")), Silent(), "net")
    return task.model.state_dict()


def test_a_singular_value_becomes_about_one():
    torch.manual_seed(0)
    for shape in ((2, 8, 8), (2, 40, 8), (2, 8, 40)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.3
    assert not orthogonal(torch.zeros(1, 3, 4)).any()


def test_without_bfloat16_it_computes_in_float32(monkeypatch):
    monkeypatch.setattr(muon, "computes_bfloat16", lambda kind: False)
    torch.manual_seed(0)
    matrices = torch.randn(2, 8, 40)
    exact = muon.orthogonal(matrices)
    assert exact.dtype == torch.float32
    monkeypatch.undo()
    torch.testing.assert_close(muon.orthogonal(matrices).float(), exact, atol=0.05, rtol=0)


def test_it_moves_matrices_as_torch_and_the_rest_as_adamw(monkeypatch):
    monkeypatch.setattr(muon, "computes_bfloat16", lambda kind: True)  # in which torch's computes everywhere
    torch.manual_seed(0)
    nets = Net(), Net()
    nets[1].load_state_dict(nets[0].state_dict())
    ours = make_optimizer(nets[0], MUON)
    matrices = list(hidden_matrices(nets[1]))
    rest = [p for p in nets[1].parameters() if all(p is not m for m in matrices)]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    theirs = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1),
        torch.optim.AdamW(groups, 1e-2, (0.9, 0.95)),
    ]
    for step in range(4):
        batch = torch.randint(5, (16,), generator=torch.Generator().manual_seed(step))
        for net, optimizers in zip(nets, ([ours], theirs), strict=True):
            net.zero_grad()
            nn.functional.cross_entropy(net(batch), batch).backward()
            for optimizer in optimizers:
                optimizer.step()
    for (name, got), expected in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-3, rtol=0, msg=name)  # bfloat16 in other orders


def test_it_takes_the_matrices_of_blocks_alone():
    net = Net()
    net.blocks[0].wide.weight.requires_grad_(False)
    named = {id(p): name for name, p in net.named_parameters()}
    assert [named[id(p)] for p in hidden_matrices(net)] == [
        "blocks.0.narrow.weight", "blocks.1.wide.weight", "blocks.1.narrow.weight", "blocks.2.wide.weight",
        "blocks.2.narrow.weight",
    ]  # fmt: skip
    optimizer = make_optimizer(net, MUON)
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(owned) == len(set(owned)) == sum(p.requires_grad for p in net.parameters())


def test_a_convolution_is_one_matrix_in_any_layout():
    torch.manual_seed(0)
    weight, slope = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(weight.clone(memory_format=layout))
        p.grad = slope.clone(memory_format=layout)
        Muon([p], 1.0, 0.0, 0.0, torch.optim.AdamW([nn.Parameter(torch.zeros(1))])).step()
        moved.append(p.detach() - weight)
    torch.testing.assert_close(moved[0], moved[1])
    torch.testing.assert_close(-moved[0].flatten(1), orthogonal(slope.flatten(1)[None])[0].float())


def test_its_momentum_is_made_once(monkeypatch):
    p = nn.Parameter(torch.ones(2, 3))
    optimizer = Muon([p], 0.1, 0.9, 0.0, torch.optim.AdamW([nn.Parameter(torch.zeros(1))]))
    made, zeros = [], torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda like: (made.append(like), zeros(like))[1])
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert len(made) == 1


def test_both_rates_follow_the_schedule():
    task, config = Copying(), TrainConfig(steps=10, optim=MUON)
    trainee = Trainee(task.model, task.loss, MUON, config, World(0, 1, torch.device("cpu")))
    for step in (0, 5):
        batch = torch.arange(5)
        trainee.backward(batch, torch.Generator(), step, last=True)
        trainee.step(step)
        rates = [group["lr"] for group in trainee.optimizer.param_groups]
        assert rates == pytest.approx([lr_at(step, 10, MUON)] * 2 + [2 * lr_at(step, 10, MUON)])


def test_a_run_goes_on_with_the_same_bits(tmp_path):
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", steps=5, optim=replace(MUON, schedule="constant"))
    expected = trained(tmp_path / "constant", optim=replace(MUON, schedule="constant"))
    resumed = trained(tmp_path / "parts", optim=replace(MUON, schedule="constant"))
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
    assert not all(torch.equal(whole[name], value) for name, value in expected.items())


def test_a_state_of_adamw_is_refused():
    optimizer = make_optimizer(Net(), replace(MUON, kind="adamw"))
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(InputError, match=r"there: optimizer state '\d+\.exp_avg' is float32"):
        checkpoint.restore_optimizer(make_optimizer(Net(), MUON), checkpoint.flatten_optimizer(optimizer), "there", 1)


def test_processors_that_would_move_their_copies_apart_are_refused():
    class Two(World):
        def gather(self, value):
            return [value, told]

    has = computes_bfloat16("cpu")
    for told in (has, not has):
        refused = nullcontext() if told == has else pytest.raises(InputError, match="only some of the processors comp")
        with refused:
            check_batch(TrainConfig(optim=MUON), Two(0, 2, torch.device("cpu")))
        check_batch(TrainConfig(), Two(0, 2, torch.device("cpu")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(MUON, muon_lr=0.0), "muon_lr=0.0: expected a positive number"),
        (lambda: replace(MUON, muon_momentum=1.0), r"muon_momentum=1.0: expected a number in \[0, 1\)"),
        (
            lambda: TrainConfig(optim=MUON, engine=EngineConfig(sharding="shard")),
            "optim.kind='muon' with engine.sharding='shard': expected adamw, or replicate",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
