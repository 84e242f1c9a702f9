"""Tabular loaders: the contract of every set, no leakage into the training rows, nothing unverified."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from fabricate import tabular as fabricate

from benchmarks import registry
from benchmarks.datasets import tabular
from benchmarks.datasets.tabular import Raw
from benchmarks.errors import BenchmarkError, DataError

TABULAR = sorted(
    name
    for name, module in registry.modules("datasets").items()
    if hasattr(import_module(module), "raw")
)
PARTS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch) -> Path:
    """Empty SAFLEX_DATA and SAFLEX_HOME."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("SAFLEX_DATA", str(folder))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture(params=TABULAR)
def name(request, monkeypatch, data_folder) -> str:
    fabricate.install(monkeypatch, data_folder, request.param)
    return request.param


def module_of(name: str):
    return import_module(registry.modules("datasets")[name])


def load(name: str, *, seed: int = 0, **settings):
    return registry.load("datasets", name)(name, seed=seed, **settings)


def mixed(rows: int = 200) -> Raw:
    """Two continuous columns, one constant, a categorical with missing and rare levels."""
    rng = np.random.default_rng(3)
    level = rng.integers(0, 4, size=rows).astype(np.float64)
    level[rng.random(rows) < 0.1] = np.nan
    value = rng.normal(5, 3, size=rows)
    value[rng.random(rows) < 0.1] = np.nan
    return Raw(
        values=np.column_stack([value, rng.gamma(2, size=rows), np.full(rows, 0.1), level]),
        levels=(0, 0, 0, 4),
        y=(rng.random(rows) < 0.4).astype(np.int64),
        feature_names=("value", "skewed", "constant", "level"),
        class_names=("no", "yes"),
    )


class TestContract:
    """What every registered tabular set gives."""

    def test_types_shapes_and_ranges(self, name):
        data = load(name)
        features = len(data.feature_names)
        assert data.name == name
        assert data.kind == "tabular"
        assert len(data.categories) == features
        assert len(data.class_names) == data.num_classes
        for part in (getattr(data, part) for part in PARTS):
            assert part.x.dtype == torch.float32
            assert part.x.shape == (len(part), features)
            assert part.y.dtype == torch.int64
            assert part.y.shape == (len(part),)
            assert set(part.y.tolist()) == set(range(data.num_classes))
            assert not part.x.isinf().any()

    def test_codes_lie_within_their_cardinality(self, name):
        data = load(name)
        for column, cardinality in enumerate(data.categories):
            for part in PARTS if cardinality else ():
                codes = getattr(data, part).x[:, column]
                assert torch.equal(codes, codes.round())
                assert codes.min() >= 0
                assert codes.max() < cardinality
            if cardinality:
                assert data.train.x[:, column].min() >= 1  # unknown never occurs in training
                assert data.train.x[:, column].max() == cardinality - 1

    def test_continuous_training_columns_have_mean_0_and_deviation_1_or_are_constant(self, name):
        data = load(name)
        for column, cardinality in enumerate(data.categories):
            x = data.train.x[:, column].double()
            x = x[~x.isnan()]
            if cardinality == 0 and len(x) and x.abs().max() > 0:
                assert x.mean().item() == pytest.approx(0, abs=1e-5)
                assert x.std(correction=0).item() == pytest.approx(1, abs=1e-4)

    def test_split_is_65_15_20_disjoint_and_stratified(self, name):
        y = module_of(name).raw(name).y
        split = tabular.split_indices(y, name, 0)
        assert sorted(np.concatenate(split).tolist()) == list(range(len(y)))
        for rows, share in zip(split, (0.65, 0.15, 0.20), strict=True):
            assert len(rows) == pytest.approx(share * len(y), abs=1.5)
            for label in np.unique(y):
                expected = share * (y == label).sum()
                assert (y[rows] == label).sum() == pytest.approx(expected, abs=1.5)

    def test_seed_decides_the_split(self, name):
        same, again, other = load(name), load(name), load(name, seed=1)
        for part in PARTS:
            torch.testing.assert_close(
                getattr(same, part).x, getattr(again, part).x, rtol=0, atol=0, equal_nan=True
            )
            assert torch.equal(getattr(same, part).y, getattr(again, part).y)
        assert not torch.equal(same.train.x.nan_to_num(), other.train.x.nan_to_num())

    def test_limit_and_label_noise_are_settings(self, name):
        data = load(name, limit=60, label_noise=0.5)
        assert len(data.train) == 60
        assert len(data.test) == len(load(name).test)


class TestFittedOnTrainingRowsOnly:
    def test_test_and_validation_rows_do_not_reach_the_training_tensors(self, monkeypatch):
        raw = mixed()
        split = tabular.split_indices(raw.y, "mixed", 0)
        monkeypatch.setattr(tabular, "split_indices", lambda *_: split)
        values, y = raw.values.copy(), raw.y.copy()
        held_out = np.concatenate(split[1:])
        values[held_out, :3] = values[held_out, :3] * 1000 + 50
        values[held_out, 3] = 1.0
        y[held_out] = 1 - y[held_out]
        before = tabular.data(raw, "mixed", seed=0)
        after = tabular.data(replace(raw, values=values, y=y), "mixed", seed=0)
        torch.testing.assert_close(before.train.x, after.train.x, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(before.train.y, after.train.y)
        assert before.categories == after.categories
        assert not torch.equal(before.test.x.nan_to_num(), after.test.x.nan_to_num())
        assert torch.equal(before.test.y, 1 - after.test.y)

    def test_training_rows_do_reach_them(self, monkeypatch):
        raw = mixed()
        train = tabular.split_indices(raw.y, "mixed", 0)[0]
        values = raw.values.copy()
        values[train[0], 1] += 1000
        before = tabular.data(raw, "mixed", seed=0)
        after = tabular.data(replace(raw, values=values), "mixed", seed=0)
        assert not torch.equal(before.test.x[:, 1], after.test.x[:, 1])

    def test_unseen_level_is_code_0_and_a_missing_one_has_its_own_level(self):
        raw = mixed()
        train, _, test = tabular.split_indices(raw.y, "mixed", 0)
        raw.values[raw.values[:, 3] == 2, 3] = 1
        raw.values[test[0], 3] = 2
        raw.values[train[0], 3] = raw.values[test[1], 3] = np.nan
        data = tabular.data(raw, "mixed", seed=0)
        assert data.categories == (0, 0, 0, 5)  # unknown, three levels, missing
        assert data.test.x[0, 3] == 0
        assert data.test.x[1, 3] == data.train.x[0, 3] == 4

    def test_missing_level_unseen_in_training_is_unknown(self):
        raw = mixed()
        train, _, test = tabular.split_indices(raw.y, "mixed", 0)
        raw.values[train, 3] = np.nan_to_num(raw.values[train, 3])
        raw.values[test[0], 3] = np.nan
        assert tabular.data(raw, "mixed", seed=0).test.x[0, 3] == 0

    def test_missing_value_stays_nan_and_a_constant_column_becomes_0(self):
        raw = mixed()
        _, _, test = tabular.split_indices(raw.y, "mixed", 0)
        raw.values[test[0], 2] = 7.0  # constant in training only
        data = tabular.data(raw, "mixed", seed=0)
        assert torch.equal(data.test.x[:, 0].isnan(), torch.tensor(np.isnan(raw.values[test, 0])))
        assert data.train.x[:, 0].isnan().any()
        assert not data.train.x[:, 2].any()
        assert not data.test.x[:, 2].any()

    def test_column_unknown_in_training_is_missing_everywhere(self):
        raw = mixed()
        train = tabular.split_indices(raw.y, "mixed", 0)[0]
        raw.values[train, 1] = np.nan
        assert tabular.data(raw, "mixed", seed=0).test.x[:, 1].isnan().all()


class TestLabelNoise:
    def test_the_share_of_training_labels_and_no_other_label_changes(self):
        clean, noisy = load("digits"), load("digits", label_noise=0.4)
        changed = clean.train.y != noisy.train.y
        assert changed.sum() == round(0.4 * len(clean.train))
        assert torch.equal(clean.train.x, noisy.train.x)
        assert torch.equal(clean.validation.y, noisy.validation.y)
        assert torch.equal(clean.test.y, noisy.test.y)

    def test_other_classes_are_equally_likely(self):
        y = np.zeros(9000, dtype=np.int64)
        counts = np.bincount(tabular._noisy(y, 10, share=1.0, seed=1), minlength=10)
        assert counts[0] == 0
        assert np.abs(counts[1:] - 1000).max() < 150  # five standard deviations

    def test_the_seed_decides_which(self):
        first, again, other = (load("digits", seed=s, label_noise=0.4).train.y for s in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize("share", [-0.1, 1.5])
    def test_a_share_outside_0_1_is_an_error(self, share):
        with pytest.raises(BenchmarkError, match="label_noise is a share"):
            load("digits", label_noise=share)

    def test_a_limit_that_leaves_out_a_class_is_an_error(self):
        with pytest.raises(BenchmarkError, match="digits: limit 5 of 1167 training rows"):
            load("digits", limit=5)


class TestRecipes:
    """Numbers of Table 5 that follow from the format, whatever the rows."""

    @pytest.mark.parametrize(
        ("name", "features", "categorical"),
        [
            ("qsar", 41, 0),
            ("shrutime", 11, 3),
            ("click", 11, 6),
            ("credit", 29, 0),
            ("kdd99", 39, 3),
            ("volkert", 147, 0),
        ],
    )
    def test_feature_counts(self, name, features, categorical, monkeypatch, data_folder):
        fabricate.install(monkeypatch, data_folder, name)
        row = tabular.describe(name)
        assert (row["features"], row["categorical"]) == (features, categorical)
        assert row["continuous"] == features - categorical
        assert row["rows"] == fabricate.ROWS
        if row["task"] == "binary":
            assert (row["positives"], row["negatives"]) == (60, 180)
        else:
            assert (row["task"], row["positives"]) == ("multiclass-10", None)

    def test_arrhythmia_drops_column_18_and_those_that_hardly_vary(self, monkeypatch, data_folder):
        fabricate.install(monkeypatch, data_folder, "arrhythmia")
        names = module_of("arrhythmia").raw("arrhythmia").feature_names
        assert set(map(int, names)) == set(range(274)) - {18, 20, 30}

    @pytest.mark.parametrize("name", ["qsar", "click"])
    def test_arff_and_csv_hold_the_same(self, name, monkeypatch, data_folder, tmp_path):
        first, second = (module_of(name).SOURCES[name][k].path for k in (0, 1))
        for relative in (first, second):
            path = tmp_path / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            fabricate.WRITERS[name](path, np.random.default_rng(7))
        one, other = (module_of(name).read(tmp_path / relative) for relative in (first, second))
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.y, other.y)
        assert (one.levels, one.feature_names) == (other.levels, other.feature_names)

    def test_credit_is_the_same_packed_and_unpacked(self, tmp_path):
        for ending in (".csv", ".csv.gz"):
            fabricate.credit(tmp_path / f"c{ending}", np.random.default_rng(7))
        one, other = (module_of("credit").read(tmp_path / f"c{e}") for e in (".csv", ".csv.gz"))
        np.testing.assert_array_equal(one.values, other.values)

    def test_a_surname_that_reads_as_null_is_a_surname(self, monkeypatch, data_folder):
        fabricate.install(monkeypatch, data_folder, "shrutime")
        assert not np.isnan(module_of("shrutime").raw("shrutime").values).any()

    def test_partial_appetency_says_so_and_the_complete_one_is_preferred(
        self, monkeypatch, data_folder
    ):
        fabricate.install(monkeypatch, data_folder, "appetency", alternative=1)
        partial = load("appetency")
        assert any("44 of 230 features" in note for note in partial.notes)
        assert len(partial.feature_names) == 5
        fabricate.install(monkeypatch, data_folder, "appetency", alternative=0)
        complete = load("appetency")
        assert complete.notes == ()
        assert len(complete.feature_names) == 230
        assert sum(c > 0 for c in complete.categories) == 38
        assert complete.train.x[:, 7].isnan().all()
        assert complete.train.x[:, 0].isnan().any()

    def test_a_label_the_recipe_does_not_know_is_an_error(self, tmp_path):
        path = tmp_path / "q.csv"
        path.write_text("V1,Class\n1,1\n2,3\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"'Class' should hold \['1', '2'\]; found \['3'\]"):
            module_of("qsar").read(path)

    def test_a_truncated_arff_is_an_error_naming_it(self, tmp_path):
        path = tmp_path / "v.arff"
        fabricate.volkert(path, np.random.default_rng(7))
        path.write_text(path.read_text()[:-40], encoding="utf-8")
        with pytest.raises(DataError, match=r"v\.arff is not an ARFF file"):
            module_of("volkert").read(path)


class TestPrepared:
    def test_an_altered_file_is_named_with_both_checksums_and_not_prepared(
        self, monkeypatch, data_folder, tmp_path
    ):
        path = fabricate.install(monkeypatch, data_folder, "qsar")
        expected = module_of("qsar").SOURCES["qsar"][-1].checksum
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match="truncated or altered") as caught:
            load("qsar")
        message = str(caught.value)
        assert str(path) in message
        assert expected in message
        assert "found md5:" in message
        assert not (tmp_path / "home" / "prepared").exists()

    def test_an_altered_file_is_refused_even_after_it_was_prepared(self, monkeypatch, data_folder):
        path = fabricate.install(monkeypatch, data_folder, "qsar")
        load("qsar")
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
        with pytest.raises(DataError, match="truncated or altered"):
            load("qsar")

    def test_a_second_load_parses_nothing(self, monkeypatch, data_folder):
        fabricate.install(monkeypatch, data_folder, "kdd99")
        first = load("kdd99")
        import pandas as pd

        monkeypatch.setattr(pd, "read_csv", None)
        assert torch.equal(first.test.x, load("kdd99").test.x)

    def test_a_damaged_prepared_file_is_prepared_again(self, monkeypatch, data_folder, tmp_path):
        fabricate.install(monkeypatch, data_folder, "qsar")
        first = load("qsar")
        (prepared,) = (tmp_path / "home" / "prepared").glob("*.npz")
        prepared.write_bytes(prepared.read_bytes()[:5000])
        assert torch.equal(first.test.x, load("qsar").test.x)
        assert prepared.stat().st_size > 5000

    def test_provenance_names_the_file_and_its_checksum(self, monkeypatch, data_folder):
        fabricate.install(monkeypatch, data_folder, "qsar", alternative=0)
        source = module_of("qsar").SOURCES["qsar"][0]
        assert load("qsar").provenance == {source.path: source.checksum}

    def test_processes_that_start_together_get_the_same_rows(self, data_folder, tmp_path):
        path = data_folder / "x.csv"
        fabricate.qsar(path, np.random.default_rng(7))
        script = (
            "import sys; from pathlib import Path; from benchmarks.datasets import prepared, qsar;"
            "from benchmarks.sources import Source, checksum;"
            "s = Source(name='x', path='x.csv', checksum=checksum(Path(sys.argv[1]), 'md5'));"
            "print(prepared.raw('x', (s,), qsar.read).values.sum())"
        )
        command = [sys.executable, "-c", script, str(path)]
        jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        outputs = {job.communicate()[0] for job in jobs}
        assert all(job.returncode == 0 for job in jobs)
        assert len(outputs) == 1
        assert len(list((tmp_path / "home" / "prepared").glob("*.npz"))) == 1
        assert not list((tmp_path / "home" / "prepared").glob("*.tmp"))


def test_loaders_are_imported_without_torch_pandas_or_scikit_learn():
    modules = ", ".join(sorted(set(registry.modules("datasets")[name] for name in TABULAR)))
    script = f"import sys, {modules}; print({{'torch', 'pandas', 'sklearn'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


REAL = os.environ.get("SAFLEX_DATA", "")


@pytest.mark.data
@pytest.mark.skipif(not Path(REAL or "/nowhere").is_dir(), reason="SAFLEX_DATA is not set")
class TestRealData:
    @pytest.fixture(autouse=True)
    def real(self, data_folder, monkeypatch):
        monkeypatch.setenv("SAFLEX_DATA", str(Path(REAL).absolute()))

    @pytest.mark.parametrize("name", ["credit", "kdd99"])
    def test_the_big_sets_stay_under_3_gib_when_prepared_for_the_first_time(self, name):
        script = (
            f"import resource; from benchmarks import registry;"
            f"d = registry.load('datasets', '{name}')('{name}', seed=0);"
            "print(len(d.train), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        rows, kib = map(int, done.stdout.split())
        assert rows > 100_000
        assert kib < 3 * 2**20

    def test_both_forms_of_qsar_are_equal(self):
        module, folder = module_of("qsar"), Path(REAL)
        one, other = (module.read(folder / source.path) for source in module.SOURCES["qsar"])
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.y, other.y)

    def test_partial_appetency_has_the_official_labels(self):
        labels = Path(REAL) / "tabular/appetency/orange_small_train_appetency.labels"
        official = np.loadtxt(labels, dtype=np.int64)
        raw = module_of("appetency").raw("appetency")
        np.testing.assert_array_equal(raw.y, (official == 1).astype(np.int64))
        assert len(raw.levels) == 44
        assert "44 of 230" in raw.notes[0]
