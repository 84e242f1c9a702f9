"""Downloads of published files: mirrors in order, resumed, verified, then put in place at once.

The OpenML client names the file and MD5 of a data set (``openml:1494``); the transfer is done here,
since neither that client nor pooch takes up a partial download. Imports no torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from benchmarks import record, registry, sources
from benchmarks.errors import DataError
from benchmarks.sources import Located, Source

CHUNK = 1 << 20
TIMEOUT = (10, 60)  # seconds to connect, seconds between two pieces of the answer
FAILURES = (OSError, urllib3.exceptions.HTTPError)  # what a server or a network may do wrong


def fetch(
    datasets: Iterable[str], *, complete: bool = False, console: Console | None = None
) -> list[Path]:
    """Make sure the files of data sets are at hand; download what is missing, verify all that can be.

    Parameters
    ----------
    complete : download the complete file even where a partial one is at hand.

    Returns
    -------
    list of Path
        The files of all data sets; none of those that ship with a package. One put there by hand of
        which no checksum is known is said to be not verified.

    Raises
    ------
    DataError
        One line per file that could not be had, after all others were fetched.
    UnknownName
        Before anything is downloaded.
    """
    console = console or _console()
    wanted = list(dict.fromkeys(datasets))
    for name in wanted:
        registry.check("datasets", name)
    paths, failures = [], []
    for name in wanted:
        files = sources.files(name)
        if not files:
            console.print(f"{name}: nothing to download, it ships with a package")
        for alternatives in files:
            try:
                paths.append(_fetch_one(name, alternatives, complete=complete, console=console))
            except DataError as error:
                failures.append(f"{name}: {error}")
    if failures:
        raise DataError("\n".join(failures))
    return paths


def _fetch_one(
    name: str, alternatives: tuple[Source, ...], *, complete: bool, console: Console
) -> Path:
    found = _at_hand(alternatives, name)
    if found and not (complete and found.source.partial):
        hint = "; --complete downloads the complete file" if found.source.partial else ""
        joint = " and" if found.verified else ","
        console.print(f"{name}: {found.path} is at hand{joint} {found.standing}{hint}")
        return found.path
    published = [source for source in alternatives if source.urls]
    if not published:
        sources.locate_any(alternatives, name)  # raises: says where to put the file
    problems = []
    for source in published:
        try:
            path = download(source, console=console)
        except DataError as error:
            problems.append(str(error))
        else:
            console.print(f"{name}: {path} downloaded and verified")
            return path
    raise DataError("; ".join(problems))


def _at_hand(alternatives: Iterable[Source], name: str) -> Located | None:
    """Give the file at hand; None if there is none, or one of ours that is damaged."""
    alternatives = tuple(alternatives)
    try:
        return sources.locate_any(alternatives, name)
    except DataError:
        found = next(filter(None, map(sources.find, alternatives)), None)
        if found and not found.is_relative_to(sources.home() / "raw"):
            raise  # an altered file in the user's own folder: theirs to replace, and it comes first
        return None


def download(source: Source, *, console: Console | None = None) -> Path:
    """Download one file from the first mirror that delivers it unaltered.

    An interrupted transfer leaves ``.part`` beside the target; the next attempt, from whichever
    mirror, goes on where it stopped. Only a verified file gets the target's name.

    Raises
    ------
    DataError
        No mirror delivered the file; each is named with what it did.
    """
    target = sources.raw_path(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with FileLock(f"{target}.lock"):
        if _whole(source, target):
            return target  # another process was faster
        problems: list[str] = []
        for url, accepted in _mirrors(source, problems):
            try:
                found = _attempt(url, part, accepted, source=source, console=console or _console())
            except FAILURES as error:
                problems.append(f"{url}: {' '.join(str(error).split())}")
            except DataError as error:
                problems.append(str(error))
            else:
                if not source.checksum:
                    beside = target.with_name(target.name + ".checksum")
                    record.atomic_write(beside, found + "\n")
                os.replace(part, target)
                return target
        kept = (
            f"; {part.stat().st_size:,} bytes are kept and resumed next time"
            if part.exists()
            else ""
        )
        raise DataError(
            f"{source.name} could not be downloaded ({'; '.join(problems)}){kept}; try again, or put "
            f"{source.path} into the folder SAFLEX_DATA"
        )


def _whole(source: Source, path: Path) -> bool:
    try:
        return path.is_file() and bool(sources.verify(source, path))
    except DataError:
        return False


def _attempt(
    url: str, part: Path, accepted: tuple[str, ...], *, source: Source, console: Console
) -> str:
    """Transfer and verify; a resumed file that proves wrong is transferred once more from scratch."""
    while True:
        resumed = part.is_file()
        _transfer(url, part, source=source, console=console)
        algorithm = accepted[0].partition(":")[0]
        found = sources.checksum(part, algorithm)
        if found in accepted:
            return found
        kind = sources.foreign(part)
        altered = f"altered, it is {kind}" if kind else "altered"
        part.unlink()
        if not resumed:
            raise DataError(f"{url}: {altered}, expected {' or '.join(accepted)}, found {found}")


def _transfer(url: str, part: Path, *, source: Source, console: Console) -> None:
    """Bring a file to `part`, going on from what is there already where the server can."""
    if url.startswith("file:"):
        shutil.copyfile(unquote(urlsplit(url).path), part)
        return
    start = part.stat().st_size if part.is_file() else 0
    # Bytes as published: a transparent decompression would change checksum and offsets.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # all of it is there, or it is another file: the checksum decides
        response.raise_for_status()
        resumes = response.status_code == requests.codes.partial_content
        start = start if resumes else 0
        length = int(response.headers.get("Content-Length", 0))
        with part.open("ab" if resumes else "wb") as stream, _progress(console) as progress:
            total = start + length if length else source.size or None
            task = progress.add_task(source.name, total=total, completed=start)
            for piece in response.raw.stream(CHUNK, decode_content=False):
                stream.write(piece)
                progress.advance(task, len(piece))


def _console() -> Console:
    """Plain lines: a path is neither wrapped nor read as markup."""
    return Console(markup=False, highlight=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    return Progress(*columns, console=console)


def _mirrors(source: Source, problems: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each mirror with the checksums its file may have; without one nothing is downloaded."""
    accepted = source.accepted
    for url in source.urls:
        if url.startswith("openml:"):
            try:
                urls, md5 = _openml(int(url.removeprefix("openml:")))
            except Exception as error:  # the client raises whatever its server made it stumble over
                reason = " ".join(str(error).split()) or type(error).__name__
                problems.append(f"{url}: the OpenML client says: {reason}")
                continue
            accepted = accepted or md5
        else:
            urls = (url,)
        if not accepted:
            problems.append(f"{url}: no checksum is known to verify it by")
            continue
        for address in urls:
            yield address, accepted


def _openml(identifier: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ask the OpenML client for a data set's ARFF file, its own cache first, and the file's MD5."""
    import openml

    dataset = openml.datasets.get_dataset(
        identifier,
        download_data=False,
        download_qualities=False,
        download_features_meta_data=False,
    )
    cached = (
        Path(openml.config.get_cache_directory()) / "datasets" / str(identifier) / "dataset.arff"
    )
    urls = ((cached.as_uri(),) if cached.is_file() else ()) + (
        (dataset.url,) if dataset.url else ()
    )
    return urls, (f"md5:{dataset.md5_checksum}",) if dataset.md5_checksum else ()
