"""Data sets of Hugging Face's library ``datasets`` (extra ``hf``): ``hf:NAME`` on the hub, or ``hf:FOLDER`` here.

A folder is what ``save_to_disk`` wrote, or what ``load_dataset`` understands: parquet files, an image folder. The
splits are its own (`splits` says what they are called); without ``val`` the row's number decides who is held out. The
image is the column ``image``, or the only one of that type; the label is where `labels.choose_column` says, a
``ClassLabel`` above all. Files are read undecoded, and decoded as those of any other source.

Without ``stream`` the library keeps a copy on disk (``HF_HOME``) and any row can be read. See ``stream`` for the other
way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ifsq.data.containers.hf_files import check_files, file_of, refuse_addresses
from ifsq.data.encoded import Catalogue
from ifsq.data.images import DataError
from ifsq.data.labels import LABEL_COLUMNS, all_or_none, are_numbers, choose_column, label_text, number_classes
from ifsq.data.paths import at_home
from ifsq.data.splits import ALL, TRAIN, alone_is_all, in_order, split_of

NONE_OF_THEM = -1
"""What the library's ``ClassLabel`` holds where a row has no label: the test splits of many sets."""

_FAILURES = (OSError, ValueError, RuntimeError, NotImplementedError, ImportError)  # a package of some protocol


class Columns(NamedTuple):
    """Where a table keeps its images and labels; ``classes`` where it names them itself."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


class Table(Catalogue):
    """The rows of a data set on disk.

    source        as ``data.source`` says it
    split         one of its splits
    dataset       a ``datasets.Dataset``
    label_column  as in `DataConfig`

    Raises DataError when it has no image column, or a label that is no class.
    """

    recipe = "table 1"

    def __init__(self, source: str, split: str, dataset: Any, label_column: str = "") -> None:
        import pyarrow.compute as pc

        place = source if split in (TRAIN, ALL) else f"{source} {split}"
        self.source, self.place, self.columns = source, place, find_columns(place, dataset, label_column)
        with read_errors(place):
            self.images = undecoded(dataset, self.columns).select_columns([self.columns.image])
            whole = dataset.with_format("arrow")[:]
            lengths = pc.binary_length(pc.struct_field(whole[self.columns.image], "bytes")).to_pylist()
        self.names = [f"row {row}" for row in range(len(dataset))]
        self.labels = None
        if self.columns.label is not None:
            rows = enumerate(whole[self.columns.label].to_pylist())
            labels = [label_of(f"{place}: row {row}", value, self.columns) for row, value in rows]
            self.labels = all_or_none(labels, self.where, "row")
        self.sizes = [self._size(row) if length is None else length for row, length in enumerate(lengths)]

    def classes(self) -> tuple[str, ...]:
        """Names that the data set gives, or else those of its labels."""
        if self.labels is None or self.columns.classes is None:
            return super().classes()
        return classes_of(self.place, self.columns.classes)

    def read(self, position: int) -> Path | bytes:
        """See `Catalogue.read`."""
        with read_errors(self.where(position)):
            return file_of(self.where(position), self.images[position][self.columns.image], self.source)

    def _size(self, position: int) -> int:
        """Bytes of an image that the table only names."""
        file = self.read(position)
        return len(file) if isinstance(file, bytes) else file.stat().st_size


def open_splits(source: str, stream: bool = False) -> dict[str, Any]:
    """The data sets of every split; of ``all`` alone where there are no splits, or ``train`` only.

    Raises DataError when the library is missing, or the data set cannot be found or read.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{source}: needs the package datasets, which is not here: pip install 'ifsq[hf]'") from error
    name = at_home(source).removeprefix("hf:")
    datasets.disable_progress_bars()
    with read_errors(source):
        saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
        if Path(name).is_dir() and not saved:
            refuse_addresses(source, Path(name))
            builder = datasets.load_dataset_builder(name)
            check_files(source, Path(name), builder.config.data_files or {})
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, streaming=stream)
    splits = dict(found) if isinstance(found, dict) else {TRAIN: found}
    if saved and stream:
        splits = {split: rows.to_iterable_dataset() for split, rows in splits.items()}
    if not splits:
        raise DataError(f"{source}: has no splits; expected train")
    by_name: dict[str, Any] = {}
    for split in in_order(splits):  # of validation and dev, the second keeps its name
        known = split_of(split)
        by_name[split if known is None or known in by_name else known] = splits[split]
    return alone_is_all({split: by_name[split] for split in in_order(by_name)})


def find_columns(place: str, dataset: Any, label_column: str = "") -> Columns:
    """The columns of a data set that hold the images and the labels. Raises DataError."""
    from datasets import ClassLabel, Image, Value

    features = dataset.features or {}
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    if "image" not in images and len(images) != 1:
        raise DataError(f"{place}: has the columns {', '.join(features) or 'none'}; expected one of type Image")
    image = "image" if "image" in images else images[0]
    of_classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    could = [
        name
        for name, feature in features.items()
        if isinstance(feature, ClassLabel | Value) or name.lower() in LABEL_COLUMNS
    ]
    label = choose_column(place, could, label_column, of_classes)
    return Columns(image, label, tuple(features[label].names) if label in of_classes else None)


def undecoded(dataset: Any, columns: Columns) -> Any:
    """The data set with files as they are in the place of pictures."""
    from datasets import Image

    return dataset.with_format(None).cast_column(columns.image, Image(decode=False))


def label_of(where: str, value: Any, columns: Columns) -> str | None:
    """The class in words; None where there is none. Raises DataError when it is no class."""
    if columns.classes is None or value is None:
        return label_text(where, value)
    if value == NONE_OF_THEM:
        return None
    if not 0 <= value < len(columns.classes):
        raise DataError(f"{where}: label {value!r}: expected 0 to {len(columns.classes) - 1}")
    return columns.classes[value]


def classes_of(place: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of a ``ClassLabel``, in its order; but of numbers, which a folder's names sort as text, theirs."""
    return number_classes(names, place) if are_numbers(names) else names


@contextmanager
def read_errors(where: str) -> Iterator[None]:
    """What the library raises, as a DataError of one line."""
    import pyarrow
    from datasets.exceptions import DatasetsError

    try:
        yield
    except DataError:
        raise
    except (*_FAILURES, DatasetsError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: cannot be read: {reason}") from error
