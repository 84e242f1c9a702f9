"""Folders of JPEG files (Table 3): decoded by several threads, resized once, kept on disk as uint8."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from benchmarks import sources
from benchmarks.errors import DataError
from benchmarks.record import replacing

FORMAT = 2

# From a decoded RGB image to what the network's input is made of, uint8 (3, H, W).
Prepare = Callable[[Image.Image], np.ndarray]


@dataclass(frozen=True)
class ImageList:
    """Files of one split and their class indices, in the order of the published lists."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True, kw_only=True)
class Index:
    """Which files make up a data set, before anything is decoded.

    Attributes
    ----------
    splits : the lists ``train``, ``validation``, ``test`` and ``extra``.
    """

    name: str
    root: Path
    splits: dict[str, ImageList]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pixels:
    """Decoded images x, uint8 (N, 3, H, W), and the SHA-256 over the bytes of their files."""

    x: np.ndarray
    digest: str


def pixels(files: Sequence[Path], prepare: Prepare, *, name: str, root: Path) -> Pixels:
    """Decode and resize files, or read them back from the cache.

    The cache's name holds the list of files (name below `root`, size, time stamp) and the code of
    `prepare`, so a change of either prepares anew. Processes that start together decode once.

    Raises
    ------
    DataError
        Naming the first file that is missing or is no image.
    """
    target = _place(files, prepare, name, root)
    found = _load(target)
    if found is None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            found = _load(target)
            if found is None:
                found = _decode(files, prepare)
                save_arrays(target, x=found.x, digest=np.array(found.digest))
    return found


def content(index: Index) -> str:
    """Hash what an index lists, 16 hexadecimal digits: the bytes of the files, labels, class names.

    Raises
    ------
    DataError
        Naming the first file that is missing.
    """
    known: dict[int, str] = {}
    for listed in index.splits.values():
        if id(listed) not in known:  # CUB: validation is the extra set
            known[id(listed)] = _bytes_of(listed.files, index.root)
    listed = {name: [known[id(own)], own.labels] for name, own in sorted(index.splits.items())}
    text = json.dumps([listed, index.class_names])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bytes_of(files: Sequence[Path], root: Path) -> str:
    """SHA-256 over those of the files, recalled while every size and time stamp is unchanged."""
    key = [str(root), _stated(files, root)]
    if (known := sources.recall("verified", key)) is not None:
        return known["digest"]
    with _pool() as pool:
        digest = hashlib.sha256()
        for own in pool.map(lambda path: hashlib.sha256(path.read_bytes()).digest(), files):
            digest.update(own)
    sources.remember("verified", key, {"files": len(files), "digest": digest.hexdigest()})
    return digest.hexdigest()


def decoded(path: Path, content: bytes | None = None) -> Image.Image:
    """Open one image as 8-bit RGB, as it is stored: the one place where images are opened.

    Grey, palette, CMYK and transparent files are converted as torchvision's folders do, which turn
    nothing by its EXIF tag. Grey values of 16 bits are scaled to 8, where Pillow alone would make all
    above 255 white.

    Parameters
    ----------
    content : the file's bytes, where they have been read already.

    Raises
    ------
    DataError
        The file is missing, no image, broken or cut short, too large to be one, or holds values of
        32 bits, whose range nobody states.
    """
    try:
        image = Image.open(BytesIO(path.read_bytes() if content is None else content))
        image.load()
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError("it holds values of 32 bits; 8 or 16 are expected")
        return image.convert("RGB")
    except Exception as error:  # a decoder raises whatever a broken file makes it stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = path.is_file() and sources.foreign(path)
        raise DataError(
            f"{path} is {kind or f'truncated or no image that can be read ({reason})'}; copy it again "
            "from the published archive"
        ) from error


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz by atomic rename; nothing in it needs pickle."""
    with replacing(path) as fresh, fresh.open("wb") as stream:
        np.savez(stream, **arrays)


def unpacking_place(archive: Path) -> Path:
    """Folder that an archive is unpacked into, there or not."""
    state = archive.stat()
    key = json.dumps([str(archive.resolve()), state.st_size, state.st_mtime_ns])
    return sources.home() / "unpacked" / hashlib.sha256(key.encode()).hexdigest()[:16]


def unpacked(archive: Path, folder: str) -> Path:
    """Unpack a tar archive once and give the path of its `folder`.

    Members that point outside the destination are refused (tarfile's ``data`` filter).
    """
    target = unpacking_place(archive)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            partial = Path(tempfile.mkdtemp(dir=target.parent, suffix=".tmp"))
            try:
                with tarfile.open(archive) as tar:
                    tar.extractall(partial, filter="data")
                os.replace(partial, target)
            except (tarfile.TarError, EOFError, OSError) as error:
                raise DataError(
                    f"{archive} cannot be unpacked ({error}); fetch it again"
                ) from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    if not (target / folder).is_dir():
        raise DataError(f"{archive} holds no folder {folder}: it is not the published archive")
    return target / folder


def _place(files: Sequence[Path], prepare: Prepare, name: str, root: Path) -> Path:
    code = inspect.getsource(prepare)
    text = json.dumps([FORMAT, code, _stated(files, root)])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    return sources.home() / "prepared" / "images" / f"{name}-{key}.npz"


def _stated(files: Sequence[Path], root: Path) -> list[list[str | int]]:
    """Name below `root`, size and time stamp of every file."""
    listed = []
    for path in files:
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(_incomplete(path, files)) from error
        listed.append([str(path.relative_to(root)), state.st_size, state.st_mtime_ns])
    return listed


def _incomplete(path: Path, files: Sequence[Path]) -> str:
    missing = sum(not other.is_file() for other in files)
    return (
        f"{path} is missing ({missing} of {len(files)} listed images are): unpack the published "
        "archive completely and keep its layout"
    )


def _load(path: Path) -> Pixels | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Pixels(arrays["x"], str(arrays["digest"]))
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError, EOFError):
        return None  # never prepared, or damaged since: decode again


def _decode(files: Sequence[Path], prepare: Prepare) -> Pixels:
    def one(path: Path) -> tuple[np.ndarray, bytes]:
        content = path.read_bytes()
        return prepare(decoded(path, content)), hashlib.sha256(content).digest()

    with _pool() as pool:
        digest, rows = hashlib.sha256(), None
        for number, (row, own) in enumerate(pool.map(one, files)):
            rows = np.empty((len(files), *row.shape), np.uint8) if rows is None else rows
            rows[number] = row
            digest.update(own)
    if rows is None:
        raise DataError("an image list is empty: nothing to decode")
    return Pixels(rows, digest.hexdigest())


def _pool() -> ThreadPoolExecutor:
    """Threads: hashing, the JPEG decoder and the resampling release the interpreter's lock."""
    return ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0))))
