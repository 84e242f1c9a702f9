"""Several runs of a bundle at once: the same records, a handed-on SIGTERM, nothing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import spec
from waiting import wait_for

from benchmarks import record as records
from benchmarks.errors import BenchmarkError
from benchmarks.forecast import cost
from benchmarks.running import devices, execute, parallel
from benchmarks.running.bundle import run_marked
from benchmarks.suite import load

SEEDS = 3
SUITE = """\
suite: wide
seeds: 3
processes: 3
tables:
  wide:
    metric: auroc
    datasets: [breast-cancer]
    backbones: [mlp]
    upstreams: {cutmix: {settings: {probability: 0.3}}}
    rows: [saflex]
    recipe: {batch_size: 64, epochs: 150}
"""
BUNDLE = "wide/breast-cancer/mlp/cutmix/saflex"


def runs(epochs: int = 2):
    return [
        spec(
            dataset="breast-cancer",
            metric="auroc",
            refiner="saflex",
            seed=seed,
            epochs=epochs,
            batch_size=128,
        )
        for seed in range(SEEDS)
    ]


def canonical(results: Path) -> dict[str, str]:
    paths = sorted((results / "records").rglob("seed*.json"))
    return {path.name: records.canonical(records.read(path)) for path in paths}


def command(results: Path, suite: Path, *options: str) -> list[str]:
    line = [sys.executable, "-m", "benchmarks", "run", "--suite", str(suite), "--bundle", BUNDLE]
    return [*line, "--results", str(results), *options]


def test_side_by_side_gives_the_records_of_one_after_the_other(tmp_path):
    options = {"device": "cpu", "checkpoint_minutes": 10}
    one = run_marked(runs(), tmp_path / "one", **options)
    two = run_marked(runs(), tmp_path / "two", **options, processes=2)
    assert [records.canonical(r) for r in one] == [records.canonical(r) for r in two]
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "two").rglob("seed*.json")}
    run_marked(runs(), tmp_path / "two", **options, processes=2)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "two").rglob("seed*.json")} == stamps


def test_sigterm_is_handed_on_and_the_same_command_finishes(tmp_path):
    suite = tmp_path / "wide.yaml"
    suite.write_text(SUITE)
    undisturbed = subprocess.run(
        command(tmp_path / "calm", suite, "--processes", "1"), capture_output=True, check=False
    )
    assert undisturbed.returncode == 0, undisturbed.stderr
    results = tmp_path / "disturbed"
    # A checkpoint a step: three of them say that three runs train, and none is over.
    process = subprocess.Popen(
        command(results, suite, "--checkpoint-minutes", "0"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    files = results / "checkpoints"
    wait_for(
        lambda: len(list(files.glob("*.pt"))) == SEEDS, "three runs at once", process, every=0.01
    )
    os.kill(process.pid, signal.SIGTERM)
    told = process.communicate()[1]
    assert process.returncode == 143, told
    left = SEEDS - len(canonical(results))
    assert left > 0
    assert f"{left} runs are left" in told
    assert len(list((results / "checkpoints").glob("*.pt"))) == left
    again = subprocess.run(command(results, suite), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert canonical(results) == canonical(tmp_path / "calm")
    assert not list((results / "checkpoints").glob("*.pt"))


def _die(spec, results, options):
    if spec.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    execute.run_bundle([spec], results, **options, report=lambda line: None)


def test_a_process_that_dies_is_named_and_the_others_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_run", _die)
    with pytest.raises(BenchmarkError, match=r"of 3 runs, .*seed1 \(exit status -9\)"):
        parallel.run_missing(runs(), tmp_path, processes=2, device="cpu")
    assert set(canonical(tmp_path)) == {"seed0.json", "seed2.json"}


def test_no_more_processes_than_memory_and_runs_allow(monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: {"0": 80_000, "1": 24_000})
    assert devices.fitting(8, 6_000) == 3
    assert devices.fitting(2, 6_000) == 2
    monkeypatch.setattr(devices, "gpus", dict)
    assert devices.fitting(8, 6_000) == 8
    costs = cost.per_bundle(load("paper"))
    wide = {bundle: c.at_once(4) for bundle, c in costs.items()}
    assert all(1 <= n <= 4 for n in wide.values())
    assert {n for b, n in wide.items() if "clip-vit" in b} == {1}, "the full contrastive batch"
    assert {n for b, n in wide.items() if "table1/" in b} == {4}
