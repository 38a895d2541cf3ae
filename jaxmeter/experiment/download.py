"""Published archives, downloaded once: checked, then kept whole in the user's cache."""

import hashlib
import os
import re
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from jaxmeter import disk

_WAIT = 30  # seconds for a server to say something


class DownloadError(OSError):
    """What was asked for cannot be had; says what to do instead."""


class UncheckedWarning(UserWarning):
    """A download that no checksum was given for."""


def local(name: str) -> Path | None:
    """The file of that name in the folder that JAXMETER_DATA names, if there is one."""
    folder = os.environ.get("JAXMETER_DATA")
    path = Path(folder, name) if folder else None
    return path if path is not None and path.is_file() else None


def fetched(url: str, *, sha256: str | None, cache: Path | None = None) -> Path:
    """The file at a URL, downloaded if the cache does not hold it.

    The name under which it is kept has the checksum, or the URL's hash, in it. It appears there
    only when it is complete and has been checked; a stopped download leaves nothing.

    Args:
      url: where it is.
      sha256: what its bytes must have, 64 hex digits; None to take what comes, with a warning that
        says what it has.
      cache: the folder; None for jaxmeter/datasets under $XDG_CACHE_HOME or ~/.cache.

    Raises:
      ValueError: for a checksum that is none.
      DownloadError: if it cannot be downloaded or has another checksum. Nothing is kept then.
    """
    wanted = None if sha256 is None else sha256.strip().lower()
    if wanted is not None and (len(wanted) != 64 or set(wanted) - set("0123456789abcdef")):
        raise ValueError(f"sha256 is {sha256!r}; it takes 64 hexadecimal digits, or none.")
    folder = _cache() if cache is None else cache
    mark = wanted or f"unchecked-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    ending = re.sub(r"[^\w.-]", "-", url.rpartition("/")[2])[-100:]
    place = disk.below(folder, f"{mark[:26]}-{ending}".rstrip("."))
    if place.is_file() and (wanted is None or _hash(place) == wanted):
        return place
    found = _retrieved(url, place, wanted)
    if wanted is None:
        warnings.warn(
            f"{url} was taken as it came: its SHA-256 is {found}. Give it as --data.sha256, so "
            "that other bytes are refused.",
            UncheckedWarning,
            stacklevel=2,
        )
    return place


def table(archive: Path, member: str) -> tuple[NDArray, NDArray]:
    """A table of the archive, a class from 1 upwards and small whole numbers a row.

    Args:
      archive: a `.tgz`.
      member: the file's name in it, in whatever folder.

    Returns:
      `(x uint8 [n, d], y int32 [n])`, classes counted from 0.

    Raises:
      ValueError: if there is no such table in it.
    """
    try:
        with tarfile.open(archive, "r:*") as file:
            names = [info for info in file if info.isfile() and Path(info.name).name == member]
            stream = file.extractfile(names[0]) if names else None
            if stream is None:
                raise ValueError(f"it holds no file {member!r}")
            content = stream.read()
        width = content.partition(b"\n")[0].count(b",") + 1
        columns = [f"{i}" for i in range(width)]
        rows = pyarrow.csv.read_csv(
            pa.BufferReader(content),
            read_options=pyarrow.csv.ReadOptions(column_names=columns),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.uint8()), strings_can_be_null=False
            ),
        )
        if any(column.null_count for column in rows.columns):
            raise ValueError("numbers are missing in it")
    except (tarfile.TarError, EOFError, OSError, ValueError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{str(archive)!r} cannot be read as a table {member!r}: {error}. If it was downloaded "
            "without a checksum, remove it, so that it is downloaded again."
        ) from error
    y = rows.column(0).to_numpy().astype(np.int32) - 1
    x = np.stack([column.to_numpy() for column in rows.columns[1:]], axis=1)
    return x, y


def _retrieved(url: str, place: Path, wanted: str | None) -> str:
    """Downloads a file to its place, if it has the checksum wanted; the checksum it has."""
    import pooch  # with requests, which takes its time; most runs download nothing
    import requests

    # The archive's own bytes have the checksum, not what a server might pack them into.
    http = pooch.HTTPDownloader(timeout=_WAIT, headers={"Accept-Encoding": "identity"})
    hashes = []

    def checked(url: str, file: str, pooch: object) -> None:
        http(url, file, pooch)
        hashes.append(_hash(Path(file)))
        if wanted is not None and hashes[-1] != wanted:
            raise DownloadError(
                f"what {url} gives has the SHA-256 {hashes[-1]}, and {wanted} was asked for: the "
                "file was changed, or damaged on its way. Nothing was kept. Try again; if it stays "
                "so, find out which is right before changing --data.sha256."
            )

    try:
        disk.make_folder(place.parent)
        place.unlink(missing_ok=True)  # damaged, or it would not be downloaded
        pooch.retrieve(url, wanted, fname=place.name, path=place.parent, downloader=checked)
    except DownloadError:
        raise
    except requests.RequestException as error:
        reason = error.args[0] if error.args else error
        raise DownloadError(
            f"{url} cannot be downloaded: {reason}. Without a network, download it elsewhere and "
            "name the file with --data.path (the archive, or an .npz with x and y), or put it as "
            ".npz into the folder that the environment variable JAXMETER_DATA names."
        ) from error
    except OSError as error:
        raise DownloadError(
            f"the folder {str(place.parent)!r}, which keeps downloads, cannot be written: {error}. "
            "Name a local file with --data.path instead, or its folder in JAXMETER_DATA."
        ) from error
    return hashes[-1]


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "jaxmeter" / "datasets"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
