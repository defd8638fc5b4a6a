"""Vector quantization against the official models (golden vectors), plain second implementations, and two processes."""

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ifsq.quantizers import vq
from ifsq.quantizers.vq import VQ, nearest


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def official(golden, name, **options):
    """The quantizer of a golden file with its weights, and the file."""
    file = golden(name)
    q = VQ(*file.get_tensor("sd/quantize.embedding.weight").shape, **options).eval()
    q.load_state_dict({"embedding.weight": file.get_tensor("sd/quantize.embedding.weight")})
    return q, file


def with_codebook(codebook, **options):
    q = VQ(*codebook.shape, **options)
    with torch.no_grad():
        q.embedding.weight.copy_(codebook)
    return q


def test_official_quantizer_in_the_legacy_order(golden):
    config = json.loads(golden("tokenizer_vq_2level").metadata()["config"])
    q, file = official(golden, "tokenizer_vq_2level", commitment_weight=1.0, codebook_weight=config["beta"])
    assert (q.codebook_size, q.dim) == (config["n_e"], config["embed_dim"])
    out = q(file.get_tensor("out/quant_conv"))
    assert torch.equal(out.indices.flatten(), file.get_tensor("out/indices"))
    torch.testing.assert_close(out.codes, file.get_tensor("out/z_q"), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.loss, file.get_tensor("out/vq_loss").squeeze(), atol=1e-6, rtol=1e-5)


def test_llamagen_quantizer(golden):
    q, file = official(golden, "llamagen_vq_tiny", normalize=True, commitment_weight=0.25)
    out = q(file.get_tensor("out/quant_conv"))
    assert torch.equal(out.indices.flatten(), file.get_tensor("out/indices"))
    torch.testing.assert_close(out.codes, file.get_tensor("out/z_q"), atol=1e-6, rtol=0)
    assert torch.equal(q.indices_to_codes(file.get_tensor("out/indices").view(2, 16, 16)), out.codes)
    torch.testing.assert_close(out.losses["codebook"], file.get_tensor("train/vq_loss").squeeze(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        out.losses["commitment"], file.get_tensor("train/commit_loss").squeeze(), atol=1e-6, rtol=1e-5
    )


def plain(z, weight, normalize, commitment, codebook):
    """A second implementation: rows (n, d) -> codes, indices, loss."""
    if normalize:
        z, weight = z / z.norm(dim=1, keepdim=True), weight / weight.norm(dim=1, keepdim=True)
    indices = torch.stack([((row - weight) ** 2).sum(1).argmin() for row in z])
    chosen = weight[indices]
    loss = commitment * ((chosen.detach() - z) ** 2).mean() + codebook * ((chosen - z.detach()) ** 2).mean()
    return z + (chosen - z).detach(), indices, loss


@pytest.mark.parametrize("normalize", [False, True])
def test_codes_loss_and_gradients_of_a_plain_implementation(normalize):
    q = with_codebook(torch.randn(16, 3), normalize=normalize, commitment_weight=0.3, codebook_weight=0.7)
    z, w = torch.randn(40, 3, requires_grad=True), torch.randn(40, 3)
    out = q(z)
    ((out.codes * w).sum() + out.loss).backward()
    z2, weight2 = z.detach().clone().requires_grad_(), q.embedding.weight.detach().clone().requires_grad_()
    codes, indices, loss = plain(z2, weight2, normalize, 0.3, 0.7)
    ((codes * w).sum() + loss).backward()
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.codes, codes)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(z.grad, z2.grad)
    torch.testing.assert_close(q.embedding.weight.grad, weight2.grad)


def test_each_term_pulls_its_own_side():
    z = torch.randn(40, 3, requires_grad=True)
    q = VQ(16, 3)
    losses = q(z).losses
    assert torch.autograd.grad(losses["commitment"], q.embedding.weight, allow_unused=True, retain_graph=True) == (
        None,
    )
    assert torch.autograd.grad(losses["codebook"], z, allow_unused=True) == (None,)


def test_codes_are_rows_of_the_codebook_to_the_bit():
    q = with_codebook(torch.randn(64, 5))
    out = q(100 * torch.randn(500, 5))
    assert torch.equal(out.codes, q.embedding.weight[out.indices])


@pytest.mark.parametrize("size", [2, 300, 40000])
def test_search_in_parts_is_the_whole_search(size, monkeypatch):
    codebook, rows = torch.randn(size, 6), torch.randn(700, 6)
    largest = 0
    addmm = torch.addmm

    def watched(*args, **kwargs):
        nonlocal largest
        distances = addmm(*args, **kwargs)
        largest = max(largest, distances.numel())
        return distances

    monkeypatch.setattr(torch, "addmm", watched)
    found = nearest(rows, codebook)
    assert 0 < largest <= 2**20
    distance = torch.cdist(rows.double(), codebook.double())
    # Float32 may take the second of two codes that are as near as it can tell.
    worse = distance.gather(1, found[:, None]).squeeze(1) - distance.min(1).values
    assert worse.max() < 1e-6
    assert (found == distance.argmin(1)).float().mean() > 0.99


def test_a_tie_goes_to_the_smaller_index(monkeypatch):
    rows = torch.randn(9, 3)
    codebook = torch.randn(5, 3).repeat(4, 1)
    assert (nearest(rows, codebook) < 5).all()
    monkeypatch.setattr(vq, "CODES_AT_ONCE", 7)
    assert (nearest(rows, codebook) < 5).all()
    assert torch.equal(nearest(rows, codebook), nearest(rows, codebook[:5]))


def test_no_latents_no_indices():
    out = VQ(8, 3).eval()(torch.zeros(0, 3))
    assert out.indices.shape == (0,)


def test_digits_take_the_smallest_type():
    assert VQ(256, 2)(torch.randn(3, 2)).packed_digits.dtype == torch.uint8
    out = VQ(257, 2)(torch.randn(3, 2))
    assert out.packed_digits.dtype == torch.int32
    assert torch.equal(out.digits.squeeze(-1), out.indices)


def test_starts_within_its_interval_and_on_the_sphere():
    weight = VQ(64, 8).embedding.weight.detach()
    assert weight.abs().max() <= 1 / 64
    assert weight.std() == pytest.approx(1 / 64 / math.sqrt(3), rel=0.1)
    norms = VQ(64, 8, normalize=True).embedding.weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(64))


def test_state_is_the_codebook_alone():
    assert list(VQ(8, 3).state_dict()) == ["embedding.weight"]
    assert sorted(VQ(8, 3, ema=True, revive_after=2).state_dict()) == [
        "ema_count",
        "embedding.weight",
        "touched",
        "unused",
    ]


def test_codebook_stays_float32():
    q = VQ(8, 3, ema=True).bfloat16().half().to(torch.float64)
    assert q.embedding.weight.dtype == torch.float32
    assert q.ema_count.dtype == torch.float32
    assert q.to("meta").embedding.weight.is_meta


@pytest.mark.parametrize("normalize", [False, True])
def test_averages_of_a_plain_implementation(normalize):
    q = VQ(6, 2, ema=True, ema_decay=0.8, normalize=normalize)
    count, weight = torch.ones(6), q.embedding.weight.clone()
    total, smoothed = weight.clone(), torch.ones(6)
    for _ in range(8):
        z = torch.randn(50, 2)
        out = q(z)
        members = F.one_hot(plain(z, weight, normalize, 1, 1)[1], 6).float()
        # On the sphere the sum of a cluster goes on from its direction.
        total = weight * smoothed.unsqueeze(1) if normalize else total
        total = 0.8 * total + 0.2 * members.t() @ (F.normalize(z, dim=1) if normalize else z)
        count = 0.8 * count + 0.2 * members.sum(0)
        smoothed = (count + 1e-5) / (count.sum() + 6e-5) * count.sum()
        weight = total / smoothed.unsqueeze(1)
        weight = F.normalize(weight, dim=1) if normalize else weight
        torch.testing.assert_close(q.embedding.weight, weight)
        torch.testing.assert_close(q.ema_count, count)
    assert set(out.losses) == {"commitment"}
    assert not q.embedding.weight.requires_grad


def test_averages_find_the_means_of_clusters():
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0]])
    q = with_codebook(centres + torch.randn(3, 2), ema=True, ema_decay=0.9)
    for _ in range(100):
        q(centres.repeat(50, 1) + 0.1 * torch.randn(150, 2))
    torch.testing.assert_close(q.embedding.weight.detach(), centres, atol=0.05, rtol=0)


def test_a_loaded_codebook_goes_on_from_where_it_is():
    codebook = torch.tensor([[5.0, 0.0], [-5.0, 0.0]])
    q = VQ(2, 2, ema=True)
    q.load_state_dict({"embedding.weight": codebook}, strict=False)
    q(codebook.repeat(10, 1))
    torch.testing.assert_close(q.embedding.weight.detach(), codebook)


@pytest.mark.parametrize("options", [{"ema": True}, {"revive_after": 1}, {"ema": True, "revive_after": 1}])
def test_evaluation_changes_nothing(options):
    q = VQ(8, 3, **options).eval()
    before = copy.deepcopy(q.state_dict())
    q(torch.randn(20, 3))
    for key, value in q.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("ema", [False, True])
def test_dead_codes_become_latents_of_the_batch(ema):
    far = torch.full((6, 2), 100.0) + torch.arange(6)[:, None]
    q = with_codebook(torch.cat([torch.zeros(2, 2), far]), revive_after=3, ema=ema)
    with torch.no_grad():
        q.embedding.weight[1] = 1.0
    for batch in range(3):
        torch.testing.assert_close(q.embedding.weight[2:].detach(), far, atol=0.2, rtol=1e-2)
        z = 0.1 * torch.randn(20, 2)
        z[0] = 1.0
        q(z)
        assert q.usage(window=1) == 2 / 8
        assert (q.unused[2:] == (batch + 1) % 3).all()
    revived = q.embedding.weight[2:].detach()
    from_batch = (revived.unsqueeze(1) == z).all(-1)
    assert from_batch.any(1).all()
    assert from_batch.float().argmax(1).unique().numel() == 6  # each its own
    assert (q.embedding.weight[:2] < 2).all()
    assert not ema or (q.ema_count[2:] == 1).all()


def test_more_dead_codes_than_latents():
    q = with_codebook(100 + torch.rand(50, 2), revive_after=1)
    z = torch.randn(3, 2)
    q(z)
    live = (q.embedding.weight.unsqueeze(1) == z).all(-1).any(1)
    assert live.sum() >= 47
    assert torch.isfinite(q.embedding.weight).all()


def test_revival_leaves_the_gradient_of_its_batch():
    weight = torch.randn(30, 3)
    z = torch.randn(10, 3)
    gradients = []
    for revive_after in (0, 1):
        q = with_codebook(weight, revive_after=revive_after, normalize=True)
        q(z).loss.backward()
        gradients.append(q.embedding.weight.grad)
    assert not torch.equal(q.embedding.weight, weight)
    assert torch.equal(*gradients)


def test_a_resumed_run_is_the_uninterrupted_one():
    options = {"revive_after": 2, "ema": True}
    whole = VQ(16, 3, **options)
    batches = torch.randn(6, 10, 3)
    for z in batches[:3]:
        whole(z)
    resumed = VQ(16, 3, **options)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for q in (whole, resumed):
        torch.manual_seed(1)
        for z in batches[3:]:
            q(z)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_usage_counts_the_last_batches():
    q = with_codebook(torch.eye(4))
    assert q.usage() == 0
    q(torch.eye(4)[:2])
    assert q.usage() == 0.5
    q(torch.eye(4)[2:3])
    assert q.usage() == 0.75
    assert q.usage(window=1) == 0.25
    q.eval()(torch.eye(4))
    assert q.usage() == 0.75


def test_a_replaced_code_is_unused_until_it_is_chosen():
    q = with_codebook(torch.tensor([[0.0], [50.0], [100.0]]), revive_after=2)
    q(torch.tensor([[0.0], [50.0]]))
    for _ in range(2):
        assert q.usage() == 2 / 3
        q(torch.zeros(4, 1))
    assert q.usage() == 1 / 3


def test_processes_share_one_codebook(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(tmp_path), str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    states = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    # Until the first revival the two are one process that sees both batches.
    alone = shared_quantizer()
    alone.revive_after = 0
    for z in shared_batches()[:2]:
        alone(z.flatten(0, 1))
    torch.testing.assert_close(states[0]["before/embedding.weight"], alone.embedding.weight)
    torch.testing.assert_close(states[0]["before/ema_count"], alone.ema_count)
    assert torch.equal(states[0]["before/unused"], alone.unused)
    # Then what neither has used becomes latents of the first process.
    alone(shared_batches()[2].flatten(0, 1))
    dead = alone.unused >= 3
    assert 0 < dead.sum() < 12
    after = states[0]["after/embedding.weight"]
    assert torch.equal((after.unsqueeze(1) == shared_batches()[2, 0]).all(-1).any(1), dead)
    torch.testing.assert_close(after[~dead], alone.embedding.weight[~dead])


def shared_quantizer():
    return with_codebook(torch.randn(12, 3, generator=torch.Generator().manual_seed(3)), ema=True, revive_after=3)


def shared_batches():
    """Batches (step, process, n, d)."""
    return torch.randn(3, 2, 4, 3, generator=torch.Generator().manual_seed(4)) * torch.tensor([0.2, 1.0, 1.0])


def one_process(folder, rank):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)  # the processes draw different numbers
    q, states = shared_quantizer(), {}
    for step, z in enumerate(shared_batches()):
        q(z[rank])
        if step > 0:
            states |= {f"{('before', 'after')[step - 1]}/{k}": v.clone() for k, v in q.state_dict().items()}
    save_file(states, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: VQ(1, 4), r"^codebook_size=1: expected an integer of at least 2$"),
        (lambda: VQ(8, 0), r"^dim=0: expected an integer of at least 1$"),
        (lambda: VQ(8, 4, commitment_weight=-0.5), r"^commitment_weight=-0.5: expected a finite number of at least 0$"),
        (lambda: VQ(8, 4, codebook_weight=math.nan), r"^codebook_weight=nan: expected a finite number of at least 0$"),
        (lambda: VQ(8, 4, ema_decay=1.0), r"^ema_decay=1.0: expected a rate from 0 to below 1$"),
        (lambda: VQ(8, 4, ema_decay=-0.1), r"^ema_decay=-0.1: expected a rate"),
        (lambda: VQ(8, 4, revive_after=-1), r"^revive_after=-1: expected an integer of at least 0$"),
        (lambda: VQ(8, 4).usage(0), r"^window=0: expected an integer of at least 1$"),
        (lambda: VQ(8, 4).indices_to_codes(torch.tensor([[8]])), r"index 8 in .*: expected 0 to 7"),
    ],
)
def test_bad_options_are_named(construct, message):
    with pytest.raises(ValueError, match=message):
        construct()


if __name__ == "__main__":
    one_process(sys.argv[1], int(sys.argv[2]))
