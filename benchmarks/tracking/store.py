"""The MLflow store: where it is, that it is safe to write to, and the one boundary behind which it fails.

Whatever MLflow, a database, a server or a disk raise inside `opened` comes out as one line.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import url2pathname, urlopen

from benchmarks import sources
from benchmarks.errors import BenchmarkError
from benchmarks.record import replacing
from benchmarks.running.locks import bundle_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

# sqlite on these loses data: their locks do not hold across machines (MLflow's and sqlite's advice).
NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "glusterfs", "gpfs"}
    | {"lustre", "nfs", "nfs4", "smb3"}
)
SQLITE = "sqlite:///"
SCHEMES = (SQLITE, "http://", "https://", "postgresql", "mysql")
CONNECT_SECONDS = 5  # that a database or a server may take to be there
# Those that call it so; another driver waits as long as it does by itself.
DRIVERS_WITH_TIMEOUT = ("psycopg2", "psycopg", "pymysql", "mysqldb")
BUSY_SECONDS = 5  # that another program may hold a sqlite store before this is said
# What is behind a reason that MLflow gives, and what to do about it.
HINTS = {
    r"error code 401|error code 403": "; give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN",
    r"not in a valid JSON": ": a sign-in page or a proxy answers in MLflow's place",
    r"locked": "; another program writes to it: end that first",
}


def resolve(results: Path, uri: str | None = None) -> str:
    """Give the absolute URI of a store; default: sqlite below the suite's results.

    Raises
    ------
    BenchmarkError
        A kind of store that MLflow 3 does not take, or sqlite on a network file system.
    """
    uri = f"{SQLITE}{Path(results).absolute()}/mlflow/mlflow.db" if uri is None else uri
    if not uri.startswith(SCHEMES):
        raise BenchmarkError(
            f"tracking URI {uri!r} is of no known kind: give sqlite:///FILE, http://HOST:PORT or "
            "postgresql://... (MLflow 3 has no file store)"
        )
    if not uri.startswith(SQLITE):
        if reason := _malformed(uri):
            raise BenchmarkError(f"tracking URI {without_password(uri)!r} is malformed: {reason}")
        return uri.rstrip("/")
    if not uri.removeprefix(SQLITE):
        raise BenchmarkError(f"tracking URI {uri!r} names no file: give {SQLITE}FILE")
    path = sources.path_given(uri.removeprefix(SQLITE)).absolute()
    if path.is_dir():
        raise BenchmarkError(
            f"the MLflow store {path} is a folder: name a file in it, such as {SQLITE}{path}/mlflow.db"
        )
    if "?" in str(path):
        raise BenchmarkError(
            f"the MLflow store {path} has a ? in its path, which a database's address ends at: give "
            "another with --uri sqlite:////FILE"
        )
    if (kind := file_system(path)) in NETWORK_FILE_SYSTEMS:
        raise BenchmarkError(
            f"the MLflow store {path} is on {kind}, where sqlite loses data: give a local path "
            "(--uri sqlite:////local/disk/mlflow.db) or a tracking server (--uri http://HOST:5000)"
        )
    return f"{SQLITE}{path}"


def _malformed(uri: str) -> str:
    """Say why an address of a server or a database cannot be one; empty if it can."""
    try:
        if uri.startswith("http"):
            parts = urlsplit(uri)
            return "" if parts.hostname and parts.port != 0 else "expected http://HOST:PORT"
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError
    except ValueError as error:  # half an IPv6 address, a port that is no number
        return f"{error}; expected http://HOST:PORT"
    try:
        make_url(uri)
    except (ArgumentError, ValueError) as error:
        return f"{error}; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    return ""


def file_system(path: Path, mounts: str | None = None) -> str:
    """Name the type of the file system that holds a path, which need not exist; '' if unknown."""
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8")
        except OSError:
            return ""
    best, kind = Path(), ""
    for line in mounts.splitlines():
        point, name = line.split()[1:3]
        mount = Path(point.replace("\\040", " "))
        if path.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, name
    return kind


@contextmanager
def writer(
    results: Path, uri: str, *, say: Callable[[str], None] = print
) -> Iterator[MlflowClient]:
    """Open a store for writing, its schema in place; a second writer of these results waits and says so."""
    with bundle_lock(results, "track"):
        with answering(uri):
            prepare(uri)
        with opened(uri, say=say) as client:
            yield client


@contextmanager
def opened(
    uri: str, *, write: bool = True, say: Callable[[str], None] = print
) -> Iterator[MlflowClient]:
    """Open a store that is there; artifacts of one that was moved are looked for beside it again.

    Parameters
    ----------
    write : False asks for reading alone, which a store in a read-only folder allows.
    say : is told of a store that was moved.

    Raises
    ------
    BenchmarkError
        There is no such store, or whatever went wrong with it while the block ran.
    """
    with answering(uri):
        reach(uri)
        if uri.startswith(SQLITE):
            path = Path(uri.removeprefix(SQLITE))
            if not path.is_file():
                raise BenchmarkError(
                    f"{path} is not there yet: `python -m benchmarks track sync` makes it"
                )
            # MLflow itself would ask ten times, a traceback each, and give up after minutes.
            with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as base:
                if write:
                    base.execute("BEGIN IMMEDIATE")
                    _beside(base, path, say)
                    base.execute("COMMIT")
                else:
                    base.execute("SELECT count(*) FROM experiments").fetchone()
        yield client(uri)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn what a store raises while the block runs into one line that names it."""
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # It shows every error of a database as a traceback besides raising it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    failures = (MlflowException, SQLAlchemyError, CommandError, sqlite3.Error, ModuleNotFoundError)
    try:
        yield
    except (*failures, OSError, json.JSONDecodeError) as error:
        # Of a page of HTML and a chain of causes only what a user can act on.
        reason = str(error).partition("Response body")[0].splitlines()[0]
        reason = reason.rpartition("(Caused by ")[2].strip(" .")[:300]
        hint = next((told for seen, told in HINTS.items() if re.search(seen, reason)), "")
        raise BenchmarkError(
            f"MLflow store {without_password(uri)} does not answer or refuses: {reason}{hint}"
        ) from error


def artifacts(uri: str, experiment: str) -> str | None:
    """Give the place of an experiment's artifacts: beside a sqlite store; None where a server decides."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).parent / "artifacts" / experiment).as_uri()


def _beside(base: sqlite3.Connection, path: Path, say: Callable[[str], None]) -> None:
    """Mend a store that was moved or copied: MLflow keeps whole paths, and would write to the old place."""
    for identifier, name, old in base.execute(
        "SELECT experiment_id, name, artifact_location FROM experiments WHERE name LIKE 'saflex/%'"
    ).fetchall():
        new = artifacts(f"{SQLITE}{path}", name)
        if old == new or not old.startswith("file:"):
            continue
        # Another name of the same folder, such as a link to it, is no move.
        before, after = (Path(url2pathname(urlsplit(place).path)) for place in (old, new))
        if before.exists() and after.exists() and before.samefile(after):
            continue
        base.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
            (new, identifier),
        )
        base.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, length(?) + 1)"
            " WHERE experiment_id = ? AND substr(artifact_uri, 1, length(?)) = ?",
            (new, old, identifier, old, old),
        )
        absent = "" if after.exists() else f"; nothing is there: copy {before} to it"
        say(f"{name}: the store was moved, its artifacts are looked for in {after} now{absent}")


def reach(uri: str) -> None:
    """Connect once: MLflow itself asks a server or database that is not there for minutes, in silence.

    Raises
    ------
    OSError, SQLAlchemyError, ModuleNotFoundError
        It does not answer within `CONNECT_SECONDS`, refuses, or its driver is not installed.
    """
    if uri.startswith(SQLITE):
        return
    if uri.startswith("http"):
        try:
            urlopen(f"{uri}/health", timeout=CONNECT_SECONDS).close()
        except (HTTPError, HTTPException):  # somebody is there; what it means MLflow finds out
            return
        except URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # MLflow has settings for certificates
                raise
        return
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url

    timed = make_url(uri).get_dialect().driver in DRIVERS_WITH_TIMEOUT
    engine = create_engine(uri, connect_args={"connect_timeout": CONNECT_SECONDS} if timed else {})
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def client(uri: str) -> MlflowClient:
    """Open a store."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def prepare(uri: str) -> None:
    """Lay the schema of a fresh store before anything else opens it.

    Two processes that open a fresh store at once break it for good. sqlite's is laid in a file beside
    and renamed, so that a store is there whole or not at all.
    """
    if not uri.startswith(SQLITE):
        if not uri.startswith("http"):
            reach(uri)
            _upgrade(uri)
        return
    path = Path(uri.removeprefix(SQLITE))
    if path.exists():
        return
    with replacing(path) as fresh:
        _upgrade(f"{SQLITE}{fresh}")


def _upgrade(uri: str) -> None:
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BenchmarkError(f"MLflow cannot prepare its store {without_password(uri)}: {reason}")


def without_password(uri: str) -> str:
    """Hide the password of a database URI before it is printed."""
    head, at, tail = uri.rpartition("@")
    if not at:
        return uri
    scheme, _, login = head.partition("://")
    return f"{scheme}://{login.partition(':')[0]}:***@{tail}"
