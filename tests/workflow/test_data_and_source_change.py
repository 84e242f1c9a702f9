"""Data that changed and an edit cut short: redone, never mixed, said. Through the workflow and the verbs."""

from __future__ import annotations

import csv
import random
from dataclasses import replace
from pathlib import Path

import pytest
from source_tree import TINY, Tree, copy_tree

from benchmarks import record as records

UPSTREAM, SAFLEX = (f"tiny/breast-cancer/mlp/cutmix/{row}" for row in ("upstream", "saflex"))
APPETENCY = "tiny/appetency/mlp/none/none"
FILE = "tabular/appetency/KDDCup09_appetency_openml1111.arff"
ON_DATA = """\
suite: tiny
seeds: {seeds}
tables:
  tiny:
    metric: auroc
    datasets: [appetency]
    backbones: [mlp]
    rows: [none]
    recipe: {{batch_size: 64, epochs: 1}}
"""


def appetency(folder: Path, seed: int) -> None:
    """Write a small file in the layout of the complete Appetency (OpenML 1111)."""
    draw = random.Random(seed)
    lines = ["@RELATION KDDCup09_appetency", *(f"@ATTRIBUTE Var{i} REAL" for i in range(1, 5))]
    lines += ["@ATTRIBUTE Var191 {a,b,c}", "@ATTRIBUTE APPETENCY {-1,1}", "@DATA"]
    for row in range(200):
        y = 1 if row % 4 == 0 else -1
        numbers = ",".join(f"{draw.gauss(y, 2):.3f}" for _ in range(4))
        lines.append(f"{numbers},{draw.choice('abc')},{y}")
    (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text("\n".join(lines) + "\n")


def cell(tree: Tree, row: str, *, selection: str = "last") -> dict[str, str]:
    with (tree.results / "tables" / "tabletiny.csv").open(newline="") as stream:
        (found,) = (
            line
            for line in csv.DictReader(stream)
            if (line["refiner"], line["metric"], line["selection"]) == (row, "auroc", selection)
            and line["planned"] != "0"
        )
    return found


def notes(tree: Tree) -> str:
    return " ".join((tree.results / "tables" / "tabletiny.md").read_text().split())


def sources_of(tree: Tree, bundle: str) -> set[str]:
    found = (tree.results / "records" / bundle).glob("seed*.json")
    return {records.read(path).source for path in found}


@pytest.fixture
def on_data(tmp_path) -> Tree:
    """A tree whose suite reads a file of the user's, in a folder of its own."""
    tree = copy_tree(tmp_path / "tree", seeds=2)
    (tree.root / "tiny.yaml").write_text(ON_DATA.format(seeds=2))
    (tree.root / "first.yaml").write_text(ON_DATA.format(seeds=1))
    appetency(tmp_path / "data", seed=0)
    home = str(tmp_path / "home")
    return replace(tree, variables={"SAFLEX_DATA": str(tmp_path / "data"), "SAFLEX_HOME": home})


def test_data_that_changed_under_the_marker_of_fetch_are_noticed_and_never_mixed(on_data, tmp_path):
    on_data.snakemake()
    assert on_data.planned() == set()
    old = (tmp_path / "data" / FILE).read_bytes()
    appetency(tmp_path / "data", seed=1)
    assert on_data.planned() == {APPETENCY}
    assert "2 other data stale" in on_data.bench("plan", "-s", "tiny.yaml")

    (tmp_path / "data" / FILE).write_bytes(old)
    assert on_data.planned() == set(), "the change was taken back: nothing is lost"

    appetency(tmp_path / "data", seed=1)
    on_data.bench("tables", "-s", "tiny.yaml")
    assert cell(on_data, "none")["n"] == "2"
    assert "2 records of other data than the present" in notes(on_data), "shown, and said"

    on_data.bench("run", "-s", "first.yaml", "--results", "results/tiny")  # seed 0 alone
    on_data.bench("tables", "-s", "tiny.yaml")
    assert (cell(on_data, "none")["n"], cell(on_data, "none")["planned"]) == ("1", "2")
    assert "Left out: 1 record of other data" in notes(on_data)
    plan = on_data.bench("plan", "-s", "tiny.yaml")
    assert "1 current, 1 other data stale, 0 not run yet" in plan
    assert "tables use 1 records" in plan
    assert on_data.planned() == {APPETENCY}

    on_data.snakemake()
    assert on_data.planned() == set()
    assert cell(on_data, "none")["n"] == "2"
    assert "Left out" not in notes(on_data)
    assert "2 current, none stale" in on_data.bench("plan", "-s", "tiny.yaml")

    (tmp_path / "data" / FILE).unlink()
    assert "2 current, none stale" in on_data.bench("plan", "-s", "tiny.yaml"), (
        "a clone without data"
    )
    assert on_data.planned() == set()


def test_an_edited_refiner_cut_short_is_redone_and_never_mixed(tmp_path):
    tree = copy_tree(tmp_path, seeds=2)
    (tree.root / "first.yaml").write_text(TINY.format(seeds=1, epochs=2))
    tree.snakemake()
    assert tree.planned() == set()
    refiner = tree.root / "benchmarks/refiners/saflex.py"
    before = refiner.read_text()
    refiner.write_text(before + "\nEDITED = 1\n")
    run = ("run", "-s", "first.yaml", "--results", "results/tiny", "-b", SAFLEX)
    tree.bench(*run)  # half of the seeds
    assert len(sources_of(tree, SAFLEX)) == 2

    tree.bench("tables", "-s", "tiny.yaml")
    assert (cell(tree, "saflex")["n"], cell(tree, "upstream")["n"]) == ("1", "2")
    assert "Left out: 1 record of other source" in notes(tree)
    assert "3 current, 1 other source stale" in tree.bench("plan", "-s", "tiny.yaml")
    assert tree.planned() == {SAFLEX}

    refiner.write_text(before)
    tree.bench("tables", "-s", "tiny.yaml")
    assert cell(tree, "saflex")["n"] == "1", "the other half is present now"
    assert tree.planned() == {SAFLEX}
    tree.snakemake()
    assert len(sources_of(tree, SAFLEX)) == 1
    assert cell(tree, "saflex")["n"] == "2"
    assert tree.planned() == set()
