"""What the workflow would run: every bundle of a suite, and after an edit exactly what it touches."""

from __future__ import annotations

import subprocess
import sys

import pytest
from source_tree import ROOT

from benchmarks import suite as suites

UPSTREAM, SAFLEX = (f"tiny/breast-cancer/mlp/cutmix/{row}" for row in ("upstream", "saflex"))


@pytest.mark.parametrize("name", ["demo", "cpu"])
def test_dry_run_lists_every_bundle(tree, name):
    assert tree.planned(suite=name) == set(suites.bundles(suites.plan(suites.load(name))))


def test_lint_and_format_are_clean():
    for command in (
        ["-m", "snakemake", "--lint"],
        ["-m", "snakefmt", "--check", "Snakefile", "workflow"],
    ):
        answer = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_parsing_the_snakefile_imports_no_torch_pandas_or_mlflow(tree):
    script = (
        "import sys; from benchmarks import suite; from benchmarks.forecast import cost;"
        "from benchmarks.running import source_hash as s;"
        "specs = suite.plan(suite.load('demo')); cost.per_bundle(suite.load('demo'));"
        "[s.source_hash(x) for x in specs]; s.module_hash('benchmarks.tables');"
        "s.module_hash('benchmarks.tracking');"
        "print(sorted({'torch', 'pandas', 'mlflow'} & set(sys.modules)))"
    )
    assert tree.run([sys.executable, "-c", script]).stdout.strip() == "[]"


def test_an_unknown_suite_is_named_with_the_nearest(tree):
    answer = tree.run(tree.command("-n", suite="dmeo"))
    assert answer.returncode != 0
    assert "did you mean 'demo'?" in answer.stdout


def test_an_edit_runs_again_exactly_the_bundles_it_touches(tree):
    tree.snakemake()
    assert set(tree.canonical()) == {f"{b}/seed0.json" for b in (UPSTREAM, SAFLEX)}
    assert tree.planned() == set()

    def edit(path: str, text: str) -> set[str]:
        file = tree.root / path
        before = file.read_text()
        file.write_text(before + text)
        planned = tree.planned()
        file.write_text(before)
        return planned

    assert edit("benchmarks/refiners/saflex.py", "\nEDITED = 1\n") == {SAFLEX}
    assert edit("benchmarks/refiners/saflex.py", "\n# a comment\n") == set()
    assert edit("benchmarks/refiners/uniform.py", "\nEDITED = 1\n") == {UPSTREAM}
    assert edit("saflex/labels.py", "\nEDITED = 1\n") == {SAFLEX}
    assert edit("benchmarks/tables/markdown.py", "\nEDITED = 1\n") == set()
    assert edit("benchmarks/upstream/cutmix.py", "\nEDITED = 1\n") == {UPSTREAM, SAFLEX}

    with (tree.root / "benchmarks/refiners/saflex.py").open("a") as stream:
        stream.write("\nEDITED = 1\n")
    before = {p: p.stat().st_mtime_ns for p in tree.results.rglob("seed0.json")}
    tree.snakemake()
    changed = {p.parent.name for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert changed == {"saflex"}
    assert tree.planned() == set()
