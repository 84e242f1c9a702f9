"""No input decides a test row that training did not train: unseen levels, rare levels, missing values."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from fabricate import tabular as fabricate
from small_runs import spec
from torch import Tensor, nn

from benchmarks import registry
from benchmarks.data import Data, Split
from benchmarks.models.saint import Tokens
from benchmarks.models.tabular import LevelEmbedding, TabularInput
from benchmarks.running.stacked import Stack
from benchmarks.spec import Component
from benchmarks.tasks import Classification
from benchmarks.train import Training

TABULAR = sorted(
    name
    for name, module in registry.modules("datasets").items()
    if hasattr(import_module(module), "raw")
)
MODELS = {
    "mlp": {"hidden": (32,), "dropout": 0.0},
    "saint": {"dim": 4, "heads": 2, "dropout": 0.0},
}
# Shares of the rare levels that become unknown: in some epoch each is shown, in some other it is not.
SHARES = (0.0, 1.0)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs_used(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Which vectors of the input layer an input reads: those that its outputs have a gradient in.

    They are the rows of embedding tables, the masks and perceptrons of columns and the CLS token;
    and in the MLP the first layer's weights of each input, missing-value indicators among them.
    """
    model.zero_grad()
    outputs = model(x)
    (outputs * torch.randn(outputs.shape, generator=stream(1))).sum().backward()
    return with_gradient(model)


def with_gradient(model: nn.Module) -> dict[str, Tensor]:
    """Which vectors of the input layer have a gradient that is not 0."""
    used = {}
    for owner in model.modules():
        if isinstance(owner, TabularInput | Tokens):
            for name, parameter in owner.named_parameters():
                used[name] = (
                    parameter.grad.flatten(1).any(1) if parameter.grad is not None else None
                )
    if isinstance(model[0] if isinstance(model, nn.Sequential) else None, TabularInput):
        used["first layer"] = model[1].weight.grad.any(0)
    return {name: flags for name, flags in used.items() if flags is not None}


def untrained(data: Data, name: str, *, limit: int = 2000) -> list[str]:
    """Vectors that held-out rows read and no training row does, in however many epochs."""
    torch.manual_seed(0)
    model = registry.load("models", name)(data, **MODELS[name])
    generator, trained = stream(), {}
    for share in SHARES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("benchmarks.data.UNKNOWN_SHARE", share)
            shown = data.in_training(data.train.x, generator)
        for x in shown.split(limit):
            for key, flags in inputs_used(model, x).items():
                trained[key] = trained.get(key, flags) | flags
    found: set[str] = set()
    for split in (data.validation, data.test):
        for x in split.x.split(limit):
            for key, flags in inputs_used(model, x).items():
                lost = flags & ~trained[key]
                found |= {f"{key}[{row}]" for row in lost.nonzero().flatten().tolist()}
    return sorted(found)


def unmoved(name: str, **changes) -> list[str]:
    """Vectors that test rows read and that the training loop leaves as they were."""
    codes = torch.tensor(
        [*range(1, 25), *[25] * 24]
    ).float()  # half of the rows hold a level of their own
    values = torch.randn(48, generator=stream())
    train = Split(torch.stack([codes, values], 1), torch.arange(48) % 2)
    train.x[::5, 1] = torch.nan
    held_out = Split(torch.tensor([[0.0, torch.nan], [25, 0.5], [0, 1]]), torch.tensor([0, 1, 0]))
    data = Data(
        name="loop", train=train, validation=held_out, test=held_out, num_classes=2, kind="tabular",
        categories=(26, 0),
    )  # fmt: skip
    # Without weight decay, which moves what has no gradient too.
    run = spec(optimizer="adam", weight_decay=0.0, batch_size=16, epochs=4, **changes)
    model = Component(name=name, settings=MODELS[name])
    settings = run.settings.model_copy(update={"model": model})
    training = Training(run.model_copy(update={"settings": settings}), data)
    before = deepcopy(training.model)
    read = inputs_used(before, held_out.x)
    training.run()
    for old, new in zip(before.parameters(), training.model.parameters(), strict=True):
        old.grad = new.detach() - old.detach()
    moved = with_gradient(before)
    lost = {key: flags & ~moved[key] for key, flags in read.items()}
    return [
        f"{key}[{row}]" for key, rows in lost.items() for row in rows.nonzero().flatten().tolist()
    ]


def column(train: list[int], *, levels: int, test: list[int] | None = None) -> Data:
    """One categorical column with these codes, two classes in turn."""

    def split(codes: list[int]) -> Split:
        return Split(torch.tensor(codes).float()[:, None], torch.arange(len(codes)) % 2)

    held_out = split(test or [0, 1])
    return Data(
        name="column", train=split(train), validation=held_out, test=held_out, num_classes=2,
        kind="tabular", categories=(levels,),
    )  # fmt: skip


class TestEveryLoader:
    @pytest.fixture(params=TABULAR)
    def name(self, request, monkeypatch, tmp_path):
        (tmp_path / "data").mkdir()
        monkeypatch.setenv("SAFLEX_DATA", str(tmp_path / "data"))
        monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
        fabricate.install(monkeypatch, tmp_path / "data", request.param)
        return request.param

    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("limit", [None, 60])
    def test_what_a_test_row_reads_was_trained(self, name, model, limit):
        data = registry.load("datasets", name)(name, seed=0, limit=limit)
        assert untrained(data, model) == []

    @pytest.mark.parametrize("model", MODELS)
    def test_what_a_test_row_reads_was_trained_on_validation_rows_alone(self, name, model):
        data = registry.load("datasets", name)(name, seed=0).validation_only()
        assert untrained(data, model) == []

    def test_codes_of_training_rows_have_no_gap(self, name):
        data = registry.load("datasets", name)(name, seed=0, limit=60)
        for place, cardinality in enumerate(data.categories):
            if cardinality:
                assert data.train.x[:, place].unique().tolist() == list(range(1, cardinality))


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["appetency", "arrhythmia", "click", "credit", "kdd99", "qsar", "shrutime"]
)
def test_what_a_real_test_row_reads_was_trained(name):
    data = registry.load("datasets", name)(name, seed=0)
    assert untrained(data, "mlp", limit=100_000) == []


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit"), [("appetency", 4000), ("click", 4000), ("kdd99", 10000), ("shrutime", 1000)]
)
def test_what_a_real_test_row_reads_was_trained_in_saint_on_few_rows(name, limit):
    data = registry.load("datasets", name)(name, seed=0, limit=limit)
    fewer = replace(data, test=Split(data.test.x[:4000], data.test.y[:4000]))
    assert untrained(fewer, "saint", limit=500) == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "row", [{"upstream": "none", "clean_share": 0.0}, {}, {"refiner": "saflex"}], ids=str
)
def test_the_loop_itself_trains_what_a_test_row_reads(model, row):
    assert unmoved(model, **row) == []


class TestThisTestCanFail:
    @pytest.mark.parametrize("model", MODELS)
    def test_a_loop_that_shows_rows_as_they_are_leaves_the_unknown_where_it_was(
        self, model, monkeypatch
    ):
        monkeypatch.setattr(
            Classification, "rows", lambda self, split, index, streams: split.x[index]
        )
        assert unmoved(model, upstream="none", clean_share=0.0) == ["embeddings.0.weight[0]"]

    def test_without_rare_levels_turned_unknown_the_unknown_is_found_untrained(self, monkeypatch):
        data = column([1, 2, 2, 3, 3, 3], levels=4)
        assert untrained(data, "mlp") == []
        monkeypatch.setattr(Data, "in_training", lambda self, x, generator: x)
        assert untrained(data, "mlp") == ["embeddings.0.weight[0]"]

    def test_without_the_mean_the_unknown_is_found_untrained(self, monkeypatch):
        data = column([1, 1, 2, 2], levels=3)
        assert untrained(data, "saint") == []
        monkeypatch.setattr(Data, "averaged_levels", lambda self, column: 0)
        assert untrained(data, "saint") == ["embeddings.0.weight[0]"]


class TestRareLevels:
    def test_half_of_those_of_one_row_become_unknown_and_nothing_else_changes(self):
        data = column([1] * 50 + [2] * 2 + [*range(3, 2003)], levels=2003)
        x = data.train.x
        seen = data.in_training(x, stream())
        assert torch.equal(seen[:52], x[:52])
        assert (seen[52:] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
        kept = seen != 0
        assert torch.equal(seen[kept], x[kept])
        assert data.train.x[52:].min() == 3  # the data themselves are left alone

    def test_columns_are_drawn_one_by_one(self):
        x = torch.arange(1, 1001).float()[:, None].repeat(1, 2)
        part = Split(x, torch.arange(1000) % 2)
        data = Data(
            name="two", train=part, validation=part, test=part, num_classes=2, kind="tabular",
            categories=(1001, 1001),
        )  # fmt: skip
        unknown = data.in_training(x, stream()) == 0
        assert unknown.all(1).float().mean().item() == pytest.approx(0.25, abs=0.05)

    def test_what_is_drawn_depends_on_the_shape_alone(self):
        """So that the stream stays the same whatever rows a method shows."""
        data = column([1, 1, 2, 3, 4], levels=5)
        one, other = stream(), stream()
        data.in_training(data.train.x, one)
        data.in_training(torch.ones(5, 1), other)
        assert torch.equal(one.get_state(), other.get_state())

    def test_missing_continuous_values_and_images_pass(self):
        part = Split(
            torch.tensor([[1.0, torch.nan], [2.0, 0.5], [2.0, 1.0]]), torch.tensor([0, 1, 0])
        )
        data = Data(
            name="mixed", train=part, validation=part, test=part, num_classes=2, kind="tabular",
            categories=(3, 0),
        )  # fmt: skip
        seen = data.in_training(part.x, stream())
        torch.testing.assert_close(seen[:, 1], part.x[:, 1], rtol=0, atol=0, equal_nan=True)
        images = replace(data, kind="image", categories=())
        assert images.in_training(part.x, stream()) is part.x


class TestMean:
    def test_an_unknown_level_reads_the_mean_of_the_known_ones(self):
        data = column([1, 1, 2, 2, 3, 3], levels=4)
        table = LevelEmbedding(data, 0, 5)
        torch.testing.assert_close(table(torch.tensor([0, 2])), torch.stack(
            [table.weight[1:].mean(0), table.weight[2]]
        ))  # fmt: skip

    def test_its_gradient_moves_each_of_them_equally_and_not_row_0(self):
        table = LevelEmbedding(column([1, 1, 2, 2, 3, 3], levels=4), 0, 2)
        table(torch.tensor([0])).sum().backward()
        expected = torch.tensor([0.0, 1, 1, 1])[:, None].expand(4, 2) / 3
        torch.testing.assert_close(table.weight.grad, expected)

    def test_a_code_0_that_training_rows_hold_is_a_level_like_the_others(self):
        data = column([0, 0, 1, 1], levels=2)
        assert data.averaged_levels(0) == 0
        assert LevelEmbedding(data, 0, 2).averaged is None

    def test_stacked_models_of_different_tables_divide_by_their_own_levels(self):
        data = [column([*range(1, n), *range(1, n)], levels=n) for n in (7, 11)]
        models = [
            nn.Sequential(registry.load("models", "mlp")(one, hidden=(8,), dropout=0.0))
            for one in data
        ]
        with torch.no_grad():
            for model in models:
                table = model[0][0].embeddings[0]
                table.weight = nn.Parameter(table.weight[:, :3].clone())
                model[0][1] = nn.Linear(3, 8)
        x = torch.zeros(2, 4, 1)
        alone = torch.stack([model(part) for model, part in zip(models, x, strict=True)])
        torch.testing.assert_close(Stack(models)(x), alone)


class TestValidationRowsAlone:
    def test_levels_and_gaps_that_they_lack_are_unknown_and_mean(self):
        train = Split(torch.tensor([[1.0, torch.nan], [2, 0], [3, 1], [4, 2]]), torch.arange(4) % 2)
        validation = Split(torch.tensor([[4.0, 5], [2, 6], [0, 7]]), torch.tensor([0, 1, 0]))
        test = Split(torch.tensor([[4.0, torch.nan], [3, 1], [2, 2], [0, 3]]), torch.arange(4) % 2)
        data = Data(
            name="three", train=train, validation=validation, test=test, num_classes=2,
            kind="tabular", categories=(5, 0),
        ).validation_only()  # fmt: skip
        assert data.train is data.validation
        assert data.validation.x.tolist() == [[2, 5], [1, 6], [0, 7]]
        assert data.test.x.tolist() == [[2, 0], [0, 1], [1, 2], [0, 3]]
        assert data.categories == (5, 0)
        assert torch.equal(validation.x[:, 0], torch.tensor([4.0, 2, 0]))  # not in place
