"""PostgreSQL and an MLflow server on loopback, started and stopped by the tests that need them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from waiting import wait_for

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        return found.getsockname()[1]


@dataclass
class Postgres:
    """A database cluster of its own; root, Debian (postgres refuses to run as root).

    It lies outside pytest's folders, which are closed to other users.
    """

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="postgres-")))
    port: int = field(default_factory=free_port)

    def start(self) -> Postgres:
        shutil.chown(self.folder, "postgres", "postgres")
        self._as_postgres("initdb", "-D", "data", "--auth=trust", "--encoding=UTF8")
        options = f"-p {self.port} -h {LOOPBACK} -k {self.folder}"
        self._as_postgres("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")
        self._as_postgres("createdb", "-h", LOOPBACK, "-p", str(self.port), "mlflow")
        return self

    def stop(self) -> None:
        self._as_postgres("pg_ctl", "-D", "data", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    @property
    def uri(self) -> str:
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/mlflow"

    def _as_postgres(self, program: str, *arguments: str) -> None:
        (folder,) = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
        line = ["runuser", "-u", "postgres", "--", str(folder / program), *arguments]
        answer = subprocess.run(
            line, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        assert answer.returncode == 0, answer.stderr.decode()


@dataclass
class Server:
    """An MLflow tracking server over a store; may be stopped and started again at the same address."""

    store: str
    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> Server:
        line = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.store]
        line += ["--artifacts-destination", str(self.folder / "artifacts")]
        line += ["--host", LOOPBACK, "--port", str(self.port), "--workers", "2"]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                line, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self.answers, "the MLflow server")
        return self

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """Kill it and its workers at once."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()


def track(*arguments: str) -> list[str]:
    """Command line of a `track` verb."""
    return [sys.executable, "-m", "benchmarks", "track", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
