r"""Data sets as records: the rows, the labels, and where they come from.

    german_credit()                  in the package
    digits()                         in scikit-learn
    mnist(), fashion_mnist(), adult()   files of your own, under the folder $LDE_DATA or the one given

`available()` says which of them are here.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from formulations.errors import InputError

VARIABLE = "LDE_DATA"
MAX_BYTES = 2_000_000_000  # decompressed size of one file: far above every set named here, far below a machine's memory
GERMAN_SHA256 = "5df955a1700af2bd4eff75ec996f8875fe6f4cf0d59cb114db9f452a4741977c"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows, labels and provenance.

    X        a DataFrame (tables) or float64 array (images, in [0, 1]), n rows; y (n,) class numbers; classes: their names
    sha256   of the file read, as stored; of the array's bytes for scikit-learn's data
    """

    name: str
    X: Any
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    description: str
    licence: str
    source: str
    sha256: str

    def __post_init__(self) -> None:
        if len(self.X) != len(self.y):
            raise InputError(f"{self.name}: {len(self.X)} rows and {len(self.y)} labels; the files do not belong together.")
        self.y.flags.writeable = False

    def __len__(self) -> int:
        return len(self.y)


def german_credit() -> Dataset:
    """1000 loan applications × 20 attributes (7 numeric, 13 categorical); y = 1 for good risks (700), 0 for bad (300).

    Ships with the package. Its column `age_cat` is a function of `age` and is left out.
    """
    raw = (files("lde_cvx.datasets") / "german_categorical.csv.gz").read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != GERMAN_SHA256:
        raise InputError(f"german_credit: the packaged file has sha256 {digest[:12]}… instead of {GERMAN_SHA256[:12]}…; reinstall lde-cvx.")
    table = _csv("german_credit", gzip.decompress(raw))
    return Dataset(
        "german_credit",
        table.drop(columns=["class", "age_cat"]),
        (table["class"] == "good").to_numpy().astype(np.int64),
        ("bad", "good"),
        "Statlog German credit: loan applications to a German bank, classed as good or bad risks",
        "CC BY 4.0",
        "Hofmann, H. (1994). Statlog (German Credit Data). UCI Machine Learning Repository. https://doi.org/10.24432/C5NC77",
        digest,
    )


def digits() -> Dataset:
    """1797 handwritten digits: X (1797, 64) in [0, 1] from 8×8 images, y the digit."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    X = np.asarray(bunch.data, dtype=np.float64) / 16.0
    return Dataset(
        "digits", X, np.asarray(bunch.target, dtype=np.int64), tuple(map(str, range(10))),
        "Optical recognition of handwritten digits, the 8×8 test images",
        "CC BY 4.0",
        "Alpaydin, E. and Kaynak, C. (1998). UCI Machine Learning Repository. https://doi.org/10.24432/C50P49, from scikit-learn",
        hashlib.sha256(X.tobytes()).hexdigest(),
    )  # fmt: skip


def mnist(split: str = "test", *, path: str | Path | None = None, limit: int | None = None) -> Dataset:
    """Handwritten digits: X (n, 1, 28, 28) in [0, 1], n = 60,000 ("train") or 10,000 ("test"), or the first `limit`.

    Reads ``mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]`` under `path` or $LDE_DATA.
    """
    return _images(
        "mnist", split, path, limit, tuple(map(str, range(10))), "Handwritten digits, 28×28", "CC BY-SA 3.0",
        "LeCun, Y., Cortes, C., Burges, C. The MNIST database of handwritten digits",
    )  # fmt: skip


FASHION_CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def fashion_mnist(split: str = "test", *, path: str | Path | None = None, limit: int | None = None) -> Dataset:
    """Pictures of clothes, laid out as `mnist`, under ``fashion-mnist/``."""
    return _images(
        "fashion-mnist", split, path, limit, FASHION_CLASSES, "Pictures of clothes, 28×28", "MIT",
        "Xiao, H., Rasul, K., Vollgraf, R. (2017). Fashion-MNIST. arXiv:1708.07747",
    )  # fmt: skip


def adult(split: str = "train", *, path: str | Path | None = None) -> Dataset:
    """Census rows × 14 attributes; y = 1 where the yearly income exceeds 50,000 dollars. Unknown entries stay the category "?".

    Reads ``tabular/adult.csv.gz`` ("train", 32,561) or ``tabular/adult.test.csv.gz`` ("test", 16,281) under `path` or $LDE_DATA.
    """
    name = _split(split, {"train": "adult.csv", "test": "adult.test.csv"})
    file = _locate("adult", "tabular", [name], path)[0]
    raw = _read(file)
    table = _csv(str(file), raw)
    label = "income-per-year"
    if label not in table.columns:
        raise InputError(f"{file}: has no column {label!r}; its columns are {', '.join(map(str, table.columns))}.")
    income = table[label].astype(str).str.strip().str.rstrip(".")
    strange = sorted(set(income) - {"<=50K", ">50K"})
    if strange:
        raise InputError(f"{file}: label {strange[0]!r} is neither '<=50K' nor '>50K'.")
    return Dataset(
        "adult",
        table.drop(columns=[label]),
        (income == ">50K").to_numpy().astype(np.int64),
        ("<=50K", ">50K"),
        "Adult census income, 1994",
        "CC BY 4.0",
        "Becker, B. and Kohavi, R. (1996). Adult. UCI Machine Learning Repository. https://doi.org/10.24432/C5XW20",
        _sha256(file),
    )


# ---- what is here -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One data set and whether it can be loaded here; `where` names its folder, or the way to get it."""

    name: str
    found: bool
    where: str
    content: str
    licence: str


_KNOWN: tuple[tuple[str, str, tuple[str, ...], str, str], ...] = (
    ("mnist train", "mnist", ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), "60,000 digits, 28×28", "CC BY-SA 3.0"),
    ("mnist test", "mnist", ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"), "10,000 digits, 28×28", "CC BY-SA 3.0"),
    ("fashion-mnist train", "fashion-mnist", ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), "60,000 clothes, 28×28", "MIT"),
    ("fashion-mnist test", "fashion-mnist", ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"), "10,000 clothes, 28×28", "MIT"),
    ("adult train", "tabular", ("adult.csv",), "32,561 census rows", "CC BY 4.0"),
    ("adult test", "tabular", ("adult.test.csv",), "16,281 census rows", "CC BY 4.0"),
)


def available(path: str | Path | None = None) -> tuple[Found, ...]:
    """Every data set this module knows, found or not, without reading it."""
    out = [
        Found("german_credit", True, "in the package", "1000 loan applications, 20 attributes", "CC BY 4.0"),
        Found("digits", True, "in scikit-learn", "1797 digits, 8×8", "CC BY 4.0"),
    ]
    for name, folder, names, content, licence in _KNOWN:
        try:
            out.append(Found(name, True, str(_locate(name, folder, list(names), path)[0].parent), content, licence))
        except InputError as error:
            out.append(Found(name, False, str(error), content, licence))
    return tuple(out)


# ---- files --------------------------------------------------------------------------------------------------------------


def _locate(name: str, folder: str, names: list[str], path: str | Path | None) -> list[Path]:
    """The files `names` (plain or .gz), in `path` or $LDE_DATA or the sub-folder there. Raises InputError that names LDE_DATA."""
    root = path if path is not None else os.environ.get(VARIABLE)
    wanted = f"{folder}/{names[0]}.gz"
    if not root:
        raise InputError(f"{name}: set {VARIABLE} to the folder that holds {wanted}, or pass path=.")
    for base in (Path(root) / folder, Path(root)):
        found = [next((p for p in (base / f"{n}.gz", base / n) if p.is_file()), None) for n in names]
        if all(p is not None for p in found):
            return [p for p in found if p is not None]
    source = "path=" if path is not None else f"{VARIABLE}="
    raise InputError(f"{name}: {source}{root} holds no {wanted}; set {VARIABLE} (or pass path=) to the folder that does.")


def _images(
    name: str, split: str, path: str | Path | None, limit: int | None, classes: tuple[str, ...], description: str, licence: str, source: str
) -> Dataset:
    stem = _split(split, {"train": "train", "test": "t10k"})
    images, labels = _locate(name, name, [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"], path)
    X, y = read_idx(images, limit), read_idx(labels, limit)
    if X.ndim != 3 or y.ndim != 1:
        raise InputError(
            f"{images}: holds an array of shape {X.shape} and {labels.name} one of {y.shape}; expected (n, height, width) and (n,)."
        )
    if len(y) and y.max() >= len(classes):
        raise InputError(f"{labels}: label {y.max()} is beyond {name}'s {len(classes)} classes.")
    return Dataset(name, X[:, None].astype(np.float64) / 255.0, y.astype(np.int64), classes, description, licence, source, _sha256(images))


def read_idx(path: str | Path, limit: int | None = None) -> NDArray[np.uint8]:
    """The array of an IDX file of bytes (magic 0x0000 08 ndim, then big-endian sizes), gzipped or not; its first `limit` entries.

    Raises InputError on another magic, on sizes beyond 2 GB, on a file shorter or longer than its header says.
    """
    file = Path(path)
    if limit is not None and limit < 0:
        raise InputError(f"read_idx: limit={limit} must be ≥ 0.")
    with _open(file) as stream:
        magic = _take(stream, 4, file)
        if magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= 4:
            raise InputError(f"{file}: starts with {magic.hex()}; an IDX file of bytes starts with 00000801 … 00000804.")
        shape = tuple(int(v) for v in np.frombuffer(_take(stream, 4 * magic[3], file), dtype=">u4"))
        size = int(np.prod(shape, dtype=object))
        if size > MAX_BYTES:
            raise InputError(f"{file}: its header promises {shape} entries, more than {MAX_BYTES}; the file is damaged.")
        kept = shape if limit is None else (min(limit, shape[0]), *shape[1:])
        data = _take(stream, int(np.prod(kept, dtype=object)), file)
        if kept == shape and _up_to(stream, 1, file):
            raise InputError(f"{file}: holds more bytes than its header {shape} says; the file is damaged.")
    return np.frombuffer(data, dtype=np.uint8).reshape(kept)


def _open(file: Path) -> BinaryIO:
    with file.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
    return gzip.open(file, "rb") if gzipped else file.open("rb")  # type: ignore[return-value]


def _up_to(stream: BinaryIO, size: int, file: Path) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{file}: is a damaged gzip file ({error}); fetch it again.") from None


def _take(stream: BinaryIO, size: int, file: Path) -> bytes:
    """Exactly `size` bytes."""
    data = _up_to(stream, size, file)
    if len(data) < size:
        raise InputError(f"{file}: ends after {len(data)} of {size} bytes; the file is truncated, fetch it again.")
    return data


def _read(file: Path) -> bytes:
    """The whole file, decompressed, up to MAX_BYTES."""
    with _open(file) as stream:
        data = _up_to(stream, MAX_BYTES + 1, file)
    if len(data) > MAX_BYTES:
        raise InputError(f"{file}: holds more than {MAX_BYTES} bytes; it is not the data set it is named after.")
    return data


def _csv(where: str, raw: bytes) -> Any:
    import pandas as pd

    try:
        return pd.read_csv(io.BytesIO(raw), keep_default_na=False, na_values=[""], skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: is not a CSV table ({str(error).splitlines()[0]}).") from None


def _split(split: str, known: dict[str, str]) -> str:
    if split not in known:
        raise InputError(f"split={split!r}: choose one of {', '.join(map(repr, known))}.")
    return known[split]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


LOADERS: dict[str, Callable[[], Dataset]] = {
    "german_credit": german_credit,
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "adult": adult,
}


def load_dataset(name: str) -> Dataset:
    """The data set of that name, as its loader reads it by default; "mnist train" and the other names of `available` say which part."""
    base, _, split = name.partition(" ")
    parts: dict[str, Callable[..., Dataset]] = {"mnist": mnist, "fashion-mnist": fashion_mnist, "adult": adult}
    if split and base in parts:
        return parts[base](split)
    if name not in LOADERS:
        raise InputError(f"data set {name!r}: unknown; choose one of {', '.join(LOADERS)}, or give the path of a CSV file.")
    return LOADERS[name]()
