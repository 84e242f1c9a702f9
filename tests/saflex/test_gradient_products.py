"""Pi is what K * B backward passes say it is (Notation 1), whichever estimator computes it."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_models import (
    FINITE_DIFFERENCE_ERROR,
    MODELS,
    OUTPUTS,
    ConvNet,
    K,
    Single,
    Stack,
    brute_force_products,
    convnet,
    inputs,
    mlp,
)
from scipy.stats import spearmanr
from torch import nn

from saflex import CrossEntropy, gradient_products, inner_products, validation_gradient
from saflex.contrastive import caption_rows, contrastive_cross_entropy
from saflex.structures import map_tensors


def direction(kind: str, model: nn.Module) -> dict:
    x = inputs(kind, 6)
    if kind == "two towers":
        rows = caption_rows(x[1], torch.float64)
        return validation_gradient(
            model, x, x[1], loss=lambda z, _: contrastive_cross_entropy(z, rows)
        )
    return validation_gradient(model, x, torch.arange(6) % K)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", MODELS)
def test_forward_mode_equals_one_backward_pass_per_label(kind, output):
    model = MODELS[kind]().train()
    g, x = direction(kind, model), inputs(kind, 5)
    expected = brute_force_products(model, x, g, output)
    assert expected.abs().max() > 1e-4, "an all-zero Pi would prove nothing"
    pi = gradient_products(model, x, g, output=output)
    torch.testing.assert_close(pi, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "two towers"])
def test_validation_gradient_is_autograd_of_the_mean_loss_in_evaluation_mode(kind):
    model = MODELS[kind]().train()
    x, y = inputs(kind, 6), torch.arange(6) % K
    found = validation_gradient(model, x, y)
    model.eval()
    wanted = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    for (name, g), expected in zip(found.items(), wanted, strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-10, atol=1e-12, msg=name)


@given(batch=st.integers(1, 6), rows=st.integers(1, 5), width=st.integers(1, 6))
def test_any_batch_and_width(batch, rows, width):
    model = mlp(width)
    g = validation_gradient(model, inputs("mlp", rows), torch.arange(rows) % K)
    x = inputs("mlp", batch)
    pi = gradient_products(model, x, g)
    assert pi.shape == (batch, K)
    expected = brute_force_products(model, x, g, "log-probabilities")
    torch.testing.assert_close(pi, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", FINITE_DIFFERENCE_ERROR)
@pytest.mark.parametrize("known_logits", [False, True])
def test_finite_differences_in_float32_agree_to_a_thousandth(kind, known_logits, record_property):
    family, bound = kind.split(",")[0], FINITE_DIFFERENCE_ERROR[kind][known_logits]
    make = (lambda: convnet(nn.SiLU)) if kind == "convnet, smooth" else MODELS[family]
    exact_model = make().eval()
    model = copy.deepcopy(exact_model).float()
    x = inputs(family, 48)
    g = direction(family, exact_model)
    exact = gradient_products(exact_model, x, g)
    x_single = map_tensors(x, in_float32)
    with torch.no_grad():
        logits = model(x_single) if known_logits else None
    approx = gradient_products(
        model,
        x_single,
        map_tensors(g, in_float32),
        estimator="finite-difference",
        logits=logits,
    ).double()
    error = ((approx - exact).norm() / exact.norm()).item()
    rank = spearmanr(approx.flatten(), exact.flatten()).statistic
    record_property("relative_error", float(error))
    record_property("rank_correlation", float(rank))
    print(f"{kind}, known logits {known_logits}: error {error:.1e}, rank correlation {rank:.6f}")
    assert error < bound
    assert rank > 0.999


def in_float32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def test_last_layer_equals_brute_force_over_the_classifier_alone():
    model = convnet()
    x, y = inputs("convnet", 6), torch.arange(6) % K
    whole = validation_gradient(model, x, y)
    head = {name: whole[name] for name in ("head.weight", "head.bias")}
    pi = gradient_products(model, x, whole, estimator="last-layer")
    expected = brute_force_products(model, x, head, "log-probabilities")
    torch.testing.assert_close(pi, expected, rtol=1e-8, atol=1e-10)
    named = gradient_products(model, x, head, estimator="last-layer", classifier="head")
    torch.testing.assert_close(named, expected, rtol=1e-8, atol=1e-10)


def test_last_layer_gradient_needs_no_backward_through_the_features():
    from saflex.estimators.last_layer import classifier_gradient, classifier_name

    model = convnet()
    x, y = inputs("convnet", 6), torch.arange(6) % K
    assert classifier_name(model, x) == "head"
    whole, alone = (
        validation_gradient(model, x, y),
        classifier_gradient(model, x, y, classifier="head"),
    )
    assert list(alone) == ["head.weight", "head.bias"]
    for name, g in alone.items():
        torch.testing.assert_close(g, whole[name], rtol=1e-10, atol=1e-12)


def test_last_layer_of_another_type_than_linear():
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(K, 4, 2))

        def forward(self, h):
            return torch.einsum("bi,kij,bj->bk", h, self.weight, h[:, :2])

    model = ConvNet().double()
    model.head = Bilinear().double()
    x, y = inputs("convnet", 5), torch.arange(5) % K
    whole = validation_gradient(model, x, y)
    pi = gradient_products(model, x, whole, estimator="last-layer")
    expected = brute_force_products(
        model, x, {"head.weight": whole["head.weight"]}, "log-probabilities"
    )
    torch.testing.assert_close(pi, expected, rtol=1e-8, atol=1e-10)


@given(replicas=st.integers(1, 3), batch=st.integers(1, 4), rows=st.integers(1, 4))
def test_a_stack_of_models_gives_each_model_its_own_pi(replicas, batch, rows):
    stack = Stack(replicas).double()
    x = torch.randn(replicas, batch, 5, dtype=torch.float64)
    xv = torch.randn(replicas, rows, 5, dtype=torch.float64)
    yv = torch.randint(0, K, (replicas, rows))
    loss = CrossEntropy(layout="stack")
    together = gradient_products(stack, x, validation_gradient(stack, xv, yv, loss=loss))
    assert together.shape == (replicas, batch, K)
    for r in range(replicas):
        alone = Single(stack, r).double()
        own = gradient_products(alone, x[r], validation_gradient(alone, xv[r], yv[r]))
        torch.testing.assert_close(together[r], own, rtol=1e-8, atol=1e-10)


@given(st.integers(1, 5), st.integers(2, 6), st.sampled_from(sorted(OUTPUTS)))
def test_the_three_outputs_are_directional_derivatives_of_three_functions(batch, classes, output):
    z = torch.randn(batch, classes, dtype=torch.float64)
    dz = torch.randn(batch, classes, dtype=torch.float64)
    _, slope = torch.func.jvp(OUTPUTS[output], (z,), (dz,))
    torch.testing.assert_close(inner_products(z, dz, output=output), -slope)
