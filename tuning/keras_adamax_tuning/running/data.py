"""What a search trains on: arrays with checked shapes, or datasets."""

import dataclasses
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_adamax._validation import check_number

_FORMS = (
    "`(x, y)`, `((x_train, y_train), (x_val, y_val))`, a dictionary (or .npz "
    "file) of the arrays x_train, y_train and x_val, y_val (or x_test, "
    "y_test), or of x and y, or a pair of datasets"
)
# The split must be the same in every process and in every resumed search.
_SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True)
class Data:
    """What `fit` is given; `x` may be a dataset, with `y` None.

    Example:
        >>> data = as_data((np.zeros((10, 3)), np.zeros(10)))
        >>> data.x.shape, data.validation_data[0].shape
        ((8, 3), (2, 3))
    """

    x: Any
    y: Any
    validation_data: Any

    @property
    def is_arrays(self) -> bool:
        """Whether `fit` may be given a batch size."""
        return self.y is not None

    def fingerprint(self) -> dict[str, str]:
        """Which data this is: each array's type, shape and hash.

        Of a dataset only its type and length can be told without reading it.
        """
        named = {"x": self.x, "y": self.y}
        if isinstance(self.validation_data, tuple):
            named["x_val"], named["y_val"] = self.validation_data
        else:
            named["validation_data"] = self.validation_data
        found = {}
        for name, value in named.items():
            leaves = keras.tree.flatten(value)
            for number, leaf in enumerate(leaves):
                where = name if len(leaves) == 1 else f"{name}[{number}]"
                found[where] = _describe(leaf)
        return found


def _describe(leaf: Any) -> str:
    if not hasattr(leaf, "shape"):
        length = len(leaf) if hasattr(leaf, "__len__") else "unknown"
        return f"{type(leaf).__name__} of length {length}"
    array = np.ascontiguousarray(leaf)
    digest = hashlib.blake2b(array.view(np.uint8).data, digest_size=8)
    return f"{array.dtype} {array.shape} {digest.hexdigest()}"


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a `.npz` file."""
    try:
        if not zipfile.is_zipfile(path) and path.exists():
            raise ValueError("it is none, or was cut off")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise FileNotFoundError(
            f"The data file {path} does not exist."
        ) from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as .npz ({error}). Write it with "
            "`numpy.savez(path, x_train=..., y_train=..., x_val=..., "
            "y_val=...)`, without object arrays."
        ) from error


def as_data(source: Any, validation_split: float = 0.2) -> Data:
    """Checks what the user gave, and splits it where it has no validation.

    Args:
        source: One of the forms that the errors list, a path of a `.npz`
            file, or a function without arguments that returns one of these.
        validation_split: Fraction of `(x, y)` that is kept for validation,
            chosen at random but always the same. Defaults to `0.2`.
    """
    validation_split = check_number(
        "validation_split",
        validation_split,
        exclusive_minimum=0,
        exclusive_maximum=1,
    )
    if callable(source) and not hasattr(source, "__len__"):
        source = source()
    if isinstance(source, (str, Path)):
        source = load_npz(Path(source))
    if isinstance(source, Mapping):
        train, validation = _from_names(source)
    elif not isinstance(source, (tuple, list)) or len(source) != 2:
        what = f"a {type(source).__name__}"
        if isinstance(source, (tuple, list)):
            what += f" of length {len(source)}"
        raise TypeError(f"`data` must be {_FORMS}. Received: {what}.")
    elif all(_is_dataset(part) for part in source):
        return Data(source[0], None, source[1])
    elif all(_is_pair(part) for part in source):
        train, validation = map(tuple, source)
    else:
        train, validation = tuple(source), None
    x, y = (_as_arrays(part) for part in train)
    _check_lengths(x, y, "data" if validation is None else "training data")
    if validation is None:
        return _split(x, y, validation_split)
    x_val, y_val = (_as_arrays(part) for part in validation)
    _check_lengths(x_val, y_val, "validation data")
    _check_same_kind(x, x_val, "x")
    _check_same_kind(y, y_val, "y")
    return Data(x, y, (x_val, y_val))


def _from_names(source: Mapping[str, Any]) -> tuple[tuple, tuple | None]:
    for pairs in (
        (("x_train", "y_train"), ("x_val", "y_val")),
        (("x_train", "y_train"), ("x_test", "y_test")),
        (("x", "y"), None),
        (("x_train", "y_train"), None),
    ):
        names = [name for pair in pairs if pair for name in pair]
        if all(name in source for name in names):
            train, validation = (
                pair and tuple(source[name] for name in pair) for pair in pairs
            )
            assert train is not None
            return train, validation
    raise ValueError(
        "The data must hold x_train, y_train, x_val and y_val (or x_test and "
        "y_test), or x and y. "
        f"Received: {', '.join(map(str, source)) or 'nothing'}."
    )


def _is_dataset(part: Any) -> bool:
    return not hasattr(part, "shape") and not isinstance(
        part, (tuple, list, dict, str, int, float, type(None))
    )


def _is_pair(part: Any) -> bool:
    # A pair of arrays; two numbers are a row of a nested list.
    return (
        isinstance(part, (tuple, list))
        and len(part) == 2
        and all(
            isinstance(one, (tuple, list, dict, np.ndarray)) for one in part
        )
    )


def _as_arrays(part: Any) -> Any:
    """The arrays of an input; lists of numbers become one."""

    def convert(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        if array.dtype == object:
            raise ValueError(
                "`data` must hold arrays of numbers. Received: an array of "
                f"Python objects of shape {array.shape}; rows of different "
                "lengths give one."
            )
        if array.ndim == 0:
            raise ValueError(
                "`data` must hold arrays with a row for each sample. "
                f"Received: the single value {leaf!r}."
            )
        return array

    if isinstance(part, (list, tuple)) and not any(
        hasattr(one, "shape") for one in part
    ):
        return convert(part)
    return keras.tree.map_structure(convert, part)


def _check_lengths(x: Any, y: Any, what: str) -> None:
    shapes = [leaf.shape for leaf in keras.tree.flatten((x, y))]
    if len({shape[0] for shape in shapes}) > 1 or shapes[0][0] == 0:
        raise ValueError(
            f"x and y of the {what} must have the same number of rows, at "
            f"least one. Received: shapes {', '.join(map(str, shapes))}."
        )


def _check_same_kind(train: Any, validation: Any, name: str) -> None:
    shapes = [
        [leaf.shape[1:] for leaf in keras.tree.flatten(part)]
        for part in (train, validation)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"A row of {name} must have the same shape in the training and in "
            f"the validation data. Received: {_join(shapes[0])} and "
            f"{_join(shapes[1])}."
        )


def _join(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))


def _split(x: Any, y: Any, fraction: float) -> Data:
    rows = len(keras.tree.flatten(x)[0])
    kept = round(rows * fraction)
    if not 0 < kept < rows:
        raise ValueError(
            f"`validation_split` must leave rows on both sides. Received: "
            f"validation_split={fraction} for {rows} rows."
        )
    # Shuffled, because data is often sorted by class; sorted again, because
    # order may carry meaning within each part.
    order = np.random.default_rng(_SPLIT_SEED).permutation(rows)
    validation, train = np.sort(order[:kept]), np.sort(order[kept:])

    def take(part: Any, chosen: np.ndarray) -> Any:
        return keras.tree.map_structure(lambda leaf: leaf[chosen], part)

    return Data(
        take(x, train),
        take(y, train),
        (take(x, validation), take(y, validation)),
    )
