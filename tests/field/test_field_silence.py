"""What passed in silence or took minutes: exits in plug-ins, settings that pass for others, dead stores."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from reports import BY_HAND, report

from benchmarks import __main__ as command_line
from benchmarks import check, registry
from benchmarks import suite as suites
from benchmarks.errors import BenchmarkError, MachineError
from benchmarks.record import atomic_write
from benchmarks.running import bundle as bundles
from benchmarks.running import machine, source_hash, trial
from benchmarks.running.locks import bundle_lock
from benchmarks.spec import Recipe
from benchmarks.tracking import store
from benchmarks.verbs.workflow import configured

GOOD = """\
from benchmarks.registry import register


@register("NAME")
def load(data, *, a: str = "x"): ...
"""
SUITE = """\
suite: tiny
tables:
  tiny:
    metric: auroc
    datasets: [breast-cancer]
    backbones: [mlp]
    rows: [none]
    recipe: {batch_size: 64, epochs: 1}
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))


@pytest.fixture
def suite(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """Write a model of one's own, read without being imported; gives its name."""
    names = dict(registry.modules("models"))
    monkeypatch.setattr(registry, "modules", lambda family: names)
    monkeypatch.setattr(registry, "_scanned", lambda family: (names, {}))

    def write(content: str, name: str = "quiet") -> str:
        path = tmp_path / "quiet.py"
        path.write_text(content.replace("NAME", name))
        names[name] = "benchmarks.models.quiet"
        monkeypatch.setattr(registry, "file_of", lambda family, name: path)
        for cached in (registry.source, check._keywords, check._declared, check._of_settings):
            cached.cache_clear()
        return name

    yield write
    for cached in (registry.source, check._keywords, check._declared, check._of_settings):
        cached.cache_clear()


def verb(monkeypatch, *arguments: object) -> int:
    """Run a verb in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["saflex-bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    return end.value.code or 0


def one_line(action, *arguments, **options) -> str:
    with pytest.raises(BenchmarkError) as caught:
        action(*arguments, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@report(
    BY_HAND,
    "a plug-in with `sys.exit()` at its top",
    "one line with its file and line, from every verb that imports it; no success",
)
@pytest.mark.parametrize("call", ["sys.exit()", "raise SystemExit(0)", "exit()"])
def test_a_plug_in_that_ends_the_program_is_one_line(tmp_path, call):
    path = tmp_path / "ends_it.py"
    path.write_text(f"import sys\n{call}\n" + GOOD.replace("NAME", "ends-it"))
    told = one_line(registry.add, "models", path)
    assert "ends_it.py, line 2: it ends the program itself" in told


def ends_it(*arguments, **options):
    sys.exit(0)


@report(
    BY_HAND,
    "`sys.exit()` inside a loader, a model or a refiner",
    "`run` goes on with the other bundles and fails with a line; `plan --check` names the cell",
)
def test_an_exit_inside_a_run_is_a_crash(suite, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.running.bundle.run_marked", ends_it)
    planned = suites.bundles(suites.plan(suites.load(suite)))
    told = one_line(
        bundles.run_leased,
        planned.values(),
        tmp_path / "results",
        memory_mb=1,
        processes=1,
        device="cpu",
    )
    assert "tiny/breast-cancer/mlp/none/none" in told
    assert f"{Path(__file__).name}, line" in told
    monkeypatch.setattr(trial, "one_step", ends_it)
    assert "it ends the program itself" in trial._problem(next(iter(planned.values()))[0], "cpu")


def test_an_exit_below_any_verb_is_no_success(suite, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.running.overview.show", ends_it)
    assert verb(monkeypatch, "plan", "-s", suite, "--results", tmp_path / "results") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "it ends the program itself" in line
    assert verb(monkeypatch, "--help") == 0


@report(
    BY_HAND,
    "a plug-in of 3,000 terms in one expression, or a pipe of its name",
    "named; every suite that does not use it is planned",
)
def test_a_file_that_nests_too_deeply_or_is_a_pipe_is_one_line(tmp_path):
    deep = tmp_path / "deep.py"
    deep.write_text("X = " + " + ".join(["1"] * 3000) + "\n")
    with suppress(BenchmarkError):  # Python 3.11 parses it, and the hash says that it cannot go on
        registry.parsed(deep)
    deep.write_text("X = " + "-" * 20000 + "1\n")
    assert "nested too deeply" in one_line(registry.parsed, deep)
    os.mkfifo(tmp_path / "pipe.py")
    assert "is no regular file" in one_line(registry.parsed, tmp_path / "pipe.py")


def test_what_python_reads_and_the_hash_cannot_is_one_line(tmp_path, monkeypatch):
    deep = tmp_path / "deep.py"
    deep.write_text("X = " + " + ".join(["1"] * 900) + "\n")
    monkeypatch.setattr(source_hash, "_path", lambda name: deep)
    for cached in (source_hash._tree, source_hash._imports, source_hash._fingerprint):
        monkeypatch.setattr(source_hash, cached.__name__, cached.__wrapped__)
    assert "deep.py is nested too deeply" in one_line(source_hash.module_hash, "benchmarks.deep")


@report(BY_HAND, "a plug-in's `class L(L)`, a base of its own name", "planned; the run finds out")
def test_a_class_that_is_its_own_base_ends(plug_in):
    name = plug_in(
        'from benchmarks.registry import register\n\n\n@register("NAME")\nclass L(L): ...\n'
    )
    assert check._keywords("models", name) == ({}, (), True)


@report(
    BY_HAND,
    "declarations of a plug-in that are none: `LIMITS = [1]`, `OFFERS = 5`, `NEEDS = {'modle': 'x'}`",
    "one line with the file, the line, what was given and what is expected",
)
@pytest.mark.parametrize(
    "line",
    [
        "LIMITS = [1]",
        "LIMITS = 5",
        'LIMITS = "x"',
        'LIMITS = {"a": {"foo": 1}}',
        'LIMITS = {"a": {"gt": "one"}}',
        'LIMITS: dict = {"a": 3}',
        "NEEDS = [1]",
        'NEEDS = {"model": 5}',
        'NEEDS = {"modle": "x"}',
        'REFUSES = "pairs"',
        "OFFERS = 5",
        'OFFERS = "image"',
        "PASSES_ON = 1",
        "LIMITS = {[1]: 2}",
        "OFFERS = (words,)",
    ],
)
def test_a_declaration_of_another_shape_is_one_line(plug_in, line):
    name = plug_in(line + "\n" + GOOD)
    told = one_line(check._declared, "models", name, line.split(" ")[0].strip(":"))
    assert "quiet.py, line 1" in told
    assert "expected" in told


def test_a_bound_that_does_not_go_with_its_annotation_is_one_line(plug_in):
    name = plug_in('LIMITS = {"a": {"gt": 0}}\n' + GOOD)
    told = one_line(check._of_settings, "models", name, '{"a": "x"}')
    assert "quiet.py: LIMITS: 'a' has a bound that does not go" in told


def test_declarations_of_the_right_shape_are_read(plug_in):
    name = plug_in('LIMITS: dict = {"a": ["x", "y"]}\n' + GOOD)
    assert check._declared("models", name, "LIMITS") == {"a": ("x", "y")}
    (problem,) = check._of_settings("models", name, '{"a": "z"}')
    assert '(given "z")' in problem


@report(
    BY_HAND,
    "`--uri` that is none: `http://[::1`, `sqlite:///`, a folder, an empty one",
    "one line from every verb and from `snakemake -n`",
)
@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://[::1", "malformed"),
        ("http://", "malformed"),
        ("http://host:port", "malformed"),
        ("postgresql", "malformed"),
        ("postgresql://host:port/x", "malformed"),
        ("sqlite:///", "names no file"),
        ("sqlite:////tmp", "is a folder"),
    ],
)
def test_an_address_that_is_none_is_one_line(tmp_path, uri, said):
    assert said in one_line(store.resolve, tmp_path, uri)
    assert said in one_line(configured, {"uri": uri})


def test_an_empty_address_is_not_the_default(tmp_path):
    assert "of no known kind" in one_line(store.resolve, tmp_path, "")


@pytest.mark.parametrize("scheme", ["postgresql", "http"])
@report(
    BY_HAND,
    "a PostgreSQL store or an MLflow server that refuses connections",
    "one line within seconds, for `sync` and `check`",
)
def test_a_store_that_refuses_is_said_at_once(tmp_path, scheme):
    pytest.importorskip("psycopg2")
    with socket.socket() as nobody:  # bound and not listening: refuses
        nobody.bind(("127.0.0.1", 0))
        uri = f"{scheme}://127.0.0.1:{nobody.getsockname()[1]}"
        start = time.monotonic()
        for place in (store.writer(tmp_path, uri), store.opened(uri, write=False)):
            assert "does not answer or refuses" in one_line(place.__enter__)
        assert time.monotonic() - start < 20


@report(BY_HAND, "`tables --results` with a typo", "one line; no folder is made")
def test_tables_of_a_misspelt_folder_are_none(suite, tmp_path, monkeypatch, capsys):
    assert verb(monkeypatch, "tables", "-s", suite, "--results", tmp_path / "reslts") == 2
    assert "run the suite first" in capsys.readouterr().err
    assert not (tmp_path / "reslts").exists()


@report(
    BY_HAND,
    "`--checkpoint-minutes nan`, -1 or inf; an empty `--results` or `--device`",
    "refused with what was given",
)
@pytest.mark.parametrize(
    "given",
    [
        ("--checkpoint-minutes", "nan"),
        ("--checkpoint-minutes", "-1"),
        ("--checkpoint-minutes", "inf"),
        ("--results", ""),
    ],
)
def test_an_option_without_a_meaning_is_refused(suite, monkeypatch, capsys, given):
    monkeypatch.setattr("benchmarks.running.bundle.run_marked", ends_it)
    assert verb(monkeypatch, "run", "-s", suite, *given) == 2
    told = capsys.readouterr().err
    assert any(word in told for word in ("greater than or", "no length of time", "an empty path"))
    assert "ends the program" not in told, "nothing was run"


def test_an_empty_device_is_none():
    assert "device ''" in one_line(machine.chosen_device, "")


@report(
    BY_HAND,
    "`seeds: true`, `lr: true`, a row, data set or backbone that is listed twice",
    "refused with its place in the file",
)
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("suite: tiny", "suite: tiny\nseeds: true", "seeds: expected a number"),
        ("epochs: 1", "epochs: true", "recipe.epochs: expected a number"),
        ("epochs: 1", "lr: yes", "recipe.lr: expected a number"),
        ("[none]", "[none, none]", "rows: 'none' is there twice"),
        ("[mlp]", "[mlp, mlp]", "backbones: 'mlp' is there twice"),
    ],
)
def test_what_passes_for_something_else_is_refused(suite, old, new, said):
    suite.write_text(SUITE.replace(old, new))
    assert said in one_line(suites.load, suite)


def test_true_and_numbers_stay_what_they_are():
    assert Recipe(lr=1, class_weights=True).lr == 1.0


@report(
    BY_HAND,
    '`snakemake --config generate="--typo 3"`',
    "one line before anything is planned, as for a value that an option does not take",
)
@pytest.mark.parametrize(
    "given", ["--typo 3", "--size many", "--help", "--batch-size 0", "--images x"]
)
def test_options_of_generate_are_checked_in_the_plan(given, capsys):
    assert "generate: " in one_line(configured, {"generate": given})
    assert capsys.readouterr().out.count("\n") <= 40
    assert configured({"generate": "--size 32 --dtype float32"})[0].generate


@report(BY_HAND, "a full disk in `tables`, `merge` or `cards`", "one line with the file")
def test_a_full_disk_names_its_file(tmp_path, monkeypatch):
    def full(path, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space") as caught:
        atomic_write(tmp_path / "table1.csv", "x")
    assert caught.value.filename == str(tmp_path / "table1.csv")
    assert not list(tmp_path.iterdir())


@report(BY_HAND, "a disk that is full for the lock of the first bundle", "one line for all bundles")
def test_a_lock_that_cannot_be_written_ends_the_command_at_once(suite, tmp_path):
    (tmp_path / "results").write_text("a file where a folder is wanted")
    suite.write_text(SUITE.replace("[none]", "[none, upstream]"))
    planned = suites.bundles(suites.plan(suites.load(suite)))
    assert len(planned) == 2
    options = {"memory_mb": 1, "processes": 1, "device": "cpu", "checkpoint_minutes": 10.0}
    told = one_line(bundles.run_leased, planned.values(), tmp_path / "results", **options)
    assert "cannot take the lock" in told
    with pytest.raises(MachineError), bundle_lock(tmp_path / "results", "x"):
        pass
