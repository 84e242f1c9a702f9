"""Command line: ``python -m benchmarks VERB``. Each verb imports only what it needs."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import sources
from benchmarks.errors import BenchmarkError, fault, machine_refusals
from benchmarks.verbs import generate, track
from benchmarks.verbs.options import Results, SuiteName, finite, folder_of

app = typer.Typer(
    name="saflex-bench",
    help="Does SAFLEX (ICLR 2024) reproduce? Plan, run and tabulate its experiments.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(track.app, name="track")
app.add_typer(generate.app, name="generate")

Table = Annotated[str | None, typer.Option("--table", "-t", help="this table only")]

PYTHONS = ((3, 11), (3, 12), (3, 13))  # on which the pins of requirements.lock were tried
INTERRUPTED = 130  # by Ctrl-C where nothing holds it back (benchmarks.running.stopping)


def main() -> None:
    """Run the command line; an error a user can act on is one clear line and exit status 2."""
    # Names of files and data need not be in the terminal's alphabet; to say them must not fail.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        _refuse_elsewhere()
        with machine_refusals():
            sources.settle_variables()
            app()
    except BenchmarkError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.status)
    except SystemExit as end:
        if not _is_ours(end):
            print(f"error: {fault(end)}", file=sys.stderr)
            sys.exit(2)
        if end.code == INTERRUPTED:
            print(
                "interrupted: what was finished is kept, the same command goes on", file=sys.stderr
            )
        raise


def _is_ours(end: SystemExit) -> bool:
    """Whether the command line ended itself: a loader or model that does it would pass for success."""
    *_, last = traceback.walk_tb(end.__traceback__)
    return last[0].f_globals["__name__"].partition(".")[0] in ("typer", "click")


def _refuse_elsewhere() -> None:
    """Refuse, before a traceback does, where nobody has tried the pins (`requirements.lock`)."""
    if sys.platform != "linux":
        raise BenchmarkError(
            f"the benchmark runs on Linux, and this is {sys.platform}: take a Linux machine or container; "
            "the library `saflex` alone needs nothing but torch"
        )
    if sys.version_info[:2] not in PYTHONS:
        first, *_, last, here = (".".join(map(str, v)) for v in (*PYTHONS, sys.version_info[:2]))
        raise BenchmarkError(
            f"the benchmark runs on Python {first} to {last}, and this is {here}: its pins were tried on no "
            f"other; `make PYTHON=python{first}` in a checkout without .venv"
        )


@app.command()
def plan(
    suite: SuiteName = "demo",
    table: Table = None,
    results: Results = None,
    check: Annotated[
        bool, typer.Option("--check", help="build each distinct cell once and take one step")
    ] = False,
) -> None:
    """List the bundles that a suite would run, and which of their records are current."""
    from benchmarks import suite as suites
    from benchmarks.running import overview

    loaded = suites.load(suite)
    overview.show(loaded, folder_of(loaded.name, results), table=table)
    if check:
        from benchmarks.running import trial

        trial.check(suites.bundles(suites.plan(loaded, table=table)))


@app.command()
def cost(suite: SuiteName = "demo", table: Table = None) -> None:
    """Say what a suite will take before it starts: hours, gigabytes, and the assumptions made."""
    from benchmarks import suite as suites
    from benchmarks.forecast import cost as costs

    costs.show(suites.load(suite), table=table)


@app.command()
def fetch(
    dataset: Annotated[list[str] | None, typer.Option("--dataset", "-d")] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", "-s", help="all of a suite's sets")
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="not content with a part of a set at hand")
    ] = False,
) -> None:
    """Download and verify data sets; SAFLEX_DATA names a local folder that is looked in first."""
    from benchmarks import fetch as fetching
    from benchmarks import suite as suites

    wanted = list(dataset or [])
    if suite:
        specs = suites.to_run(suites.load(suite))
        wanted += sorted({spec.settings.dataset.name for spec in specs})
    if not wanted:
        raise BenchmarkError("nothing to fetch: name a --dataset or a --suite")
    fetching.fetch(wanted, complete=complete)


@app.command()
def cards(
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", "-d", help="default: all that the suite runs")
    ] = None,
    suite: SuiteName = "demo",
    results: Results = None,
    missing: Annotated[
        bool,
        typer.Option(
            "--missing", help="only cards that are missing or of other data, of sets at hand"
        ),
    ] = False,
) -> None:
    """Count what a reader must know of each data set, shown with its tables: cards and tables/cards.md."""
    from benchmarks import registry
    from benchmarks import suite as suites
    from benchmarks.spec import Component
    from benchmarks.studies import cards as counting

    loaded = suites.load(suite)
    planned = counting.forms(suites.plan(loaded))
    for name in dataset or []:
        if name not in planned:  # none of the suite's: as it is without settings
            registry.check("datasets", name)
    wanted = {name: planned.get(name, [Component(name=name)]) for name in dataset or planned}
    try:
        for path in counting.make(wanted, folder_of(loaded.name, results), missing=missing):
            print(path)
    except BenchmarkError as error:
        if not missing:
            raise
        print(f"no cards of sets that are not at hand:\n{error}")


@app.command()
def run(
    suite: SuiteName = "demo",
    bundle: Annotated[
        str | None, typer.Option("--bundle", "-b", help="such as table2/qsar/mlp/cutmix/saflex")
    ] = None,
    results: Results = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if any")
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0, callback=finite, help="between checkpoints of a run")
    ] = 10.0,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="runs of a bundle at once on one device; default: by the suite"),
    ] = None,
    keep_weights: Annotated[
        bool,
        typer.Option("--keep-weights", help="keep trained weights; `track sync` attaches them"),
    ] = False,
) -> None:
    """Run one bundle (or, without --bundle, every bundle one after the other)."""
    from benchmarks import suite as suites
    from benchmarks.errors import UnknownName

    loaded = suites.load(suite)
    bundles = suites.bundles(suites.to_run(loaded))
    if bundle is not None and bundle not in bundles:
        raise UnknownName("bundle", bundle, bundles)
    from benchmarks.forecast import cost
    from benchmarks.running.bundle import run_leased
    from benchmarks.train import Interrupted

    names = [bundle] if bundle else list(bundles)
    costs = cost.per_bundle(loaded)
    try:
        run_leased(
            [bundles[name] for name in names],
            folder_of(loaded.name, results),
            memory_mb=max(costs[name].memory_mb for name in names),
            processes=processes or loaded.processes,
            device=device,
            checkpoint_minutes=checkpoint_minutes,
            keep_weights=keep_weights,
        )
    except Interrupted as stop:
        print(f"interrupted: {stop}; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(143) from None


@app.command()
def inspect(
    bundle: Annotated[
        str,
        typer.Option("--bundle", "-b", help="such as table1/bloodmnist/resnet-small/mixup/saflex"),
    ],
    suite: SuiteName = "demo",
    epoch: Annotated[
        list[int] | None, typer.Option(help="again for each; default: 1 and the last")
    ] = None,
    seed: int = 0,
    results: Results = None,
) -> None:
    """Train a run and draw what its refiner made of augmented images at chosen epochs."""
    from benchmarks import suite as suites
    from benchmarks.errors import UnknownName

    loaded = suites.load(suite)
    bundles = suites.bundles(suites.plan(loaded))
    if bundle not in bundles:
        raise UnknownName("bundle", bundle, bundles)
    from benchmarks.studies import samples

    planned = {spec.seed: spec for spec in bundles[bundle]}
    if seed not in planned:
        raise BenchmarkError(f"{bundle} has seeds {sorted(planned)}, not {seed}")
    spec = planned[seed]
    epochs = epoch or [1, spec.settings.recipe.epochs]
    for path in samples.inspect(spec, folder_of(loaded.name, results), epochs=epochs):
        print(path)


@app.command()
def tables(
    suite: SuiteName = "demo",
    results: Results = None,
    figures: Annotated[bool, typer.Option(help="draw the figures too")] = True,
) -> None:
    """Rebuild tables, claims and figures from the records."""
    from benchmarks import record
    from benchmarks import suite as suites
    from benchmarks import tables as building

    loaded = suites.load(suite)
    folder = record.folder_with_records(folder_of(loaded.name, results))
    evaluated = building.evaluate(loaded, folder)
    written = building.build(evaluated, folder, figures=figures)
    if "2" in loaded.tables:
        from benchmarks.tables import table5

        table5.record_descriptions(folder)
        written += table5.write(folder / "tables", folder)
    if figures and (folder / "purification").is_dir():
        from benchmarks.studies import curves

        written.append(curves.figure(folder))
    building.summary(evaluated)
    print(f"{len(written)} files under {folder / 'tables'} and {folder / 'figures'}")


@app.command("time")
def time_rows(
    suite: SuiteName = "demo",
    table: Table = None,
    results: Results = None,
    dataset: Annotated[list[str] | None, typer.Option("--dataset", "-d")] = None,
    backbone: Annotated[list[str] | None, typer.Option("--backbone")] = None,
    upstream: Annotated[list[str] | None, typer.Option("--upstream")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="turns of each row")] = 7,
    steps: Annotated[int, typer.Option(min=1, help="of each row in a turn")] = 20,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = "cpu",
) -> None:
    """Measure what the rows cost, taking turns in one process; `tables` then shows it as overheads."""
    from benchmarks import suite as suites
    from benchmarks.errors import UnknownName
    from benchmarks.studies import timing

    loaded = suites.load(suite)
    chosen = suites.plan(loaded, table=table)
    for field, names in (("dataset", dataset), ("backbone", backbone), ("upstream", upstream)):
        for name in names or []:
            if name not in (known := {getattr(spec, field) for spec in chosen}):
                raise UnknownName(field, name, known)
        chosen = [spec for spec in chosen if not names or getattr(spec, field) in names]
    groups = timing.groups(chosen)
    if not groups:
        raise BenchmarkError("nothing to time: no two rows of a table match what was given")
    for group in groups:
        timing.measure(
            group, folder_of(loaded.name, results), rounds=rounds, steps=steps, device=device
        )


@app.command()
def tune(
    suite: SuiteName = "demo",
    table: Table = None,
    results: Results = None,
    dataset: Annotated[list[str] | None, typer.Option("--dataset", "-d")] = None,
    row: Annotated[list[str] | None, typer.Option("--row", "-r", help="tuned rows only")] = None,
    trials: Annotated[int, typer.Option(min=1, help="random settings a row and cell")] = 30,
    longest: Annotated[
        float,
        typer.Option(min=0.1, callback=finite, help="seconds a trial may take; else fewer epochs"),
    ] = 30.0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = "cpu",
) -> None:
    """Search the settings of rows with `tuned: true` on validation data; the suite's file keeps them."""
    from benchmarks import suite as suites
    from benchmarks.studies import tuning

    loaded = suites.load(suite)
    runs = tuning.searched(loaded, table=table, datasets=dataset or [], rows=row or [])
    tuning.tune(
        loaded,
        folder_of(loaded.name, results),
        runs=runs,
        trials=trials,
        longest=longest,
        device=device,
    )
    print(f"chosen settings are in {loaded.chosen}")


@app.command()
def doctor(suite: SuiteName = "demo") -> None:
    """Say what is missing on this machine before a long run finds out."""
    from benchmarks import suite as suites
    from benchmarks.forecast import doctor as checks

    raise typer.Exit(checks.main(suites.load(suite)))


@app.command()
def merge(
    sources: Annotated[
        list[Path],
        typer.Argument(parser=sources.path_given, help="results folders of other machines"),
    ],
    into: Annotated[
        Path, typer.Option("--into", parser=sources.path_given, help="results folder to merge into")
    ],
) -> None:
    """Merge the records of several machines; two records of one key must agree."""
    from benchmarks import merge as merging

    merging.merge(sources, into)


if __name__ == "__main__":
    main()
