"""Data that did not change keeps its fingerprint from one version of the code to the next: caches and runs go on."""

import io
import tarfile
from pathlib import Path

import pytest

from ifsq.data import DataConfig, open_images

EARLIER = {
    "words": ("fab950336ed6ff25", "82f84e7ddb46ab06"),
    "digits": ("23068148cb0a59a5", "7fb832a85eed27d8"),
    "split": ("df81aae90cd3b86a", "3ee66dec571f1748"),
    "list.txt": ("8f57fc285dd6ed85", "0103035a2c939497"),
    "list.csv": ("bfa4749f3ee7ed0c", "9a7ca7a2648aac83"),
    "cls.tar": ("b5ae1f905d526006", "a6603ddcf077ea3c"),
    "json.tar": ("d7796450d37f4935", "4517000b0cc9638c"),
    "folders.tar": ("a46df2ed4e392d7f", "74a769c43fd77bee"),
    "shards": ("4376f41778d398cd", "18df48f38b3f1bab"),
}
"""By source: the first 16 digits for training and validation, of the code before splits and labels had many names."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of every kind that were always read like this; names, sizes and labels are all that is looked at."""
    root = tmp_path_factory.mktemp("sources")
    for number in range(30):
        of = {"words": ["cat", "dog", "ant"][number % 3], "digits": number % 10}
        of |= {"split": f"{'val' if number % 5 == 0 else 'train'}/{'ab'[number % 2]}"}
        for source, folder in of.items():
            path = root / source / str(folder) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * (number + 1))
    rows = [(f"words/{['cat', 'dog', 'ant'][k % 3]}/{k}.jpg", k % 4) for k in range(30)]
    (root / "list.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
    (root / "list.csv").write_text("path,label\n" + "".join(f"{path},w{label}\n" for path, label in rows))
    image = [(f"{k}.jpg", b"x" * (k + 1)) for k in range(30)]
    pack(root / "cls.tar", [*image, *((f"{k}.cls", b"%d" % (k % 7)) for k in range(30))])
    pack(root / "json.tar", [*image, *((f"{k}.json", b'{"label": "w%d"}' % (k % 7)) for k in range(30))])
    pack(root / "folders.tar", [(f"{'ab'[k % 2]}/{name}", content) for k, (name, content) in enumerate(image)])
    pack(root / "shards/x-train-0.tar", image)
    pack(root / "shards/x-val-0.tar", image[:5])
    return root


def pack(path: Path, files: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("source", EARLIER)
def test_unchanged_data_keeps_its_fingerprint(sources: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IFSQ_CACHE", str(sources / "cache"))
    config = DataConfig(str(sources / source), 16, flip=True, crop="random")
    got = tuple(open_images(config, split).fingerprint[:16] for split in ("train", "val"))
    assert got == EARLIER[source]
