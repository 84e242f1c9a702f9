"""The MLflow store: where it is, that it is safe to write to, and that its schema is in place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from benchmarks.errors import BenchmarkError
from benchmarks.record import replacing

if TYPE_CHECKING:
    from mlflow import MlflowClient

# sqlite on these loses data: their locks do not hold across machines (MLflow's and sqlite's advice).
NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "glusterfs", "gpfs"}
    | {"lustre", "nfs", "nfs4", "smb3"}
)
SQLITE = "sqlite:///"
SCHEMES = (SQLITE, "http://", "https://", "postgresql", "mysql")


def resolve(results: Path, uri: str | None = None) -> str:
    """Give the absolute URI of a store; default: sqlite below the suite's results.

    Raises
    ------
    BenchmarkError
        A kind of store that MLflow 3 does not take, or sqlite on a network file system.
    """
    uri = uri or f"{SQLITE}{Path(results).absolute()}/mlflow/mlflow.db"
    if not uri.startswith(SCHEMES):
        raise BenchmarkError(
            f"tracking URI {uri!r} is of no known kind: give sqlite:///FILE, http://HOST:PORT or "
            "postgresql://... (MLflow 3 has no file store)"
        )
    if not uri.startswith(SQLITE):
        return uri.rstrip("/")
    path = Path(uri.removeprefix(SQLITE)).absolute()
    if (kind := file_system(path)) in NETWORK_FILE_SYSTEMS:
        raise BenchmarkError(
            f"the MLflow store {path} is on {kind}, where sqlite loses data: give a local path "
            "(--uri sqlite:////local/disk/mlflow.db) or a tracking server (--uri http://HOST:5000)"
        )
    return f"{SQLITE}{path}"


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
def writer(results: Path, uri: str) -> Iterator[MlflowClient]:
    """Open a store for writing, its schema in place; a second writer of these results waits."""
    lock = Path(results) / "locks" / "track.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        prepare(uri)
        yield client(uri)


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
