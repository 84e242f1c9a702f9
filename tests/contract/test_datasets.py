"""Every data set: says its source, repeats, fits on training rows alone, counts its classes.

Files that are not at hand are fabricated in the official format where `tests/benchmarks/fabricate` has a
maker; else the test is skipped and says what is missing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from worlds import global_streams_untouched

from benchmarks import registry
from benchmarks.data import Data
from benchmarks.datasets import tabular
from benchmarks.errors import DataError

# Columns that are features of images: there are no rows of theirs before the split.
FEATURES = {"cub-features"}


@pytest.fixture
def load(dataset, request):
    """Load the data set anew with a seed."""
    request.getfixturevalue("files")

    def loading(seed: int = 0) -> Data:
        try:
            return registry.load("datasets", dataset)(dataset, seed=seed)
        except DataError as absent:
            pytest.skip(str(absent))

    return loading


def test_it_says_its_source(load):
    data = load()
    assert data.provenance, "provenance is empty: name the files with their checksums"
    assert all(data.provenance.values())


def test_labels_are_class_indices_of_every_row(load):
    data = load()
    assert not data.class_names or len(data.class_names) == data.num_classes
    for split in (data.train, data.validation, data.test):
        assert len(split) == len(split.x) > 0
        assert split.y.dtype == torch.int64
        assert split.y.min() >= 0
        assert split.y.max() < data.num_classes


def test_a_seed_gives_the_same_rows_and_draws_from_no_global_stream(load):
    first = load()
    with global_streams_untouched():
        again = load()
    for name in ("train", "validation", "test"):
        one, two = getattr(first, name), getattr(again, name)
        assert torch.equal(one.y, two.y)
        if isinstance(one.x, torch.Tensor):  # else files on disk
            assert torch.equal(one.x, two.x) or torch.equal(one.x.isnan(), two.x.isnan())


def test_what_is_standardised_has_mean_0_and_deviation_1_over_the_training_rows(load):
    """Fitted on other rows as well, the training mean would be off by about 0.4 / sqrt(n)."""
    data = load()
    if data.kind != "tabular":
        assert data.train.x[:2].dtype == torch.uint8, "images are raw: nothing can have been fitted"
        return
    kinds = data.categories or (0,) * data.train.x.shape[1]
    columns = [j for j, cardinality in enumerate(kinds) if cardinality == 0]
    x = data.normalize(data.train.x).double().numpy()[:, columns]
    known = x[:, ~np.isnan(x).all(0)]
    mean, deviation = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    assert np.abs(mean).max(initial=0) < 1e-3, "the mean is not that of the training rows"
    rows = (~np.isnan(known)).sum(0)
    unbiased = deviation * np.sqrt(rows / np.maximum(rows - 1, 1))
    close = np.isclose(deviation, 1, atol=1e-3) | np.isclose(unbiased, 1, atol=1e-3)
    assert (close | (deviation == 0)).all(), "the deviation is not that of the training rows"


def test_every_level_but_unknown_occurs_in_the_training_rows(load):
    data = load()
    for column, cardinality in enumerate(data.categories):
        if cardinality:
            seen = data.train.x[:, column].unique().long().tolist()
            assert {*seen, 0} == set(range(cardinality)), f"column {column}: levels of other rows"


def test_other_values_in_the_held_out_rows_leave_the_training_rows_alone(
    dataset, load, monkeypatch
):
    """Changed in the file's content itself, where the module gives it before any split (`raw`)."""
    data = load()
    module = registry.module("datasets", dataset)
    if data.kind != "tabular" or dataset in FEATURES:
        return  # raw pixels, see above
    assert hasattr(module, "raw"), (
        f"{dataset} gives no `raw(name)`: without the rows before any split nobody can tell what its "
        "columns were fitted on (benchmarks/datasets/tabular.py)"
    )
    raw = module.raw(dataset)
    train, *held_out = tabular.split_indices(raw.y, dataset, 0)
    values = raw.values.copy()
    for rows in held_out:
        values[rows] = values[np.random.default_rng(1).permutation(rows)]
        continuous = [j for j, levels in enumerate(raw.levels) if levels == 0]
        values[np.ix_(rows, continuous)] += 10
    monkeypatch.setattr(module, "raw", lambda name: replace(raw, values=values))
    changed = load()
    assert torch.equal(changed.train.x.nan_to_num(-9), data.train.x.nan_to_num(-9))
    assert changed.categories == data.categories
    assert len(train) == len(data.train)
