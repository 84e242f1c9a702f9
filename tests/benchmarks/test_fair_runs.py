"""Fair runs: over every suite, a row differs from its neighbours in what its name says and in nothing else.

Settings come from the plans; steps, batches, order and streams from the training loop itself, watched
while it runs each row with its own upstream and refiner on small data of its kind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import pytest
import torch
from image_runs import stripes
from image_text_runs import squares
from small_runs import blobs

from benchmarks import registry
from benchmarks import suite as suites
from benchmarks.data import Split
from benchmarks.spec import Component, RunSpec, Settings
from benchmarks.studies import tuning
from benchmarks.train import Training
from benchmarks.upstream.generated import FixedSet

# What a row's name says beside its method. `alone`: no clean batch beside the augmented one (or nothing
# but the clean batch). `rows`: other rows are trained on. A row that is not
# listed says nothing of the kind and shares all of it with its neighbours. A tuned row says what its row
# says, and that it was `tuned`.
SAYS = {
    "none": {"alone"},
    "none-train+val": {"alone", "rows"},
    "upstream": {"alone"},  # but see `adds_images`
    "train+val": {"rows"},
    "l2rw": {"alone"},  # it weighs every row it trains on
    "val-only": {"alone", "rows"},
    "val-only+aug": {"rows"},
    # Methods that the paper compares with, as their authors train them.
    "soft-augmentation": {"alone", "weights"},  # the visible share, which does not sum to 1
    "lp-a3": {"alone"},
    "lp-a3-0.02": {"alone"},
    "zero-shot": {"alone"},
    "lp-ft": {"alone"},
    "flyp": {"alone"},
    "flyp-ties-shared": {"alone"},
}
SEARCHED = {"lr", "weight_decay"}  # of the recipe, in tuned rows
# RandAugment drawn before the run, for frozen trunks: fixed, but in place of the training images.
VIEWS = "randaugment-views"
SUITES = suites.names()


def says(spec: RunSpec) -> set[str]:
    """What the run's row says; where images are added to the training set, `upstream` is both."""
    row = spec.row.removesuffix("-tuned")
    found = {"tuned"} if row != spec.row else set()
    found |= set(SAYS.get(row, {"alone"} if row.endswith("-aug-only") else ()))
    if row == "upstream" and adds_images(spec):
        found -= {"alone"}
    return found


def adds_images(spec: RunSpec) -> bool:
    """Whether the upstream adds images to the training set, rather than changing those it has."""
    upstream = spec.settings.upstream
    kind = registry.load("upstream", upstream.name)
    return issubclass(kind, FixedSet) and upstream.settings.get("images") != VIEWS


def space_of(spec: RunSpec) -> dict[str, tuple]:
    return tuning.SPACES[spec.settings.refiner.name]


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
        fixed = [s for s in cell if not (says(s) >= {"tuned"} and "clean_share" in space_of(s))]
        shares = {s.name: s.settings.clean_share for s in fixed if "alone" not in says(s)}
        if shares:
            one(shares, "share of the clean batch")
            assert 0 < next(iter(shares.values())) < 1
        for spec in fixed:
            assert ("alone" in says(spec)) == (spec.settings.clean_share == 0), spec.name


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
        one({s.name: s.settings.recipe for s in cell if "tuned" not in says(s)}, "recipe")
        one({s.name: s.settings.recipe.model_dump(exclude=SEARCHED) for s in cell}, "recipe")
        for what in ("dataset", "model"):
            one({s.name: getattr(s.settings, what) for s in cell}, what)
        one({s.name: (s.metric, s.settings.replicas) for s in cell}, "metric")
        for spec in cell:
            assert (spec.settings.train_on != "train") == ("rows" in says(spec)), spec.name
    for cell in cells(name, "upstream"):
        one({s.name: s.settings.upstream for s in cell}, "upstream")


# Small models of the kind, and small data for each: one and a half batches of training and validation rows.
BATCH, EPOCHS = 16, 2
ROWS = 3 * BATCH // 2
SMALL_MLP = Component(name="mlp", settings={"hidden": (16,)})
SMALL_SAINT = Component(name="saint", settings={"dim": 8, "heads": 2})
SMALL_CNN = Component(name="resnet-small", settings={"widths": (8, 8, 16, 16)})
SMALL_CLIP = Component(
    name="clip-tiny", settings={"width": 32, "layers": 1, "patch": 7, "pretraining_epochs": 0}
)
MODELS = dict.fromkeys(("resnet-small", "resnet18-28", "resnet50-imagenet"), SMALL_CNN)
MODELS |= {model.name: model for model in (SMALL_MLP, SMALL_SAINT)}
MODELS |= dict.fromkeys(("clip-tiny", "clip-vit-b16"), SMALL_CLIP)


@cache
def small(model: str):
    """Data of a model's kind, and a fixed set of images beside."""
    kinds = {SMALL_CNN.name: partial(stripes, side=8), SMALL_CLIP.name: squares}
    data = kinds.get(model, blobs)(rows=ROWS)
    x, y = data.validation.x, data.validation.y
    fixed = Split(x.flip(0), y.flip(0))
    return replace(
        data, validation=Split(x[:ROWS], y[:ROWS]), extra=fixed, mirrors=data.kind == "image"
    )


@dataclass
class Step:
    """What a step trained on and drew; `left_alone`: the refiner drew from no stream but its own."""

    rows: list[int]
    augmented: tuple
    labels: torch.Tensor
    weights: torch.Tensor
    streams: dict[str, bytes]
    left_alone: bool


def own_head(model) -> set[str]:
    """Parameters that LP-FT, by its name, gives an image-text model."""
    return {"head.weight", "head.bias"} if hasattr(model, "pair_logits") else set()


class Watched(Training):
    """The loop, with every step noted and nothing measured."""

    def __init__(self, spec: RunSpec, data):
        super().__init__(spec, data)
        self.noted: list[Step] = []
        self.start = (
            {name: g.get_state().tolist() for name, g in self.generators.items()},
            {
                n: p.tolist()
                for n, p in self.model.named_parameters()
                if n not in own_head(self.model)
            },
        )
        call = type(self.refiner).__call__
        self.refiner.__class__ = type(
            "Watched", (type(self.refiner),), {"__call__": self.refine(call)}
        )

    def refine(self, call):
        def watched(refiner, augmented):
            before = self.streams(without=("validation", "captions"))
            refined = call(refiner, augmented)
            self.left_alone = self.streams(without=("validation", "captions")) == before
            return refined

        return watched

    def streams(self, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
        found = {n: g.get_state() for n, g in self.generators.items() if n not in without}
        found["torch"] = torch.get_rng_state()
        return {name: state.numpy().tobytes() for name, state in found.items()}

    def step(self, index):
        super().step(index)
        augmented, refined = self.seen
        inputs = augmented.x if isinstance(augmented.x, tuple) else (augmented.x,)
        shown = (*inputs, augmented.y, augmented.visibility, augmented.index)
        shown = tuple(part.nan_to_num(9).tolist() for part in shown if part is not None)
        streams = self.streams()
        self.noted.append(
            Step(index.tolist(), shown, refined.y, refined.w, streams, self.left_alone)
        )

    def evaluate(self):
        """Nothing is measured here."""


def watched(spec: RunSpec) -> Watched:
    """Run a planned run's row, with its upstream, refiner and recipe, on small data of its kind."""
    settings = spec.settings
    changes = {"epochs": EPOCHS, "evaluate_every": EPOCHS, "batch_size": BATCH}
    upstream = settings.upstream
    if upstream.name == "generated":  # its class, on a set that needs no files
        upstream = Component(name="extra-real")
    settings = settings.model_copy(
        update={
            "dataset": Component(name="small"),
            "model": MODELS[settings.model.name],
            "upstream": upstream,
            "recipe": settings.recipe.model_copy(update=changes),
        }
    )
    return _watched(settings.model_dump_json())


@cache
def _watched(settings: str) -> Watched:
    settings = Settings.model_validate_json(settings)
    spec = RunSpec(
        suite="test", table="test", dataset="small", backbone="small", upstream="small", row="row",
        seed=0, metric="accuracy", settings=settings,
    )  # fmt: skip
    training = Watched(spec, small(settings.model.name))
    training.run()
    return training


def runs_of(cell: list[RunSpec]) -> dict[str, tuple[RunSpec, Watched]]:
    """The first run of each row that trains, watched."""
    found = {s.bundle: (s, watched(s)) for s in cell if s.seed == 0}
    return {bundle: (s, run) for bundle, (s, run) in found.items() if run.refiner.trains}


@pytest.mark.parametrize("name", SUITES)
def test_rows_of_a_cell_take_the_same_steps_on_the_same_rows_in_the_same_order(name):
    for cell in cells(name):
        runs = runs_of(cell)
        sizes = {b: [len(step.rows) for step in run.noted] for b, (_, run) in runs.items()}
        one(sizes, "batch sizes")
        assert next(iter(sizes.values())) == [BATCH, BATCH // 2] * EPOCHS
        one({b: run.start for b, (_, run) in runs.items()}, "streams and first weights")
        own = {
            b: [step.rows for step in run.noted]
            for b, (spec, run) in runs.items()
            if "rows" not in says(spec)
        }
        one(own, "order")


@pytest.mark.parametrize("name", SUITES)
def test_rows_of_an_upstream_see_the_same_augmented_batches_and_draw_the_same(name):
    for cell in cells(name, "upstream"):
        runs = runs_of(cell)
        own = {b: run for b, (spec, run) in runs.items() if "rows" not in says(spec)}
        one({b: [s.augmented for s in run.noted] for b, run in own.items()}, "augmented batches")
        for stream in {*next(iter(runs.values()))[1].generators} - {"validation", "captions"}:
            drawn = {b: [s.streams[stream] for s in run.noted] for b, (_, run) in runs.items()}
            one(drawn, f"stream {stream}")
        # Dropout draws for each row of the batch: for the clean ones too, where there are some.
        for mixed in (False, True):
            drawn = {
                b: [s.streams["torch"] for s in run.noted]
                for b, (spec, run) in runs.items()
                if (spec.settings.clean_share > 0) == mixed
            }
            if drawn:
                one(drawn, "stream of dropout")


@pytest.mark.parametrize("name", SUITES)
def test_a_refiner_gives_labels_and_weights_to_the_whole_batch_and_draws_from_its_own_stream(name):
    for cell in cells(name):
        for bundle, (spec, run) in runs_of(cell).items():
            for step in run.noted:
                assert len(step.labels) == len(step.weights) == len(step.augmented[-2]), bundle
                total = float(step.weights.sum())
                if "weights" not in says(spec) and total != 0:  # 0: no sample helps
                    assert total == pytest.approx(1, abs=1e-4), bundle
                torch.testing.assert_close(
                    step.labels.sum(-1), torch.ones(len(step.labels)), check_dtype=False
                )
                assert step.left_alone, bundle


@pytest.mark.parametrize("name", SUITES)
def test_rows_that_train_on_other_rows_use_all_of_them(name):
    for spec in planned(name):
        if "rows" in says(spec) and spec.seed == 0:
            run = watched(spec)
            validation, train = len(run.data.validation), ROWS
            rows = {"validation": validation, "train+validation": train + validation}
            used = {row for step in run.noted for row in step.rows}
            assert used == set(range(rows[spec.settings.train_on])), spec.name
