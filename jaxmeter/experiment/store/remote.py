"""A store at a URL: any file system of fsspec, with a folder here as its working copy."""

import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jaxmeter.disk import UnsafeName, below, create, is_litter, is_plain, make_folder, replacing

_URL = re.compile(r"([a-z][a-z0-9+.-]+):(/+)(.*)")


@dataclass(frozen=True)
class Mirror:
    """Folders at a URL. One is there once its last file is, which is written after the others.

    Processes on other machines are not waited for, as such file systems have no locks: two may
    compute one stage, and write the same bytes.

    Attributes:
      url: where, e.g. "s3://bucket/store".
      shared: whether files and folders at a "file://" URL are made as the umask has it.
    """

    url: str
    shared: bool = False

    def fetched(self, inner: str, last: str, folder: Path) -> bool:
        """Downloads a folder into another, `last` at last; whether it is there at all.

        Raises:
          UnsafeName: if a file's name would lead out of the folder; nothing is downloaded then.
        """
        files, root = self._place(inner)
        if not files.exists(f"{root}/{last}"):
            return False
        places = {name: below(folder, name) for name in self._names(root, files.find(root))}
        for name in places:
            above = {inner.as_posix() for inner in PurePosixPath(name).parents} & set(places)
            if above:
                raise UnsafeName(f"{above.pop()!r} is a file and a folder there, as of {name!r}.")
        for name in (*(n for n in places if n != last), last):
            make_folder(places[name].parent)
            create(places[name]).close()  # what is there keeps its mode when it is written
            try:
                files.get_file(f"{root}/{name}", str(places[name]))
            except FileExistsError:  # file systems make a folder of what they list as one too
                raise UnsafeName(f"{name!r} is a file and a folder there.") from None
        return True

    def _names(self, root: str, paths: Iterable[str]) -> list[str]:
        """What is listed of a folder, relative to it; not what systems leave anywhere."""
        found = set()
        for path in map(self._plain, paths):
            if path != root:  # else the folder itself, which some systems list
                inside = path.startswith(f"{root}/")
                found.add(path[len(root) + 1 :] if inside else f"/{path}")  # which is not plain
        return sorted(name for name in found if not any(map(is_litter, name.split("/"))))

    def contents(self, inner: Sequence[str]) -> dict[str, bytes]:
        """What is in files, read at once where the file system can; without those not there."""
        if not inner:
            return {}
        files, root = self._place("")
        places = {f"{root}/{name}": name for name in inner}
        found = files.cat(list(places), on_error="omit")
        found = {self._plain(path): content for path, content in found.items()}
        return {name: found[place] for place, name in places.items() if place in found}

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
        paths = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
        names = sorted(p.relative_to(folder).as_posix() for p in paths if not is_litter(p.name))
        for name in (*(n for n in names if n != last and not n.startswith(".")), last):
            self._put(files, folder / name, f"{root}/{name}")

    def put(self, source: Path, inner: str) -> None:
        """Uploads a file, whatever is there."""
        files, place = self._place(inner)
        self._put(files, source, place)

    def _put(self, files: Any, source: Path, place: str) -> None:
        from fsspec.implementations.local import LocalFileSystem

        if isinstance(files, LocalFileSystem):  # which copies as the umask has it
            make_folder(Path(place).parent, shared=self.shared)
            with open(source, "rb") as file, replacing(Path(place), shared=self.shared) as copy:
                shutil.copyfileobj(file, copy)
            return
        files.makedirs(os.path.dirname(place), exist_ok=True)
        files.put_file(str(source), place)

    def names(self, inner: str) -> list[str]:
        """What there is in a folder."""
        files, root = self._place(inner)
        if not files.exists(root):
            return []
        files.invalidate_cache(root)
        paths = self._names(root, files.ls(root, detail=False))
        return [name for name in paths if is_plain(name) and "/" not in name]

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


def working_copy(url: str, format: int) -> Path:
    """The folder here for a store at a URL, a format each, under $XDG_CACHE_HOME or ~/.cache.

    Raises:
      ImportError: if fsspec is not installed.
    """
    if importlib.util.find_spec("fsspec") is None:
        raise ImportError(
            f"the store {url} is a URL, which needs fsspec: pip install 'jaxmeter[remote]' and "
            "fsspec's package for that file system, e.g. s3fs. Or name a folder."
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(f"{format} {url}".encode()).hexdigest()[:16]
    return cache / "jaxmeter" / f"store-{name}"
