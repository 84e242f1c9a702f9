"""The wheel is the library alone and runs the README's loop; a checkout's commands work from anywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]

# What the README's block takes for granted: a model, data, an augmentation, an optimiser.
BEFORE = """
import torch, saflex
from torch import nn
torch.manual_seed(0)
y = torch.arange(64) % 3
x = torch.randn(64, 4) + 3 * torch.eye(4)[y]
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
validation_loader, model = loader, nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
augment = lambda x, y: (x + 0.1, y)
before = nn.functional.cross_entropy(model(x), y).item()
"""
AFTER = """
assert nn.functional.cross_entropy(model(x), y).item() < before
print(saflex.__file__)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what git has, so that nothing of a working tree gets in or is left behind."""
    copy = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.decode().rstrip("\0").split("\0"):
        if not name.startswith("results/") and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    """Built with the setuptools of the lock: nothing is downloaded."""
    made = tmp_path_factory.mktemp("wheel")
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(made), str(source)]
    subprocess.run(build, check=True)
    (path,) = made.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "saflex").rglob("*.py")}
    rest = {name for name in names if ".dist-info/" not in name}
    assert rest == modules | {"saflex/py.typed"}
    (metadata,) = [name for name in names if name.endswith("METADATA")]
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert re.findall(r"^Requires-Dist: ([a-z-]+)", text, flags=re.MULTILINE) == ["torch"]
    assert not any(name.endswith("entry_points.txt") for name in names)


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment_runs_the_loop_of_the_readme(wheel, tmp_path):
    """Empty but for torch, which a link to this environment's packages lends it: it is gigabytes."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    install = ["install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([*PIP, *install], check=True)
    # A plain folder in a .pth: the editable links of a checkout there are .pth files and are not followed.
    (site / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    answer = subprocess.run(
        [python, "-P", "-c", BEFORE + block + AFTER],
        cwd=tmp_path,
        env={"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert Path(answer.stdout.splitlines()[-1]).parent == site / "saflex"  # after the report


@pytest.mark.slow
def test_installed_editable_the_command_works_from_another_folder(source, tmp_path):
    """As `make` installs it, into an environment that lends the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (editable,) = re.findall(r"^EDITABLE := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--force-reinstall", *editable.split()],
        cwd=source,
        check=True,
    )
    command = tmp_path / "venv" / "bin" / "saflex-bench"
    for verb in (["plan", "-s", "demo"], ["cost", "-s", "demo"], ["tables", "--help"]):
        answer = subprocess.run(
            [command, *verb], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr
    assert not (tmp_path / "results").exists()
