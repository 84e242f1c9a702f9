"""`kill -9` of anything, then the same command: it completes, and the records are those of a run in peace."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest
from source_tree import Tree, copy_tree
from waiting import wait_for


@pytest.fixture
def disturbed(tmp_path, undisturbed) -> Tree:
    return copy_tree(tmp_path, seeds=2, epochs=40, source=undisturbed.root)


def training_processes(snakemake: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in snakemake.children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if line[1:4] == ["-m", "benchmarks", "run"]:
            found.append(process)
    return found


def first_records(tree: Tree) -> list:
    return sorted((tree.results / "records").rglob("seed0.json"))


def end_group(process) -> None:
    """End what a test started and is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if not process.stdout.closed:
        process.communicate()


KILLED_AFTER_THE_FIRST_RECORD = """

_written = write


def write(results, record):
    place = _written(results, record)
    try:
        with (results / "killed").open("x") as stream:
            stream.write(str(place))
    except FileExistsError:
        return place
    os.kill(os.getpid(), 9)
"""


def test_killed_training_process(disturbed, undisturbed):
    # No result depends on how records are written, so the hook leaves every source hash as it is.
    with (disturbed.root / "benchmarks" / "record.py").open("a") as stream:
        stream.write(KILLED_AFTER_THE_FIRST_RECORD)
    process = disturbed.start(disturbed.command("--retries", "0"))
    try:
        output, _ = process.communicate()
    finally:
        end_group(process)
    (done,) = map(Path, (disturbed.results / "killed").read_text().splitlines())
    done = disturbed.root / done
    bundle = str(done.parent.relative_to(disturbed.results / "records"))
    assert process.returncode != 0, output
    assert not (disturbed.results / "bundles" / f"{bundle}.json").exists()
    assert done.exists(), "a finished record outlives its bundle"
    other = [b for b in undisturbed.canonical() if not b.startswith(bundle)]
    assert set(other) <= set(disturbed.canonical()), "the other bundle was not stopped"

    written = done.stat().st_mtime_ns
    disturbed.snakemake()
    assert disturbed.canonical() == undisturbed.canonical()
    assert done.stat().st_mtime_ns == written, "a complete record is not done twice"
    assert disturbed.planned() == set()


def test_killed_snakemake(disturbed, undisturbed):
    process = disturbed.start(disturbed.command())
    orphans = []
    try:
        wait_for(lambda: first_records(disturbed), "a first record", process)
        orphans = training_processes(psutil.Process(process.pid))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # At once, while the orphans still train: the bundle's lock makes the second wait for them.
        disturbed.snakemake()
    finally:
        for orphan in orphans:
            if orphan.is_running():
                orphan.kill()
        end_group(process)
    assert disturbed.canonical() == undisturbed.canonical()
    assert disturbed.planned() == set()
    assert not list(disturbed.results.rglob("*.tmp")), "nothing half-written is left"


def test_two_invocations_at_once(disturbed, undisturbed):
    both = [disturbed.start(disturbed.command()) for _ in range(2)]
    try:
        outputs = [process.communicate()[0] for process in both]
    finally:
        for process in both:
            end_group(process)
    assert [process.returncode for process in both] == [0, 0], outputs
    assert disturbed.canonical() == undisturbed.canonical()
