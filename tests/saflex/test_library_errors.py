"""Bad input is answered with a typed error that says what to do."""

import warnings

import pytest
import torch
from reference_models import K, convnet, inputs, mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from saflex import (
    Batch,
    Mixture,
    Saflex,
    SaflexError,
    SaflexSettings,
    gradient_products,
    sample_weights,
    soft_cross_entropy,
    soft_labels,
    validation_gradient,
)
from saflex import errors as e

X, Y = inputs("mlp", 6), torch.arange(6) % K


def refiner(model=None, **kwargs):
    return Saflex(model or mlp(), validation=kwargs.pop("validation", (X, Y)), **kwargs)


@pytest.mark.parametrize(
    ("labels", "error", "says"),
    [
        (torch.tensor([0, 1, 2, 3, 4, 0]), e.LabelError, "0 to 3"),
        (torch.tensor([0, 1, 2, 3, -100, 0]), e.LabelError, "-100"),
        (torch.full((6, K), 0.3), e.LabelError, "row sum"),
        (torch.tensor([[2.0, -1.0, 0, 0]]).expand(6, K), e.LabelError, "smallest entry"),
        (torch.full((6, K), float("nan")), e.LabelError, "row sum"),
        (torch.full((6, 3), 1 / 3), e.ShapeError, r"must have shape \(6, 4\)"),
        (torch.rand(6), e.ShapeError, "y.long"),
        (torch.arange(5) % K, e.ShapeError, "one label"),
    ],
)
def test_labels(labels, error, says):
    with pytest.raises(error, match=says):
        refiner()(X, labels)


def test_labels_of_the_validation_batch_are_checked_too():
    with pytest.raises(e.LabelError, match="0 to 3"):
        validation_gradient(mlp(), X, Y + 1)
    with pytest.raises(e.ShapeError, match="another width"):
        validation_gradient(mlp(), X, torch.full((6, 3), 1 / 3))


@pytest.mark.parametrize(
    "validation",
    [
        (X[:0], Y[:0]),
        [],
        iter([]),
        DataLoader(TensorDataset(X, Y), batch_size=7, drop_last=True),
        lambda: (X[:0], Y[:0]),
    ],
)
def test_empty_validation(validation):
    with pytest.raises(e.EmptyValidationError, match=r"hold some|yields nothing"):
        refiner(validation=validation)(X, Y)
    with pytest.raises(e.EmptyValidationError):
        Mixture()


def test_a_generator_that_ran_dry_says_so():
    refine = refiner(validation=((X, Y) for _ in range(2)))
    refine(X, Y), refine(X, Y)
    with pytest.raises(e.EmptyValidationError, match="only be read once"):
        refine(X, Y)


@pytest.mark.parametrize(
    ("validation", "says"),
    [(3, "expected a DataLoader"), ([X], "x, y"), ([(X, Y, Y)], "3 items"), (lambda: X, "x, y")],
)
def test_strange_validation(validation, says):
    with pytest.raises(e.SettingError, match=says):
        refiner(validation=validation)(X, Y)


def test_validation_rows_must_match():
    with pytest.raises(e.ShapeError, match="rows"):
        refiner(validation=(X, Y[:4]))
    with pytest.raises(e.SettingError, match="Set the batch size where"):
        refiner(validation=[(X, Y)], validation_batch=2)


def test_no_trainable_parameters():
    for model in (mlp().requires_grad_(False), nn.Flatten()):
        with pytest.raises(e.NoTrainableParametersError, match="Unfreeze"):
            refiner(model)
        with pytest.raises(e.NoTrainableParametersError):
            validation_gradient(model, X, Y)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"beta": -1}, r"beta=-1 is out of range: expected \[0"),
        ({"tau": -0.1}, "tau=-0.1 is out of range"),
        ({"tau": float("nan")}, "finite number"),
        ({"tau": "0.1"}, "finite number"),
        ({"eps": 1.5}, r"\[0, 1\]"),
        ({"ema": 1.0}, r"\[0, 1\)"),
        ({"scale": "std"}, "batch-std"),
        ({"scale": 0.0}, r"\(0"),
        ({"refresh_every": 0}, ">= 1"),
        ({"validation_batch": 0}, ">= 1"),
        ({"rule": "algorithm1"}, "Did you mean 'algorithm-1'"),
        ({"estimator": "finite-differences"}, "Did you mean 'finite-difference'"),
        ({"temperature": 1}, "Known: beta, tau"),
        ({"taus": 1}, "Did you mean 'tau'"),
        ({"gumbel": 1, "prior": "label"}, "True or False"),
        ({"gumbel": True}, "prior='label'"),
        ({"scale": "cosine", "output": "logits"}, "log-probabilities"),
        ({"classifier": "head"}, "last-layer"),
        ({"precondition": True}, "optimizer=optimizer"),
        ({"precondition": "adam"}, "True or False"),
        ({"optimizer": "adam"}, "expected the torch.optim.Optimizer"),
    ],
)
def test_settings(settings, says):
    with pytest.raises(e.SettingError, match=says):
        refiner(**settings)
    if not {"precondition", "optimizer"} & set(settings):
        with pytest.raises(e.SettingError, match=says):
            SaflexSettings.from_mapping(settings)


def test_functions_check_too():
    pi = torch.zeros(3, K)
    with pytest.raises(e.SettingError, match="beta"):
        soft_labels(pi, pi, beta=-1)
    with pytest.raises(e.ShapeError, match="y_upstream"):
        soft_labels(pi, pi[:2])
    with pytest.raises(e.SettingError, match="probabilities"):
        soft_labels(pi, pi, prior="entropic")
    with pytest.raises(e.SettingError, match="rule"):
        sample_weights(pi, pi, rule="soft-ish")
    with pytest.raises(e.ShapeError):
        sample_weights(pi, pi[:2])
    with pytest.raises(e.ShapeError, match=r"Batch\.uniform"):
        soft_cross_entropy(pi, torch.zeros(3))
    with pytest.raises(e.ShapeError, match="w has shape"):
        soft_cross_entropy(pi, pi, torch.zeros(2))
    with pytest.raises(e.ShapeError, match="num_classes"):
        Batch.uniform(pi, torch.zeros(3, dtype=torch.long))
    with pytest.raises(e.SettingError, match="output"):
        gradient_products(mlp(), X, validation_gradient(mlp(), X, Y), output="softmax")
    with pytest.raises(e.SettingError, match="not among"):
        validation_gradient(mlp(), X, Y, parameters=["9.weight"])


def test_a_tangent_of_another_model():
    tangent = validation_gradient(mlp(), X, Y)
    with pytest.raises(e.SettingError, match="lacks"):
        gradient_products(convnet(), inputs("convnet", 2), tangent)
    with pytest.raises(e.ShapeError, match="tangent of"):
        gradient_products(mlp(9), X, tangent)


def test_non_finite_gradient():
    bad = X.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(e.NonFiniteGradientError, match="not finite in 4 of 4"):
        validation_gradient(mlp(), bad, Y)
    with pytest.raises(e.NonFiniteGradientError, match="lower the learning rate"):
        refiner(validation=(bad, Y))(X, Y)


def test_models_without_logits():
    class Features(nn.Linear):
        def forward(self, x):
            return {"features": super().forward(x)}

    with pytest.raises(e.ShapeError, match=r"dict with \['features'\], expected logits"):
        refiner(Features(5, K).double())(X, Y)
    with pytest.raises(e.ShapeError, match="two outputs"):
        refiner(nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)).double())(X, Y)


def test_estimators_name_an_alternative():
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, K)

        def forward(self, x):
            return Opaque.apply(self.layer(x))

    model = Model().double()
    with pytest.raises(e.EstimatorError, match="finite-difference"):
        refiner(model)(X, Y)
    with pytest.raises(e.EstimatorError, match="not that of its last layer"):
        refiner(model, estimator="last-layer")(X, Y)
    with pytest.raises(e.EstimatorError, match="something happens after it"):
        refiner(model, estimator="last-layer", classifier="layer")(X, Y)
    with pytest.raises(e.EstimatorError, match="not a submodule"):
        refiner(model, estimator="last-layer", classifier="head")(X, Y)
    assert refiner(model, estimator="finite-difference")(X, Y).y.shape == (6, K)


def test_lazy_parameters_are_named():
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyLinear(K)).double()
    with pytest.raises(e.SettingError, match=r"without a shape \(0.weight\): call it once"):
        refiner(model)
    model(X)
    assert refiner(model)(X, Y).y.shape == (6, K)


def test_one_output_is_no_classification():
    # Labels of zeros fit one class, so that nothing else would be amiss.
    zeros = torch.zeros_like(Y)
    with pytest.raises(e.ShapeError, match=r"\(6, 1\), of one class.*two outputs"):
        refiner(nn.Linear(5, 1).double(), validation=(X, zeros))(X, zeros)


def test_a_sparse_layout_without_tangents_is_named():
    class Smoothed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.graph = nn.Linear(5, K), torch.eye(6).double().to_sparse_csr()

        def forward(self, x):
            return self.graph @ self.layer(x)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse", UserWarning)
        model = Smoothed().double()
    with pytest.raises(e.EstimatorError, match="estimator='finite-difference'"):
        refiner(model)(X, Y)
    assert refiner(model, estimator="finite-difference")(X, Y).y.shape == (6, K)


@pytest.mark.parametrize("validation", [(X, Y), TensorDataset(X, Y), lambda: (X, Y)])
def test_the_default_device_is_nobodys_business(validation):
    settings = {} if callable(validation) else {"validation_batch": 4}
    model = mlp()
    expected = refiner(model, validation=validation, check="never", **settings)(X, Y)
    with torch.device("meta"):
        refine = refiner(model, validation=validation, check="never", **settings)
        batch = refine(X, Y)
        refine.load_state_dict(refine.state_dict())
        assert "Saflex after 1 refined batches" in refine.report()
    assert torch.equal(batch.y, expected.y)


def test_every_error_is_ours():
    kinds = [getattr(e, name) for name in e.__all__]
    assert all(issubclass(kind, SaflexError) for kind in kinds)
