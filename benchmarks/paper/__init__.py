"""The paper's 144 published cells (Tables 1, 2, 3, 4, 7, 8) and every claim it makes, as data."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import Field, model_validator

from benchmarks.spec import Frozen

FOLDER = files("benchmarks.paper")


class Published(Frozen):
    """One published cell, under the names this benchmark's tables carry.

    `refiner` is the published file's `method`; `upstream` is ``none`` where the paper uses none.
    `mean` and `std` are in per cent; what the paper's ± is, it does not say.
    """

    table: str
    dataset: str
    split: str
    backbone: str
    refiner: str
    upstream: str
    metric: str
    mean: float = Field(ge=0, le=100)
    std: float = Field(ge=0)


class Baseline(Frozen):
    """The row a claim compares with; `None` means the claim's own upstream or table."""

    refiner: str
    upstream: str | None = None
    table: str | None = None


class Claim(Frozen):
    """One comparative claim: where it is made, between which rows, in which direction.

    Attributes
    ----------
    table : a table of the paper; ``other``: tables the paper does not have; ``every``: both;
        ``all``: a statement over all of the paper's tables together.
    refiner : a row's name; ``saflex`` stands for every SAFLEX row, each graded for itself.
    direction : between the primary metrics of the two rows; for time, of the overhead and `expected`.
    """

    id: str
    table: str
    datasets: Literal["all"] | list[str] = "all"
    backbones: Literal["all"] | list[str] = "all"
    upstreams: Literal["all"] | list[str] = "all"
    refiner: str
    baseline: Baseline
    direction: Literal[">", ">=", "<", "<="]
    kind: Literal["metric", "time"] = "metric"
    over: Literal["each", "mean"] = "each"
    expected: float | None = None
    augmented_only: bool = Field(True, description="grade the -aug-only SAFLEX rows too")
    source: Literal["paper", "control"] = "paper"
    stated: Literal["explicit", "implied"] = "explicit"
    section: str
    quote: str
    ungraded: str = ""

    @model_validator(mode="after")
    def _is_consistent(self) -> Claim:
        if self.kind == "time" and not self.ungraded and (self.expected is None):
            raise ValueError(
                f"claim {self.id}: a graded time claim needs the paper's number, expected"
            )
        if self.kind == "metric" and self.direction == "<=":
            raise ValueError(
                f"claim {self.id}: '<=' is for time; write '<' or turn the claim round"
            )
        return self


class Names(Frozen):
    """What `names.yaml` holds: the paper's names beside ours, titles and notes by table."""

    datasets: dict[str, str]
    splits: dict[str, dict[str, str]] = {}
    titles: dict[str, str]
    notes: dict[str, list[str]] = {}


@cache
def names() -> Names:
    """Read `names.yaml`."""
    return Names.model_validate(_yaml("names.yaml"))


@cache
def published() -> tuple[Published, ...]:
    """Read the published cells in the paper's order, the paper's data set names mapped to ours."""
    mapping = names()
    cells = []
    with (FOLDER / "published.csv").open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            paper_name, split = line.pop("dataset"), line.pop("split")
            cells.append(
                Published(
                    dataset=mapping.datasets[paper_name],
                    split=mapping.splits.get(paper_name, {}).get(split, split),
                    refiner=line.pop("method"),
                    upstream=line.pop("upstream") or "none",
                    **line,
                )
            )
    return tuple(cells)


@cache
def claims() -> tuple[Claim, ...]:
    """Read the claims in the order of `claims.yaml`."""
    return tuple(Claim.model_validate(claim) for claim in _yaml("claims.yaml")["claims"])


def is_saflex(refiner: str) -> bool:
    """Say whether a row is a SAFLEX row: each answers to the paper's one ``saflex`` row."""
    return refiner == "saflex" or refiner.startswith("saflex-")


def paper_row(refiner: str) -> str:
    """Name of the published row that one of ours answers to."""
    if is_saflex(refiner):
        return "saflex"
    return "lp-a3" if refiner.startswith("lp-a3-") else refiner


def _yaml(name: str):
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
