"""Typos in `--config`: one line with the nearest key or what the value should be; nothing is planned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from reports import BY_HAND, report

from benchmarks.errors import BenchmarkError
from benchmarks.verbs.workflow import configured

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"suit": "cpu"}, "did you mean 'suite'?"),
        ({"siute": "cpu"}, "did you mean 'suite'?"),
        ({"result": "x"}, "did you mean 'results'?"),
        ({"tracking": False}, "did you mean 'track'?"),
        ({"process": 2}, "did you mean 'processes'?"),
    ],
)
@report(
    "V-pipe 133",
    "an unknown key in `--config`: `suit=`, `siute=`, `result=`, `tracking=`",
    "one line with the nearest key",
)
def test_an_unknown_key_names_the_nearest(given, said):
    with pytest.raises(BenchmarkError) as caught:
        configured(given)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"processes": "two"}, "processes: Input should be a valid integer"),
        ({"processes": -1}, "processes: Input should be greater than or equal to 0"),
        ({"track": "fasle"}, "track: Input should be a valid boolean"),
        ({"suite": "dmo"}, "did you mean 'demo'?"),
        ({"suite": "nowhere.yaml"}, "nowhere.yaml does not exist"),
        ({"results": 7}, "results: Input should be a valid string (given 7)"),
        ({"results": "a{b}"}, "give a folder without them (given 'a{b}')"),
        ({"uri": "mlruns"}, "of no known kind"),
        ({"generate": "--size '32"}, "generate: No closing quotation"),
    ],
)
@report(
    BY_HAND,
    "values in `--config` that are none: `processes=two`, `track=fasle`, `uri=mlruns`",
    "one line with what was given and what is expected, before hours of runs",
)
def test_a_value_that_is_none_is_one_line(given, said):
    with pytest.raises(BenchmarkError) as caught:
        configured(given)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("results=/tmp/run #2", {"results": "/tmp/run"}),
        ("results=/tmp/a\nb", {"results": "/tmp/a b"}),
        ("--config=suite=demo # x", {"suite": "demo"}),
        ("generate=--size 32 #'", {"generate": "--size 32"}),
    ],
)
@report(
    BY_HAND,
    "` #` or a line end in a value of `--config`, which Snakemake takes for YAML",
    "refused with what was written and what was read; another folder had been planned in silence",
)
def test_a_text_that_is_read_as_another(written, read):
    with pytest.raises(BenchmarkError) as caught:
        configured(read, ["snakemake", "--config", written])
    assert repr(next(iter(read.values()))) in str(caught.value)
    assert "give it without them" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_text_that_is_read_as_it_is_written():
    for written, read in [
        ("results=/tmp/run#2 ", "/tmp/run#2"),
        ("results='/tmp/run #2'", "/tmp/run #2"),
        ("results=a=b", "a=b"),
    ]:
        assert configured({"results": read}, ["-C", written])[0].results == read
    given = {"generate": "--size  32"}
    assert configured(given, ["generate=--size  32"])[0].generate == "--size 32"


@pytest.mark.parametrize("below", ["", "/x/y"])
@report(
    BY_HAND,
    "`--config results=` a file, or a folder below one",
    "one line with the file; nothing is planned",
)
def test_results_that_are_no_folder(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchmarkError, match=f"results: {tmp_path}/file is no folder"):
        configured({"results": f"{tmp_path}/file{below}"})


def test_all_is_filled_in():
    settings, suite = configured({"track": "no"})
    assert (settings.suite, settings.results, settings.track) == ("demo", "results/demo", False)
    assert settings.processes == suite.processes
    assert configured({"processes": 3})[0].processes == 3


def told(tmp_path, setting: str) -> list[str]:
    """What Snakemake says to a setting that is refused."""
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "-n"]
    answer = subprocess.run(
        [*command, "-d", str(tmp_path), "--config", setting],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert not answer.stdout
    return [line for line in answer.stderr.splitlines() if "profile" not in line]


@report(
    BY_HAND, "`snakemake --config suit=cpu`", "one line, status 1, no traceback, nothing planned"
)
def test_through_snakemake_it_is_one_line_as_well(tmp_path):
    expected = "error: --config: suit: unknown key: did you mean 'suite'?"
    assert told(tmp_path, "suit=cpu") == [expected]


def test_through_snakemake_the_command_line_is_looked_at(tmp_path):
    (line,) = told(tmp_path, f"results={tmp_path}/run #2")
    assert line.startswith(
        f"error: --config: results: Snakemake reads '{tmp_path}/run #2' as '{tmp_path}/run'"
    )
    (line,) = told(tmp_path, "results=/etc/passwd")
    assert line.startswith("error: --config: results: /etc/passwd is no folder")
