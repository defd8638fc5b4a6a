"""What samples are held against: files of statistics, images, and what is kept of them."""

from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save

from ifsq.config import InputError
from ifsq.data import DataError
from ifsq.data.images import Reading
from ifsq.evaluation import reference
from ifsq.evaluation.collect import Look
from ifsq.evaluation.reference import open_reference, views_of
from ifsq.metrics import frechet_from_statistics
from ifsq.metrics.distribution import INCEPTION_2015
from ifsq.pretrained.network import FeatureNetwork
from ifsq.store.files import cache_folder
from ifsq.training.distributed import World
from ifsq.training.log import Silent

ALONE = World(0, 1, torch.device("cpu"))
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)


class Colours(FeatureNetwork):
    """Means and corners of the colours."""

    pooled, spatial = "3", "6"
    widths = MappingProxyType({"3": 3, "6": 6})

    def __init__(self, name="inception-other"):
        super().__init__()
        self.name = name

    def forward(self, images, wanted):
        floats = images.float()
        outputs = {"3": floats.mean(dim=(2, 3)), "6": torch.cat([floats[..., 0, 0], floats[..., -1, -1]], dim=1)}
        return {name: outputs[name] for name in wanted}


class Says(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IFSQ_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "r.npz", PIXELS)
    return tmp_path / "r.npz"


def opened(path):
    return open_reference(str(path), "", 0, 8, Reading())


def view_of(path, look=None, keep=True, reporter=None):
    look = look or Look(Colours(), spatial=True, pairs=10)
    return views_of(opened(path), [look], ALONE, reporter or Says(), keep)[0]


def test_what_is_kept_is_what_was_seen_and_no_image_is_read_again(path, monkeypatch):
    first = view_of(path)
    rows = torch.from_numpy(PIXELS).double().mean(dim=(1, 2))
    torch.testing.assert_close(first.pooled.covariance, rows.T.cov())
    monkeypatch.setattr(reference, "collect", None)
    again = view_of(path)
    assert (again.n, again.given) == (40, False)
    assert first.rows.shape == (10, 3)
    assert torch.equal(again.rows, first.rows)
    for mine, theirs in ((first.pooled, again.pooled), (first.spatial, again.spatial)):
        assert torch.equal(mine.mean, theirs.mean)
        assert torch.equal(mine.covariance, theirs.covariance)
        assert frechet_from_statistics(mine, theirs) < 1e-9


def test_other_images_networks_and_protocols_are_kept_apart(path, tmp_path):
    np.savez(tmp_path / "other.npz", PIXELS[:30])
    for of, look in (
        (path, None),
        (tmp_path / "other.npz", None),
        (path, Look(Colours("inception-another"), spatial=True, pairs=10)),
        (path, Look(Colours(), spatial=True, pairs=20)),
        (path, Look(Colours(), pairs=10)),
    ):
        view_of(of, look)
    assert len(list(cache_folder("references").iterdir())) == 5


def test_nothing_is_kept_where_that_is_asked_for(path):
    view_of(path, keep=False)
    assert not cache_folder("references").exists()


def test_what_is_damaged_is_made_anew_and_said(path):
    whole = view_of(path)
    (kept,) = cache_folder("references").iterdir()
    content = kept.read_bytes()
    number = content.replace(b'\\"n\\": 40', b'\\"n\\": 70')
    assert number != content
    table = load_file(kept)
    deep, listed = (save(table, {"about": text}) for text in ("[" * 100_000, "[]"))
    for damaged in (content[:-9], b"", content[:-1] + bytes([content[-1] ^ 1]), number, deep, listed):
        kept.write_bytes(damaged)
        says = Says()
        again = view_of(path, reporter=says)
        assert torch.equal(again.pooled.covariance, whole.pooled.covariance)
        assert "kept statistics are damaged" in says.lines[0]
        assert kept.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_said_and_ends_nothing(path, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("IFSQ_CACHE", str(tmp_path / "file"))
    says = Says()
    assert view_of(path, reporter=says).n == 40
    (line,) = says.lines
    assert "statistics of the reference cannot be kept (" in line
    assert line.endswith("set IFSQ_CACHE to another folder")


def test_other_images_of_the_same_names_and_sizes_are_kept_apart(tmp_path):
    for name, pixels in (("a", PIXELS), ("b", 255 - PIXELS)):
        (tmp_path / name).mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / name / f"{number:02}.bmp")  # not compressed: of one size in bytes
    first, other = (view_of(tmp_path / name) for name in "ab")
    assert opened(tmp_path / "a").fingerprint == opened(tmp_path / "b").fingerprint
    torch.testing.assert_close(other.pooled.mean, 255 - first.pooled.mean)


def test_what_was_seen_of_cropped_images_does_not_stand_for_what_is_refused_uncropped(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    for number, image in enumerate(PIXELS):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    Image.fromarray(PIXELS[0, :, :6]).save(folder / "99.png")
    look = Look(Colours(), pairs=10)
    (view,) = views_of(open_reference(str(folder), "", 8, 8, Reading()), [look], ALONE, Silent())
    assert view.n == 41
    with pytest.raises(DataError, match=r"99\.png: is of 8x6 pixels, the first of 8"):
        views_of(open_reference(str(folder), "", 0, 8, Reading()), [look], ALONE, Silent())


def statistics(width, seed=0):
    rows = np.random.default_rng(seed).normal(size=(3 * width, width))
    return {"mu": rows.mean(axis=0), "sigma": np.cov(rows, rowvar=False)}


def test_statistics_of_a_file_are_taken_as_they_are(tmp_path):
    given = statistics(3)
    np.savez(tmp_path / "s.npz", **given)
    view = view_of(tmp_path / "s.npz")
    assert np.array_equal(view.pooled.mean.numpy(), given["mu"])
    np.testing.assert_allclose(view.pooled.covariance.numpy(), given["sigma"], rtol=1e-15)
    assert (view.n, view.spatial, view.rows, view.given) == (0, None, None, True)
    spatial = statistics(6)
    np.savez(tmp_path / "s.npz", **given, mu_s=spatial["mu"], sigma_s=spatial["sigma"])
    assert np.array_equal(view_of(tmp_path / "s.npz").spatial.mean.numpy(), spatial["mu"])


def test_statistics_beside_images_count_for_inception_alone(tmp_path):
    """As ADM's files have it: statistics of all images, and some of the images."""
    given = statistics(3)
    np.savez(tmp_path / "r.npz", PIXELS, **given)
    view = view_of(tmp_path / "r.npz", Look(Colours(INCEPTION_2015), pairs=10))
    assert view.given
    assert np.array_equal(view.pooled.mean.numpy(), given["mu"])
    assert view.rows.shape == (10, 3)
    for name in ("other", "inception-12345678"):  # other weights of the same network see other things
        other = view_of(tmp_path / "r.npz", Look(Colours(name), pairs=10))
        assert not other.given
        assert other.n == 40


@pytest.mark.parametrize("dtype", [">f8", "<f4", np.longdouble])
def test_statistics_are_of_any_width_and_byte_order(tmp_path, dtype):
    given = {name: values.astype(dtype) for name, values in statistics(3).items()}
    np.savez(tmp_path / "s.npz", **given)
    np.testing.assert_array_equal(view_of(tmp_path / "s.npz").pooled.mean.numpy(), given["mu"].astype(np.float64))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"arr_1": np.arange(4)}, "holds arr_1; expected images as arr_0, or statistics as mu and sigma"),
        ({"mu": np.ones(3)}, "holds mu without sigma"),
        ({"sigma": np.eye(3)}, "holds sigma without mu"),
        ({"mu": np.ones(3), "sigma": np.eye(4)}, r"mu \(3,\) and sigma \(4, 4\): expected"),
        ({"mu": np.arange(3), "sigma": np.eye(3)}, "mu: is of int64; expected floats"),
        ({"mu": np.ones(3) * np.nan, "sigma": np.eye(3)}, "mu: expected finite values"),
        ({"mu": np.ones(3), "sigma": np.triu(np.ones((3, 3)))}, "sigma: is not symmetric"),
        (statistics(5), "holds statistics of 5 features, and inception-other has 3; expected a reference of images"),
        ({"arr_0": np.ones((4, 8, 8, 3))}, "arr_0: is of float64"),
    ],
)
def test_other_files_are_refused_in_a_line(tmp_path, arrays, told):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(InputError, match=told) as refused:
        view_of(tmp_path / "s.npz")
    assert "\n" not in str(refused.value)


def test_statistics_are_of_inception_alone(tmp_path):
    np.savez(tmp_path / "s.npz", **statistics(3))
    with pytest.raises(InputError, match="expected a reference of images for these"):
        view_of(tmp_path / "s.npz", Look(Colours("efficientnet")))


def test_a_file_is_not_resized(path):
    with pytest.raises(DataError, match=r"r\.npz: is of 8 pixels, which --size 16 cannot change"):
        open_reference(str(path), "", 16, 8, Reading())
