"""Why an HDF5 or npz file cannot become a dataset; a family of `DatasetError`.

* ArrayError                     the file is hostile, or holds other arrays than needed
    + ArrayMissing, ArrayNotPlain, ArrayTypeUnsupported, ArrayFilterUnsupported, ArrayTooLarge,
      ArrayLengthMismatch, ArrayNamesMismatch, ArrayValuesInvalid, ArrayCellsInvalid,
      Hdf5Unavailable
"""

from __future__ import annotations

from jobs.errors import DatasetError
from models_cache.errors import leaf


class ArrayError(DatasetError):
    """An HDF5 or npz file cannot be used; nothing of it is kept."""

    code = "unusable-array"


@leaf
class ArrayMissing(ArrayError):
    """An array that every dataset needs is not in the file."""

    code = "array-missing"
    sentence = "there is no array {name!r} at the top of the file; found: {found}"
    name: str
    found: list[str]


@leaf
class ArrayNotPlain(ArrayError):
    """Something in an HDF5 file that is not stored there as a dataset: it is never followed."""

    code = "array-not-plain"
    sentence = "{name!r} is {found}; store it as a plain dataset in the file itself"
    name: str
    found: str


@leaf
class ArrayTypeUnsupported(ArrayError):
    """An array has another type or shape than is understood."""

    code = "array-type-unsupported"
    sentence = "{name!r} is {found}; needed is {wanted}"
    name: str
    found: str
    wanted: str


@leaf
class ArrayFilterUnsupported(ArrayError):
    """An HDF5 dataset is packed by something that would need a plugin."""

    code = "array-filter-unsupported"
    sentence = "{name!r} is packed by filter {number}; use gzip, lzf or none"
    name: str
    number: int


@leaf
class ArrayTooLarge(ArrayError):
    """Part of an array is over the limit."""

    code = "array-too-large"
    sentence = "{name!r} has more than {limit} {what}; make them fewer"
    name: str
    what: str
    limit: int


@leaf
class ArrayLengthMismatch(ArrayError):
    """There are more or fewer labels than images."""

    code = "array-length-mismatch"
    sentence = "{name!r} has {count} items and there are {images} images; give one for each image"
    name: str
    count: int
    images: int


@leaf
class ArrayValuesInvalid(ArrayError):
    """Some values of an array cannot be used."""

    code = "array-values-invalid"
    sentence = "{count} of the {total} items of {name!r} {reason}; the first are items {items}"
    name: str
    count: int
    total: int
    reason: str
    items: list[int]


@leaf
class ArrayNamesMismatch(ArrayError):
    """There are more or fewer class names than columns of labels."""

    code = "array-names-mismatch"
    sentence = "{name!r} has {count} items and {labels!r} {columns} columns; name each column once"
    name: str
    count: int
    labels: str
    columns: int


@leaf
class ArrayCellsInvalid(ArrayError):
    """Labels with a column for each class hold something else than 0 and 1."""

    code = "array-cells-invalid"
    sentence = (
        "{count} of the {total} cells of {name!r} are neither 0 nor 1; write 1 where the image has "
        "the label of the column; the first, as [row, column, value], are {cells}"
    )
    name: str
    count: int
    total: int
    cells: list[list[int]]


@leaf
class Hdf5Unavailable(ArrayError):
    """The installation lacks the library that reads HDF5."""

    code = "hdf5-unavailable"
    sentence = (
        "HDF5 cannot be read: {reason}; run `pip install h5py` for the service or send an .npz"
    )
    reason: str
