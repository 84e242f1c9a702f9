"""What ``snakemake --config`` may say, checked before anything is planned. Imports no torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic import Field, ValidationError, field_validator

from benchmarks import sources
from benchmarks.errors import BenchmarkError
from benchmarks.spec import Frozen
from benchmarks.suite import Suite, explain, load


class Configuration(Frozen):
    """The workflow's settings."""

    suite: str = Field("demo", description="demo, cpu, paper, or the path of a suite's YAML file")
    results: str = Field("", description="folder; default: results/<suite>")
    track: bool = Field(True, description="false: nothing goes to MLflow")
    uri: str = Field("", description="MLflow store; default: sqlite in results")
    processes: int = Field(0, ge=0, description="runs of a bundle at once; 0: what the suite says")
    generate: str = Field("", description="options of `generate make`")

    @field_validator("results")
    @classmethod
    def _no_pattern(cls, value: str) -> str:
        if set(value) & set("{}"):
            raise ValueError("Snakemake reads { and } as a pattern: give a folder without them")
        return value

    @field_validator("generate")
    @classmethod
    def _words(cls, value: str) -> str:
        words = shlex.split(value)
        from benchmarks.verbs import generate

        command = typer.main.get_command(generate.app).commands["make"]
        rule = {"dataset": "DATA", "images": "IMAGES"}  # what rule `generate` says itself
        named = [word for name, text in rule.items() for word in (f"--{name}", text)]
        try:
            context = command.make_context("make", [*named, *words])
        except typer.Exit as end:
            raise ValueError("expected options of `generate make`, not its help") from end
        except Exception as error:  # of kinds that typer keeps to itself
            reason = getattr(error, "message", error)
            raise ValueError(f"`generate make` takes no such options: {reason}") from error
        if {name: context.params[name] for name in rule} != rule:
            raise ValueError("the workflow says --dataset and --images itself: leave them out")
        return shlex.join(words)


def configured(given: Mapping[str, Any], words: Iterable[str] = ()) -> tuple[Configuration, Suite]:
    """Check the workflow's settings and load its suite; paths in them are whole, defaults filled in.

    Parameters
    ----------
    words : the command line, where it is the user's own.

    Raises
    ------
    BenchmarkError
        A line for each setting that is unknown, with the nearest known one, or has no such value; a text
        that Snakemake did not read as it was written; results that are no folder.
    """
    from benchmarks.tracking import store

    sources.settle_variables()
    try:
        found = Configuration.model_validate(dict(given))
    except ValidationError as error:
        raise BenchmarkError(explain("--config", error, Configuration)) from error
    _as_written(found, words)
    suite = load(found.suite)
    results = sources.path_given(found.results) if found.results else f"results/{suite.name}"
    there = next((p for p in (Path(results), *Path(results).parents) if p.exists()), None)
    if there and not there.is_dir():
        raise BenchmarkError(
            f"--config: results: {there} is no folder: give another (given {results})"
        )
    whole = {
        "suite": str(sources.path_given(found.suite)),
        "results": str(results),
        "uri": store.resolve(results, found.uri) if found.track and found.uri else "",
        "processes": found.processes or suite.processes,
    }
    return found.model_copy(update=whole), suite


def _as_written(found: Configuration, words: Iterable[str]) -> None:
    """Refuse a text that Snakemake read as another one: it takes values for YAML (` #`, line ends)."""
    written = {}
    for word in words:
        if match := re.fullmatch(
            r"(?:--config=|-C)?(suite|results|uri|generate)=(.*)", word, re.DOTALL
        ):
            written[match[1]] = match[2].strip()
    for key, text in written.items():
        if text[:1] in ("'", '"'):
            continue  # YAML's own quotes: written for Snakemake
        try:
            meant = getattr(Configuration.model_validate({key: text}), key)
        except ValidationError:
            meant = None
        if meant != (read := getattr(found, key)):
            raise BenchmarkError(
                f"--config: {key}: Snakemake reads {text!r} as {read!r}, since ` #` begins a comment there "
                "and a line end is a space: give it without them"
            )
