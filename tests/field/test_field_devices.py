"""Devices that are none, and memory that is too small."""

from __future__ import annotations

import sys

import pytest
import torch
from reports import BY_HAND, report

from benchmarks import __main__ as command_line
from benchmarks import record as records
from benchmarks import suite as suites
from benchmarks.errors import BenchmarkError
from benchmarks.running import machine, markers
from benchmarks.running.bundle import run_marked
from benchmarks.running.current import up_to_date
from benchmarks.train import Training

SUITE = """
suite: tiny
seeds: 1
tables:
  t1:
    metric: auroc
    datasets: [breast-cancer]
    backbones: [mlp]
    upstreams: [cutmix]
    rows: [none]
    recipe: {batch_size: 128, epochs: 1}
"""


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("SAFLEX_DEVICE", raising=False)


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SUITE)
    return tmp_path / "tiny.yaml"


def answer(monkeypatch, capsys, *arguments: object) -> str:
    """What the command line says to a command that it refuses with status 2, one line."""
    monkeypatch.setattr(sys, "argv", ["saflex-bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    return line


@report(
    "nanoGPT 281",
    "`--device cuda` on a machine without a driver",
    "one line with the devices there are; nothing is written",
)
def test_cuda_without_a_driver_is_one_line(suite, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    line = answer(monkeypatch, capsys, "run", "-s", suite, "--results", results, "--device", "cuda")
    assert "'cuda': torch sees no NVIDIA GPU" in line
    assert line.endswith("this machine has cpu")
    assert not results.exists()


@report(
    BY_HAND,
    "`--device cdua`, `--device tpu`, `--device cuda:9`",
    "one line with what is expected and the devices there are",
)
@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("cdua", "expected cpu, cuda"),
        ("tpu", "expected"),
        ("cuda:9", "no NVIDIA"),
        ("gpu", "cuda:1"),
    ],
)
def test_a_device_that_is_none_is_one_line(named, said):
    with pytest.raises(BenchmarkError, match=f"{named}.*{said}.*this machine has cpu"):
        machine.chosen_device(named)


@report(BY_HAND, "`SAFLEX_DEVICE=gpu`", "one line that names the variable")
def test_the_variable_is_named(suite, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAFLEX_DEVICE", "gpu")
    line = answer(monkeypatch, capsys, "run", "-s", suite, "--results", tmp_path / "results")
    assert "SAFLEX_DEVICE: device 'gpu'" in line


def test_a_gpu_of_a_number_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.chosen_device() == "cuda"
    assert machine.chosen_device("cuda:1") == "cuda:1"
    with pytest.raises(
        BenchmarkError, match="no such GPU; this machine has cpu, cuda, cuda:0, cuda:1"
    ):
        machine.chosen_device("cuda:2")


@report(
    BY_HAND,
    "a GPU or a machine runs out of memory at a step",
    "the run is recorded as failed with the step, the line says what needs less, it is run again",
)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_is_recorded_with_the_step_and_run_again(suite, tmp_path, monkeypatch, error):
    step = Training.step

    def failing(self, index):
        if self.steps == 2:
            raise error
        step(self, index)

    (spec,) = suites.plan(suites.load(suite))
    options = {"device": "cpu", "checkpoint_minutes": 10.0}
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", failing)
        with pytest.raises(BenchmarkError, match=r"--processes.*batch_size.*estimator.*again"):
            run_marked([spec], tmp_path, **options)
    record = records.read(records.path_of(tmp_path, spec))
    assert record.status == "failed"
    assert record.error.startswith("out of memory (after step 2, epoch 1")
    assert not markers.marker_path(tmp_path, spec.bundle).exists()
    assert up_to_date(spec, tmp_path) is None
    (again,) = run_marked([spec], tmp_path, **options)
    assert again.status == "complete"


def test_another_error_is_no_memory_s(suite, tmp_path, monkeypatch):
    def failing(self, index):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Training, "step", failing)
    with pytest.raises(RuntimeError, match="shapes"):
        run_marked(suites.plan(suites.load(suite)), tmp_path, device="cpu", checkpoint_minutes=10.0)
