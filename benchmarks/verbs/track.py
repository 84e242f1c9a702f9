"""``python -m benchmarks track sync|ui|check``: records into MLflow."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.verbs.options import Results, SuiteName, finite, folder_of

app = typer.Typer(help="Experiment tracking: records into MLflow.", no_args_is_help=True)


@app.command("sync")
def sync(
    suite: SuiteName = "demo",
    results: Results = None,
    uri: Annotated[
        str | None, typer.Option(help="MLflow store; default: sqlite in results")
    ] = None,
    watch: Annotated[bool, typer.Option(help="go on syncing while the suite runs")] = False,
    interval: Annotated[
        float, typer.Option(min=1, callback=finite, help="seconds between rounds of a watch")
    ] = 30,
) -> None:
    """Bring the MLflow store up to date with the records; doing it twice changes nothing."""
    from benchmarks import suite as suites
    from benchmarks import tracking

    loaded = suites.load(suite)
    tracking.sync(
        folder_of(loaded.name, results), uri, suite=loaded.name, watch=watch, interval=interval
    )


@app.command("ui")
def ui(
    suite: SuiteName = "demo",
    results: Results = None,
    uri: Annotated[str | None, typer.Option()] = None,
    port: Annotated[int, typer.Option()] = 5000,
) -> None:
    """Open the dashboard on the loopback interface."""
    from benchmarks import suite as suites
    from benchmarks import tracking

    tracking.ui(folder_of(suites.load(suite).name, results), uri, port=port)


@app.command("check")
def check(
    suite: SuiteName = "demo",
    results: Results = None,
    uri: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Compare the store's means with the tables' CSV; exit status 1 where they differ."""
    from benchmarks import record, tracking
    from benchmarks import suite as suites
    from benchmarks.running.current import choose

    loaded = suites.load(suite)
    folder = folder_of(loaded.name, results)
    used = {r.key for r in choose(record.load_all(folder), suites.plan(loaded)).records}
    raise typer.Exit(tracking.check(folder, uri, suite=loaded.name, used=used))
