"""How commands end: Ctrl-C with a checkpoint, failures counted, one crash not the end of the rest."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from reports import BY_HAND, report

from benchmarks import __main__ as command_line
from benchmarks import record as records
from benchmarks.errors import AllFailed, BenchmarkError
from benchmarks.running import bundle as bundles
from benchmarks.running import execute, markers
from benchmarks.running.locks import bundle_lock
from benchmarks.running.stopping import stopping
from benchmarks.suite import load, plan
from benchmarks.train import Interrupted, Training

ROOT = Path(__file__).resolve().parents[2]
SUITE = """\
suite: tiny
seeds: {seeds}
tables:
  tiny:
    metric: auroc
    datasets: [breast-cancer]
    backbones: [mlp]
    upstreams: [cutmix]
    rows: [none, upstream]
    recipe: {{batch_size: 64, epochs: {epochs}}}
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    # As in a terminal; a shell's background job ignores Ctrl-C, and its children with it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def suite(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE.format(seeds=1, epochs=1))
    return path


def verb(monkeypatch, *arguments: object) -> int:
    """Run a verb in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["saflex-bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    return end.value.code or 0


def interrupt_at(monkeypatch, step: int) -> None:
    whole = Training.step

    def interrupted(training, index):
        whole(training, index)
        if training.steps == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Training, "step", interrupted)


@report(
    BY_HAND, "Ctrl-C in the middle of a run", "a checkpoint, a line how to go on; bit for bit after"
)
def test_ctrl_c_saves_and_the_same_command_goes_on(suite, tmp_path, monkeypatch, capfd):
    results = tmp_path / "results"
    given = ("run", "-s", suite, "--results", results, "--device", "cpu")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert verb(patch, *given) == 143
    told = capfd.readouterr().err
    assert "the same command goes on from there" in told
    assert "Ctrl-C again ends at once" in told
    assert "Traceback" not in told
    assert len(list(results.rglob("checkpoints/*.pt"))) == 1
    assert verb(monkeypatch, *given) == 0
    assert verb(monkeypatch, *given[:-3], tmp_path / "calm", "--device", "cpu") == 0
    (one, two) = (
        [records.canonical(record) for record in records.load_all(tmp_path / name)]
        for name in ("results", "calm")
    )
    assert one == two
    assert not list(results.rglob("checkpoints/*.pt"))


@report(BY_HAND, "a second Ctrl-C", "ends at once")
def test_a_second_ctrl_c_interrupts():
    with stopping() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_stays_ignored_where_it_was():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop()


@report(BY_HAND, "Ctrl-C while data are read or tables drawn", "one line, status 130")
def test_ctrl_c_elsewhere_is_one_line(suite, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.tables.evaluate", interrupted)
    (tmp_path / "results" / "records").mkdir(parents=True)
    assert verb(monkeypatch, "tables", "-s", suite, "--results", tmp_path / "results") == 130
    told = capsys.readouterr().err.splitlines()
    assert told == ["interrupted: what was finished is kept, the same command goes on"]


@pytest.mark.slow
@report(
    BY_HAND, "Ctrl-C that a terminal sends to all processes of a bundle", "each saves, none dies"
)
def test_ctrl_c_to_a_whole_group_saves_every_run(tmp_path):
    from waiting import wait_for

    suite, results = tmp_path / "wide.yaml", tmp_path / "results"
    suite.write_text(SUITE.format(seeds=2, epochs=300))
    command = [sys.executable, "-m", "benchmarks", "run", "-s", suite, "--results", results]
    command += [
        "--device",
        "cpu",
        "-b",
        "tiny/breast-cancer/mlp/cutmix/upstream",
        "--processes",
        "2",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--checkpoint-minutes", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    files = results / "checkpoints"
    wait_for(lambda: len(list(files.glob("*.pt"))) == 2, "two runs at once", process, every=0.01)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate()[1]
    assert process.returncode == 143, told
    assert "2 runs are left" in told
    assert "Traceback" not in told
    assert len(list(files.glob("*.pt"))) == 2


@report(
    BY_HAND, "a bundle that crashes among several", "named; the bundles after it are run; status 2"
)
def test_one_crash_does_not_end_the_bundles_after_it(suite, tmp_path, monkeypatch, capsys):
    whole = execute.load_data

    def crash(spec, device):
        if spec.row == "none":
            raise RuntimeError("somebody's bug")
        return whole(spec, device)

    monkeypatch.setattr(execute, "load_data", crash)
    given = ("run", "-s", suite, "--results", tmp_path / "results", "--device", "cpu")
    assert verb(monkeypatch, *given) == 2
    told = capsys.readouterr().err
    last = told.splitlines()[-1]
    assert last == "error: tiny/breast-cancer/mlp/none/none: RuntimeError: somebody's bug"
    assert "Traceback" in told, "a defect shows where it came from"
    assert [r.spec.row for r in records.load_all(tmp_path / "results")] == ["upstream"]


@pytest.mark.parametrize("status", [0, None, "no"])
@report(
    BY_HAND,
    "a model that calls `sys.exit` when it is built",
    "the bundle is named, those after it are run; status 2 instead of silence and 0",
)
def test_what_ends_the_program_ends_a_bundle(suite, tmp_path, monkeypatch, capsys, status):
    whole = execute.load_data

    def leave(spec, device):
        return sys.exit(status) if spec.row == "none" else whole(spec, device)

    monkeypatch.setattr(execute, "load_data", leave)
    given = ("run", "-s", suite, "--results", tmp_path / "results", "--device", "cpu")
    assert verb(monkeypatch, *given) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: tiny/breast-cancer/mlp/none/none: {__file__}, line ")
    assert "it ends the program itself" in last
    assert [r.spec.row for r in records.load_all(tmp_path / "results")] == ["upstream"]


@report(
    BY_HAND,
    "`[/x]`, `[red]` and `:x:` in the titles of a suite and its tables, in `reduced`",
    "printed as they are by `plan` and `tables`",
)
def test_brackets_are_no_markup(suite, tmp_path, monkeypatch, capsys):
    content = yaml.safe_load(suite.read_text())
    odd = "[/x] [red] :x:"
    content["title"] = odd
    (table,) = content["tables"].values()
    table |= {"title": odd, "reduced": odd}
    suite.write_text(yaml.safe_dump(content))
    given = ("-s", suite, "--results", tmp_path / "results")
    monkeypatch.setenv("COLUMNS", "200")
    assert verb(monkeypatch, "plan", *given) == 0
    assert capsys.readouterr().out.count(odd) >= 3
    assert verb(monkeypatch, "run", *given, "--device", "cpu") == 0
    capsys.readouterr()
    assert verb(monkeypatch, "tables", "--no-figures", *given) == 0
    assert capsys.readouterr().out.count(odd) == 1


@report(
    BY_HAND,
    "a disk that is full in the middle of several bundles",
    "one line at once; goes on later",
)
def test_a_full_disk_ends_at_once(suite, tmp_path, monkeypatch, capsys):
    tried = []

    def full(specs, results, **options):
        tried.append(specs[0].bundle)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(results))

    with monkeypatch.context() as patch:
        patch.setattr(bundles, "run_marked", full)
        given = ("run", "-s", suite, "--results", tmp_path / "results", "--device", "cpu")
        assert verb(patch, *given) == 2
    assert len(tried) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in told
    assert verb(monkeypatch, *given) == 0


def diverge(training, index):
    raise execute.NonFiniteLoss("loss is nan")


@report(
    BY_HAND, "every run of a command fails", "recorded, one line with the first reason, status 3"
)
def test_a_command_whose_runs_all_fail_says_so(suite, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    given = ("run", "-s", suite, "--results", results, "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", diverge)
        assert verb(patch, *given) == AllFailed.status == 3
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: all 2 runs failed, the first with: loss is nan")
    names = {spec.bundle for spec in plan(load(suite))}
    assert markers.all_failed(results, names), "the DAG goes on to the tables, and ends in an error"
    assert verb(monkeypatch, *given) == 3, "they are current: the same again"


@report(BY_HAND, "some runs of a command fail", "recorded; status 0, failures are results")
def test_some_failures_are_results(suite, tmp_path, monkeypatch):
    whole = Training.step

    def step(training, index):
        return (diverge if training.spec.row == "none" else whole)(training, index)

    monkeypatch.setattr(Training, "step", step)
    given = ("run", "-s", suite, "--results", tmp_path, "--device", "cpu")
    assert verb(monkeypatch, *given) == 0
    assert not markers.all_failed(tmp_path, {spec.bundle for spec in plan(load(suite))})


@pytest.mark.slow
@report(BY_HAND, "a workflow whose runs all fail", "tables say with what; Snakemake's status is 1")
def test_a_workflow_whose_runs_all_fail_ends_in_an_error(suite, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", diverge)
        verb(patch, "run", "-s", suite, "--results", tmp_path / "results", "--device", "cpu")
    command = [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile", "-d", tmp_path]
    command += ["--cores", "1", "--config", f"suite={suite}", "results=results", "track=false"]
    (tmp_path / "results" / "bundles" / "tiny/breast-cancer/mlp/none/none.json").unlink()
    answer = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert answer.returncode == 1
    assert "error: all runs of results failed" in answer.stderr
    assert "loss is nan" in (tmp_path / "results" / "tables" / "tabletiny.md").read_text()


@report(
    "filelock 67",
    "a file system without `flock` (ENOSYS), or out of locks (ENOLCK)",
    "no endless wait",
)
@pytest.mark.parametrize(
    ("number", "refusal"),
    [
        (errno.ENOSYS, nullcontext()),
        (errno.ENOLCK, pytest.raises(BenchmarkError, match="cannot take the lock")),
    ],
)
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_system_without_locks_is_no_endless_wait(tmp_path, monkeypatch, number, refusal):
    def flock(descriptor, operation):
        if not operation & fcntl.LOCK_UN:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with refusal, bundle_lock(tmp_path, "t/a/b/c/d", timeout=0):
        assert number == errno.ENOSYS, "a lock by a file's existence takes its place"


def test_an_interruption_ends_all_bundles(suite, tmp_path, monkeypatch):
    def stopped(specs, results, **options):
        raise Interrupted("stopped")

    monkeypatch.setattr(bundles, "run_marked", stopped)
    with pytest.raises(Interrupted):
        bundles.run_leased([plan(load(suite))], tmp_path, memory_mb=1, processes=1, device="cpu")
