"""A file of one's own meets the contract with one command; what breaks it is caught and named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

CAUGHT = {
    ("upstream", "global_random_numbers"): {
        "test_it_draws_from_the_given_generator_alone",
        "test_the_same_generator_gives_the_same_batch_whatever_the_global_streams",
        "test_a_batch_does_not_depend_on_how_many_came_before",
    },
    ("upstream", "counts_its_calls"): {"test_a_batch_does_not_depend_on_how_many_came_before"},
    ("refiners", "no_state_dict"): {"test_a_resumed_run_ends_in_the_same_bits"},
    ("datasets", "fitted_on_all_rows"): {
        "test_what_is_standardised_has_mean_0_and_deviation_1_over_the_training_rows",
        "test_other_values_in_the_held_out_rows_leave_the_training_rows_alone",
    },
}


def contract(family: str, file: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract"]
    return subprocess.run(
        [*command, "--plugin", f"{family}={file}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), CAUGHT, ids=lambda part: part)
def test_a_bad_plugin_is_caught_by_the_test_that_says_why(family, name):
    answer = contract(family, HERE / "bad" / f"{name}.py")
    failed = set(re.findall(r"^FAILED \S+::(\w+)", answer.stdout, flags=re.MULTILINE))
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert failed == CAUGHT[family, name]


@pytest.mark.slow
def test_the_refiner_of_contributing_keeps_the_contract(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "random_weights.py").write_text(block, encoding="utf-8")
    answer = contract("refiners", tmp_path / "random_weights.py")
    assert answer.returncode == 0, answer.stdout
    assert " passed" in answer.stdout


def test_a_file_that_is_none_is_said_in_one_line(tmp_path):
    answer = contract("refiner", tmp_path / "none.py")
    assert answer.returncode == 4
    assert "did you mean 'refiners'?" in answer.stderr
