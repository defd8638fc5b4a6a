"""Conversion against the modules that are converted: the peer itself, and a second writing of the official layout."""

import copy
import io
import json
import runpy
import sys

import pytest
import torch
from torch import nn
from vector_quantize_pytorch import FSQ as PeerFSQ  # noqa: N811
from vector_quantize_pytorch import ResidualFSQ

import ifsq
from ifsq.interop.bottlenecks import OfficialFSQ

GRID = [
    {"levels": [8, 5, 5]},
    {"levels": [9] * 4, "dim": 6},
    {"levels": [7, 7], "dim": 5, "projection_has_bias": False},
    {"levels": [5, 7], "num_codebooks": 2},
    {"levels": [5, 7], "num_codebooks": 3, "dim": 10},
    {"levels": [5, 7], "keep_num_codebooks_dim": True},
    {"levels": [4, 2, 3], "preserve_symmetry": True},
    {"levels": [4, 3], "bound_hard_clamp": True},
    {"levels": [6, 3], "bound_hard_clamp": True, "preserve_symmetry": True},
    {"levels": [5, 5, 5], "orthogonal_rotation": True, "num_codebooks": 2},
    {"levels": [5, 5], "channel_first": True},
    {"levels": [5, 5], "return_indices": False},
    {"levels": [6, 6], "preserve_symmetry": True, "noise_dropout": 0.5},
]


class Model(nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.encoder, self.quantizer = nn.Identity(), quantizer

    def forward(self, x):
        codes, indices = self.quantizer(self.encoder(x))
        return codes, indices


def inputs(options, seed=0):
    width = options.get("dim") or len(options["levels"]) * options.get("num_codebooks", 1)
    rng = torch.Generator().manual_seed(seed)
    yield 2 * torch.randn(2, width, 6, 5, generator=rng)
    z = 2 * torch.randn(3, 40, width, generator=rng)
    yield z.movedim(-1, 1).contiguous() if options.get("channel_first") else z


@pytest.mark.parametrize("options", GRID, ids=str)
def test_tanh_keeps_what_the_peer_computes(options):
    peer = Model(PeerFSQ(**options)).eval()
    ours = copy.deepcopy(peer)
    ours.load_state_dict(peer.state_dict())
    parameters = list(ours.parameters())
    listing = ifsq.convert(ours, to="tanh")
    assert isinstance(ours.quantizer, ifsq.FSQ)
    assert [one.names for one in listing.converted] == [("quantizer",)]
    assert listing.converted[0].same_codes
    assert all(p is old for p, old in zip(ours.parameters(), parameters, strict=True))
    assert ours.quantizer.digit_order == "little"
    for z in inputs(options):
        (codes, indices), (want, want_indices) = ours(z), peer(z)
        torch.testing.assert_close(codes, want, atol=1e-6, rtol=0)
        assert len(ours.quantizer(z)) == 2
        assert ours.quantizer(z)[0].shape == want.shape
        if want_indices is None:
            assert indices is None
            continue
        assert torch.equal(indices, want_indices.long())
        # The peer puts the codes' channels first for every input when asked to; so do we.
        decoded, want = ours.quantizer.indices_to_codes(indices), peer.quantizer.indices_to_codes(want_indices)
        torch.testing.assert_close(decoded, want, atol=1e-6, rtol=0)
    assert ours.state_dict().keys() == peer.state_dict().keys()
    peer.load_state_dict(ours.state_dict())
    ours.load_state_dict(peer.state_dict())


@pytest.mark.parametrize("options", [GRID[0], GRID[1], GRID[3], GRID[6]], ids=str)
def test_gradients_are_the_peers(options):
    peer = Model(PeerFSQ(**options)).train()
    ours = copy.deepcopy(peer)
    ifsq.convert(ours, to="tanh")
    for z in inputs(options):
        grads = []
        for model in (peer, ours):
            x = z.clone().requires_grad_()
            codes, _ = model(x)
            (codes * torch.arange(codes.numel()).view_as(codes).cos()).sum().backward()
            grads.append(x.grad)
        torch.testing.assert_close(grads[1], grads[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("to", ["ifsq", "gaussian", "standardized", "quantile", "learned"])
def test_other_bounds_keep_the_cells_and_say_what_changed(to):
    model = Model(PeerFSQ([9] * 4, dim=6)).eval()
    (one,) = ifsq.convert(model, to=to).converted
    q = model.quantizer
    assert (q.bound.name, q.cells, q.levels) == (to, "paper", (9,) * 4)
    assert not one.same_codes
    assert any("calibrate" in note for note in one.notes) == (to in ("standardized", "quantile"))
    assert any("optimizer" in note for note in one.notes) == (to == "learned")
    z = next(inputs({"levels": [9] * 4, "dim": 6}))
    torch.testing.assert_close(model(z)[0], q(z).codes)
    model = Model(PeerFSQ([8] * 4))
    ifsq.convert(model, to=to, cells="equal")
    assert model.quantizer.cells == "equal"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_type_mode_optimizer_and_random_state_stay(training, dtype):
    model = nn.Sequential(nn.Linear(6, 6), PeerFSQ([9] * 4, dim=6, orthogonal_rotation=True)).to(dtype).train(training)
    model[1].project_in.requires_grad_(False)
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    random = torch.random.get_rng_state()
    ifsq.convert(model, to="quantile")
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p is before[name] for name, p in model.named_parameters())
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model[1].orthogonal_rot.dtype == dtype
    assert model[1].bound.knots.dtype == torch.float32
    assert all(part.training == training for part in model.modules())
    codes, _ = model(torch.randn(4, 30, 6, dtype=dtype))
    assert codes.dtype == dtype
    codes.float().sum().backward()
    frozen, weight = model[1].project_in.weight.clone(), model[1].project_out.weight.clone()
    optimizer.step()
    assert torch.equal(model[1].project_in.weight, frozen)
    assert not torch.equal(model[1].project_out.weight, weight)


@pytest.mark.gpu
def test_device():
    model = Model(PeerFSQ([9] * 4, dim=6, orthogonal_rotation=True)).to("cuda")
    peer = copy.deepcopy(model).eval()
    z = torch.randn(4, 6, 32, 32, device="cuda")
    same = copy.deepcopy(peer)
    ifsq.convert(same, to="tanh")
    assert torch.equal(same(z)[1], peer(z)[1].long())
    ifsq.convert(model, to="quantile")
    report = ifsq.calibrate(model, z.cpu(), cells="equal")
    assert report.after.fraction > 0.98
    assert {t.device.type for t in (*model.parameters(), *model.quantizer.buffers())} == {"cuda"}
    assert model(z)[0].device == z.device


def test_a_shared_module_stays_one():
    peer = PeerFSQ([5, 5])
    part = nn.ModuleList([peer])
    model = nn.ModuleDict({"a": peer, "b": nn.Sequential(nn.Identity(), peer), "c": part, "d": part})
    (one,) = ifsq.convert(model).converted
    assert one.names == ("a", "b.1", "c.0", "d.0")
    assert isinstance(model["a"], ifsq.FSQ)
    assert model["a"] is model["b"][1] is model["c"][0] is model["d"][0]


def test_the_model_itself():
    peer = PeerFSQ([5, 5]).eval()
    listing = ifsq.convert(peer, to="tanh")
    z = torch.randn(2, 7, 2)
    assert listing.model is not peer
    assert torch.equal(listing.model(z)[1], peer(z)[1].long())
    assert "(the model itself)" in str(listing)
    model = Model(PeerFSQ([5, 5]))
    assert ifsq.convert(model).model is model


class Subclass(PeerFSQ):
    pass


class Copied(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("_levels", torch.tensor([5, 5]))
        self.register_buffer("_basis", torch.tensor([1, 5]))


def test_what_is_skipped_and_why():
    model = nn.ModuleDict(
        {
            "plain": PeerFSQ([5, 5]),
            "residual": ResidualFSQ(levels=[5, 5], num_quantizers=2),
            "subclass": Subclass([5, 5]),
            "copied": Copied(),
            "ours": ifsq.FSQ([5, 5]),
            "clamped": PeerFSQ([5, 5], bound_hard_clamp=True),
        }
    )
    children = dict(model.items())
    listing = ifsq.convert(model)
    assert [one.names for one in listing.converted] == [("plain",)]
    reasons = {skipped.names[0]: skipped.reason for skipped in listing.skipped}
    assert list(reasons) == ["residual", "subclass", "copied", "ours", "clamped"]
    assert "rules of their own" in reasons["residual"]
    assert reasons["subclass"] == "Subclass is a subclass of vector_quantize_pytorch.FSQ: pass predicate and build"
    assert "Copied is unknown: pass predicate and build" in reasons["copied"]
    assert reasons["ours"] == "it is an ifsq.FSQ already"
    assert "bounded already" in reasons["clamped"]
    assert all(model[name] is children[name] for name in reasons)
    assert all(reason in str(listing) for reason in reasons.values())


def test_clamped_latents():
    for options in (GRID[7], GRID[8]):
        peer = Model(PeerFSQ(**options))
        for to in ("standardized", "clamp"):
            model = copy.deepcopy(peer)
            (one,) = ifsq.convert(model, to=to, cells="symmetric").converted
            assert model.quantizer.bound.name == to
            assert one.same_codes == (to == "clamp" and "preserve_symmetry" in options)
            z = next(inputs(options))
            if one.same_codes:
                assert torch.equal(model(z)[1], peer(z)[1].long())


def test_predicate_chooses_and_build_makes():
    model = nn.ModuleDict({"a": PeerFSQ([5, 5]), "b": PeerFSQ([5, 5]), "c": nn.Sequential(Subclass([5, 5], dim=3))})
    listing = ifsq.convert(model, predicate=lambda name, module: name == "b")
    assert [one.names for one in listing.converted] == [("b",)]
    assert isinstance(model["a"], PeerFSQ)
    seen = []

    def build(module):
        seen.append(module)
        q = ifsq.FSQ([5, 5], dim=3, cells="equal")
        q.project_in, q.project_out = module.project_in, module.project_out
        return q

    old = model["c"].eval()[0]
    listing = ifsq.convert(model, predicate=lambda name, module: isinstance(module, Subclass), build=build)
    assert seen == [old]
    assert model["c"][0].project_in is old.project_in
    assert not model["c"][0].training
    assert listing.converted[0].notes == ()
    model = nn.Sequential(Subclass([5, 5], dim=3))
    listing = ifsq.convert(model, predicate=lambda name, module: name == "0", build=lambda m: ifsq.FSQ([5, 5], dim=3))
    assert "left some of the old module's parameters behind" in listing.converted[0].notes[0]


def test_listing():
    peer = PeerFSQ([9] * 4, dim=6, preserve_symmetry=True, noise_dropout=0.1, force_quantization_f32=False)
    peer.register_forward_hook(lambda *_: None)
    listing = ifsq.convert(nn.Sequential(peer), cells="equal")
    assert str(listing).splitlines() == [
        "0: vector_quantize_pytorch.FSQ(levels=[9, 9, 9, 9], bound=tanh, cells=symmetric, projections 6 -> 4 -> 6)",
        "    -> ifsq.FSQ(levels=[9, 9, 9, 9], bound=ifsq, alpha=1.6, cells=equal, projections 6 -> 4 -> 6);"
        " other codes: fine-tune the decoder at least",
        "    note: 1 hook of the old module left behind",
        "    note: noise_dropout moved codes by up to 0.5 whatever L; now by up to half a cell",
        "    note: force_quantization_f32=False: codes are now computed in float32",
    ]


class GroupFSQ(nn.Module):
    """The official bottleneck, written anew from its description: one codebook, no projection."""

    def __init__(self, levels, factorized_bits=None, do_simple_bound=False, act_fun=None):
        super().__init__()
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_basis", torch.tensor([1, *levels[:-1]]).cumprod(0), persistent=False)
        self.factorized_bits = factorized_bits or [len(levels)]
        self.do_simple_bound, self.act_fun = do_simple_bound, act_fun
        self.num_codebooks, self.keep_num_codebooks_dim, self.dim = 1, False, len(levels)
        self.project_in, self.project_out = nn.Identity(), nn.Identity()

    def forward(self, z):
        x, L = z.movedim(1, -1) if z.ndim >= 4 else z, self._levels
        offset = (L % 2 == 0) / 2
        half = (L - 1) / 2 if self.do_simple_bound else (L - 1) * 1.001 / 2
        y = self.act_fun(x) * half if self.do_simple_bound else (x + (offset / half).atanh()).tanh() * half - offset
        r = y.round().long()
        parts = zip((r + L // 2).split(self.factorized_bits, -1), L.split(self.factorized_bits), strict=True)
        places = [(d, torch.cat([torch.ones_like(part[:1]), part[:-1]]).cumprod(0)) for d, part in parts]
        indices = torch.stack([(d * basis).sum(-1) for d, basis in places], dim=-1)
        codes = r / (L // 2)
        return codes.movedim(-1, 1) if z.ndim >= 4 else codes, None, (None, None, indices)


class RunningFSQ(GroupFSQ):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.eps, self.momentum = 1e-6, 0.1
        self.register_buffer("running_mean", torch.zeros(1, self.dim, 1, 1))
        self.register_buffer("running_var", torch.ones(1, self.dim, 1, 1))

    def forward(self, z):
        if self.training:
            self.running_mean.mul_(0.9).add_(0.1 * z.mean((0, 2, 3), keepdim=True))
            self.running_var.mul_(0.9).add_(0.1 * z.var((0, 2, 3), unbiased=False, keepdim=True))
        codes, _, (_, _, indices) = super().forward(z)
        return codes, indices


ACTS = {16: lambda x: 2 * torch.sigmoid(1.6 * x) - 1, 20: lambda x: 2 * torch.sigmoid(2.0 * x) - 1}
OFFICIAL = {
    "tanh_bound": ({}, {"to": "tanh"}),
    "sig16": ({"do_simple_bound": True, "act_fun": ACTS[16]}, {"to": "ifsq"}),
    "sig20": ({"do_simple_bound": True, "act_fun": ACTS[20]}, {"to": "ifsq", "alpha": 2.0}),
}


def test_official_cases(golden):
    """The stand-in above and what it is converted to both give what the official code computed."""
    file = golden("quantizer")
    for name, case in json.loads(file.metadata()["cases"]).items():
        options, how = OFFICIAL[case["act"]]
        model = nn.Sequential(GroupFSQ(case["levels"], case["factorized_bits"], **options))
        converted = copy.deepcopy(model)
        (one,) = ifsq.convert(converted, **how).converted
        assert one.same_codes, name
        q = converted[0]
        z = file.get_tensor(f"{name}/z")
        for module in (model, converted):
            codes, loss, (_, _, indices) = module(z)
            assert loss is None
            torch.testing.assert_close(codes, file.get_tensor(f"{name}/codes"), atol=1e-6, rtol=0)
            assert torch.equal(indices, file.get_tensor(f"{name}/indices")), name
        decoded = q.indices_to_codes(file.get_tensor(f"{name}/decode_indices"))
        torch.testing.assert_close(decoded, file.get_tensor(f"{name}/decode_codes"), atol=1e-6, rtol=0)
        assert torch.equal(q.group_index_to_global(indices), file.get_tensor(f"{name}/global_index")), name
        assert torch.equal(q.codes_to_indices(codes.movedim(1, -1)), indices)


@pytest.mark.parametrize("act", OFFICIAL)
@pytest.mark.parametrize("bits", [None, [1, 3]])
def test_running_fsq(act, bits):
    options, how = OFFICIAL[act]
    theirs = nn.Sequential(nn.Conv2d(3, 4, 1), RunningFSQ([5] * 4, bits, **options))
    ours = copy.deepcopy(theirs)
    listing = ifsq.convert(ours, **how)
    assert isinstance(ours[1], OfficialFSQ)
    assert "RunningFSQ(levels=[5, 5, 5, 5]" in str(listing)
    x = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(3))
    for mode in (True, False):
        theirs.train(mode)
        ours.train(mode)
        (codes, indices), (want, want_indices) = ours(x), theirs(x)
        torch.testing.assert_close(codes, want, atol=1e-6, rtol=0)
        assert torch.equal(indices, want_indices)
        assert indices.shape == (2, 6, 5, len(bits or [4]))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours[1], name), getattr(theirs[1], name))
    assert ours[1].factorized_bits == (bits or [4])
    assert ours[1].group_codebook_sizes == ([5, 125] if bits else [625])
    ifsq.calibrate(ours, torch.randn(20, 3, 8, 8), cells="equal")
    assert ours(x)[1].shape == want_indices.shape
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x)[1], ours(x)[1])


def test_official_conversions_that_change_the_codes():
    for act, to in (
        ("tanh_bound", "ifsq"),
        ("sig16", "tanh"),
        ("sig20", "ifsq"),
        ("sig20", "tanh"),
        ("sig16", "quantile"),
    ):
        options, _ = OFFICIAL[act]
        (one,) = ifsq.convert(nn.Sequential(GroupFSQ([5] * 4, **options)), to=to).converted
        assert not one.same_codes
    (one,) = ifsq.convert(nn.Sequential(GroupFSQ([5] * 4, **options)), cells="equal").converted
    assert not one.same_codes
    assert "bound=ifsq, alpha=1.6, cells=paper" in one.old


def on_meta():
    with torch.device("meta"):
        return nn.Sequential(PeerFSQ([5, 5], return_indices=False))


ERRORS = [
    (lambda: ifsq.convert(on_meta()), "0: its levels are on the meta device: convert the model where its weights are"),
    (lambda: ifsq.convert(nn.Sequential(nn.ReLU())), "nothing to convert in Sequential: no FSQ-like module in it"),
    (
        lambda: ifsq.convert(nn.Sequential(ifsq.FSQ([5]))),
        "nothing to convert in Sequential: 0: it is an ifsq.FSQ already",
    ),
    (lambda: ifsq.convert(nn.Sequential(PeerFSQ([5])), to="sigmoid"), "to='sigmoid': expected one of tanh, ifsq,"),
    (lambda: ifsq.convert(nn.Sequential(PeerFSQ([5])), cells="odd"), "cells='odd': expected one of paper,"),
    (
        lambda: ifsq.convert(nn.Sequential(PeerFSQ([5])), build=lambda m: m),
        "build without predicate: expected a predicate",
    ),
    (
        lambda: ifsq.convert(nn.Sequential(PeerFSQ([5])), alpha=-1.0),
        "0: alpha=-1.0: the slope of the ifsq bound must be",
    ),
    (
        lambda: ifsq.convert(nn.Sequential(nn.ReLU()), predicate=lambda name, m: name == "0"),
        "0: the predicate chose it, but the layout of torch.nn.modules.activation.ReLU is unknown: pass",
    ),
    (
        lambda: ifsq.convert(nn.Sequential(PeerFSQ([5])), predicate=lambda name, m: name == "0", build=lambda m: None),
        "0: build returned NoneType: expected a module",
    ),
    (
        lambda: ifsq.convert(nn.Sequential(PeerFSQ([8, 5]))),
        r"0: levels=\[8, 5\]: paper cells with bound='ifsq' need odd levels; use cells='equal' or 'symmetric'",
    ),
    (
        lambda: ifsq.convert(nn.Sequential(GroupFSQ([5], do_simple_bound=True, act_fun=torch.sin)), to="tanh"),
        r"0: act_fun is not of the form 2\*sigmoid\(alpha\*x\) - 1: pass predicate and build",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_refuses(wrong, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        wrong()
    assert "\n" not in str(error.value)


def test_a_refusal_changes_nothing():
    model = nn.Sequential(PeerFSQ([5, 5]), PeerFSQ([8, 8]))
    children = list(model)
    with pytest.raises(ValueError, match=r"^1: levels=\[8, 8\]"):
        ifsq.convert(model)
    assert all(child is old for child, old in zip(model, children, strict=True))


def test_the_worked_example_runs(root, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["convert_example.py", "--steps", "2", "--further", "2", "--seeds", "2"])
    runpy.run_path(str(root / "benchmarks" / "convert_example.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for row in ("peer", "tanh", "ifsq", "standardized", "quantile"):
        assert f"| {row}" in printed
