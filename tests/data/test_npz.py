"""Arrays of an .npz file by rows, against numpy's own reading, and what is refused."""

import io
import zipfile

import numpy as np
import pytest

from ifsq.data import DataError
from ifsq.data.npz import Npz

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 6, 3), np.uint8)
SAVE = {"stored": np.savez, "deflated": np.savez_compressed}


@pytest.fixture(params=SAVE)
def path(request, tmp_path):
    file = tmp_path / "samples.npz"
    SAVE[request.param](file, IMAGES, np.arange(23))
    return file


def test_rows_are_those_that_numpy_reads(path):
    file = Npz(path)
    assert file.members["arr_0"].shape == IMAGES.shape
    for batches in ([range(23)], [range(5), range(9, 14), [20, 22]], [[22]], [[], [3]]):
        for places, rows in zip(batches, file.rows("arr_0", batches), strict=True):
            assert np.array_equal(rows, IMAGES[list(places)])
    assert np.array_equal(file.array("arr_1"), np.arange(23))


def test_stored_rows_are_read_in_any_order(tmp_path):
    np.savez(tmp_path / "a.npz", IMAGES)
    order = np.random.default_rng(1).permutation(23)
    assert np.array_equal(next(Npz(tmp_path / "a.npz").rows("arr_0", [order.tolist()])), IMAGES[order])


def test_a_stream_does_not_go_back(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", IMAGES)
    with pytest.raises(ValueError, match="ascending"):
        next(Npz(tmp_path / "a.npz").rows("arr_0", [[4, 3]]))


def test_a_fingerprint_is_of_the_content(path, tmp_path):
    file = Npz(path)
    for save in SAVE.values():
        save(tmp_path / "same.npz", IMAGES, np.arange(23))
        assert Npz(tmp_path / "same.npz").fingerprint == file.fingerprint
    other = IMAGES.copy()
    other[7, 2, 2, 1] ^= 1
    np.savez(tmp_path / "other.npz", other, np.arange(23))
    assert Npz(tmp_path / "other.npz").fingerprint != file.fingerprint


def test_what_is_cut_off_is_refused(path):
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"samples\.npz: is no whole \.npz"):
            Npz(path)


def test_bytes_that_were_changed_in_a_deflated_array_are_refused(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez_compressed(path, IMAGES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"samples\.npz: is no whole \.npz"):
        list(Npz(path).rows("arr_0", [range(23)]))


def npz_of(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)


def header(text):
    """Of an array, as numpy writes it in its first version."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_what_is_no_plain_array_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(DataError, match="arr_0: holds pickled objects"):
        Npz(path)
    np.savez(path, np.asfortranarray(np.ones((3, 4))))
    with pytest.raises(DataError, match="arr_0: is stored column by column"):
        Npz(path)
    for content in (b"no array at all", header("((")):
        npz_of(path, "arr_0.npy", content)
        with pytest.raises(DataError, match="arr_0: is no array that is read"):
            Npz(path)
    npz_of(path, "arr_0.npy", header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': (1, {2**64}, 4)}}") + b"ab")
    with pytest.raises(DataError, match=r"arr_0: has .* bytes, 7378\d* by its header"):
        Npz(path)
    npz_of(path, "arr_0.npy", header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -2)}") + b"ab")
    with pytest.raises(DataError, match=r"arr_0: is of shape \(-1, -2\); expected no length below 0"):
        Npz(path)
    short = io.BytesIO()
    np.save(short, IMAGES)
    npz_of(path, "arr_0.npy", short.getvalue()[:-7])
    with pytest.raises(DataError, match=r"arr_0: has \d+ bytes, \d+ by its header"):
        Npz(path)
    for place, told in ((tmp_path, "is no regular file"), (tmp_path / "gone.npz", "no such file")):
        with pytest.raises(DataError, match=told):
            Npz(place)
