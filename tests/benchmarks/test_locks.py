"""Two invocations never hold the same bundle, and a holder's death frees it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.running.locks import bundle_lock, holder, holder_path, is_stale, lock_path

BUNDLE = "table2/qsar/mlp/cutmix/saflex"
HOLD = """
import signal, sys
from pathlib import Path
from benchmarks.running.locks import bundle_lock
with bundle_lock(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the bundle."""
    line = [sys.executable, "-c", HOLD, str(tmp_path), BUNDLE]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_says_who_holds_it_and_gives_up_after_its_timeout(tmp_path, other):
    said = []
    with (
        pytest.raises(BenchmarkError, match="still held"),
        bundle_lock(tmp_path, BUNDLE, timeout=0.2, say=said.append),
    ):
        raise AssertionError("held twice")
    assert said == [line for line in said if f"process {other.pid}" in line] != []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_holder_frees_it(tmp_path, other, number):
    os.kill(other.pid, number)
    other.wait()
    with bundle_lock(tmp_path, BUNDLE, timeout=60):
        assert holder(lock_path(tmp_path, BUNDLE))["pid"] == os.getpid()
    assert holder(lock_path(tmp_path, BUNDLE)) is None


def test_other_bundles_are_free(tmp_path, other):
    with bundle_lock(tmp_path, BUNDLE + "-aug-only", timeout=0):
        pass


def test_lock_that_outlived_its_holder_is_replaced(tmp_path, other):
    """A file system that forgot to release: the note names a process that is no more."""
    path = lock_path(tmp_path, BUNDLE)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    note = {"host": socket.gethostname(), "pid": gone.pid, "since": "then"}
    holder_path(path).write_text(json.dumps(note))
    said = []
    with bundle_lock(tmp_path, BUNDLE, timeout=60, say=said.append):
        pass
    assert "taking over" in said[0]


@pytest.mark.parametrize(
    ("note", "stale"),
    [
        ({"host": "elsewhere", "pid": 1, "since": ""}, False),
        ({"host": socket.gethostname(), "pid": os.getpid(), "since": ""}, False),
        ({"host": socket.gethostname(), "pid": os.getpid(), "started": "1", "since": ""}, True),
    ],
    ids=["another machine", "runs", "pid was given to another process"],
)
def test_only_a_process_surely_gone_is_stale(note, stale):
    assert is_stale(note) is stale


def test_waiter_goes_on_as_soon_as_the_holder_is_done(tmp_path, other):
    threading.Timer(0.5, other.kill).start()
    with bundle_lock(tmp_path, BUNDLE, say=lambda line: None):
        assert other.wait() == -signal.SIGKILL, "it waited for the holder to be gone"
