"""Eager, torch.compile, torch.export and ONNX Runtime give the same digits and indices."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import ifsq
from ifsq.quantizers.bounds import BOUNDS, make_bound
from ifsq.quantizers.compilers import materialize

EVERY_LEVEL = list(range(2, 66))
SETTINGS = {
    "released": ({"levels": [17] * 4}, (2, 4, 6, 5)),
    "first FSQ, even levels": ({"levels": [8, 8, 8, 5, 5, 5], "bound": "tanh"}, (3, 7, 6)),
    "groups and codebooks": (
        {"levels": [9, 4, 6], "cells": "symmetric", "groups": [1, 2], "num_codebooks": 2, "digit_order": "big"},
        (2, 6, 4, 3),
    ),
    "projections": ({"levels": [5] * 3, "dim": 8, "bound": "gaussian", "cells": "equal"}, (2, 9, 8)),
    "standardized": ({"levels": [17] * 3, "bound": "standardized", "cells": "equal"}, (2, 3, 6, 5)),
    "quantile": ({"levels": [16] * 3, "bound": "quantile", "cells": "equal"}, (2, 3, 6, 5)),
    "learned": ({"levels": [33] * 3, "bound": "learned"}, (2, 3, 6, 5)),
}


@pytest.fixture(autouse=True)
def _one_process_compiles_all():
    """Nothing is reset between tests: what a compiler remembers of one module must not spoil the next."""
    limits = {"recompile_limit": 1000, "accumulated_recompile_limit": 1000, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(limits):
        yield


def quantizer(name: str) -> tuple[ifsq.FSQ, Tensor]:
    options, shape = SETTINGS[name]
    torch.manual_seed(0)
    q = ifsq.FSQ(**options)
    z = torch.randn(shape)
    if q.bound.channels:
        q.bound.fit(0.3 + torch.randn(5000, q.bound.channels).abs())
    return q.eval(), z


def test_settings_cover_the_fitted_bounds():
    assert {"standardized", "quantile", "learned"} == set(BOUNDS) & set(SETTINGS)


def same(got, expected: ifsq.Quantized) -> None:
    codes, indices, digits = got
    assert torch.equal(torch.as_tensor(indices), expected.indices)
    assert torch.equal(torch.as_tensor(digits), expected.packed_digits)
    torch.testing.assert_close(torch.as_tensor(codes), expected.codes, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_compiled(name):
    q, z = quantizer(name)
    out = torch.compile(q, fullgraph=True)(z)
    same((out.codes, out.indices, out.packed_digits), q(z))


@pytest.mark.parametrize("name", ["released", "quantile"])
def test_compiled_gradient_and_training(name):
    q, z = quantizer(name)
    q.train()
    compiled = torch.compile(q, fullgraph=True)
    state = {k: v.clone() for k, v in q.state_dict().items()}
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    weight = torch.randn_like(z)
    (compiled(a).codes * weight).sum().backward()
    moved = {k: v.clone() for k, v in q.state_dict().items()}
    q.load_state_dict(state)
    (q(b).codes * weight).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    for key, value in q.state_dict().items():
        torch.testing.assert_close(moved[key], value)
        assert not torch.equal(value, state[key])


@pytest.mark.parametrize("name", SETTINGS)
def test_exported(name):
    q, z = quantizer(name)
    program = torch.export.export(q, (z,), dynamic_shapes={"z": {0: torch.export.Dim.DYNAMIC}})
    more = torch.cat([z, -z, 2 * z])
    out = program.module()(more)
    assert isinstance(out, ifsq.Quantized)
    same((out.codes, out.indices, out.packed_digits), q(more))


@pytest.mark.parametrize("name", ["released", "groups and codebooks", "projections", "learned"])
def test_onnx(name, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    q, z = quantizer(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(q, (z,), dynamo=True, dynamic_shapes={"z": {0: torch.export.Dim.DYNAMIC}})
    program.save(tmp_path / "q.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"])
    more = torch.cat([z, -z, 2 * z])
    same(session.run(None, {session.get_inputs()[0].name: more.numpy()}), q(more))


def test_nan_stays_nan():
    """A compiler's graph checks nothing, but a diverged latent must not become a code."""
    z = torch.tensor([[0.3, float("nan")]])
    for q in (ifsq.FSQ([17] * 2), ifsq.FSQ([17] * 2, cells="equal")):
        codes = torch.compile(q, fullgraph=True)(z).codes
        assert codes.isnan().tolist() == [[False, True]]


class RoundTrip(nn.Module):
    """Indices to codes of a type and back."""

    def __init__(self, q: ifsq.FSQ, dtype: torch.dtype) -> None:
        super().__init__()
        self.q, self.dtype = q, dtype

    def forward(self, indices: Tensor) -> Tensor:
        return self.q.codes_to_indices(self.q.indices_to_codes(indices).to(self.dtype))


BOOKS = {
    # every index of every level count, one group each; the smaller ones come round again
    "2..65": ({"levels": EVERY_LEVEL, "groups": [1] * 64}, torch.arange(65)[None, :, None] % torch.tensor(EVERY_LEVEL)),
    "17^4": ({"levels": [17] * 4}, torch.arange(17**4)[None]),
    "17^6": ({"levels": [17] * 6}, None),
    "17^8": ({"levels": [17] * 8}, None),
    "2^60": ({"levels": [2] * 60}, None),
}


@pytest.mark.parametrize("how", ["eager", "compiled", "exported"])
@pytest.mark.parametrize("book", BOOKS)
@pytest.mark.parametrize("cells", ["paper", "symmetric", "equal"])
def test_round_trip_of_indices(book, cells, how):
    torch.compiler.reset()  # symbols for the sizes of the books before would make these kernels slow, and test nothing
    options, indices = BOOKS[book]
    q = ifsq.FSQ(**options, cells=cells, bound="tanh").eval()
    if indices is None:
        rng = torch.Generator().manual_seed(0)
        indices = torch.randint(q.codebook_size, (2, 2000), generator=rng)
        indices[0, :2] = torch.tensor([0, q.codebook_size - 1])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        trip = RoundTrip(q, dtype)
        if how == "compiled":
            # All three types at once is one compilation for the thorough backend; the plain one traces the rest.
            backend = "inductor" if (cells, dtype) == ("equal", torch.float32) else "aot_eager"
            trip = torch.compile(trip, fullgraph=True, backend=backend)
        elif how == "exported":
            trip = torch.export.export(trip, (indices,)).module()
        assert torch.equal(trip(indices), indices), dtype


@pytest.mark.parametrize("alpha", [1.6, 1.702, 2.0, 1e-9, 1 / 3, 12345.678])
@pytest.mark.parametrize("bound", ["ifsq", "standardized", "learned"])
def test_a_constant_is_the_number_it_was_given(bound, alpha):
    assert make_bound(bound, 2, alpha).alpha == alpha


def test_materialize_has_the_value_and_the_gradient_of_its_argument():
    x = torch.randn(3, 4, requires_grad=True)
    assert materialize(x) is x
    y = torch.compile(lambda x: materialize(x.mT) * 2, fullgraph=True, backend="aot_eager")(x)
    y.mul(torch.arange(12.0).view(4, 3)).sum().backward()
    assert torch.equal(y, 2 * x.mT)
    assert torch.equal(x.grad, 2 * torch.arange(12.0).view(4, 3).mT)
