"""Machines and Pythons that nobody has tried are refused in a line."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from reports import BY_HAND, report

from benchmarks import __main__ as command_line
from benchmarks.running import machine

ROOT = Path(__file__).parents[2]


def refused(monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", ["saflex-bench", "plan"])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


@report(
    BY_HAND, "macOS, whose pins for CUDA do not exist", "one line: Linux; the library runs anywhere"
)
def test_another_system_is_refused_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "runs on Linux, and this is darwin" in refused(monkeypatch, capsys)


@report(
    BY_HAND,
    "Python 3.10 and 3.14, which the pins were not tried on",
    "one line: Python 3.11 to 3.13",
)
@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_another_python_is_refused_in_a_line(monkeypatch, capsys, version):
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    assert f"runs on Python 3.11 to 3.13, and this is 3.{version[1]}" in refused(
        monkeypatch, capsys
    )


@pytest.mark.parametrize(
    ("platform", "version", "said"),
    [
        ("linux", (3, 11), ""),
        ("linux", (3, 13), ""),
        ("linux", (3, 14), "this is linux and 3.14"),
        ("darwin", (3, 11), "this is darwin and 3.11"),
    ],
)
def test_make_refuses_them_before_it_makes_an_environment(platform, version, said):
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    code = re.search(r"^REFUSE := (.*?[^\\])$", text, flags=re.MULTILINE | re.DOTALL)[1]
    code = code.replace("\\\n", "").replace("import sys;", "")
    before = f"import sys; sys.platform, sys.version_info = {platform!r}, {version}; "
    answer = subprocess.run(
        [sys.executable, "-c", before + code.strip()], capture_output=True, text=True, check=False
    )
    assert answer.returncode == bool(said)
    assert said in answer.stderr
    assert len(answer.stderr.splitlines()) == bool(said)


def test_the_readme_says_linux_and_python_3_11():
    assert "On Linux with Python 3.11" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("platform", "mebibytes"), [("linux", 2048.0), ("darwin", 2.0)])
def test_peak_memory_is_mib_on_either_system(monkeypatch, platform, mebibytes):
    usage = SimpleNamespace(ru_maxrss=2 * 2**20)  # KiB on Linux, bytes on macOS
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", platform)
    assert machine.peak_memory("cpu") == mebibytes
