"""What an import costs: settings without torch, the library with torch and nothing else."""

import subprocess
import sys

import pytest

import saflex

_PROBE = "import sys; {}; print(' '.join(sorted(m for m in sys.modules if '.' not in m)))"


def modules_after(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE.format(statement)], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_settings_and_errors_leave_torch_unimported():
    loaded = modules_after(
        "import saflex.settings, saflex.errors; saflex.settings.SaflexSettings()"
    )
    assert "torch" not in loaded


def test_the_library_brings_in_torch_only():
    plain = modules_after("import torch, torch.distributed, torch.nn.attention")
    whole = modules_after("import saflex; [getattr(saflex, n) for n in saflex.__all__]")
    new = {name for name in whole - plain if not name.startswith("_")}
    assert new - sys.stdlib_module_names == {"saflex"}


def test_a_first_refinement_warns_of_nothing():
    statement = (
        "import torch, saflex; m = torch.nn.Linear(3, 2); d = (torch.ones(4, 3), torch.arange(4) % 2); "
        "saflex.Saflex(m, validation=d)(*d)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", statement],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_every_public_name_resolves_and_unknown_ones_say_what_there_is():
    assert set(saflex.__all__) == set(saflex._HOME)
    for name in saflex.__all__:
        assert getattr(saflex, name).__module__ == f"saflex.{saflex._HOME[name]}"
        assert name in dir(saflex)
    with pytest.raises(AttributeError, match="it has"):
        _ = saflex.Refiner
