"""Executing bundles: what is there is skipped, what failed is recorded, what was stopped goes on."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import weakref

import pytest
import torch
from small_runs import spec

from benchmarks import record as records
from benchmarks.running import execute as executing
from benchmarks.running.bundle import run_marked
from benchmarks.running.checkpoint import Checkpoint
from benchmarks.running.markers import marker_path
from benchmarks.train import Interrupted, Training


def runs(*, seeds: int = 2, **changes):
    """Specifications over a set that ships with scikit-learn."""
    return [
        spec(
            dataset="breast-cancer", metric="auroc", seed=seed, epochs=2, batch_size=128, **changes
        )
        for seed in range(seeds)
    ]


@pytest.fixture
def said():
    return []


def run(specs, results, said, **options):
    return executing.run_bundle(specs, results, device="cpu", report=said.append, **options)


def test_a_bundle_writes_a_record_a_seed_and_does_nothing_the_second_time(tmp_path, said):
    first = run(runs(), tmp_path, said)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("seed*.json")}
    assert len(stamps) == 2
    said.clear()
    second = run(runs(), tmp_path, said)
    assert all("skipped" in line for line in said)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("seed*.json")} == stamps
    assert [r.key for r in first] == [r.key for r in second]
    assert 0.5 < first[0].metrics["last"]["test/auroc"] <= 1


def test_a_finished_seed_leaves_memory_before_the_next_begins(tmp_path, said, monkeypatch):
    """A training is in reference cycles; without a collection five seeds are in memory at once."""
    alive: list[weakref.ref] = []
    build = Training.__init__

    def counted(training, *arguments):
        assert [found() for found in alive] == [None] * len(alive)
        alive.append(weakref.ref(training))
        build(training, *arguments)

    monkeypatch.setattr(Training, "__init__", counted)
    gc.disable()
    try:
        run(runs(seeds=3, refiner="saflex"), tmp_path, said)
    finally:
        gc.enable()
    assert len(alive) == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc's")
def test_large_blocks_go_back_although_small_ones_lie_between():
    """Blocks of 10 MiB, small ones between: by itself glibc keeps what is freed below the last."""
    code = (
        "import torch\n"
        "from benchmarks.running import machine\n"
        "machine.return_large_blocks()\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4 / 1024\n"
        "first = torch.empty(31 * 2**18); del first  # glibc's own limit would be 31 MiB from here\n"
        "before, large, small = resident(), [], []\n"
        "for _ in range(40):\n"
        "    large.append(torch.ones(10 * 2**18)); small.append(torch.ones(1000))\n"
        "large.clear()\n"
        "print(resident() - before)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert float(answer.stdout) < 10


def test_running_twice_from_nothing_gives_the_same_record_but_for_times(tmp_path, said):
    one = run(runs(refiner="saflex"), tmp_path / "one", said)
    two = run(runs(refiner="saflex"), tmp_path / "two", said)
    assert [records.canonical(r) for r in one] == [records.canonical(r) for r in two]


def test_stale_and_truncated_records_are_redone_and_the_others_kept(tmp_path, said):
    run(runs(seeds=3), tmp_path, said)
    paths = sorted(tmp_path.rglob("seed*.json"))
    paths[0].write_text(paths[0].read_text()[:50])
    old = records.read(paths[1])
    paths[1].write_text(old.model_copy(update={"source": "0" * 16}).model_dump_json())
    said.clear()
    run(runs(seeds=3), tmp_path, said)
    assert ["skipped" in line for line in said] == [False, False, True]
    assert records.read(paths[1]) != old


def test_a_run_that_diverges_is_recorded_as_failed_and_the_others_go_on(
    tmp_path, said, monkeypatch
):
    step = Training.step

    def diverge(training, index):
        if training.spec.seed == 0 and training.steps == 3:
            with torch.no_grad():
                next(training.model.parameters()).fill_(math.nan)
        step(training, index)

    monkeypatch.setattr(Training, "step", diverge)
    failed, fine = run(runs(), tmp_path, said)
    assert failed.status == "failed"
    assert "step 4" in failed.error
    assert failed.metrics == {}
    assert fine.status == "complete"


def test_sigterm_leaves_a_checkpoint_and_the_same_call_finishes_as_if_undisturbed(
    tmp_path, said, monkeypatch
):
    undisturbed = run(runs(refiner="saflex"), tmp_path / "undisturbed", said)
    step = Training.step

    def terminated(training, index):
        step(training, index)
        if training.spec.seed == 1 and training.steps == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Training, "step", terminated)
    results = tmp_path / "disturbed"
    with pytest.raises(Interrupted):
        run(runs(refiner="saflex"), results, said)
    assert len(list(results.rglob("*.pt"))) == 1
    monkeypatch.setattr(Training, "step", step)
    said.clear()
    resumed = run(runs(refiner="saflex"), results, said)
    assert "skipped" in said[0]
    assert [records.canonical(r) for r in resumed] == [records.canonical(r) for r in undisturbed]
    assert not list(results.rglob("*.pt"))


def test_weights_are_kept_where_asked_for(tmp_path, said):
    (record, _) = run(runs(), tmp_path, said, keep_weights=True)
    kept = torch.load(records.weights_path(tmp_path, record.key), weights_only=True)
    assert kept
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert len(list((tmp_path / "weights").iterdir())) == 2
    run(runs(), tmp_path / "without", said)
    assert not (tmp_path / "without" / "weights").exists()


def test_a_corrupted_checkpoint_is_set_aside_and_the_run_starts_over(tmp_path, said):
    specs = runs(seeds=1)
    checkpoint = Checkpoint(tmp_path, specs[0])
    checkpoint.path.parent.mkdir(parents=True)
    checkpoint.path.write_bytes(b"PK\x03\x04 half of a file")
    with pytest.warns(UserWarning, match="set aside"):
        (record,) = run(specs, tmp_path, said)
    assert record.status == "complete"
    assert checkpoint.path.with_suffix(".corrupted").exists()


def test_a_bundle_ends_in_a_marker_that_names_its_runs(tmp_path):
    specs = runs()
    done = run_marked(specs, tmp_path, device="cpu", checkpoint_minutes=10)
    marker = marker_path(tmp_path, specs[0].bundle).read_text()
    assert all(record.key in marker for record in done)


def test_data_of_a_record_says_what_it_was_made_from(tmp_path, said):
    (record,) = run(runs(seeds=1), tmp_path, said)
    assert sum(record.data["rows"].values()) == 569
    assert torch.__version__.startswith(record.versions["torch"])
    assert set(record.seconds) >= {"upstream", "refine", "step", "evaluate", "total"}
    assert len({len(curve) for curve in record.curves.values()}) == 1
