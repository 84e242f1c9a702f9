"""A full disk, a read-only folder, a clock set back: said in a line, and nothing lost afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from waiting import wait_for

DAY_NANOSECONDS = 24 * 3600 * 10**9
BUNDLE = "tiny/breast-cancer/mlp/cutmix/upstream"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, small enough to fill."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def run(tree, results, **environment):
    line = [sys.executable, "-m", "benchmarks", "run", "--suite", "tiny.yaml", "--bundle", BUNDLE]
    return subprocess.run(
        [*line, "--results", str(results)],
        cwd=tree.root,
        env=tree.environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def bundle_of(canonical: dict[str, str]) -> dict[str, str]:
    return {place: text for place, text in canonical.items() if place.startswith(BUNDLE)}


def written(results) -> dict[str, str]:
    from benchmarks import record as records

    place = results / "records"
    found = sorted(place.rglob("seed*.json"))
    return {str(p.relative_to(place)): records.canonical(records.read(p)) for p in found}


def fill(disk) -> None:
    filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(filler, bytes(4096))
    os.close(filler)


def test_disk_full_while_a_record_is_written(tree, undisturbed, small_disk):
    results = small_disk / "results"
    (results / "locks" / BUNDLE).parent.mkdir(parents=True)
    (results / "records" / BUNDLE).mkdir(parents=True)
    # Room for the lock's note, not for a record of some 20 kB.
    fill(small_disk)
    with (small_disk / "filler").open("rb+") as stream:
        stream.truncate((small_disk / "filler").stat().st_size - 2 * 4096)
    answer = run(tree, results)
    assert answer.returncode != 0
    assert "Traceback" not in answer.stderr, answer.stderr
    assert "No space left" in answer.stderr
    assert not list((results / "records").rglob("*.json")), "no record rather than half of one"
    assert not list(results.rglob("*.tmp"))
    assert not (results / "bundles").exists()

    (small_disk / "filler").unlink()
    answer = run(tree, results)
    assert answer.returncode == 0, answer.stderr
    assert written(results) == bundle_of(undisturbed.canonical())


def test_read_only_results(tree, undisturbed, small_disk):
    results = small_disk / "results"
    results.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    answer = run(tree, results)
    assert answer.returncode == 2
    (line,) = answer.stderr.strip().splitlines()
    assert "Read-only file system" in line
    assert str(results) in line

    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert run(tree, results).returncode == 0
    assert written(results) == bundle_of(undisturbed.canonical())


def test_clock_going_backwards(tree, undisturbed):
    """The first half ran on a clock a day ahead of the second: nothing is decided by the clock."""
    first = tree.start(tree.command())
    wait_for(lambda: written(tree.results) or first.poll() is not None, "a first record")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    kept = {}
    for path in tree.root.rglob("*"):
        if path.is_file() and {"results", ".snakemake"} & set(path.relative_to(tree.root).parts):
            ahead = path.stat().st_mtime_ns + DAY_NANOSECONDS
            os.utime(path, ns=(ahead, ahead))
            if path.parent.is_relative_to(tree.results / "records"):
                kept[path] = ahead
    tree.snakemake()
    assert tree.canonical() == undisturbed.canonical()
    assert all(path.stat().st_mtime_ns == ahead for path, ahead in kept.items())
    assert tree.planned() == set(), "and nothing is left to do"
