"""Spaces, quotes, other alphabets, ``~``, other folders, read-only disks: right or one line."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from reports import BY_HAND, report

from benchmarks import __main__ as command_line
from benchmarks import sources
from benchmarks.errors import BenchmarkError
from benchmarks.verbs.workflow import configured

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = 'my ré\'sults "of" $HOME & `日本`'
SUITE = """\
suite: tiny
seeds: 1
tables:
  tiny:
    metric: auroc
    datasets: [breast-cancer]
    backbones: [mlp]
    rows: [none]
    recipe: {batch_size: 64, epochs: 1}
"""


def snakemake(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "-d", str(folder)]
    return subprocess.run(
        [*command, "--cores", "1", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )


def bench(monkeypatch, *arguments: str) -> int:
    """Run a verb in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["saflex-bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    return end.value.code or 0


@pytest.fixture
def hostile(tmp_path) -> Path:
    folder = tmp_path / HOSTILE
    folder.mkdir()
    (folder / "my suite.yaml").write_text(SUITE)
    return folder


@report(
    "snakemake 2981, ScanNeo2 80",
    "blanks, quotes, `$`, `&` and other alphabets in suite, results, logs and store",
    "every rule's shell line has them as one word",
)
def test_every_rule_quotes_its_paths(hostile, tmp_path):
    given = [
        f"suite={hostile / 'my suite.yaml'}",
        f"results={hostile}",
        f"uri=sqlite:///{hostile}/m.db",
    ]
    answer = snakemake(tmp_path, "-n", "-p", "--config", *given)
    assert answer.returncode == 0, answer.stderr
    lines = (answer.stdout + answer.stderr).splitlines()
    shells = [shlex.split(line) for line in lines if "python -m benchmarks" in line]
    assert len(shells) == 4, "fetch, bundle, tables, track"
    for words in shells:
        log = words[words.index(">") + 1]
        assert Path(log).is_relative_to(hostile / "logs")
        for option, value in (("--suite", hostile / "my suite.yaml"), ("--results", hostile)):
            assert option not in words or words[words.index(option) + 1] == str(value)
    assert shells[-1][shells[-1].index("--uri") + 1] == f"sqlite:///{hostile}/m.db"
    assert {path.name for path in tmp_path.iterdir()} == {HOSTILE, ".snakemake"}, "no stray file"


@pytest.mark.slow
@report(
    BY_HAND, "the whole workflow in a folder with such a name", "tables and dashboard are there"
)
def test_the_workflow_runs_in_a_hostile_folder(hostile, tmp_path):
    answer = snakemake(
        tmp_path,
        "--config",
        f"suite={hostile / 'my suite.yaml'}",
        f"results={hostile}",
        SAFLEX_HOME=str(hostile / "home"),
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for name in ("tables/tabletiny.md", "mlflow/mlflow.db", "logs/track.log"):
        assert (hostile / name).is_file()


@report(
    "uv 9326", "`results=~/x`, `suite=~/x.yaml`, `uri=sqlite:///~/x.db`", "`~` is the user's home"
)
def test_a_tilde_is_expanded_in_every_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.yaml").write_text(SUITE)
    given = {"suite": "~/x.yaml", "results": "~/r", "uri": "sqlite:///~/x.db"}
    settings, _ = configured(given)
    assert settings.suite == f"{tmp_path}/x.yaml"
    assert settings.results == f"{tmp_path}/r"
    assert settings.uri == f"sqlite:///{tmp_path}/x.db"


@report(BY_HAND, "a quoted `--results '~/x'` and `SAFLEX_DATA='~/data'`", "`~` is the user's home")
def test_a_tilde_is_expanded_in_options_and_variables(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(SUITE)
    (tmp_path / "data").mkdir()
    (tmp_path / "r" / "records").mkdir(parents=True)
    monkeypatch.setenv("SAFLEX_DATA", "~/data")
    monkeypatch.setenv("SAFLEX_HOME", "~/home")
    assert bench(monkeypatch, "tables", "--no-figures", "-s", "~/x.yaml", "--results", "~/r") == 0
    assert (tmp_path / "r" / "tables" / "tabletiny.md").is_file()
    assert not (tmp_path / "~").exists()
    assert sources.home() == tmp_path / "home"
    assert os.environ["SAFLEX_DATA"] == str(tmp_path / "data")


@report(BY_HAND, "`--results ~nobody-here/x`", "one line: this machine knows no such home")
def test_an_unknown_home_is_one_line():
    with pytest.raises(BenchmarkError, match="knows no such home"):
        sources.path_given("~nobody-here-by-that-name/x")


@report(BY_HAND, "`--results` names a file", "one line with the path, nothing written")
def test_results_that_are_a_file_are_one_line(tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "x.yaml").write_text(SUITE)
    given = ("-s", tmp_path / "x.yaml", "--results", file)
    for verb in (("tables", "--no-figures"), ("run", "--device", "cpu")):
        assert bench(monkeypatch, *verb, *given) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1
        assert str(file) in told[0]
    assert file.read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
@report(
    "read-only home", "a data folder that cannot be written to, or is full", "found out every time"
)
def test_a_read_only_home_is_no_error(tmp_path, monkeypatch, number):
    def refuse(target, text):
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(sources.record, "atomic_write", refuse)
    file = tmp_path / "data.csv"
    file.write_text("1\n")
    os.utime(file, (0, 0))
    monkeypatch.setattr(sources, "SETTLED_SECONDS", -1)
    assert sources.checksum(file, "md5").startswith("md5:")


@report("dry run from another directory", "`snakemake -n -s .../Snakefile` elsewhere", "the plan")
def test_a_dry_run_from_another_directory_plans(tmp_path):
    (tmp_path / "x.yaml").write_text(SUITE)
    answer = snakemake(tmp_path, "-n", "--quiet", "host", "--config", "suite=x.yaml", "track=false")
    assert answer.returncode == 0, answer.stderr
    assert "bundle=tiny/breast-cancer/mlp/none/none" in answer.stdout + answer.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != ".snakemake"] == ["x.yaml"]


@report(BY_HAND, "a terminal without the letters of a path", "the path with escapes, no traceback")
def test_a_terminal_that_cannot_show_a_path(tmp_path):
    given = tmp_path / "ré日本.yaml"
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks", "plan", "-s", str(given)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
    )
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert r"r\xe9\u65e5\u672c.yaml does not exist" in answer.stderr
