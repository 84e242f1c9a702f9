"""One summary run a table in MLflow: the table and its figures as artifacts, replaced when they change."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.record import Record
from benchmarks.tracking import runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KIND = "saflex.summary"


def sync(
    client: MlflowClient,
    experiment: str,
    existing: list[Run],
    *,
    results: Path,
    records: list[Record],
) -> int:
    """Bring a table's summary run up to date; 1 if it was made or replaced, 0 if nothing changed."""
    spec = records[0].spec
    table = f"table{spec.table}"
    files = artifacts(results, table)
    if not files:
        return 0
    wanted = _digest(files)
    old = [run for run in existing if KIND in run.data.tags]
    current = [run for run in old if run.data.tags.get(runs.DIGEST) == wanted]
    for run in old:
        if run not in current[:1]:
            client.delete_run(run.info.run_id)
    if current:
        return 0
    start = min(runs.milliseconds(record.started) for record in records)
    end = max(runs.milliseconds(record.finished) for record in records)
    tags = {KIND: table, "suite": spec.suite, "table": spec.table}
    tags["mlflow.note.content"] = _description(files, table)
    run = client.create_run(experiment, start_time=start, tags=tags, run_name=f"{table} (summary)")
    for folder, path in files:
        client.log_artifact(run.info.run_id, str(path), folder)
    client.set_terminated(run.info.run_id, end_time=end)
    client.set_tag(run.info.run_id, runs.DIGEST, wanted)
    return 1


def artifacts(results: Path, table: str) -> list[tuple[str, Path]]:
    """Files of a table with the artifact folder each goes to: its own, and those of all tables."""
    found = []
    for folder in ("tables", "figures"):
        for path in sorted((Path(results) / folder).glob("*")):
            own = path.stem == table or path.stem.startswith(
                (f"{table}-", f"{table}_", f"{table}.")
            )
            if path.is_file() and (own or path.stem == "claims"):
                found.append((folder, path))
    return found


def _digest(files: list[tuple[str, Path]]) -> str:
    content = hashlib.sha256()
    for folder, path in files:
        content.update(f"{folder}/{path.name}\x1f".encode())
        content.update(hashlib.sha256(path.read_bytes()).digest())
    return content.hexdigest()[:32]


def _description(files: list[tuple[str, Path]], table: str) -> str:
    """Show the table itself on the run's page, which renders Markdown."""
    for _, path in files:
        if path.name == f"{table}.md":
            return path.read_text(encoding="utf-8")[:4900]
    return f"{table} and its figures are among the artifacts"
