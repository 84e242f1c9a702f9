"""The command line: quick to start, one clear line on bad input."""

from __future__ import annotations

import subprocess
import sys

import pytest


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--suite", "dmo"], "unknown suite 'dmo': did you mean 'demo'?"),
        (["run", "--bundle", "table2/qsar/mlp/cutmix/saflx", "--suite", "cpu"], "unknown bundle"),
        (["plan", "--suite", "cpu", "--table", "9"], "has no table '9'"),
        (["fetch"], "nothing to fetch"),
        (
            ["tune", "--suite", "controls", "-d", "qsr"],
            "unknown dataset 'qsr': did you mean 'qsar'?",
        ),
        (["tune", "--suite", "demo"], "suite demo has no row with tuned: true"),
        (["time", "--dataset", "digts"], "unknown dataset 'digts': did you mean 'digits'?"),
        (["generate", "make", "-d", "cubb", "-i", "stand-in"], "did you mean 'cub'?"),
    ],
)
def test_bad_input_is_one_line_and_status_two(arguments, message):
    answer = bench(*arguments)
    assert answer.returncode == 2
    assert message in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_every_verb_has_a_help_text():
    answer = bench("--help")
    for verb in (
        "plan",
        "cost",
        "fetch",
        "run",
        "time",
        "tune",
        "tables",
        "track",
        "doctor",
        "merge",
        "generate",
    ):
        assert verb in answer.stdout
    assert answer.returncode == 0


def test_verbs_that_need_no_torch_import_none():
    code = (
        "import sys; sys.argv = ['x', 'plan', '--suite', 'demo'];"
        "from benchmarks.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
        == 0
    )
