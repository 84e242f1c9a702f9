"""Files of one's own below `benchmarks/`: what is broken is named and skipped, other suites go on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from reports import BY_HAND, report

from benchmarks import check, registry
from benchmarks import suite as suites
from benchmarks.errors import BenchmarkError, UnknownName
from benchmarks.running import source_hash

GOOD = 'from benchmarks.registry import register\n\n\n@register("mine")\ndef load(name, *, seed): ...\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the families that files of one's own are put into; the registry reads it."""
    package = Path(registry.__file__).parent
    for family in registry.FAMILIES:
        shutil.copytree(package / family, tmp_path / family, ignore=shutil.ignore_patterns("__py*"))
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    forget()
    yield tmp_path / "datasets"
    forget()


def forget():
    registry._scanned.cache_clear()
    registry.source.cache_clear()


def planned() -> int:
    return len(suites.plan(suites.load("demo")))


@report(
    "griffe 386",
    "a plug-in saved with a byte order mark, which Python imports",
    "found like any other, nothing is said",
)
def test_a_byte_order_mark_is_no_syntax_error(folder, capsys):
    (folder / "mine.py").write_text(GOOD, encoding="utf-8-sig")
    registry.check("datasets", "mine")
    assert planned()
    assert capsys.readouterr().err == ""


def test_its_source_is_hashed_as_well(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(GOOD, encoding="utf-8-sig")
    monkeypatch.setattr(source_hash, "_path", lambda name: tmp_path / "mine.py")
    assert source_hash._tree.__wrapped__("benchmarks.datasets.mine").body


def skipped(folder, capsys, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    assert planned()
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert said in line
    assert "skipped" in line


@report(
    BY_HAND,
    "a file with a syntax error in `benchmarks/datasets`",
    "named with its line and skipped; every other suite is planned",
)
def test_a_syntax_error_is_named_and_skipped(folder, capsys):
    skipped(folder, capsys, "mine.py", b"x = 1\ny = (\n", "line 2")


@report(
    BY_HAND,
    "`._x.py`, which macOS leaves beside x.py",
    "named and skipped",
)
def test_what_macos_leaves_is_named_and_skipped(folder, capsys):
    skipped(folder, capsys, "._x.py", b"\x00\x05\x16\x07Mac OS X\x00", "no module")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x00\x05", "no Python"),
        (b"# \xff\xfe\nx = '\xe4'\n", "no Python"),
        (GOOD.replace('"mine"', "NAME").encode(), "expected a name in quotes"),
        (GOOD.replace('"mine"', '"My set"').encode(), "expected a name in quotes"),
    ],
)
def test_other_broken_files_too(folder, capsys, content, said):
    skipped(folder, capsys, "mine.py", content, said)


@report(
    BY_HAND,
    "two files that register one name",
    "the name is refused with both files; suites without it go on",
)
def test_a_name_of_two_files_is_neither_s(folder, capsys):
    skipped(
        folder, capsys, "mine.py", GOOD.replace('"mine"', '"qsar"').encode(), "registered twice"
    )
    with pytest.raises(BenchmarkError, match=r"mine\.py and .*qsar\.py: rename one"):
        suites.load("cpu")


@report(
    BY_HAND,
    '`@registry.register("x")`, or `register` under another name',
    "found like `@register`",
)
@pytest.mark.parametrize(
    ("line", "decorator"),
    [
        ("from benchmarks import registry", "registry.register"),
        ("from benchmarks import registry as r", "r.register"),
        ("import benchmarks.registry", "benchmarks.registry.register"),
        ("from benchmarks.registry import register as enter", "enter"),
    ],
)
def test_every_spelling_of_register_is_found(folder, line, decorator):
    (folder / "mine.py").write_text(
        f'{line}\n\n\n@{decorator}("mine")\ndef load(name, *, seed): ...\n'
    )
    registry.check("datasets", "mine")


def test_another_s_register_is_none(folder, capsys):
    (folder / "mine.py").write_text("@single.register(int)\ndef load(name, *, seed): ...\n")
    with pytest.raises(UnknownName):
        registry.check("datasets", "mine")
    assert capsys.readouterr().err == ""


@report(
    BY_HAND,
    "a plug-in that fails when it is imported",
    "one line with its file, line and error, from the suites that use it",
)
def test_a_file_that_cannot_be_imported_is_one_line(tmp_path):
    path = tmp_path / "imports_nothing.py"
    path.write_text("import nowhere_at_all\n" + GOOD.replace('"mine"', '"imports-nothing"'))
    with pytest.raises(BenchmarkError, match=r"imports_nothing\.py, line 1: ModuleNotFoundError"):
        registry.add("datasets", path)
    assert "imports-nothing" not in registry.modules("datasets")


@report(
    BY_HAND,
    "a plug-in that calls `sys.exit()` when it is imported",
    "one line with its file and line from `run`, `fetch` and `doctor`; it had been silence and status 0",
)
def test_a_file_that_ends_the_program_is_one_line(tmp_path):
    path = tmp_path / "leaves.py"
    path.write_text("import sys\n\nsys.exit()\n" + GOOD.replace('"mine"', '"leaves"'))
    with pytest.raises(BenchmarkError, match=r"leaves\.py, line 3: it ends the program itself"):
        registry.add("datasets", path)


@pytest.mark.parametrize("terms", [3_000, 30_000])
@report(
    BY_HAND,
    "a plug-in with a sum of 3,000 or 30,000 terms, deeper than Python parses",
    "named and skipped; every other suite is planned",
)
def test_what_is_nested_too_deeply_is_skipped(folder, capsys, terms):
    skipped(folder, capsys, "mine.py", b"X = 1" + b" + 1" * terms + b"\n", "nested too deeply")


@report(
    BY_HAND,
    "a pipe or a folder named x.py among the plug-ins",
    "named and skipped; a pipe had stopped every plan",
)
def test_what_is_no_file_is_skipped(folder, capsys):
    os.mkfifo(folder / "pipe.py")
    (folder / "within.py").mkdir()
    assert planned()
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{folder / name} is no regular file; the file is skipped"
        for name in ("pipe.py", "within.py")
    ]


@report(
    BY_HAND,
    "a class of a plug-in that is its own base, in a circle or through another",
    "planned with whatever settings are given; it had hung",
)
@pytest.mark.parametrize("bases", [("L", "L"), ("M", "L")])
def test_bases_in_a_circle_end(folder, bases):
    code = f'from benchmarks.registry import register\n\n\n@register("mine")\nclass L({bases[0]}): ...\n'
    (folder / "mine.py").write_text(code + f"\n\nclass M({bases[1]}): ...\n")
    check._keywords.cache_clear()
    assert check._of_settings("datasets", "mine", '{"anything": 1}') == ()
    check._of_settings.cache_clear()
