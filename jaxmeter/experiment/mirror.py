"""A store at a URL: any file system of fsspec, with a folder here as its working copy."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_URL = re.compile(r"([a-z][a-z0-9+.-]+):(/+)(.*)")


@dataclass(frozen=True)
class Mirror:
    """Folders at a URL. One is there once its last file is, which is written after the others.

    Processes on other machines are not waited for, as such file systems have no locks: two may
    compute one stage, and write the same bytes.

    Attributes:
      url: where, e.g. "s3://bucket/store".
    """

    url: str

    def fetched(self, inner: str, last: str, folder: Path) -> bool:
        """Downloads a folder into another, `last` at last; whether it is there at all."""
        files, root = self._place(inner)
        if not files.exists(f"{root}/{last}"):
            return False
        names = sorted(path[len(root) + 1 :] for path in map(self._plain, files.find(root)))
        for name in (*(n for n in names if n != last), last):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{name}", str(folder / name))
        return True

    def contents(self, inner: Sequence[str]) -> dict[str, bytes]:
        """What is in files, read at once where the file system can; without those not there."""
        if not inner:
            return {}
        files, root = self._place("")
        places = {f"{root}/{name}": name for name in inner}
        found = files.cat(list(places), on_error="omit")
        return {places[self._plain(path)]: content for path, content in found.items()}

    def publish(self, folder: Path, inner: str, last: str) -> None:
        """Uploads a folder, unless it is there."""
        files, root = self._place(inner)
        if not files.exists(f"{root}/{last}"):
            self.replace(folder, inner, last)

    def replace(self, folder: Path, inner: str, last: str) -> None:
        """Uploads a folder, whatever is there; until that is done there is none."""
        files, root = self._place(inner)
        if files.exists(f"{root}/{last}"):
            files.rm_file(f"{root}/{last}")
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        for name in (*(n for n in names if n != last and not n.startswith(".")), last):
            files.makedirs(os.path.dirname(f"{root}/{name}"), exist_ok=True)
            files.put_file(str(folder / name), f"{root}/{name}")

    def names(self, inner: str) -> list[str]:
        """What there is in a folder."""
        files, root = self._place(inner)
        if not files.exists(root):
            return []
        files.invalidate_cache(root)
        return sorted(self._plain(path).rpartition("/")[2] for path in files.ls(root, detail=False))

    def _place(self, inner: str) -> tuple[Any, str]:
        import fsspec

        files, root = fsspec.core.url_to_fs(f"{self.url.rstrip('/')}/{inner}")
        files.invalidate_cache()  # others write there too
        return files, self._plain(root)

    @staticmethod
    def _plain(path: str) -> str:
        return path.rstrip("/")


def url_of(place: str | os.PathLike[str]) -> str | None:
    """The URL that a store's name is, a path made of one included; None for a folder.

    >>> url_of("s3://bucket/store"), url_of(Path("s3://bucket/store")), url_of("a/store")
    ('s3://bucket/store', 's3://bucket/store', None)
    >>> url_of(Path("file:///home/me/store"))
    'file:///home/me/store'
    """
    found = _URL.fullmatch(os.fspath(place))
    if found is None:
        return None
    scheme, slashes, rest = found.groups()
    if len(slashes) == 1:  # a path has made one of several
        slashes = "///" if scheme in ("file", "local") else "//"
    return f"{scheme}:{slashes}{rest}"


def working_copy(url: str) -> Path:
    """The folder here for a store at a URL, under $XDG_CACHE_HOME or ~/.cache.

    Raises:
      ImportError: if fsspec is not installed.
    """
    if importlib.util.find_spec("fsspec") is None:
        raise ImportError(
            f"the store {url} is a URL, which needs fsspec: pip install 'jaxmeter[remote]' and "
            "fsspec's package for that file system, e.g. s3fs. Or name a folder."
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "jaxmeter" / f"store-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
