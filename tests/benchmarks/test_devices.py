"""Bundles share the GPUs of a machine: spread first, then stacked, never more than fit."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import ExitStack

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.running import devices

TWO = "0, GPU-aa, 80000\n1, GPU-bb, 80000\n"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Two GPUs of 80 GB, as the driver would say."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n/bin/cat <<'END'\n" + TWO + "END\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SAFLEX_SLOTS_PER_GPU"):
        monkeypatch.delenv(name, raising=False)


def test_spread_first_then_stacked(tmp_path):
    with ExitStack() as stack:
        held = []
        for _ in range(4):
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            held.append(stack.enter_context(devices.lease(30000, folder=tmp_path)))
    assert held == ["0", "1", "0", "1"]


def test_variable_is_set_and_restored(tmp_path):
    with devices.lease(1000, folder=tmp_path) as device:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == device == "0"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_full_machine_waits_for_a_holder_to_die(tmp_path, monkeypatch):
    hold = (
        "import signal, sys; from pathlib import Path; from benchmarks.running import devices\n"
        "with devices.lease(70000, folder=Path(sys.argv[1])) as d: print(d, flush=True); signal.pause()"
    )
    line = [sys.executable, "-c", hold, str(tmp_path)]
    holders = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    taken = {process.stdout.readline().strip() for process in holders}
    said = []

    def say(text):
        said.append(text)
        holders[0].kill()

    with devices.lease(70000, folder=tmp_path, say=say) as device:
        assert device in taken
    for process in holders:
        process.kill()
        process.communicate()
    assert taken == {"0", "1"}
    assert "all 2 slots" in said[0]


def test_slots_from_memory_and_from_the_user(monkeypatch):
    assert devices.slots(80000, 5000) == 14
    assert devices.slots(80000, 200000) == 1
    monkeypatch.setenv("SAFLEX_SLOTS_PER_GPU", "3")
    assert devices.slots(80000, 5000) == 3
    monkeypatch.setenv("SAFLEX_SLOTS_PER_GPU", "none")
    with pytest.raises(BenchmarkError, match="SAFLEX_SLOTS_PER_GPU"):
        devices.slots(80000, 5000)


def test_only_visible_devices_are_shared(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices.gpus() == {"1": 80000}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa")
    assert devices.gpus() == {"GPU-aa": 80000}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.gpus() == {}


def test_nothing_to_share_in_a_slurm_job_or_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with devices.lease(1, folder=tmp_path) as device:
        assert device is None
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("PATH", str(tmp_path))
    with devices.lease(1, folder=tmp_path) as device:
        assert device is None
