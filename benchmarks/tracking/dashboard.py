"""`track ui`: the MLflow dashboard on the loopback interface."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.tracking import store

HOST = "127.0.0.1"


def command(results: Path, uri: str | None = None, *, port: int = 5000) -> list[str]:
    """Build the command that serves a store. It listens on this machine alone."""
    uri = store.resolve(results, uri)
    if uri.startswith("http"):
        raise BenchmarkError(f"{uri} is a server already: open it in a browser")
    path = Path(uri.removeprefix(store.SQLITE))
    if uri.startswith(store.SQLITE) and not path.exists():
        raise BenchmarkError(f"{path} is not there yet: `python -m benchmarks track sync` makes it")
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", uri),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
    ]


def ui(results: Path, uri: str | None = None, *, port: int = 5000) -> None:
    """Serve the dashboard until interrupted."""
    line = command(results, uri, port=port)
    # Its job runner is for evaluating language models; without it the server takes a quarter of the
    # memory and starts four times as fast.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    print(f"dashboard: http://{HOST}:{port}  (Ctrl-C ends it)", flush=True)
    try:
        subprocess.run(line, env=environment, check=False)
    except KeyboardInterrupt:
        print("dashboard ended")
