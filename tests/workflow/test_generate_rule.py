"""The rule `generate`: all four pipelines through Snakemake, killed half-way, same manifests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

from fabricate import image_folders  # noqa: E402

PIPELINES = ("text2img", "instructpix2pix", "img2img", "img2img-finetuned")
OPTIONS = "--size 32 --steps 4 --batch-size 4 --dtype float32 --device cpu --finetuning-steps 2"


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Fabricated CUB images and tiny weights where the rule looks for the real ones."""
    from fabricate import diffusion

    data = tmp_path / "data"
    image_folders.cub(data, training=12, test=1)
    (data / "weights").mkdir()
    for name, instruct in (("stable-diffusion-v1-5", False), ("instruct-pix2pix", True)):
        made = diffusion.pipeline(tmp_path / "making", instruct=instruct)
        made.rename(data / "weights" / name)
    return {**os.environ, "SAFLEX_DATA": str(data), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def snakemake(folder: Path, environment: dict[str, str]) -> subprocess.Popen:
    marks = [f"results/done/generate/cub/{name}" for name in PIPELINES]
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "-c1", "--nolock"]
    command += ["-d", str(folder), "--rerun-incomplete", *marks]
    command += ["--config", "suite=demo", "results=results", f"generate={OPTIONS}"]
    own = {**environment, "SAFLEX_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)


def manifests(folder: Path) -> dict[str, bytes]:
    made = folder / "home" / "generated" / "cub"
    return {name: (made / name / "manifest.json").read_bytes() for name in PIPELINES}


@pytest.mark.slow
def test_four_pipelines_through_the_rule_killed_and_resumed(tmp_path, environment):
    whole = snakemake(tmp_path / "whole", environment)
    killed = snakemake(tmp_path / "killed", environment)
    made = tmp_path / "killed" / "home" / "generated" / "cub"
    wait_for(lambda: any(made.glob("*/images/*.png")), "a first image", killed, every=0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert list(made.glob("*/images/*.png"))
    assert len(list(made.glob("*/manifest.json"))) < 4
    assert whole.wait() == 0, (tmp_path / "whole" / "log").read_text()
    again = snakemake(tmp_path / "killed", environment)
    assert again.wait() == 0, (tmp_path / "killed" / "log").read_text()
    assert manifests(tmp_path / "killed") == manifests(tmp_path / "whole")
