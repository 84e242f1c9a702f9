"""`doctor` names what is missing and what to do about it, and fails only then."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from benchmarks import suite as suites
from benchmarks.forecast import doctor
from benchmarks.forecast.doctor import Finding

DEMO = suites.load("demo")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program of a given name, output and exit status on the path."""

    def put(name: str, text: str, status: int = 0) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f'#!/bin/sh\necho "$@" > {tmp_path}/{name}.arguments\n{text}\nexit {status}\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return put


def test_demo_needs_nothing_but_the_lock(tmp_path):
    found = [*doctor.python(), *doctor.packages(), *doctor.data(DEMO), *doctor.disk(tmp_path)]
    assert {finding.level for finding in found} == {"ok"}, found


def test_packages_against_the_lock(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("numpy==0.0.1\nno-such-package==1.0\n")
    missing, other = doctor.packages(lock)
    assert (missing.level, other.level) == ("missing", "note")
    assert "no-such-package" in missing.text
    assert "numpy" in other.text
    assert "0.0.1" in other.text


def test_missing_data_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    found = list(doctor.data(suites.load("cpu")))
    assert {finding.level for finding in found} == {"missing"}
    assert any("fetch --dataset qsar" in finding.text for finding in found)


def test_altered_data_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    file = tmp_path / "tabular" / "qsar" / "qsar-biodeg_openml1494.csv"
    file.parent.mkdir(parents=True)
    file.write_text("altered")
    (qsar,) = [f for f in doctor.data(suites.load("cpu")) if "qsar" in f.text]
    assert qsar.level == "missing"
    assert "truncated or altered" in qsar.text


def test_weights_and_generated_sets_are_named_with_their_sizes(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    found = list(doctor.models(suites.load("paper")))
    missing = " ".join(finding.text for finding in found if finding.level == "missing")
    for weights in ("CLIP weights", "ResNet-50", "stable-diffusion-v1-5", "instruct-pix2pix"):
        assert weights in missing
    assert missing.count("(4.3 GB)") == 2
    assert sum(finding.level == "note" for finding in found) == 8
    assert [finding.level for finding in doctor.models(DEMO)] == ["ok"]


def test_full_disk_and_read_only_folder(tmp_path):
    (finding,) = doctor.disk(tmp_path, needed=1e9)
    assert finding.level == "missing"


def test_slurm_is_asked_with_the_profiles_partition_account_and_gpu(tmp_path, program):
    profile = tmp_path / "config.yaml"
    profile.write_text(
        "default-resources: {slurm_partition: gpu, slurm_account: me}\n"
        "set-resources: {bundle: {gpu_model: h100, gpu: 2}}\n"
    )
    program("sbatch", "true")
    (finding,) = doctor.slurm(profile)
    assert finding.level == "ok"
    asked = (tmp_path / "sbatch.arguments").read_text()
    assert asked.startswith("--test-only --partition=gpu --account=me --gpus=h100:2")


def test_slurm_refusing_is_missing_with_its_reason(program):
    program("sbatch", "echo 'allocation failure: Invalid partition name' >&2", 1)
    (finding,) = doctor.slurm()
    assert finding.level == "missing"
    assert "Invalid partition name" in finding.text


def test_gpu_from_the_driver(program):
    program("nvidia-smi", "echo 'NVIDIA H100, 81559 MiB'")
    assert list(doctor.gpu()) == [Finding("ok", "GPU", "NVIDIA H100, 81559 MiB")]


def test_unreachable_tracking_server_is_missing(tmp_path):
    (finding,) = doctor.store(tmp_path, "http://127.0.0.1:9")
    assert finding.level == "missing"


def test_exit_status_and_no_torch():
    script = (
        "import sys; from benchmarks import suite; from benchmarks.forecast import doctor;"
        "status = doctor.main(suite.load('demo'));"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    without_slurm = os.environ | {"PATH": "/nonexistent"}
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env=without_slurm,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.returncode, answer.stdout.splitlines()[-1]) == (0, "nothing is missing")
