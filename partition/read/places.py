"""Where tables lie: local files, patterns, folders with Hive partitions, and URIs of object storage."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as fs

from partition.errors import InputError, one_line

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_URI = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://([^/?]*)([^?]*)(\?.*)?")
_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
_WILD = re.compile(r"[*?\[]")
_NULL_KEY = "__HIVE_DEFAULT_PARTITION__"
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
# Tables whose folder holds files with deleted rows; only their own log says which files count.
_TABLE_LOGS = {"_delta_log": "Delta", ".hoodie": "Hudi"}
_READ_BYTES = 1 << 20

Key = int | str | None  # the value in the name of a Hive folder


@dataclass(frozen=True)
class Place:
    """One file, on a local disk or in object storage."""

    name: str  # path or URI, as errors show it
    path: str  # in `filesystem`
    keys: tuple[tuple[str, Key], ...] = ()  # of the Hive folders above it: (("day", "2026-01-01"),)
    filesystem: fs.FileSystem = field(default_factory=fs.LocalFileSystem, compare=False, repr=False)

    @property
    def is_local(self) -> bool:
        """True for a file that other programs can open by `path`."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def file_name(self) -> str:
        """The name without the folders."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def suffixes(self) -> tuple[str, str]:
        """The suffix of the format and that of the compression, in lower case: (".csv", ".gz"), (".parquet", "")."""
        stem, suffix = os.path.splitext(self.file_name.lower())
        return (os.path.splitext(stem)[1], suffix) if suffix in COMPRESSED else (suffix, "")

    def open_file(self) -> pa.NativeFile:
        """The file, for random access; raises OSError."""
        return self.filesystem.open_input_file(self.path)

    def open_stream(self) -> pa.NativeFile:
        """The content from the beginning, decompressed; raises OSError."""
        compression = COMPRESSED.get(self.suffixes[1])
        return self.filesystem.open_input_stream(self.path, compression=compression)

    def stamp(self) -> tuple[str, int, int, int]:
        """Name, bytes, time of the last change in ns and inode (0 in object storage): another file differs in one.

        Raises:
            InputError: it is gone.
        """
        if self.is_local:
            try:
                found = os.stat(self.path)
            except OSError:
                raise InputError(f"{self.name}: no such file", "file.missing") from None
            return self.name, found.st_size, found.st_mtime_ns, found.st_ino
        info = self.filesystem.get_file_info(self.path)
        if info.type is fs.FileType.NotFound:
            raise InputError(f"{self.name}: no such file", "file.missing")
        return self.name, info.size, info.mtime_ns or 0, 0

    def sha256(self) -> str:
        """Digest of the content, in hexadecimal."""
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self.path, compression=None) as stream:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class Listing:
    """The files of one source."""

    places: list[Place]  # in the order of their paths
    named: bool  # the source is one file, which the user named; else a folder or a pattern
    unused: list[str] = field(default_factory=list)  # sub-folders that are not read, with the reason


def place_of(source: str | Path | Place) -> Place:
    """The place of one file; it need not exist.

    Raises:
        InputError: a URI that no file system reads.
    """
    if isinstance(source, Place):
        return source
    text = str(source)
    if (uri := _URI.fullmatch(text)) is None:
        return Place(text, text)
    scheme, host, path, query = uri[1].lower(), uri[2], uri[3], uri[4] or ""
    scheme = _SCHEMES.get(scheme, scheme)
    try:
        filesystem, root = fs.FileSystem.from_uri(f"{scheme}://{host}/{query}")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{text}: no file system for this URI: {one_line(error)}", "file.uri") from None
    if scheme == "file":
        return Place(unquote(path), unquote(path))
    return Place(f"{uri[1]}://{host}{path}", root.rstrip("/") + path, (), filesystem)


def listing(source: str) -> Listing:
    """The files of a source: a file, a folder, a pattern such as logs/*.csv, or a URI of one of these.

    Of a folder these are the files in it, and those in Hive folders (day=2026-01-01) anywhere below.

    Raises:
        InputError: there is no such file, or a folder is a table of a format with a log of its own.
    """
    place = place_of(source)
    kind = _type(place)
    if kind is fs.FileType.File:
        return Listing([place], True)
    if kind is fs.FileType.Directory:
        return _typed_keys(_folder(place))
    matches = list(_matches(place)) if _WILD.search(place.path) else []
    if not matches:
        raise InputError(f"{place.name}: no such file or folder", "file.missing")
    places: list[Place] = []
    unused: list[str] = []
    for found in matches:
        inside = _folder(found) if _type(found) is fs.FileType.Directory else Listing([found], True)
        places += inside.places
        unused += inside.unused
    places = list({place.path: place for place in places}.values())  # `**` matches a folder and what is in it
    return _typed_keys(Listing(places, False, unused))


def _type(place: Place) -> fs.FileType:
    if place.is_local:  # also pipes and other things that are opened as files
        if os.path.isdir(place.path):
            return fs.FileType.Directory
        return fs.FileType.File if os.path.exists(place.path) else fs.FileType.NotFound
    try:
        return place.filesystem.get_file_info(place.path.rstrip("/")).type
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{place.name}: cannot be reached: {one_line(error)}", "file.unreadable") from None


def _below(place: Place, relative: str, folder: str = "") -> Place:
    """The place of a file below `place`, with the keys of the Hive folders on the way (and of `folder` before it)."""
    keys = [part.split("=", 1) for part in f"{folder}/{relative}".split("/")[:-1] if _is_key(part)]
    known = dict(place.keys) | {name: _NULL_KEY if value == _NULL_KEY else unquote(value) for name, value in keys}
    name, path = (text.rstrip("/") + "/" + relative for text in (place.name, place.path))
    return replace(place, name=name, path=path, keys=tuple(known.items()))


def _is_key(folder: str) -> bool:
    return re.fullmatch(r"[^=]+=.*", folder) is not None


def _folder(place: Place) -> Listing:
    places: list[Place] = []
    read: set[str] = set()
    passed: dict[str, str] = {}  # sub-folder, or file in a sub-folder that is read in part -> top folder
    for relative in sorted(_names_below(place)):
        top, _, rest = relative.partition("/")
        if top in _TABLE_LOGS:
            what = _TABLE_LOGS[top]
            raise InputError(
                f"{place.name}: a {what} table, of which some files may be out of date; export it as Parquet",
                "table.format",
            )
        if not rest or any(map(_is_key, relative.split("/")[:-1])):
            places.append(_below(place, relative))
            read.add(top)
        else:
            passed[relative] = top
    unused = {f"{top}/" if top not in read else relative for relative, top in passed.items()}
    return Listing(places, False, [f"{name} (in a sub-folder; give it with --input)" for name in sorted(unused)])


def _names_below(place: Place) -> Iterator[str]:
    """Names of all files below a folder, relative to it, without hidden ones."""
    if place.is_local:
        yield from _local_names(place.path, "", ())
        return
    base = place.path.rstrip("/")
    for info in place.filesystem.get_file_info(fs.FileSelector(base, recursive=True)):
        relative = info.path[len(base) + 1 :]
        hidden = any(part.startswith(".") and part not in _TABLE_LOGS for part in relative.split("/"))
        if info.type is fs.FileType.File and not hidden:
            yield relative


def _local_names(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that contains it
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name not in _TABLE_LOGS:
                continue
            if entry.is_dir():
                yield from _local_names(entry.path, f"{prefix}{entry.name}/", (*above, real))
            else:
                yield prefix + entry.name


def _matches(place: Place) -> Iterator[Place]:
    """Files and folders that match a pattern, in the order of their paths."""
    parts = place.path.split("/")
    wild = next(number for number, part in enumerate(parts) if _WILD.search(part))
    base = "/".join(parts[:wild]) or ("/" if place.path.startswith("/") else "")
    if place.is_local:
        paths: Sequence[str] = glob.glob(place.path, recursive=True)
    else:
        selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
        pattern = re.compile(_regex(place.path))
        paths = [info.path for info in place.filesystem.get_file_info(selector) if pattern.fullmatch(info.path)]
    prefix = len(base) + 1 if base not in ("", "/") else len(base)
    start = place.name[: len(place.name) - len(place.path) + len(base)]
    root = replace(place, name=start, path=base)
    for path in sorted(paths):
        relative = path[prefix:]
        found = _below(root, relative) if base else replace(_below(root, relative), name=path, path=path)
        if _is_key(last := relative.rstrip("/").rpartition("/")[2]):  # a folder day=… that matches
            name, value = last.split("=", 1)
            found = replace(found, keys=(*found.keys, (name, unquote(value))))
        yield found


def _regex(pattern: str) -> str:
    """A shell pattern as a regular expression over a whole path; `*` stays within a folder, `**/` does not."""
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*|\?|\[[^\]]+\])", pattern)  # every second one is special
    return "".join(
        known.get(token, token.replace("[!", "[^")) if number % 2 else re.escape(token)
        for number, token in enumerate(tokens)
    )


def _typed_keys(found: Listing) -> Listing:
    """The keys as whole numbers where every folder has one, else as text."""
    texts: dict[str, list[str]] = {}
    for place in found.places:
        for name, value in place.keys:
            texts.setdefault(name, []).append(str(value))
    whole = {
        name: all(value == _NULL_KEY or _WHOLE_NUMBER.fullmatch(value) for value in values)
        and any(value != _NULL_KEY for value in values)
        for name, values in texts.items()
    }

    def typed(name: str, value: Key) -> Key:
        if value == _NULL_KEY:
            return None
        return int(str(value)) if whole[name] else value

    places = [
        replace(place, keys=tuple((name, typed(name, value)) for name, value in place.keys)) for place in found.places
    ]
    return replace(found, places=places)
