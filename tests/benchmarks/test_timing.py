"""Times measured apart: equal turns, nothing but steps in them, and what a table makes of them."""

from __future__ import annotations

import importlib.util
import weakref
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from small_runs import spec

from benchmarks.errors import BenchmarkError
from benchmarks.spec import Component
from benchmarks.studies import timing
from benchmarks.studies.timing import groups, measure
from benchmarks.suite import plan
from benchmarks.tables import tables
from benchmarks.tables.cells import Row
from benchmarks.tables.efficiency import measure as overheads
from benchmarks.tables.times import Times, load_all, path_of, read
from benchmarks.tables.verdicts import grade
from benchmarks.train import Training

GOLDEN = Path(__file__).parent / "golden"


def rows(**recipe) -> list:
    """Two rows of one bundle's data set, network and upstream."""
    return [
        spec(dataset="breast-cancer", row="upstream", clean_share=0.0, **recipe),
        spec(dataset="breast-cancer", row="saflex", refiner="saflex", **recipe),
    ]


def test_every_row_takes_equal_turns_and_nothing_is_evaluated(tmp_path, monkeypatch):
    turns: list[tuple[str, int]] = []
    step = Training.step

    def counted(run, index):
        turns.append((run.spec.row, run.step_in_epoch))
        step(run, index)

    monkeypatch.setattr(Training, "step", counted)
    monkeypatch.setattr(Training, "evaluate", lambda run: pytest.fail("an evaluation"))
    times = measure(rows(), tmp_path, rounds=3, steps=4)
    assert {row: len(values) for row, values in times.seconds.items()} == {
        "upstream": 3,
        "saflex": 3,
    }
    assert all(value > 0 for values in times.seconds.values() for value in values)
    order = [row for n, (row, _) in enumerate(turns) if n == 0 or turns[n - 1][0] != row]
    assert order == ["upstream", "saflex"] * 4  # once to warm up
    counts = [sum(1 for row, _ in turns if row == name) for name in ("upstream", "saflex")]
    assert counts[0] == counts[1]


def test_what_was_measured_is_out_of_memory_before_the_next_group(tmp_path, monkeypatch):
    alive: list[weakref.ref] = []
    build = Training.__init__

    def counted(run, *arguments):
        alive.append(weakref.ref(run))
        build(run, *arguments)

    monkeypatch.setattr(Training, "__init__", counted)
    measure(rows(), tmp_path, rounds=2, steps=2)
    assert [found() for found in alive] == [None, None]


@dataclass
class Run:
    """What a watch looks at."""

    step_in_epoch: int


def test_the_step_behind_a_shuffle_is_not_counted(monkeypatch):
    """Epochs of three steps; the clock jumps at each epoch's first step, where the shuffle was."""
    watch, places = timing._Watch(4), []

    def clock(run):
        places.append(run.step_in_epoch)
        return sum(50.0 if place == 1 else 2.0 for place in places)

    def train():
        for step in count():
            watch(Run(step % 3 + 1))

    monkeypatch.setattr(timing, "_clock", clock)
    with pytest.raises(timing._Enough):
        train()
    assert watch.seconds == 4 * 2.0
    assert places == [1, 2, 3, 1, 2, 3]


def test_an_epoch_is_its_steps(tmp_path, monkeypatch):
    """Half the batch size is twice the steps; a clock that ticks once a look gives both a step alike."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(timing, "_clock", lambda run: float(next(ticks)))
    group = [spec(dataset="breast-cancer", row=str(size), batch_size=size) for size in (32, 64)]
    times = measure(group, tmp_path, rounds=2, steps=3)
    size = len(Training(group[0], timing_data()).train)
    assert times.seconds == {"32": [-(-size // 32)] * 2, "64": [-(-size // 64)] * 2}


def timing_data():
    from benchmarks import registry

    return registry.load("datasets", "breast-cancer")("breast-cancer", seed=0)


def test_what_is_measured_is_not_measured_again_unless_the_recipe_changes(tmp_path):
    first = measure(rows(), tmp_path, rounds=2, steps=2)
    told: list[str] = []
    assert measure(rows(), tmp_path, rounds=2, steps=2, report=told.append) == first
    assert "skipped" in told[0]
    changed = measure(rows(lr=0.01), tmp_path, rounds=2, steps=2)
    assert changed.keys != first.keys
    assert read(path_of(tmp_path, rows()[0])) == changed


def test_a_file_stands_beside_its_rows_whatever_dots_its_name_has(tmp_path):
    run = spec().model_copy(update={"table": "2", "upstream": "cutmix-0.3"})
    assert path_of(tmp_path, run) == tmp_path / "times/table2/blobs/mlp/cutmix-0.3.json"


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "times" / "x.json"
    path.parent.mkdir()
    path.write_text('{"table": ')
    with pytest.raises(BenchmarkError, match=r"x\.json holds no times .* delete it"):
        list(load_all(tmp_path))


def test_one_step_an_epoch_is_said(tmp_path):
    with pytest.raises(BenchmarkError, match="has 1 step an epoch: times need 2 or more"):
        measure(rows(batch_size=100_000), tmp_path, rounds=2, steps=2)


def test_groups_are_what_is_compared():
    specs = [s for seed in range(2) for s in rows(seed=seed)]
    other = specs[0].model_copy(update={"upstream": "none"})
    assert groups([*specs, other]) == [specs[:2]]  # one row alone has nothing to be compared with


def test_a_warm_up_is_over():
    """LP-A3 adds its term after its warm-up epochs, so its steps are timed behind them."""
    run = timing._started(
        spec(upstream="none", dataset="digits-images").model_copy(
            update={
                "settings": spec(dataset="digits-images", upstream="none").settings.model_copy(
                    update={
                        "model": Component(
                            name="resnet-small", settings={"widths": (8, 8, 16, 16)}
                        ),
                        "refiner": Component(name="lp-a3", settings={"warm_up": 1}),
                    }
                )
            }
        ),
        "cpu",
    )
    assert run.epoch > run.refiner.warm_up


# Tables ---------------------------------------------------------------------------------------------


def golden_suite():
    found = importlib.util.spec_from_file_location("golden_records", GOLDEN / "golden_records.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.suite()


@pytest.fixture
def timed(tmp_path):
    """The golden suite with a shared machine, and times of Table 2's QSAR measured apart."""
    suite = golden_suite()
    shared = suite.tables["2"].model_copy(update={"untimed": "the machine was shared"})
    suite = suite.model_copy(update={"tables": {**suite.tables, "2": shared}})
    (tmp_path / "records").symlink_to(GOLDEN / "results" / "records")
    group = next(
        g
        for g in groups(plan(suite))
        if (g[0].table, g[0].dataset, g[0].backbone) == ("2", "qsar", "mlp")
    )
    seconds = {s.row: [1.0, 2.0] for s in group} | {"saflex": [1.5, 3.2]}
    times = Times(
        table="2", dataset="qsar", backbone="mlp", upstream=group[0].upstream,
        keys={s.row: s.key for s in group}, seconds=seconds, clock="processor", steps=20,
        device="a CPU",
    )  # fmt: skip
    return suite, tmp_path, times


def write(results: Path, times: Times) -> None:
    path = results / "times" / "qsar.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(times.model_dump_json())


def test_times_measured_apart_stand_for_those_of_the_runs(timed):
    suite, results, times = timed
    write(results, times)
    (table,) = [t for t in tables(suite, results) if t.id == "2"]
    row = Row("mlp", times.upstream, "saflex")
    (line,) = [
        x
        for x in overheads(table)
        if x.row == row and x.dataset == "qsar" and x.baseline.refiner == "upstream"
    ]
    assert line.n == 2
    assert line.mean == pytest.approx((50 + 60) / 2)
    assert "2 rounds of 20 steps, processor time, a CPU" in table.notes[-1]
    (claim,) = [g for g in grade([table]) if g.claim.kind == "time" and g.row == row]
    assert claim.result.difference == pytest.approx(55 - 81)


def test_times_of_another_recipe_do_not_enter(timed):
    suite, results, times = timed
    write(results, times.model_copy(update={"keys": dict.fromkeys(times.keys, "0" * 16)}))
    (table,) = [t for t in tables(suite, results) if t.id == "2"]
    assert not overheads(table)
    assert "Training times are left out: the machine was shared" in table.notes[-1]
