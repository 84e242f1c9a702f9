"""`track sync`: bring an MLflow store up to date with the records; twice changes nothing.

A run in the store is found by its bundle and seed. It stays as it is while the digest of its record
is the same, is replaced when the record changed, and is done again when an earlier sync was cut short.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import record as records
from benchmarks.errors import BenchmarkError
from benchmarks.record import Record
from benchmarks.tables.selection import at_partners_epoch
from benchmarks.tracking import runs, store, summary, view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

METRICS_PER_CALL = 1000  # MLflow's limit for one batch
# Over HTTP a sync waits for the server most of the time; sqlite takes one writer.
SERVER_CONNECTIONS = 8
# MLflow's server inserts a data set that two runs bring at the same moment twice, and fails (3.17).
ONE_AT_A_TIME = threading.Lock()
SHOWN_PROBLEMS = 10
PROGRESS_SECONDS = 10.0


@dataclass
class Outcome:
    """What a sync did: counts of ``new``, ``replaced``, ``unchanged`` runs, and unreadable records."""

    counts: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        names = ("new", "replaced", "unchanged", "summaries")
        done = ", ".join(f"{self.counts[name]} {name}" for name in names)
        return f"{done} in {self.seconds:.1f} s"

    def damaged(self) -> str:
        """A line for each record that could not be read, as far as anybody reads them."""
        more = len(self.problems) - SHOWN_PROBLEMS
        shown = self.problems[:SHOWN_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        return "\n".join(shown)


def sync(
    results: Path,
    uri: str | None = None,
    *,
    suite: str | None = None,
    watch: bool = False,
    interval: float = 30.0,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Upsert every record of a suite's results into a store, then the tables as artifacts.

    Parameters
    ----------
    uri : of the store; default: sqlite below the results.
    suite : whose runs these are; a record made under another suite's name is filed here all the
        same. Default: what each record says.
    watch : go on until interrupted, a round every `interval` seconds; a server that is down is
        said, and tried again the next round.

    Raises
    ------
    BenchmarkError
        There is nothing to sync, the store cannot be reached, or some record is damaged; the readable
        ones are synced first.
    """
    uri = store.resolve(results, uri)
    if watch:
        return _watch(results, uri, suite, interval=interval, say=say)
    records.folder_with_records(Path(results))
    outcome = _round(results, uri, suite, say=say)
    say(f"{store.without_password(uri)}: {outcome}")
    if outcome.problems:
        raise BenchmarkError(outcome.damaged())
    return outcome


def _watch(
    results: Path, uri: str, suite: str | None, *, interval: float, say: Callable[[str], None]
) -> Outcome:
    """Sync again and again; an interruption in the middle of a run is mended by the next sync."""
    try:
        while True:
            now = time.strftime("%H:%M:%S")
            try:
                outcome = _round(results, uri, suite, say=say)
                say(f"{now} {outcome}")
                if outcome.problems:
                    say(outcome.damaged())
            except BenchmarkError as error:
                say(f"{now} {error}; trying again in {interval:g} s")
            time.sleep(interval)
    except KeyboardInterrupt:
        return Outcome()


def _round(results: Path, uri: str, suite: str | None, *, say: Callable[[str], None]) -> Outcome:
    start, outcome = time.monotonic(), Outcome()
    by_table: dict[str, list[Record]] = defaultdict(list)
    for path in sorted((Path(results) / "records").rglob("seed*.json")):
        try:
            record = runs.filed(records.read(path), suite)
            by_table[runs.experiment_name(record.spec)].append(record)
        except BenchmarkError as error:
            outcome.problems.append(str(error))
    with store.writer(results, uri, say=say) as client:
        for name, found in by_table.items():
            found = at_partners_epoch(found)
            _sync_table(client, name, found, results=results, uri=uri, outcome=outcome, say=say)
    outcome.seconds = time.monotonic() - start
    return outcome


def _sync_table(
    client: MlflowClient,
    name: str,
    found: list[Record],
    *,
    results: Path,
    uri: str,
    outcome: Outcome,
    say: Callable[[str], None],
) -> None:
    experiment = experiment_id(client, name, uri=uri)
    view.share(client, experiment, found)
    existing = all_runs(client, experiment)
    of_bundle: dict[str, list[Run]] = defaultdict(list)
    for run in existing:
        of_bundle[run.data.tags.get(runs.BUNDLE, "")].append(run)

    def upsert(record: Record) -> str:
        place = record.spec.name
        weights = records.weights_path(Path(results), record.key)
        return _upsert(client, experiment, record, of_bundle.get(place, []), weights=weights)

    with ThreadPoolExecutor(SERVER_CONNECTIONS if uri.startswith("http") else 1) as pool:
        try:
            told = time.monotonic()
            for number, done in enumerate(pool.map(upsert, found), 1):
                outcome.counts[done] += 1
                if time.monotonic() - told > PROGRESS_SECONDS:
                    say(f"{name}: {number:,} of {len(found):,} runs")
                    told = time.monotonic()
        except BaseException:
            # Else a server that is gone is asked again for each of 2,000 records.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    outcome.counts["summaries"] += summary.sync(
        client, experiment, existing, results=results, records=found
    )


def experiment_id(client: MlflowClient, name: str, *, uri: str) -> str:
    """Find a table's experiment or make it; beside sqlite, artifacts lie where the store does."""
    known = client.get_experiment_by_name(name)
    if known is None:
        return client.create_experiment(name, artifact_location=store.artifacts(uri, name))
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    return known.experiment_id


def all_runs(client: MlflowClient, experiment: str) -> list[Run]:
    """List every run of an experiment that is not deleted."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        found += page
        if not (token := page.token):
            return found


def _upsert(
    client: MlflowClient,
    experiment: str,
    record: Record,
    existing: Iterable[Run],
    *,
    weights: Path,
) -> str:
    wanted, kept, removed = runs.digest(record), None, False
    for run in existing:
        if kept is None and run.data.tags.get(runs.DIGEST) == wanted:
            kept = run
        else:
            client.delete_run(run.info.run_id)
            removed = True
    identifier = kept.info.run_id if kept else _create(client, experiment, record, wanted)
    _attach(client, identifier, weights, known=kept.data.tags.get(runs.WEIGHTS) if kept else None)
    if kept:
        return "unchanged"
    return "replaced" if removed else "new"


def _attach(client: MlflowClient, identifier: str, weights: Path, *, known: str | None) -> None:
    """Lay a run's trained weights beside it, where they were kept, once."""
    if not weights.exists():
        return
    state = f"{weights.stat().st_size} bytes of {weights.stat().st_mtime_ns}"
    if known != state:
        client.log_artifact(identifier, str(weights), "weights")
        client.set_tag(identifier, runs.WEIGHTS, state)


def _create(client: MlflowClient, experiment: str, record: Record, wanted: str) -> str:
    from mlflow.entities import Param, RunTag

    run = client.create_run(
        experiment,
        start_time=runs.milliseconds(record.started),
        tags=runs.tags(record),
        run_name=runs.run_name(record.spec),
    )
    identifier = run.info.run_id
    params = [Param(name, value) for name, value in runs.parameters(record).items()]
    points = runs.metrics(record)
    for start in range(0, max(len(points), 1), METRICS_PER_CALL):
        batch = points[start : start + METRICS_PER_CALL]
        client.log_batch(identifier, metrics=batch, params=params if start == 0 else [])
    with ONE_AT_A_TIME:
        client.log_inputs(identifier, datasets=runs.dataset_inputs(record))
    status = "FINISHED" if record.status == "complete" else "FAILED"
    client.set_terminated(identifier, status, end_time=runs.milliseconds(record.finished))
    client.log_batch(identifier, tags=[RunTag(runs.DIGEST, wanted)])
    return identifier
