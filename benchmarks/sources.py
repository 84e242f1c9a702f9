"""Where a data file is published, where it lies here, and whether it is the file it should be.

A data set's module lists its files under ``SOURCES``: alternatives in order of preference, each one
complete on its own; and under ``PARTS`` what is needed besides, such as split lists. Imports neither
torch nor numpy.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import record, registry
from benchmarks.errors import BenchmarkError, DataError

# A file changed less than this long ago may change again under the same time stamp.
SETTLED_SECONDS = 2.0

HEX_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
FIRST_BYTES = {".arff": (b"@", b"%"), ".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".npz": b"PK"}


def path_given(text: str | Path) -> Path:
    """Read a path: no shell expands the ``~`` of ``results=~/x`` or of a quoted option.

    Raises
    ------
    BenchmarkError
        ``~somebody`` whom this machine does not know, a character that no path may have, or none at all.
    """
    if not str(text):
        raise BenchmarkError("an empty path was given: name a folder or a file (. is this folder)")
    if "\0" in str(text):
        raise BenchmarkError(f"path {str(text)!r} holds a zero byte: no file has such a name")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise BenchmarkError(f"path {str(text)!r}: this machine knows no such home") from error


def settle_variables() -> None:
    """Make the folders that environment variables name whole paths, for this process and its children.

    Raises
    ------
    BenchmarkError
        SAFLEX_DATA names no folder: every set would be missing, and be downloaded anew.
    """
    for name in ("SAFLEX_DATA", "SAFLEX_HOME"):
        if text := os.environ.get(name):
            path = path_given(text).absolute()
            if name == "SAFLEX_DATA" and not path.is_dir():
                raise BenchmarkError(
                    f"the environment variable {name} names {path}, which is no folder: name the folder of "
                    "your data, or unset it"
                )
            os.environ[name] = str(path)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One published file.

    Attributes
    ----------
    name : what a reader calls it.
    path : place below SAFLEX_DATA and below the data folder, such as ``tabular/qsar/x.csv``.
    urls : where it is published, official first; ``openml:1494`` asks the OpenML client for the
        file of that data set and its MD5. Empty: a local copy only.
    checksum : ``sha256:...`` or ``md5:...``. Empty: the MD5 its publisher states is kept beside the
        file when it is fetched.
    also : checksums of the same content in other bytes (line ends), accepted as well.
    size : bytes; 0 where the publisher does not say.
    partial : holds less than the published data; used while the complete file is not at hand.
    """

    name: str
    path: str
    urls: tuple[str, ...] = ()
    checksum: str = ""
    also: tuple[str, ...] = ()
    size: int = 0
    partial: bool = False

    def __post_init__(self) -> None:
        for given in filter(None, (self.checksum, *self.also)):
            if given.partition(":")[0] not in HEX_DIGITS:
                raise DataError(
                    f"checksum {given!r} of {self.name}: expected md5:... or sha256:..."
                )

    @property
    def accepted(self) -> tuple[str, ...]:
        return (self.checksum, *self.also) if self.checksum else ()


@dataclass(frozen=True)
class Located:
    """A file at hand that may be read: its source, its path and the checksum found."""

    source: Source
    path: Path
    checksum: str

    @property
    def verified(self) -> bool:
        """Whether the checksum is one that is known of the published file."""
        return bool(known(self.source, self.path))

    @property
    def standing(self) -> str:
        """Say in words how far the file is known to be the published one."""
        if self.verified:
            return f"verified ({self.checksum})"
        text = f"not verified, no checksum of the published file is known ({self.checksum}"
        first = recall("trusted", [str(self.path)]) or {"checksum": self.checksum, "day": "today"}
        if first["checksum"] == self.checksum:
            return f"{text}, trusted since its first use, {first['day']})"
        return f"{text}; CHANGED since its first use, {first['day']}: {first['checksum']} then)"


def home() -> Path:
    """Give the data folder: `SAFLEX_HOME`, or ``data`` in the working directory."""
    return Path(os.environ.get("SAFLEX_HOME") or "data").absolute()


def raw_path(source: Source) -> Path:
    """Place of a fetched file: below ``raw`` in the data folder."""
    return home() / "raw" / source.path


def of(dataset: str) -> tuple[Source, ...]:
    """List the alternative files of a registered data set; empty where it ships with a package."""
    module = registry.module("datasets", dataset)
    return tuple(getattr(module, "SOURCES", {}).get(dataset, ()))


def files(dataset: str, **settings: Any) -> list[tuple[Source, ...]]:
    """List every file that a data set needs, each as its alternatives; empty if shipped with a package.

    A module whose settings choose the file says so in ``files_read(name, **settings)``.
    """
    main = of(dataset)
    module = registry.module("datasets", dataset)
    if settings and hasattr(module, "files_read"):
        return module.files_read(dataset, **settings)
    parts = getattr(module, "PARTS", {}).get(dataset, ())
    return [*([main] if main else []), *((part,) for part in parts)]


def lacking(dataset: str) -> list[Source]:
    """List the files of a data set that are not at hand, of alternatives the one with a known size."""
    absent = [several for several in files(dataset) if not any(map(find, several))]
    return [next((s for s in several if s.size), several[0]) for several in absent]


def find(source: Source) -> Path | None:
    """Look for a file in SAFLEX_DATA, then in the data folder, without verifying it."""
    local = os.environ.get("SAFLEX_DATA")
    places = [Path(local).absolute() / source.path] if local else []
    return next((path for path in (*places, raw_path(source)) if path.is_file()), None)


def locate(source: Source) -> Path:
    """Find one file and verify it before anything reads it; see `locate_any`."""
    return locate_any((source,)).path


def locate_any(sources: Sequence[Source], dataset: str = "") -> Located:
    """Find the first alternative at hand and verify it; one without a known checksum is trusted.

    What it is at its first use is remembered, so that `Located.standing` can say that it changed.

    Raises
    ------
    DataError
        No alternative is at hand (the line says what to download, how big it is and how), or the
        file is truncated or altered (the line shows both checksums) or obviously another (`foreign`).
    """
    for source in sources:
        if path := find(source):
            located = Located(source, path, verify(source, path))
            if not located.verified and recall("trusted", [str(path)]) is None:
                first = {"path": str(path), "checksum": located.checksum, "day": f"{date.today()}"}
                remember("trusted", [str(path)], first)
            return located
    raise DataError(_missing(sources[0], dataset))


def verify(source: Source, path: Path) -> str:
    """Give the file's checksum, or raise `DataError` unless it is one the source accepts.

    Of a file without a known checksum its beginning is looked at (`foreign`).
    """
    accepted = known(source, path)
    algorithm = accepted[0].partition(":")[0] if accepted else "md5"
    found, kind = checksum(path, algorithm), foreign(path)
    if accepted and found not in accepted:
        size = path.stat().st_size
        sizes = f" ({size:,} of {source.size:,} bytes)" if source.size not in (0, size) else ""
        really = f", it is {kind}" if kind else ""
        raise DataError(
            f"{path} is truncated or altered{sizes}{really}: expected {' or '.join(accepted)}, "
            f"found {found}; nothing was prepared from it; delete it and fetch it again"
        )
    if kind and not accepted:
        raise DataError(f"{path} is {kind}: put {source.name} there, or fetch it again")
    return found


def foreign(path: Path) -> str:
    """Say what a file is in place of data, by its beginning; empty where it looks like data.

    Such files come from a server that wants a sign-in, a checkout without Git LFS, a copy cut short.
    """
    with path.open("rb") as stream:
        head = stream.read(1024)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not text:
        return "empty"
    if text.startswith(b"version https://git-lfs.github.com/spec"):
        return "a Git-LFS pointer (`git lfs pull` brings the file itself)"
    if text.lower().startswith((b"<!doctype", b"<html", b"<head", b"<script", b"<?xml", b"<error")):
        return "a web page (a sign-in or an error)"
    start = FIRST_BYTES.get(path.suffix)
    if start and not (head if path.suffix != ".arff" else text).startswith(start):
        return f"no {path.suffix} file (it begins with {text[:24]!r})"
    return ""


def index_file(path: Path) -> Path:
    """Give the path of a file that lists images, in a folder unpacked by hand, if it may be read.

    Raises
    ------
    DataError
        It is missing, or obviously another (`foreign`).
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: keep the layout of the published archive")
    if kind := foreign(path):
        raise DataError(f"{path} is {kind}: copy it again from the published archive")
    return path


def known(source: Source, path: Path) -> tuple[str, ...]:
    """Checksums that a file may have: its source's, else what its publisher stated when it was fetched.

    The latter is kept beside the file, and holds for a copy in SAFLEX_DATA as well. Empty: none known.

    Raises
    ------
    DataError
        What lies beside the file is no checksum.
    """
    if source.accepted:
        return source.accepted
    beside = (place.with_name(place.name + ".checksum") for place in (path, raw_path(source)))
    return next(((_stated(place),) for place in beside if place.is_file()), ())


def _stated(beside: Path) -> str:
    """Read a checksum as it is written here, such as ``md5:...``, or by md5sum, sha256sum and their like."""
    word = beside.read_bytes()[:1024].decode("utf-8", "replace").partition("\n")[0].lower()
    match = re.match(r"\s*\\?(?:(\w+):)?([0-9a-f]+)(?:\s|$)", word)
    if match:
        for algorithm, digits in HEX_DIGITS.items():
            if len(match[2]) == digits and match[1] in (None, algorithm):
                return f"{algorithm}:{match[2]}"
    raise DataError(
        f"{beside} holds no checksum: expected md5:... or sha256:..., or what md5sum writes; correct it, or "
        "delete it"
    )


def checksum(path: Path, algorithm: str) -> str:
    """Hash a file, or recall its hash while its inode, size and time stamps are unchanged.

    A hundred processes that start at once then read 144 MB once. The change time is part of the
    key, which nobody can set back, and a file too young to trust its time stamp is not remembered.
    """
    state = path.stat()
    key = [algorithm, str(path.resolve()), state.st_ino, state.st_size]
    key += [state.st_mtime_ns, state.st_ctime_ns]
    if (known := recall("verified", key)) is not None:
        return known["checksum"]
    with path.open("rb") as stream:
        found = f"{algorithm}:{hashlib.file_digest(stream, algorithm).hexdigest()}"
    if time.time() - max(state.st_mtime, state.st_ctime) > SETTLED_SECONDS:
        remember("verified", key, {"path": str(path), "checksum": found})
    return found


def recall(folder: str, key: Any) -> dict[str, Any] | None:
    """Read what was remembered under a key in a folder of the data folder; None if nothing was."""
    try:
        return json.loads(_memory(folder, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # never written, or half a file from elsewhere: found out anew


def remember(folder: str, key: Any, value: dict[str, Any]) -> None:
    """Keep what was found out; in a data folder that cannot be written it is found out every time."""
    with contextlib.suppress(OSError):  # no right to, a read-only disk, a full one
        record.atomic_write(_memory(folder, key), json.dumps(value) + "\n")


def _memory(folder: str, key: Any) -> Path:
    return home() / folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"


def content(needed: Sequence[Sequence[Source]]) -> str | None:
    """Hash the files at hand of what a data set needs, 16 hexadecimal digits; None if one is missing.

    It does not depend on where the files lie, nor on which of the accepted forms of a file (line ends)
    is there. An altered file has another hash, and whoever reads it says what is wrong with it.
    """
    found = []
    for alternatives in needed:
        at_hand = next(((source, path) for source in alternatives if (path := find(source))), None)
        if at_hand is None:
            return None
        accepted = known(*at_hand)
        own = checksum(at_hand[1], accepted[0].partition(":")[0] if accepted else "md5")
        found.append(accepted[0] if own in accepted else own)
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def _missing(source: Source, dataset: str) -> str:
    size = f", {source.size / 1e6:,.1f} MB" if source.size else ""
    local = os.environ.get("SAFLEX_DATA")
    looked = f"SAFLEX_DATA ({local})" if local else "SAFLEX_DATA (not set)"
    if not source.urls:
        return f"{source.name} is not at hand: put {source.path}{size} into the folder SAFLEX_DATA"
    command = f"python -m benchmarks fetch --dataset {dataset or Path(source.path).parent.name}"
    return (
        f"{source.name} is not at hand: {source.path}{size} is neither in {looked} nor in "
        f"{home() / 'raw'}; `{command}` downloads it from {source.urls[0]}"
    )
