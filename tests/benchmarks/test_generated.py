"""The upstream of fixed image sets: what it serves, verified; the watched purification."""

from __future__ import annotations

import pytest
import torch
from fabricate import image_folders

from benchmarks import registry, suite
from benchmarks.datasets import cub
from benchmarks.errors import BenchmarkError, DataError
from benchmarks.generate import manifest
from benchmarks.generate.make import make
from benchmarks.generate.stand_in import StandIn
from benchmarks.spec import Component, Recipe, RunSpec, Settings
from benchmarks.studies import curves, purification
from benchmarks.upstream.generated import ExtraReal, Generated, repeated


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Fabricated CUB: 27 training and 15 extra images, and a stand-in set of 27."""
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    image_folders.cub(tmp_path / "data", training=14, test=2)
    # Small pictures: what is tested here does not depend on their size.
    monkeypatch.setattr(cub, "prepare", small)
    make(cub.index(), "stand-in", StandIn())
    return cub.load("cub", seed=0)


def small(image):
    import numpy as np

    return np.asarray(image.resize((8, 8)), dtype=np.uint8).transpose(2, 0, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_serves_images_labels_and_their_place_in_the_manifest(data):
    upstream = Generated(data, images="stand-in")
    place = manifest.location("cub", "stand-in")
    files = manifest.verified_files(place, upstream.manifest)
    batch = upstream(data.train.x[:10], data.train.y[:10], seeded())
    assert batch.x.shape == (10, 3, 8, 8)
    assert len(batch.index.unique()) == 10
    for x, y, number in zip(batch.x, batch.y, batch.index.tolist(), strict=True):
        from benchmarks.datasets.image_files import decoded

        expected = data.normalize(torch.from_numpy(small(decoded(files[number])).copy()))
        assert torch.allclose(x, expected)
        assert y == upstream.manifest.images[number].label


def test_draws_come_from_the_given_generator_alone(data):
    upstream = Generated(data, images="stand-in")
    x, y = data.train.x[:10], data.train.y[:10]
    torch.manual_seed(1)
    first = upstream(x, y, seeded())
    torch.manual_seed(2)
    assert torch.equal(first.index, upstream(x, y, seeded()).index)
    assert not torch.equal(first.index, upstream(x, y, seeded(1)).index)


def test_set_smaller_than_the_batch_is_served_whole(data):
    upstream = ExtraReal(data)
    batch = upstream(data.train.x[:20], data.train.y[:20], seeded())
    assert sorted(batch.index.tolist()) == list(range(15))
    assert torch.equal(batch.y, data.extra.y[batch.index])


def test_a_class_with_too_few_images_shows_them_again():
    labels = torch.tensor([0, 1, 1, 0, 2, 2, 2])
    rows = repeated(labels, torch.tensor([5, 2, 1, 4]))  # of class 3 there is none
    times = torch.bincount(rows, minlength=7)
    assert times.tolist() == [3, 1, 1, 2, 1, 1, 1]
    # Text2Img on iWildCam: 50 a class for the 2,224 images of ALIA's extra list.
    extra = torch.tensor([402, 506, 91, 625, 85, 47, 468])
    labels = torch.arange(7).repeat_interleave(extra.clamp(max=50))
    rows = repeated(labels, extra)
    assert torch.equal(torch.bincount(labels[rows]), extra)
    times = torch.bincount(rows)
    assert all(
        times[labels == k].max() - times[labels == k].min() <= 1 and times.min() > 0
        for k in range(7)
    )


def test_a_set_with_enough_of_each_class_is_passed_through_once(data):
    assert Generated(data, images="stand-in").rows.tolist() == list(range(27))


def test_pinned_content_must_be_the_set_at_hand(data):
    content = manifest.read(manifest.location("cub", "stand-in")).content
    Generated(data, images="stand-in", content=content)
    with pytest.raises(BenchmarkError, match=f"holds the set {content}, the suite wants 0123"):
        Generated(data, images="stand-in", content="0123")


def test_set_of_other_classes_is_refused(data, monkeypatch):
    from dataclasses import replace

    other = replace(data, class_names=("a", "b"), num_classes=2)
    with pytest.raises(BenchmarkError, match="made for 3 classes"):
        Generated(other, images="stand-in")


def test_missing_set_and_missing_extra_are_named(data):
    from dataclasses import replace

    with pytest.raises(DataError, match="generate make --dataset cub --images img2img"):
        Generated(data, images="img2img")
    with pytest.raises(BenchmarkError, match="no extra real images"):
        ExtraReal(replace(data, extra=None))


def test_images_for_a_data_set_of_features_need_a_trunk(data):
    from dataclasses import replace

    flat = replace(data.train, x=torch.zeros(27, 1280))
    with pytest.raises(BenchmarkError, match="name their `trunk`"):
        Generated(replace(data, train=flat), images="stand-in")


# Purification ---------------------------------------------------------------------------------------


def test_measures_by_hand():
    """Six images, two of them swapped (2 and 5)."""
    upstream = torch.tensor([0, 0, 0, 1, 1, 1])
    content = torch.tensor([0, 0, 1, 1, 1, 0])
    decisions = purification.Decisions.none(6)
    assert decisions.measure(upstream, content) == dict.fromkeys(curves.MEASURES)
    labels = torch.tensor([0, 1, 1, 1, 1, 1])  # 1 is wronged, 2 is recovered, 5 is missed
    decisions.take(torch.arange(6), torch.eye(2)[labels], torch.full((6,), 1 / 6))
    assert decisions.measure(upstream, content) == {
        "precision": 0.5,
        "recall": 0.5,
        "recovered": 0.5,
        "wronged": 0.25,
    }
    # Rejecting image 5 finds it without giving its label back.
    decisions.take(torch.tensor([5]), torch.tensor([[1.0, 0.0]]), torch.zeros(1))
    measured = decisions.measure(upstream, content)
    assert (measured["recall"], measured["recovered"]) == (1.0, 0.5)


def test_decisions_keep_the_latest_of_each_image():
    decisions = purification.Decisions.none(3)
    decisions.take(torch.tensor([0, 1]), torch.eye(3)[[1, 2]], torch.tensor([0.75, 0.25]))
    decisions.take(torch.tensor([1, 2]), torch.eye(3)[[0, 0]], torch.tensor([0.0, 1.0]))
    assert decisions.label.tolist() == [1, 0, 0]
    assert decisions.weight.tolist() == [1.5, 0.0, 2.0]


def spec_of(
    refiner: str, *, upstream: str = "generated", epochs: int = 3, seed: int = 0
) -> RunSpec:
    settings = {"images": "stand-in"} if upstream == "generated" else {}
    return RunSpec(
        suite="test",
        table="3",
        dataset="cub",
        backbone="flat",
        upstream="stand-in",
        row=refiner,
        seed=seed,
        metric="accuracy",
        settings=Settings(
            dataset=Component(name="cub"),
            model=Component(name="mlp"),
            upstream=Component(name=upstream, settings=settings),
            refiner=Component(name=refiner),
            recipe=Recipe(optimizer="sgd", lr=0.01, epochs=epochs, batch_size=9),
            clean_share=0.5,
        ),
    )


@pytest.fixture
def flat_model(monkeypatch):
    """A linear model of small pictures in place of a network."""
    load = registry.load

    def build(data):
        size = data.train.x[0].numel()
        flat = torch.nn.Flatten()
        return torch.nn.Sequential(flat, torch.nn.Linear(size, data.num_classes))

    def loading(family, name):
        return build if family == "models" else load(family, name)

    monkeypatch.setattr(registry, "load", loading)


def test_oracle_has_perfect_curves_and_the_upstream_finds_nothing(data, flat_model, monkeypatch):
    """A refiner that knows the truth: precision, recall and recovery 1 in every epoch."""
    truth = torch.tensor(
        [e.content for e in manifest.read(manifest.location("cub", "stand-in")).images]
    )
    from benchmarks.refiners.uniform import Uniform
    from saflex import Batch

    plain, _, _, _ = purification.watch(spec_of("uniform"))
    assert all(epoch["recall"] == 0 and epoch["precision"] is None for epoch in plain)
    monkeypatch.setattr(
        Uniform, "__call__", lambda self, a: Batch.uniform(a.x, truth[a.index], 3), raising=False
    )
    oracle, decisions, _, made = purification.watch(spec_of("uniform"))
    assert len(oracle) == 3
    assert all(e["precision"] == e["recall"] == e["recovered"] == 1 for e in oracle)
    assert all(e["wronged"] == 0 for e in oracle)
    assert not decisions.weight.isnan().any()
    assert sum(e.label != e.content for e in made.images) == 8  # round(0.3 * 27)


def test_purify_writes_curves_figure_and_a_sheet(data, flat_model, tmp_path):
    specs = [spec_of("saflex", seed=seed) for seed in range(2)]
    results = tmp_path / "results"
    purification.purify(specs, results)
    figure = curves.figure(results)
    first = figure.read_bytes()
    assert len(first) > 5000
    assert curves.figure(results).read_bytes() == first
    assert (results / "sheets" / "stand-in-saflex.jpg").stat().st_size > 5000
    (line,) = curves.summary(results)
    assert line.startswith("saflex: precision ")


def test_watching_a_set_without_truth_is_an_error(data, flat_model):
    with pytest.raises(BenchmarkError, match="known of stand-in sets only"):
        purification.watch(spec_of("uniform", upstream="extra-real"))


# The suites of Table 3 ------------------------------------------------------------------------------


def test_paper_s_table_3_is_whole():
    specs = suite.plan(suite.load("paper"), table="3")
    cells = {(s.dataset, s.upstream, s.row) for s in specs}
    for dataset in ("cub", "iwildcam-subset"):
        for upstream in (
            "randaugment",
            "text2img",
            "instructpix2pix",
            "img2img",
            "img2img-finetuned",
        ):
            assert {(dataset, upstream, row) for row in ("upstream", "saflex")} <= cells
        assert (dataset, "none", "none") in cells
    recipe = {s.dataset: s.settings.recipe for s in specs}
    assert (recipe["cub"].lr, recipe["iwildcam-subset"].lr) == (0.01, 0.001)
    assert recipe["cub"].class_weights


def test_stand_in_carries_its_name_into_the_tables():
    specs = suite.plan(suite.load("cpu"), table="3")
    generated = [s for s in specs if s.settings.upstream.settings.get("images") == "stand-in"]
    assert generated
    assert {s.upstream for s in generated} == {"stand-in"}
    assert not {s.upstream for s in specs} & {"text2img", "instructpix2pix", "img2img"}
    assert all(s.backbone == "efficientnet-lite0-frozen" and s.dataset == "cub-10" for s in specs)
