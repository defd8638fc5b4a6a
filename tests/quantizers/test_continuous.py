"""Bottlenecks without a codebook against the official one; and what every bottleneck owes its caller."""

import math
import subprocess
import sys

import pytest
import torch

from ifsq.quantizers.continuous import KL, Identity
from ifsq.quantizers.lookup_free import BSQ, LFQ
from ifsq.quantizers.residual import ResidualFSQ
from ifsq.quantizers.vq import VQ

KINDS = {
    "identity": lambda **options: Identity(4, **options),
    "kl": lambda **options: KL(4, **options),
    "vq": lambda **options: VQ(32, 4, **options),
    "vq_normalized": lambda **options: VQ(32, 4, normalize=True, **options),
    "lfq": lambda **options: LFQ(4, **options),
    "lfq_groups": lambda **options: LFQ(4, groups=[1, 3], **options),
    "bsq": lambda **options: BSQ(4, **options),
    "residual_fsq": lambda **options: ResidualFSQ([3, 4, 3, 3], 2, **options),
}
CONTINUOUS = ("identity", "kl")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_discrete_kind = pytest.mark.parametrize("kind", [k for k in KINDS if k not in CONTINUOUS])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(kind, **options):
    return KINDS[kind](**options).eval()


@every_kind
def test_returns_what_it_states(kind):
    q = make(kind)
    z = torch.randn(2, q.width, 3, 5)
    out = q(z)
    assert out.codes.shape == (2, q.dim, 3, 5)
    assert out.loss.shape == ()
    assert (q.lattice is None) == (q.levels is None) == (q.groups is None)
    if q.levels is None:
        assert out.indices is None
        assert out.digits is None
        return
    assert out.indices.dtype == torch.int64
    assert out.indices.shape[:3] == (2, 3, 5)
    assert out.digits.shape == (2, 3, 5, len(q.levels))
    assert (out.digits >= 0).all()
    assert (out.digits < torch.tensor(q.levels)).all()


@every_kind
def test_layouts_agree(kind):
    q = make(kind)
    image = torch.randn(2, q.width, 3, 5)
    last = image.movedim(1, -1)
    expected = q(image)
    for layout, z, back in [
        (False, last.reshape(2, 15, -1), lambda codes: codes.view(2, 3, 5, -1)),
        (False, last.reshape(30, -1), lambda codes: codes.view(2, 3, 5, -1)),
        (True, image.flatten(2), lambda codes: codes.unflatten(2, (3, 5)).movedim(1, -1)),
        (False, image.unsqueeze(2), lambda codes: codes.squeeze(2).movedim(1, -1)),
    ]:
        q.channel_axis = 1 if layout else None
        out = q(z)
        torch.testing.assert_close(back(out.codes).movedim(-1, 1), expected.codes)
        if q.levels is not None:
            assert torch.equal(out.indices.flatten(), expected.indices.flatten())
            torch.testing.assert_close(q.indices_to_codes(out.indices), out.codes, rtol=0, atol=0)


@every_discrete_kind
def test_codes_and_indices_are_inverse(kind):
    q = make(kind)
    out = q(torch.randn(2, q.width, 6, 6))
    codes = q.indices_to_codes(out.indices)
    assert torch.equal(codes, out.codes)
    assert torch.equal(q.codes_to_indices(codes), out.indices)


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(kind, dtype):
    q = make(kind)
    z = torch.randn(4, q.width, 8, 8).to(dtype)
    half, full = q(z), q(z.float())
    assert half.codes.dtype == dtype
    torch.testing.assert_close(half.codes, full.codes.to(dtype), rtol=0, atol=0)
    if q.levels is not None:
        assert torch.equal(half.indices, full.indices)


@every_kind
def test_autocast_and_casts_change_nothing(kind):
    q = make(kind)
    z = torch.randn(4, q.width, 8, 8)
    expected = q(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = q(z)
    torch.testing.assert_close(inside.codes, expected.codes, rtol=0, atol=0)
    torch.testing.assert_close(inside.loss, expected.loss)
    torch.testing.assert_close(q.bfloat16()(z).codes, expected.codes, rtol=0, atol=0)


@every_kind
def test_double_stays_double(kind):
    q = make(kind)
    out = q(torch.randn(2, q.width, 3, 5, dtype=torch.float64))
    assert out.codes.dtype == torch.float64


@every_kind
def test_gradient_reaches_the_latent(kind):
    q = make(kind).train()
    z = torch.randn(2, q.width, 3, 5, requires_grad=True)
    (q(z).codes * torch.randn(2, q.dim, 3, 5)).sum().backward()
    assert torch.isfinite(z.grad).all()
    assert (z.grad != 0).float().mean() > 0.9


@every_kind
def test_bad_latents_are_named(kind):
    q = make(kind)
    width = q.width
    with pytest.raises(ValueError, match=rf"latent of shape \(2, {width + 1}\): expected {width} channels on axis 1"):
        q(torch.randn(2, width + 1))
    with pytest.raises(ValueError, match=rf"latent of shape \({width},\): expected {width} channels"):
        q(torch.randn(width))
    with pytest.raises(ValueError, match=r"latent of dtype torch\.int64: expected a floating point type"):
        q(torch.zeros(2, width, dtype=torch.int64))
    for bad in (math.nan, math.inf, -math.inf):
        z = torch.zeros(2, width)
        z[1, 2] = bad
        with pytest.raises(ValueError, match=rf"latent of shape \(2, {width}\) holds {bad}: expected finite values"):
            q(z)
    q(torch.full((2, width), 3e38))  # finite, though its sum is not


@every_discrete_kind
def test_bad_codes_and_indices_are_named(kind):
    q = make(kind)
    for codes, message in [
        (torch.zeros(2, 5), r"codes of shape \(2, 5\): expected 4 channels on axis 1"),
        (torch.zeros(2, 4, dtype=torch.int64), r"codes of dtype torch\.int64"),
        (torch.full((2, 4), math.nan), r"codes of shape \(2, 4\) holds nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            q.codes_to_indices(codes)
    good = q(torch.randn(2, 3, 4)).indices
    for value in (-1, 2**40):
        bad = good.clone()
        bad.view(-1)[1] = value
        with pytest.raises(ValueError, match=rf"index {value} in indices of shape .*: expected 0 to \d+"):
            q.indices_to_codes(bad)
    with pytest.raises(ValueError, match=r"indices of dtype torch\.float32: expected integers"):
        q.indices_to_codes(good.float())


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_no_indices_no_lookup(kind):
    with pytest.raises(ValueError, match=r"has no indices: expected a quantizer with a codebook"):
        make(kind).indices_to_codes(torch.zeros(1, 1, dtype=torch.int64))


def test_compiles_and_exports_whole():
    # In a process of its own: the compiler cannot trace the records that the tests' shape checks have wrapped.
    done = subprocess.run([sys.executable, "-W", "error", __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == list(KINDS)


def compile_and_export(kind):
    q = make(kind)
    z = torch.randn(2, q.width, 3, 5)
    expected = q(z)
    out = torch.compile(q, fullgraph=True, backend="aot_eager" if kind == "vq" else "eager")(z)
    torch.testing.assert_close(out.codes, expected.codes)
    torch.testing.assert_close(out.losses, expected.losses)
    assert q.levels is None or torch.equal(out.indices, expected.indices)
    exported = torch.export.export(q, (z,), dynamic_shapes=({0: torch.export.Dim("b", max=64)},)).module()
    z = torch.randn(7, q.width, 3, 5)
    out, expected = exported(z), q(z)
    torch.testing.assert_close(out.codes, expected.codes)
    assert out.losses == {}
    assert q.levels is None or torch.equal(out.indices, expected.indices)
    assert q.levels is None or torch.equal(out.digits, expected.digits)


def test_identity_is_the_identity():
    z = torch.randn(2, 4, 3, 5)
    out = Identity(4)(z)
    assert torch.equal(out.codes, z)
    assert out.losses == {}


def test_official_posterior(golden):
    file = golden("tokenizer_vae_2level")
    z = file.get_tensor("out/quant_conv")
    q = KL(4, weight=0.5).eval()
    posterior = q.posterior(z)
    torch.testing.assert_close(posterior.mean, file.get_tensor("out/mean"), atol=1e-6, rtol=0)
    torch.testing.assert_close(posterior.logvar, file.get_tensor("out/logvar"), atol=1e-6, rtol=0)
    torch.testing.assert_close(posterior.kl, file.get_tensor("out/kl"), atol=1e-4, rtol=1e-5)
    out = q(z)
    torch.testing.assert_close(out.codes, file.get_tensor("out/z_q"), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.losses["kl"], 0.5 * file.get_tensor("out/kl").mean())


def test_divergence_is_that_of_the_distributions():
    z = torch.randn(3, 2 * 5, 4, 4, dtype=torch.float64)
    mean, logvar = z.split(5, dim=1)
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(KL(5).posterior(z).kl, expected)
    torch.testing.assert_close(KL(5, weight=2.0)(z).losses["kl"], 2 * expected.mean())


def test_samples_in_training_and_the_mean_in_evaluation():
    q = KL(2)
    z = torch.tensor([1.0, -2.0, 0.0, math.log(4.0)]).expand(20000, 4)
    samples = q(z).codes
    torch.testing.assert_close(samples.mean(0), torch.tensor([1.0, -2.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.tensor([1.0, 2.0]), atol=0.05, rtol=0)
    assert torch.equal(q.eval()(z).codes, z[:, :2])


def test_log_variance_is_clamped():
    z = torch.tensor([[0.0, 0.0, -1000.0, 1000.0]])
    posterior = KL(2).posterior(z)
    assert posterior.logvar.tolist() == [[-30.0, 20.0]]
    assert torch.isfinite(posterior.kl).all()


def test_weight_zero_leaves_nothing():
    assert KL(2, weight=0.0)(torch.randn(3, 4)).loss == 0


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: Identity(0), r"^dim=0: expected an integer of at least 1$"),
        (lambda: KL(-1), r"^dim=-1: expected an integer of at least 1$"),
        (lambda: KL(True), r"^dim=True: expected an integer"),
        (lambda: KL(2, weight=-1.0), r"^weight=-1.0: expected a finite number of at least 0$"),
        (lambda: KL(2, weight=math.inf), r"^weight=inf: expected a finite number"),
    ],
)
def test_bad_options_are_named(construct, message):
    with pytest.raises(ValueError, match=message):
        construct()


if __name__ == "__main__":
    for name in KINDS:
        compile_and_export(name)
        print(name)
