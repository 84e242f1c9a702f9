"""Fair runs: over every suite, a row differs from its neighbours in what its name says and in nothing else.

Settings come from the plans; steps, batches and order from the training loop itself, watched on small
data of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from small_runs import blobs

from benchmarks import registry
from benchmarks import suite as suites
from benchmarks.spec import Component, RunSpec
from benchmarks.train import Training
from benchmarks.upstream.generated import FixedSet

# What a row's name says beside its method. `alone`: no clean batch beside the augmented one (or nothing
# but the clean batch). `rows`: other rows are trained on. `recipe`: it was tuned. A row that is not
# listed says nothing of the kind and shares all of it with its neighbours.
SAYS = {
    "none": {"alone"},
    "none-train+val": {"alone", "rows"},
    "upstream": {"alone"},  # but see `adds_images`
    "train+val": {"rows"},
    "l2rw": {"alone"},  # it weighs every row it trains on
    "val-only": {"alone", "rows"},
    "val-only+aug": {"rows"},
    # Methods that the paper compares with, as their authors train them.
    "soft-augmentation": {"alone"},
    "lp-a3": {"alone"},
    "lp-a3-0.02": {"alone"},
    "zero-shot": {"alone"},
    "lp-ft": {"alone"},
    "flyp": {"alone"},
    "flyp-ties-shared": {"alone"},
}
ENDINGS = {"-aug-only": {"alone"}, "-tuned": {"alone", "recipe"}}
# RandAugment drawn before the run, for frozen trunks: fixed, but in place of the training images.
VIEWS = "randaugment-views"
SUITES = suites.names()


def says(spec: RunSpec) -> set[str]:
    """What the run's row says; where images are added to the training set, `upstream` is both."""
    found = set(SAYS.get(spec.row, ()))
    for ending, meaning in ENDINGS.items():
        found |= meaning if spec.row.endswith(ending) else set()
    if spec.row == "upstream" and adds_images(spec):
        found -= {"alone"}
    return found


def adds_images(spec: RunSpec) -> bool:
    """Whether the upstream adds images to the training set, rather than changing those it has."""
    upstream = spec.settings.upstream
    kind = registry.load("upstream", upstream.name)
    return issubclass(kind, FixedSet) and upstream.settings.get("images") != VIEWS


@cache
def planned(name: str) -> tuple[RunSpec, ...]:
    return tuple(suites.plan(suites.load(name)))


def cells(name: str, *by: str) -> Iterator[list[RunSpec]]:
    """Runs of a suite that share table, data set, backbone and the further fields `by`."""
    grouped = defaultdict(list)
    for spec in planned(name):
        fields = ("table", "dataset", "backbone", *by)
        grouped[tuple(getattr(spec, field) for field in fields)].append(spec)
    yield from grouped.values()


def one(values: dict[str, object], what: str) -> None:
    """All values are equal; otherwise say which rows have which."""
    first, *others = values.values()
    assert all(other == first for other in others), (what, values)


@pytest.mark.parametrize("name", SUITES)
def test_rows_of_an_upstream_mix_real_and_augmented_samples_alike(name):
    for cell in cells(name, "upstream"):
        shares = {s.name: s.settings.clean_share for s in cell if "alone" not in says(s)}
        if shares:
            one(shares, "share of the clean batch")
            assert 0 < next(iter(shares.values())) < 1
        for spec in cell:
            if "alone" in says(spec) and "recipe" not in says(spec):
                assert spec.settings.clean_share == 0, spec.name


@pytest.mark.parametrize(
    ("name", "dataset", "upstream", "real", "added"),
    [
        *(("paper", "cub", u, 4_994, 1_000) for u in ("text2img", "img2img", "extra-real")),
        *(("paper", "iwildcam-subset", u, 6_052, 2_224) for u in ("text2img", "instructpix2pix")),
        ("paper", "iwildcam-subset", "extra-real", 6_052, 2_224),
        ("cpu", "cub-10", "stand-in", 250, 250),
        ("cpu", "cub-10", "extra-real", 250, 50),
    ],
)
def test_added_images_have_their_number_s_share_of_the_loss(name, dataset, upstream, real, added):
    """ALIA trains on the union, every image once an epoch."""
    runs = [s for s in planned(name) if (s.dataset, s.upstream) == (dataset, upstream)]
    assert {s.row for s in runs} >= ({"upstream", "saflex"} if upstream != "extra-real" else set())
    for spec in runs:
        assert adds_images(spec)
        assert spec.settings.clean_share == pytest.approx(real / (real + added), abs=1e-4)


@pytest.mark.parametrize("name", SUITES)
def test_rows_of_a_cell_share_recipe_data_model_and_metric(name):
    for cell in cells(name):
        plain = [s for s in cell if "recipe" not in says(s)]
        one({s.name: s.settings.recipe for s in plain}, "recipe")
        for what in ("dataset", "model"):
            one({s.name: getattr(s.settings, what) for s in plain}, what)
        one({s.name: (s.metric, s.settings.replicas) for s in plain}, "metric")
        for spec in cell:
            assert (spec.settings.train_on != "train") == ("rows" in says(spec)), spec.name
    for cell in cells(name, "upstream"):
        one({s.name: s.settings.upstream for s in cell}, "upstream")


class Watched(Training):
    """The loop, with the rows of every step noted."""

    def __init__(self, spec: RunSpec, data):
        super().__init__(spec, data)
        self.indices: list[list[int]] = []
        self.start = (
            {name: g.get_state().tolist() for name, g in self.generators.items()},
            [p.tolist() for p in self.model.parameters()],
        )

    def step(self, index):
        self.indices.append(index.tolist())
        super().step(index)

    def _evaluate(self):
        """Nothing is measured here."""


EPOCHS = 2


def watched(spec: RunSpec) -> Watched:
    """Run the loop for a planned run's row, rows and recipe, on blobs, a linear model, no augmentation."""
    size = spec.settings.recipe.batch_size
    recipe = spec.settings.recipe.model_copy(
        update={"epochs": EPOCHS, "evaluate_every": EPOCHS, "channels_last": False, "lr": 1e-3}
    )
    update = {
        "model": Component(name="mlp", settings={"hidden": []}),
        "upstream": Component(name="none"),
        "refiner": Component(name="uniform"),
        "recipe": recipe,
    }
    settings = spec.settings.model_copy(update=update)
    training = Watched(
        spec.model_copy(update={"settings": settings, "metric": "accuracy"}), small(size)
    )
    training.run()
    return training


@cache
def small(batch: int):
    """Two and a half batches of training rows, less than one of validation rows."""
    return blobs(rows=5 * batch // 2)


@pytest.mark.parametrize("name", SUITES)
def test_rows_of_a_cell_take_the_same_steps_on_the_same_rows_in_the_same_order(name):
    for cell in cells(name):
        firsts = {s.bundle: s for s in cell if s.seed == 0 and "recipe" not in says(s)}
        runs = {bundle: watched(spec) for bundle, spec in firsts.items()}
        sizes = {b: [len(index) for index in run.indices] for b, run in runs.items()}
        one(sizes, "batch sizes")
        size = cell[0].settings.recipe.batch_size
        assert next(iter(sizes.values())) == [size, size, 5 * size // 2 - 2 * size] * EPOCHS
        one({bundle: run.start for bundle, run in runs.items()}, "streams and first weights")
        own = {b: run.indices for b, run in runs.items() if "rows" not in says(firsts[b])}
        one(own, "order")


@pytest.mark.parametrize("name", SUITES)
def test_rows_that_train_on_other_rows_use_all_of_them(name):
    seen = set()
    for spec in planned(name):
        if "rows" not in says(spec) or (spec.table, spec.row) in seen:
            continue
        seen.add((spec.table, spec.row))
        run = watched(spec)
        validation, train = len(run.data.validation), len(run.data.train)
        rows = {"validation": validation, "train+validation": train + validation}
        used = torch.tensor([row for step in run.indices for row in step])
        assert used.unique().tolist() == list(range(rows[spec.settings.train_on]))
