"""SAINT in the benchmark: estimators of Pi, rows that see each other, columns of every kind."""

from __future__ import annotations

import copy

import pytest
import torch
from fabricate import tabular as fabricate
from small_runs import blobs, spec

from benchmarks import registry
from benchmarks.data import Data, Split
from benchmarks.metrics import shuffled_order
from benchmarks.models.saint import build_saint
from benchmarks.spec import Component
from benchmarks.train import Training
from saflex import gradient_products, soft_cross_entropy, validation_gradient

KINDS = ("mlp", "saint")


def small(data: Data, **settings) -> torch.nn.Module:
    return build_saint(data, dim=4, heads=2, **settings)


def with_model(run, name: str):
    """The same run with another, small, backbone."""
    settings = {"saint": {"dim": 4, "heads": 2, "evaluation_batch": 32}}.get(name, {})
    model = Component(name=name, settings=settings)
    return run.model_copy(update={"settings": run.settings.model_copy(update={"model": model})})


def built(data: Data, name: str) -> torch.nn.Module:
    return registry.load("models", name)(data)


class TestEstimators:
    @pytest.fixture
    def problem(self):
        torch.manual_seed(0)
        data = blobs()
        model = small(data).double().eval()
        g = validation_gradient(model, data.validation.x.double(), data.validation.y)
        return model, data.train.x[:20].double(), g

    def test_forward_mode_is_the_derivative_of_each_log_probability(self, problem):
        """Against reverse mode, one logit at a time."""
        model, x, g = problem
        pi = gradient_products(model, x, g, estimator="forward-mode")
        log_p = torch.log_softmax(model(x), -1)
        for i, k in ((0, 0), (7, 2), (19, 1)):
            grads = torch.autograd.grad(
                log_p[i, k], [dict(model.named_parameters())[n] for n in g],
                retain_graph=True, allow_unused=True,
            )  # fmt: skip
            expected = -sum(
                (v * d).sum() for v, d in zip(g.values(), grads, strict=True) if d is not None
            )
            torch.testing.assert_close(pi[i, k], expected, rtol=1e-9, atol=1e-12)

    def test_finite_difference_agrees(self, problem):
        model, x, g = problem
        exact = gradient_products(model, x, g, estimator="forward-mode")
        near = gradient_products(model, x, g, estimator="finite-difference", fd_step=1e-7)
        assert (near - exact).abs().max() < 1e-4 * exact.abs().max()

    def test_last_layer_is_forward_mode_with_the_rest_of_the_gradient_at_0(self, problem):
        model, x, g = problem
        last = gradient_products(model, x, g, estimator="last-layer", classifier="head.2")
        only = {n: v if n.startswith("head.2.") else torch.zeros_like(v) for n, v in g.items()}
        exact = gradient_products(model, x, only, estimator="forward-mode")
        torch.testing.assert_close(last, exact, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            gradient_products(model, x, g, estimator="last-layer"), last, rtol=0, atol=0
        )

    def test_pi_is_the_fall_of_the_validation_loss_per_step(self, problem):
        """Exact for SAINT too: batch mates are part of the function that is differentiated."""
        model, x, g = problem
        label = torch.arange(len(x)) % 3
        gain = gradient_products(model, x, g)[range(len(x)), label].mean()
        params = dict(model.named_parameters())
        log_p = torch.log_softmax(model(x), -1)
        loss = -log_p[range(len(x)), label].mean()
        own = torch.autograd.grad(loss, [params[n] for n in g], allow_unused=True)
        inner = sum((v * d).sum() for v, d in zip(g.values(), own, strict=True) if d is not None)
        torch.testing.assert_close(gain, inner, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("estimator", ["forward-mode", "finite-difference", "last-layer"])
    def test_a_saflex_run_with_each(self, estimator):
        run = with_model(
            spec(refiner="saflex", settings={"estimator": estimator}, epochs=1), "saint"
        )
        training = Training(run, blobs())
        training.run()
        assert training.last["val/nll"] < 5


class TestRowAttention:
    def test_a_prediction_depends_on_its_batch_mates_and_not_on_their_order(self):
        torch.manual_seed(0)
        data = blobs()
        model = small(data).eval()
        x = data.test.x[:12]
        together, alone = model(x), model(x[:6])
        assert not torch.allclose(together[:6], alone, atol=1e-4)
        order = torch.randperm(12)
        torch.testing.assert_close(model(x[order]), together[order], rtol=1e-4, atol=1e-5)

    def test_a_split_is_evaluated_shuffled_in_batches_of_the_recipe(self):
        training = Training(with_model(spec(), "saint"), blobs())
        logits = training.logits(training.data.test)  # 60 rows in batches of 32
        model, x = training.model, training.data.test.x
        assert (model.evaluation_batch, model.evaluation_order) == (32, "shuffled")
        expected, order = torch.empty(60, 3), shuffled_order(60)
        with torch.no_grad():
            for rows in order.split(32):
                expected[rows] = model(x[rows])
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)

    def test_a_split_sorted_by_class_meets_mixed_batches(self):
        """KDD99's order put one class into 86 % of the batches."""
        y = torch.arange(6400) // 3200
        assert sum(y[rows].unique().numel() == 1 for rows in torch.arange(6400).split(64)) == 100
        assert all(20 <= y[rows].sum() <= 44 for rows in shuffled_order(6400).split(64))

    def test_the_order_is_a_permutation_that_depends_on_the_number_of_rows_alone(self):
        torch.manual_seed(1)
        first = shuffled_order(500)
        torch.manual_seed(2)
        assert torch.equal(first, shuffled_order(500))
        assert torch.equal(first.sort().values, torch.arange(500))
        assert not torch.equal(first, torch.arange(500))

    def test_a_last_batch_of_one_row_is_fine(self):
        data = blobs()
        assert small(data).eval()(data.test.x[:1]).isfinite().all()

    def test_leading_dimensions_are_separate_batches(self):
        torch.manual_seed(0)
        data = blobs()
        model = small(data).eval()
        x = data.train.x[:24].unflatten(0, (2, 12))
        both = model(x)
        torch.testing.assert_close(both[0], model(x[0]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both[1], model(x[1]), rtol=1e-4, atol=1e-5)


class TestColumns:
    """Missing, unknown, constant: of the tabular contract, for both backbones."""

    @pytest.fixture(params=KINDS)
    def kind(self, request):
        torch.manual_seed(0)
        return request.param

    def test_missing_everywhere_constant_and_unknown(self, kind):
        data = blobs()
        for part in (data.train, data.validation, data.test):
            part.x[:, 2] = torch.nan
            part.x[:, 3] = 0.0
        data.test.x[:, 0] = 0  # unknown: no training row has it
        model = built(data, kind)
        logits = model(data.train.x[:32])
        soft_cross_entropy(logits, torch.eye(3)[data.train.y[:32]]).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        model.eval()
        assert model(data.test.x).isfinite().all()

    def test_missing_is_noticed_where_training_rows_have_it(self, kind):
        data = blobs()
        model = built(data, kind).eval()
        x = data.test.x[:8].nan_to_num(1.0)
        absent, mean = x.clone(), x.clone()
        absent[:, 1], mean[:, 1] = torch.nan, 0.0
        assert not torch.allclose(model(absent), model(mean), atol=1e-5)

    def test_missing_for_the_first_time_at_test_is_the_training_mean(self, kind):
        data = blobs()
        model = built(data, kind).eval()
        x = data.test.x[:8].nan_to_num(1.0)
        absent, mean = x.clone(), x.clone()
        absent[:, 4], mean[:, 4] = torch.nan, 0.0
        torch.testing.assert_close(model(absent), model(mean), rtol=0, atol=0)

    def test_a_column_of_thousands_of_levels(self, kind):
        data = blobs()
        many = 2932
        columns = (many, *data.categories[1:])
        data = Data(
            name="many", train=data.train, validation=data.validation, test=data.test,
            num_classes=3, kind="tabular", categories=columns,
        )  # fmt: skip
        for part in (data.train, data.validation, data.test):
            part.x[:, 0] = torch.randint(0, many, (len(part),)).float()
        data.test.x[0, 0] = many - 1
        assert built(data, kind).eval()(data.test.x).isfinite().all()

    def test_every_fabricated_set_trains_one_epoch(self, kind, monkeypatch, tmp_path):
        folder = tmp_path / "data"
        folder.mkdir()
        monkeypatch.setenv("SAFLEX_DATA", str(folder))
        monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
        for name in ("appetency", "click", "kdd99", "shrutime"):
            fabricate.install(monkeypatch, folder, name)
            data = registry.load("datasets", name)(name, seed=0)
            run = with_model(spec(refiner="saflex", dataset=name, epochs=1, batch_size=64), kind)
            training = Training(run, data)
            training.run()
            assert 0 <= training.last["test/accuracy"] <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "refiner", ["uniform", "saflex", "saflex-printed", "saflex-derived", "weights-only"]
)
def test_batches_of_one_class_only_train(kind, refiner):
    """0.17 % positives: most training batches and validation batches have none."""
    data = blobs(classes=2, rows=160)
    rare = {}
    for name, positives in (("train", 2), ("validation", 1), ("test", 1)):
        part = copy.copy(getattr(data, name))
        rare[name] = Split(part.x, torch.zeros_like(part.y))
        rare[name].y[:positives] = 1
    data = Data(name="rare", num_classes=2, kind="tabular", categories=data.categories, **rare)
    settings = {} if refiner == "uniform" else {"validation_batch": 16}
    run = spec(refiner=refiner, settings=settings, metric="auroc", epochs=2, batch_size=16)
    training = Training(with_model(run, kind), data)
    seen = []
    training.run(after_step=lambda t: seen.append(t.seen[0].y.unique().numel()))
    assert min(seen) == 1
    assert 0 <= training.last["test/auroc"] <= 1
    assert training.last["test/nll"] < 20


@pytest.mark.data
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["shrutime", "credit", "kdd99", "appetency"])
def test_real_columns(name, kind):
    """Surname's levels, KDD99's services, Appetency's gaps, Credit's rare positives: two steps."""
    data = registry.load("datasets", name)(name, seed=0)
    largest = {"shrutime": 2000, "kdd99": 60, "appetency": 100, "credit": 0}[name]
    assert max(data.categories) >= largest
    if name == "credit":
        assert 0.001 < data.train.y.float().mean() < 0.002
    run = with_model(spec(refiner="saflex", dataset=name, metric="auroc", batch_size=64), kind)
    training = Training(run, data)
    order = training.order()
    for start in (0, 64):
        training.step(order[start : start + 64])
    training.model.eval()
    for x in (data.test.x[:64], data.train.x[:64]):
        assert training.model(x).isfinite().all()
