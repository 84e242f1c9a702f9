"""The source hash of a run covers what the run imports, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import suite as suites
from benchmarks.running import source_hash as hashing

SPECS = {spec.row: spec for spec in suites.plan(suites.load("demo"))}


def dependencies(refiner: str) -> set[str]:
    return hashing.dependencies([hashing.ENTRY, *hashing._components(SPECS[refiner])])


@pytest.mark.parametrize("refiner", sorted(SPECS))
def test_hash_covers_every_module_that_the_run_loads(refiner):
    """Against the interpreter itself: what a process has imported after building the run."""
    spec = SPECS[refiner]
    script = f"""
import sys, json
from benchmarks import registry
from benchmarks.train import Training
from benchmarks.spec import RunSpec
spec = RunSpec.model_validate_json({spec.model_dump_json()!r})
data = registry.load("datasets", spec.settings.dataset.name)(spec.settings.dataset.name, seed=0)
training = Training(spec, data)
training.step(training.order()[:32])
print(json.dumps([m for m in sys.modules if m.split(".")[0] in ("benchmarks", "saflex")]))
"""
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(answer.stdout))
    packages = {"benchmarks", "saflex", "saflex.estimators"}
    packages |= {
        f"benchmarks.{family}" for family in ("datasets", "models", "upstream", "refiners")
    }
    assert loaded - packages - hashing.NEUTRAL <= dependencies(refiner)


def test_plain_training_does_not_depend_on_the_method():
    found = dependencies("upstream")
    assert "saflex.batch" in found
    assert not found & {"saflex.labels", "saflex.products", "benchmarks.refiners.saflex"}
    assert {"saflex.labels", "saflex.weighting", "saflex.gradient"} <= dependencies("saflex")


def test_tables_tracking_and_command_line_do_not_count():
    for refiner in SPECS:
        for module in dependencies(refiner):
            assert not module.startswith(("benchmarks.tables", "benchmarks.tracking"))
            assert module not in {
                "benchmarks.__main__",
                "benchmarks.forecast.cost",
                "benchmarks.paper",
            }


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A repository of one package, hashed afresh at each call."""
    root = tmp_path / "benchmarks"
    root.mkdir()
    monkeypatch.setattr(hashing, "ROOT", tmp_path)

    def clear():
        for cached in (hashing._tree, hashing._fingerprint, hashing._imports):
            cached.cache_clear()

    def write(**files: str) -> str:
        for name, text in files.items():
            (root / f"{name}.py").write_text(text)
        clear()
        return hashing.module_hash("benchmarks.run")

    yield write
    clear()


def test_comments_docstrings_and_formatting_do_not_count(package):
    plain = package(run="def f(x):\n    return x + 1\n")
    assert (
        package(run='"""Doc."""\n\n# why\ndef f(x):\n    """Adds."""\n    return (x +\n 1)\n')
        == plain
    )
    assert package(run='LIMITS = {"x": {"ge": 0}}\ndef f(x):\n    return x + 1\n') == plain
    assert package(run="def f(x):\n    return x + 2\n") != plain


def test_imports_are_followed_wherever_they_stand(package):
    first = package(run="def f():\n    from benchmarks import deep\n", deep="X = 1\n")
    assert package(deep="X = 2\n") != first


def test_imports_for_type_checkers_alone_are_not(package):
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from benchmarks import deep\n"
    assert package(run=text, deep="X = 1\n") == package(deep="X = 2\n")


def test_circular_imports_end(package):
    package(run="import benchmarks.other\n", other="import benchmarks.run\n")
