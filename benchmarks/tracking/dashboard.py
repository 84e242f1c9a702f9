"""`track ui`: the MLflow dashboard on the loopback interface."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.tracking import store, view

HOST = "127.0.0.1"


def command(results: Path, uri: str | None = None, *, port: int = 5000) -> list[str]:
    """Build the command that serves a store. It listens on this machine alone."""
    uri = store.resolve(results, uri)
    if uri.startswith("http"):
        raise BenchmarkError(f"{uri} is a server already: open it in a browser")
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", uri),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
    ]


def ui(results: Path, uri: str | None = None, *, port: int = 5000) -> None:
    """Serve the dashboard until interrupted, and print a link to each table."""
    line = command(results, uri, port=port)
    # Its job runner is for evaluating language models; without it the server takes a quarter of the
    # memory and starts four times as fast.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    uri = store.resolve(results, uri)
    write = os.access(
        uri.removeprefix(store.SQLITE), os.W_OK
    )  # an archived store is shown as it is
    with store.opened(uri, write=write) as client:
        experiments = client.search_experiments()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BenchmarkError(
                f"port {port} is taken ({error.strerror}): give another with --port"
            ) from error
    print(f"dashboard: http://{HOST}:{port}  (Ctrl-C ends it)")
    for experiment in experiments:
        if view.TAG in experiment.tags:
            print(f"{experiment.name}: http://{HOST}:{port}{view.path(experiment.experiment_id)}")
    # In place of this process, so that whatever ends it ends the server.
    sys.stdout.flush()
    os.execve(sys.executable, line, environment)
