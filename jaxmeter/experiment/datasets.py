"""Where a study's records come from, as configs that read themselves."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.data.npz import read_npz
from jaxmeter.data.readers import parsed, read_pair, read_records, reader_of
from jaxmeter.data.records import Records
from jaxmeter.experiment.download import DownloadError, fetched, local, table
from jaxmeter.intake.frameworks import keras as loaded_keras

_DATASETS = "https://github.com/privacytrustlab/datasets/raw/master"
# Those of ML Privacy Meter's tutorial, which took them from CIFAR-10.
_MEANS, _DEVIATIONS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True, kw_only=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits: x `[n, 8, 8, 1]` in 0..1, ten classes.

    Attributes:
      members: how many records, drawn at random, the target is trained on.
      nonmembers: how many of the others are given to the audit; None for all.
    """

    members: int = 898
    nonmembers: int | None = None

    def files(self) -> tuple[Path, ...]:
        """None: the digits come with scikit-learn."""
        return ()

    def read(self, key: jax.Array) -> Records:
        """Members and non-members, drawn by the key."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = (digits.images[..., None] / 16).astype(np.float32)
        return _drawn(key, x, digits.target, self.members, self.nonmembers, "the digits")


@dataclass(frozen=True, kw_only=True)
class NpzRecords:
    """Records in one `.npz` file, of which members are drawn at random.

    Attributes:
      path: the file, with `x` `[n, ...]` and `y` `[n]`.
      members: how many records the target is trained on.
      nonmembers: how many of the others are given to the audit; None for all.
      x: the array's name in the file.
      y: likewise.
      scale: what `x` is divided by, e.g. 255 for images of bytes.
    """

    path: Path
    members: int
    nonmembers: int | None = None
    x: str = "x"
    y: str = "y"
    scale: float = 1.0

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self, key: jax.Array) -> Records:
        """Members and non-members, drawn by the key."""
        x, y = read_npz(self.path, names=(self.x, self.y))
        x = (x / np.float32(self.scale)).astype(np.float32)
        return _drawn(key, x, y, self.members, self.nonmembers, str(self.path))


@dataclass(frozen=True, kw_only=True)
class NpzPair:
    """Records in two `.npz` files with `x` and `y`, as `jaxmeter audit` takes them.

    Attributes:
      members: what the target is, or was, trained on.
      nonmembers: drawn as the members were.
    """

    members: Path
    nonmembers: Path

    def files(self) -> tuple[Path, ...]:
        """Both files."""
        return (self.members, self.nonmembers)

    def read(self, key: jax.Array) -> Records:
        """All records, in the order of the files."""
        return Records.of(members=read_npz(self.members), nonmembers=read_npz(self.nonmembers))


@dataclass(frozen=True, kw_only=True)
class FileRecords:
    """Records in a file or folder of any format, of which members are drawn at random.

    Attributes:
      path: the file or folder; a name where the format goes by name, as "cifar10".
      members: how many records the target is trained on.
      nonmembers: how many of the others are given to the audit; None for all.
      format: as `jaxmeter.read_records` takes it; None to go by the ending.
      options: the format's own, a name and a text each: `(("label", "income"),)`.
      scale: what `x` is divided by, e.g. 255 for images of bytes.
    """

    path: Path
    members: int
    nonmembers: int | None = None
    format: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    scale: float = 1.0

    def files(self) -> tuple[Path, ...]:
        """All files that are read; none where the format goes by name."""
        return reader_of(self.path, self.format).files(self.path)

    def read(self, key: jax.Array) -> Records:
        """Members and non-members, drawn by the key."""
        options = parsed(self.options)
        x, y = read_records(self.path, format=self.format, scale=self.scale, **options)
        return _drawn(key, x, y, self.members, self.nonmembers, str(self.path))


@dataclass(frozen=True, kw_only=True)
class FilePair:
    """Records in two files or folders of any format, as `jaxmeter audit` takes them.

    Attributes:
      members: what the target is, or was, trained on.
      nonmembers: drawn as the members were.
      format: of both, as `jaxmeter.read_records` takes it; None to go by the endings.
      options: the formats' own, a name and a text each: `(("label", "income"),)`.
      scale: what `x` is divided by, e.g. 255 for images of bytes.
    """

    members: Path
    nonmembers: Path
    format: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    scale: float = 1.0

    def files(self) -> tuple[Path, ...]:
        """All files that are read; none where the format goes by name."""
        paths = (self.members, self.nonmembers)
        return tuple(f for path in paths for f in reader_of(path, self.format).files(path))

    def read(self, key: jax.Array) -> Records:
        """All records, in the order of the files."""
        options = parsed(self.options)
        return read_pair(
            self.members, self.nonmembers, format=self.format, scale=self.scale, **options
        )


@dataclass(frozen=True, kw_only=True)
class Cifar100:
    """CIFAR-100: x float32 `[n, 32, 32, 3]`, 100 classes, of 60,000 images.

    Members are drawn from all images, the usual training and test images together, so that they
    differ from non-members by nothing but membership.

    Attributes:
      path: an `.npz` file with `x_train`, `y_train`, `x_test`, `y_test`, x in 0..255; None for
        cifar100.npz in the folder that JAXMETER_DATA names, or else `keras.datasets.cifar100`,
        which downloads it.
      members: how many images, drawn at random, the target is trained on.
      nonmembers: how many of the others are given to the audit; None for all.
      normalized: as in ML Privacy Meter's tutorial, `(x / 255 - means) / deviations` with one mean
        and deviation a channel; else `x / 255`.
    """

    path: Path | None = None
    members: int = 10_000
    nonmembers: int | None = 10_000
    normalized: bool = True

    def files(self) -> tuple[Path, ...]:
        """The file; none where Keras has it, which checks what it downloads."""
        path = self.path or local("cifar100.npz")
        return () if path is None else (_present(path, "CIFAR-100"),)

    def read(self, key: jax.Array) -> Records:
        """Members and non-members, drawn by the key."""
        files = self.files()
        if files:
            parts = [read_npz(files[0], names=(f"x_{s}", f"y_{s}")) for s in ("train", "test")]
        else:
            parts = _from_keras()
        x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        x = x.astype(np.float32) / np.float32(255)
        if self.normalized:
            x = (x - np.array(_MEANS, np.float32)) / np.array(_DEVIATIONS, np.float32)
        return _drawn(key, x, y.ravel(), self.members, self.nonmembers, "CIFAR-100")


@dataclass(frozen=True, kw_only=True)
class _Published:
    """Zeros and ones in an archive of Shokri et al. (2017).

    Attributes:
      path: the archive or another file; see the data set.
      members: how many records, drawn at random, the target is trained on.
      nonmembers: how many of the others are given to the audit; None for all.
      url: where the archive is.
      sha256: what a download must have; None to take it as it comes.
    """

    _name: ClassVar[str]
    _table: ClassVar[str]  # the file in the archive

    path: Path | None = None
    members: int
    nonmembers: int | None
    url: str
    sha256: str | None = None

    def files(self) -> tuple[Path, ...]:
        """The file, downloaded if there is none."""
        path = self.path or local(f"{self._name.replace('-', '').lower()}.npz")
        if path is None:
            return (fetched(self.url, sha256=self.sha256),)
        return (_present(path, self._name),)

    def read(self, key: jax.Array) -> Records:
        """Members and non-members, drawn by the key."""
        path = self.files()[0]
        x, y = read_npz(path) if path.suffix == ".npz" else table(path, self._table)
        x = x.astype(np.float32)
        return _drawn(key, x, y, self.members, self.nonmembers, self._name)


@dataclass(frozen=True, kw_only=True)
class Location30(_Published):
    """Location-30: x of 446 zeros and ones, 30 classes, 5,010 records (Shokri et al. 2017).

    Attributes:
      path: the published archive, or an `.npz` file with `x` and `y`; None for location30.npz in
        the folder that JAXMETER_DATA names, or else the archive, downloaded.
    """

    _name = "Location-30"
    _table = "bangkok"
    members: int = 1600
    nonmembers: int | None = 1600
    url: str = f"{_DATASETS}/dataset_location.tgz"


@dataclass(frozen=True, kw_only=True)
class Purchase100(_Published):
    """Purchase-100: x of 600 zeros and ones, 100 classes, 197,324 records (Shokri et al. 2017).

    Attributes:
      path: the published archive, or an `.npz` file with `x` and `y`; None for purchase100.npz in
        the folder that JAXMETER_DATA names, or else the archive, downloaded.
    """

    _name = "Purchase-100"
    _table = "dataset_purchase"
    members: int = 20_000
    nonmembers: int | None = 20_000
    url: str = f"{_DATASETS}/dataset_purchase.tgz"


def _present(path: Path, what: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {str(path)!r}. {what} is not part of jaxmeter: name another file with "
            "--data.path, or its folder in the environment variable JAXMETER_DATA, or name none to "
            "have it downloaded."
        )
    return path


def _from_keras() -> list[tuple[NDArray, NDArray]]:
    try:
        train, test = loaded_keras().datasets.cifar100.load_data()
    except Exception as error:  # Keras raises bare ones
        raise DownloadError(
            f"keras.datasets.cifar100 cannot be had: {error}. Without a network, name an .npz file "
            "with x_train, y_train, x_test, y_test in --data.path, or have it as cifar100.npz in "
            "the folder that the environment variable JAXMETER_DATA names."
        ) from error
    return [train, test]


def _drawn(
    key: jax.Array, x: NDArray, y: NDArray, members: int, nonmembers: int | None, what: str
) -> Records:
    """So many members and non-members, without replacement."""
    others = len(y) - members if nonmembers is None else nonmembers
    if members < 1 or others < 1 or members + others > len(y):
        raise ValueError(
            f"{what}: {members} members and {others} non-members were asked for of {len(y)} "
            "records; there must be at least one of each, and none can be both."
        )
    order = np.asarray(jax.random.permutation(key, len(y)))
    inside, outside = order[:members], order[members : members + others]
    return Records.of(members=(x[inside], y[inside]), nonmembers=(x[outside], y[outside]))


AnyData = (
    Digits | NpzRecords | NpzPair | FileRecords | FilePair | Cifar100 | Location30 | Purchase100
)
