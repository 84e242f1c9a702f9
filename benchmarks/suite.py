"""Suites: a YAML file says what to run; `plan` turns it into a list of `RunSpec`. Imports no torch."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator

from benchmarks import check, registry, sources
from benchmarks.errors import BenchmarkError, suggestion
from benchmarks.spec import Component, Frozen, Name, Recipe, RunSpec, Settings, TrainOn
from saflex.settings import SaflexSettings

MOST_SEEDS = 1000  # above, a slip of the keyboard
PRIOR = ("eps", "beta", "tau")  # of a table's `saflex:` settings, what decides a label where Pi = 0
Metric = Literal["accuracy", "auroc", "macro_f1", "balanced_accuracy"]


def _each_once(names: list[str]) -> list[str]:
    """Refuse a name that is there twice: its second rows would be the first's, without a word."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} is there twice: leave one out")
    return names


Several = Annotated[
    list[Name],
    Field(min_length=1, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_each_once),
]
Entries = Annotated[dict[Name, "Entry"], Field(min_length=1)]
SUITES = Path(str(files("benchmarks"))) / "suites"


Checked = TypeVar("Checked", bound=Frozen)


class Row(Frozen):
    """One row of a table: a refiner with its settings and how the loss is composed."""

    refiner: Name
    settings: dict[str, Any] = {}
    clean_share: float = Field(0.0, ge=0, le=1)
    upstream: Name | None = None
    train_on: TrainOn = "train"
    tuned: bool = Field(False, description="settings chosen by `tune`; not planned without them")


class Entry(Frozen):
    """A data set, backbone or upstream of a table: a registered thing under the table's name."""

    name: Name | None = Field(None, description="registered name; default: the key itself")
    settings: dict[str, Any] = {}
    metric: Metric | None = Field(None, description="data sets only: overrides the table's metric")
    not_run: str | None = Field(None, description="planned by the paper, not run here, and why")


class Override(Frozen):
    """Changes to the runs whose fields match, and what to call the change in the table."""

    match: dict[Literal["dataset", "backbone", "upstream", "row"], Several]
    recipe: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    model: dict[str, Any] = {}
    refiner: dict[str, Any] = {}
    clean_share: float | None = Field(None, ge=0, le=1)
    lr_factor: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="times the learning rate that holds otherwise"
    )
    seeds: int | None = Field(None, ge=1, le=MOST_SEEDS)
    skip: str | None = Field(None, description="do not run the matching cells, and why")
    reduced: str = ""


class TableSpec(Frozen):
    """One table: data sets x backbones x upstreams x rows."""

    title: str = ""
    metric: Metric
    datasets: Entries
    backbones: Entries
    upstreams: Entries = {"none": Entry()}
    rows: Several
    saflex: dict[str, Any] = Field({}, description="settings for every SAFLEX row, such as beta")
    recipe: Recipe = Recipe()
    seeds: int | None = Field(None, ge=1, le=MOST_SEEDS)
    reduced: str = ""
    replicas: bool = False
    untimed: str = Field("", description="why the times of its runs are no measurement")
    overrides: list[Override] = []

    @field_validator("datasets", "backbones", "upstreams", mode="before")
    @classmethod
    def _list_is_mapping(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {name: {} for name in _each_once([str(name) for name in value])}
        if isinstance(value, dict):
            return {name: entry or {} for name, entry in value.items()}
        return value

    @property
    def not_run(self) -> dict[str, str]:
        """Data sets the paper has and this suite does not run, with the reason."""
        return {name: entry.not_run for name, entry in self.datasets.items() if entry.not_run}


class Suite(Frozen):
    """A suite file."""

    suite: Name
    title: str = ""
    seeds: int = Field(5, ge=1, le=MOST_SEEDS)
    rows: dict[Name, Row] = {}
    tables: dict[Name, TableSpec] = Field(min_length=1)
    processes: int = Field(1, ge=1, description="runs of a bundle at once, on the same device")
    chosen: Path | None = Field(
        None, description="file of the settings of tuned rows, beside this one; `tune` writes it"
    )

    @property
    def name(self) -> str:
        return self.suite

    @property
    def all_rows(self) -> dict[str, Row]:
        """The shared rows of rows.yaml, then the suite's own, which win."""
        return {**shared_rows(), **self.rows}


class Choice(Override):
    """What `tune` chose for a tuned row of a cell, and what that was made from."""

    made_from: dict[str, str] = Field({}, description="source, protocol and data of its trials")


class Chosen(Frozen):
    """The file that `tune` writes: by table, one choice for each tuned row of a cell."""

    tables: dict[Name, list[Choice]] = {}


class _Strict(yaml.SafeLoader):
    """YAML lets the second of two equal keys win without a word; here it is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"{twice!r} is there twice,{node.start_mark}")
        return super().construct_mapping(node, deep)


@cache
def shared_rows() -> dict[str, Row]:
    """Read `suites/rows.yaml`."""
    content = yaml.safe_load((SUITES / "rows.yaml").read_text(encoding="utf-8"))
    return {name: Row.model_validate(row) for name, row in content["rows"].items()}


def names() -> list[str]:
    """Names of the suites that ship with the package."""
    return sorted(path.stem for path in SUITES.glob("[!.]*.yaml") if path.stem != "rows")


def load(name_or_path: str | Path) -> Suite:
    """Load and check a suite by its name or the path of its file.

    Raises
    ------
    BenchmarkError
        All errors at once, each with its path in the file and the nearest known name.
    """
    path = sources.path_given(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        if str(name_or_path) not in names():
            raise BenchmarkError(
                f"unknown suite {str(name_or_path)!r}: {suggestion(str(name_or_path), names())}"
            )
        path = SUITES / f"{name_or_path}.yaml"
    if not path.is_file():
        raise BenchmarkError(
            f"suite file {path} does not exist; known suites are {', '.join(names())}"
        )
    suite = _read(path, Suite)
    if suite.chosen:
        suite = suite.model_copy(update={"chosen": path.parent / sources.path_given(suite.chosen)})
    if problems := list(_unknown_names(suite)):
        raise BenchmarkError("\n".join(f"{path}: {problem}" for problem in problems))
    return suite


def chosen(suite: Suite) -> Chosen:
    """Read the settings that `tune` chose for a suite's tuned rows; none before it has run."""
    if suite.chosen is None or not suite.chosen.exists():
        return Chosen()
    return _read(suite.chosen, Chosen)


def _read(path: Path, kind: type[Checked]) -> Checked:
    """Read and check a YAML file."""
    if not path.is_file():  # to read a pipe would be to wait for ever
        raise BenchmarkError(f"{path} is no regular file")
    try:
        return kind.model_validate(yaml.load(path.read_bytes(), Loader=_Strict))
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OSError) as error:
        if isinstance(error, ValidationError):
            raise BenchmarkError(explain(path, error, Suite)) from error
        # PyYAML lets a date such as 2024-13-01 and a mapping as key through to Python.
        raise BenchmarkError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def plan(suite: Suite, *, table: str | None = None, tuned: Chosen | None = None) -> list[RunSpec]:
    """List every run of a suite in the order of its file, cells marked as not run left out.

    Parameters
    ----------
    tuned : settings of the tuned rows; default: those of the suite's file. Cells of tuned rows that
        it does not hold are left out.

    Raises
    ------
    BenchmarkError
        Settings that something registered does not take, or parts that do not go together: every
        distinct one, with the first cell that has it (`benchmarks.check`).
    """
    if table is not None and table not in suite.tables:
        raise BenchmarkError(
            f"suite {suite.name} has no table {table!r}: {suggestion(table, suite.tables)}"
        )
    found = (tuned or chosen(suite)).tables
    specs: dict[tuple[str, int], RunSpec] = {}
    faults: dict[str, list[str]] = {}
    for identifier, spec in suite.tables.items():
        if table in (None, identifier):
            for run in _plan_table(suite, identifier, spec, found.get(identifier, [])):
                specs.setdefault((run.bundle, run.seed), run)
                for fault in check.problems(run.settings) if run.seed == 0 else ():
                    faults.setdefault(fault, []).append(run.bundle)
    if faults:
        raise BenchmarkError(
            "\n".join(_told(suite, fault, *cells) for fault, cells in faults.items())
        )
    return list(specs.values())


def to_run(suite: Suite, *, table: str | None = None) -> list[RunSpec]:
    """Plan what is to be run; that it is nothing is an error."""
    specs = plan(suite, table=table)
    if not specs:
        raise BenchmarkError(
            f"suite {suite.name} plans no run: every cell is `not_run`, skipped by an override or waits "
            "for `python -m benchmarks tune`"
        )
    return specs


def _told(suite: Suite, fault: str, cell: str, *others: str) -> str:
    more = f" and {len(others)} more cells" if others else ""
    return f"suite {suite.name}, {cell}{more}: {fault}"


def bundles(specs: list[RunSpec]) -> dict[str, list[RunSpec]]:
    """Group a plan into bundles: all seeds of one cell, run by one process."""
    grouped: dict[str, list[RunSpec]] = {}
    for spec in specs:
        grouped.setdefault(spec.bundle, []).append(spec)
    return grouped


def _plan_table(suite: Suite, identifier: str, table: TableSpec, tuned: list[Override]):
    for dataset, data_entry in table.datasets.items():
        if data_entry.not_run:
            continue
        for backbone, model_entry in table.backbones.items():
            if model_entry.not_run:
                continue
            for upstream, upstream_entry in table.upstreams.items():
                if upstream_entry.not_run:
                    continue
                for row_name in table.rows:
                    row = suite.all_rows[row_name]
                    cell = {
                        "dataset": dataset,
                        "backbone": backbone,
                        "upstream": row.upstream or upstream,
                        "row": row_name,
                    }
                    entries = (data_entry, model_entry, upstream_entry, row)
                    if row.upstream:
                        entries = (data_entry, model_entry, Entry(), row)
                    yield from _plan_cell(
                        suite, identifier, cell, entries, tuned if row.tuned else []
                    )


def _plan_cell(
    suite: Suite, identifier: str, cell: dict[str, str], entries: tuple, tuned: list[Override]
):
    table = suite.tables[identifier]
    data_entry, model_entry, upstream_entry, row = entries
    tuned = _matching(tuned, cell)
    changes = [*_matching(table.overrides, cell), *tuned]
    if any(change.skip for change in changes) or (row.tuned and not tuned):
        return
    recipe, dataset = table.recipe, dict(data_entry.settings)
    model, refiner = dict(model_entry.settings), dict(row.settings)
    if row.refiner.startswith("saflex"):
        refiner = {**table.saflex, **refiner}
    elif row.refiner == "bootstrapped":  # `saflex` without Pi, and with the same prior
        refiner = {**{k: v for k, v in table.saflex.items() if k in PRIOR}, **refiner}
    seeds, reduced = table.seeds or suite.seeds, [table.reduced] if table.reduced else []
    clean_share = row.clean_share
    for change in changes:
        recipe = _changed(suite, cell, recipe, change)
        dataset.update(change.dataset)
        model.update(change.model)
        refiner.update(change.refiner)
        seeds = change.seeds or seeds
        clean_share = clean_share if change.clean_share is None else change.clean_share
        reduced += [change.reduced] if change.reduced else []
    settings = Settings(
        dataset=Component(name=data_entry.name or cell["dataset"], settings=dataset),
        model=Component(name=model_entry.name or cell["backbone"], settings=model),
        upstream=Component(
            name=upstream_entry.name or cell["upstream"], settings=upstream_entry.settings
        ),
        refiner=Component(name=row.refiner, settings=refiner),
        recipe=recipe,
        clean_share=clean_share,
        train_on=row.train_on,
        replicas=table.replicas,
    )
    for seed in range(seeds):
        yield RunSpec(
            suite=suite.name,
            table=identifier,
            dataset=cell["dataset"],
            backbone=cell["backbone"],
            upstream=cell["upstream"],
            row=cell["row"],
            seed=seed,
            settings=settings,
            metric=data_entry.metric or table.metric,
            reduced="; ".join(reduced),
        )


def _changed(suite: Suite, cell: dict[str, str], recipe: Recipe, change: Override) -> Recipe:
    try:
        changed = Recipe.model_validate(recipe.model_dump() | change.recipe)
        return Recipe.model_validate(changed.model_dump() | {"lr": changed.lr * change.lr_factor})
    except ValidationError as error:
        where = f"suite {suite.name}, override of {'/'.join(cell.values())}: recipe"
        raise BenchmarkError(explain(where, error, Recipe)) from error


def _matching(overrides: list[Override], cell: dict[str, str]) -> list[Override]:
    return [o for o in overrides if all(cell[k] in v for k, v in o.match.items())]


def explain(where_given: Path | str, error: ValidationError, model: type[Frozen]) -> str:
    """Say what is wrong with a file or with settings, a line each: its place, the reason, what was given."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, problem["loc"][:-1])
            message = f"unknown key: {suggestion(str(problem['loc'][-1]), known)}"
        given = (
            ""
            if problem["type"] in {"extra_forbidden", "missing"}
            else f" (given {problem['input']!r})"
        )
        lines.append(f"{where_given}: {where}: {message}{given}")
    return "\n".join(lines)


def _fields_at(model: type[Frozen], location: tuple) -> list[str]:
    """Fields of the model at a location of a file, for the suggestion of a near key."""
    steps = {"tables": TableSpec, "rows": Row, "recipe": Recipe, "overrides": Override}
    steps |= {"datasets": Entry, "backbones": Entry, "upstreams": Entry}
    for part in location:
        model = steps.get(part, model) if isinstance(part, str) else model
    return list(model.model_fields)


def _unknown_names(suite: Suite):
    rows = suite.all_rows
    for name, row in suite.rows.items():
        yield from _check(f"rows.{name}.refiner", "refiners", row.refiner)
        if row.upstream:
            yield from _check(f"rows.{name}.upstream", "upstream", row.upstream)
    folders = [identifier.removeprefix("table") for identifier in suite.tables]
    if twice := {name for name in folders if folders.count(name) > 1 and name[:1].isdigit()}:
        yield f"tables: {', '.join(sorted(twice))} and table{min(twice)} share one folder: rename one"
    for identifier, table in suite.tables.items():
        at = f"tables.{identifier}"
        yield from _unknown_settings(f"{at}.saflex", table.saflex)
        for field, family in (
            ("datasets", "datasets"),
            ("backbones", "models"),
            ("upstreams", "upstream"),
        ):
            for name, entry in getattr(table, field).items():
                yield from _check(f"{at}.{field}.{name}", family, entry.name or name)
        for name in table.rows:
            if name not in rows:
                yield f"{at}.rows: unknown row {name!r}: {suggestion(name, rows)}"
        for number, override in enumerate(table.overrides):
            yield from _check_override(f"{at}.overrides.{number}", table, override)
        for number, override in enumerate(chosen(suite).tables.get(identifier, [])):
            yield from _check_override(f"chosen.{identifier}.{number}", table, override)


def _unknown_settings(at: str, settings: dict[str, Any]):
    known = [field.name for field in fields(SaflexSettings)]
    for name in settings:
        if name not in known:
            yield f"{at}: unknown setting {name!r}: {suggestion(name, known)}"


def _check_override(at: str, table: TableSpec, override: Override):
    known = {
        "dataset": table.datasets,
        "backbone": table.backbones,
        "upstream": {**table.upstreams, "none": None},
        "row": table.rows,
    }
    for field, values in override.match.items():
        for value in values:
            if value not in known[field]:
                yield f"{at}.match.{field}: {value!r} matches nothing: {suggestion(value, known[field])}"
    for key in override.recipe:
        if key not in Recipe.model_fields:
            yield f"{at}.recipe.{key}: unknown key: {suggestion(key, Recipe.model_fields)}"


def _check(at: str, family: str, name: str):
    try:
        registry.check(family, name)
    except BenchmarkError as error:
        yield f"{at}: {error}"
