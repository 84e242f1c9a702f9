"""The workflow on a real Slurm, and what is left of it when a job, Snakemake or slurmd is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import psutil
import pytest
from waiting import PATIENCE_SECONDS, wait_for

# Without accounting, and asking often, for tests.
OPTIONS = (
    *("--profile", "profiles/slurm"),
    *("--slurm-status-command", "squeue", "--slurm-no-account"),
    *("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"),
    *("--latency-wait", "5", "--slurm-keep-successful-logs"),
)

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(1200)]


def command(tree, *options: str) -> list[str]:
    return tree.command(*OPTIONS, *options)


def finish(tree) -> None:
    answer = tree.run(command(tree))
    assert answer.returncode == 0, answer.stdout


def jobs() -> list[str]:
    answer = subprocess.run(
        ["squeue", "--noheader", "--format=%i"], capture_output=True, text=True, check=True
    )
    return answer.stdout.split()


def records(tree) -> list:
    return sorted((tree.results / "records").rglob("seed*.json"))


def training(tree) -> list[psutil.Process]:
    """Training processes of this tree: others on the machine are none of this test's business."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = process.info["cmdline"] or []
        if line[1:4] == ["-m", "benchmarks", "run"] and process.info["cwd"] == str(tree.root):
            found.append(process)
    return found


@pytest.fixture
def started(tree):
    """Snakemake with its jobs in Slurm, after the first record was written."""
    process = tree.start(command(tree, "--retries", "0"))
    try:
        wait_for(lambda: records(tree) or process.poll() is not None, "a first record")
        assert process.poll() is None, process.communicate()[0]
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        subprocess.run(["scancel", "--user=root"], check=False)
        wait_for(lambda: not jobs(), "an empty queue")


def assert_equal(tree, undisturbed) -> None:
    assert tree.canonical() == undisturbed.canonical()
    assert not list(tree.results.rglob("*.tmp"))
    assert not list((tree.results / "checkpoints").glob("*.pt"))


def test_suite_through_slurm_with_a_gpu(tree, undisturbed):
    finish(tree)
    assert_equal(tree, undisturbed)
    logs = sorted(p.relative_to(tree.root) for p in (tree.root / "slurm-logs").rglob("*.log"))
    assert {str(log.parent.parent) for log in logs} == {"slurm-logs/rule_bundle"}
    assert len(logs) == 2
    assert len(list((tree.results / "logs" / "tiny").rglob("*.log"))) == 2
    asked = subprocess.run(
        ["scontrol", "show", "jobs"], capture_output=True, text=True, check=True
    ).stdout
    assert asked.count("gres:gpu:1") >= 2


def test_scancel_mid_run(tree, undisturbed, started):
    before = {path: path.stat().st_mtime_ns for path in records(tree)}
    for job in jobs():
        subprocess.run(["scancel", job], check=True)
    wait_for(lambda: not training(tree), "the end of the training processes")
    assert len(list((tree.results / "checkpoints").glob("*.pt"))) >= 1, "SIGTERM saves"
    os.killpg(started.pid, signal.SIGKILL)  # with squeue as status command it waits for ever
    finish(tree)
    assert_equal(tree, undisturbed)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())


def test_time_limit_saves_before_it_kills(tree, undisturbed):
    """The profile's --signal reaches the training process, not the shell around it alone."""
    suite = tree.root / "tiny.yaml"
    short = suite.read_text()
    suite.write_text(short.replace("epochs: 60", "epochs: 100000"))
    # Two minutes is the shortest limit with room for a notice, which Slurm gives up to a minute early.
    limit = ("--set-resources", "bundle:runtime=2", "bundle:slurm_extra='--signal=TERM@60'")
    process = tree.start(command(tree, "--retries", "0", *limit))
    try:
        wait_for(lambda: jobs(), "a job in the queue")
        wait_for(lambda: not jobs(), "an empty queue")
        assert len(list((tree.results / "checkpoints").glob("*.pt"))) == 2
        logs = [path.read_text() for path in (tree.results / "logs" / "tiny").rglob("*.log")]
        assert all("interrupted: stopped at step" in log for log in logs), logs
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        subprocess.run(["scancel", "--user=root"], check=False)
    suite.write_text(short)
    finish(tree)
    assert tree.canonical() == undisturbed.canonical()


def test_demo_suite_through_slurm(tree):
    """The main job itself: every run of the demo, then its tables."""
    answer = tree.run(
        [*tree.command(*OPTIONS, suite="demo"), f"results={tree.root / 'results' / 'demo'}"]
    )
    assert answer.returncode == 0, answer.stdout
    from benchmarks import suite as suites
    from benchmarks.suite import plan

    planned = {f"{s.bundle}/seed{s.seed}.json" for s in plan(suites.load("demo"))}
    place = tree.root / "results" / "demo"
    found = {str(p.relative_to(place / "records")) for p in (place / "records").rglob("*.json")}
    assert found == planned
    assert list((place / "tables").glob("table*.csv"))
    assert len(list((tree.root / "slurm-logs" / "rule_bundle").rglob("*.log"))) == len(
        suites.bundles(plan(suites.load("demo")))
    )


def test_killed_training_process(tree, undisturbed, started):
    for process in training(tree):
        process.kill()
    started.communicate(timeout=PATIENCE_SECONDS)
    assert started.returncode != 0
    finish(tree)
    assert_equal(tree, undisturbed)


def test_killed_snakemake_while_its_jobs_go_on(tree, undisturbed, started):
    os.kill(started.pid, signal.SIGKILL)
    finish(tree)
    assert_equal(tree, undisturbed)


def test_killed_slurmd(tree, undisturbed, started, cluster):
    """The node's daemon dies and its jobs' processes with it; then it comes back."""
    daemon = psutil.Process(int((cluster / "run" / "slurmd.pid").read_text()))
    daemon.kill()
    for process in training(tree):
        process.kill()
    os.killpg(started.pid, signal.SIGKILL)
    subprocess.run(["slurmd"], check=True)
    subprocess.run(["scancel", "--user=root"], check=False)
    wait_for(lambda: not jobs(), "an empty queue")
    finish(tree)
    assert_equal(tree, undisturbed)
