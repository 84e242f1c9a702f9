"""What Pi promises happens: the validation loss falls by alpha * sum w (Pi . y), and no other choice
of labels and weights promises more (Equation 4)."""

import numpy as np
import pytest
import torch
from reference_models import MODELS, K, Single, Stack, inputs, mlp
from scipy.optimize import linprog

from saflex import (
    CrossEntropy,
    gradient_products,
    sample_weights,
    soft_cross_entropy,
    soft_labels,
    validation_gradient,
)


def refined(model, x, x_val, y_val):
    pi = gradient_products(model, x, validation_gradient(model, x_val, y_val))
    q = torch.nn.functional.one_hot(torch.arange(len(x)) % K, K).double()
    y = soft_labels(pi, q, tau=1.0, scale="batch-std")
    return pi, y, sample_weights(pi, y)


def loss_after_a_step(model, x, y, w, alpha, x_val, y_val) -> float:
    moved = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}

    def call(params, inputs_):
        return torch.func.functional_call(model, params, (inputs_,))

    grads = torch.autograd.grad(soft_cross_entropy(call(moved, x), y, w), list(moved.values()))
    stepped = {n: (p - alpha * g).detach() for (n, p), g in zip(moved.items(), grads, strict=True)}
    return torch.nn.functional.cross_entropy(call(stepped, x_val), y_val).item()


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_one_sgd_step_changes_the_validation_loss_as_predicted_to_second_order(kind):
    model = MODELS[kind]().eval()
    x, x_val, y_val = inputs(kind, 16), inputs(kind, 12), torch.arange(12) % K
    pi, y, w = refined(model, x, x_val, y_val)
    before = loss_after_a_step(model, x, y, w, 0.0, x_val, y_val)
    alphas = np.logspace(-3.5, -1.5, 9)
    predicted = (w * (pi * y).sum(-1)).sum().item()
    assert predicted > 0
    errors = [
        abs(loss_after_a_step(model, x, y, w, a, x_val, y_val) - before + a * predicted)
        for a in alphas
    ]
    slope = np.polyfit(np.log(alphas), np.log(errors), 1)[0]
    assert slope == pytest.approx(2, abs=0.1)
    # And the first-order term itself is there: at the smallest step it is the whole change.
    change = loss_after_a_step(model, x, y, w, alphas[0], x_val, y_val) - before
    assert change == pytest.approx(-alphas[0] * predicted, rel=1e-2)


def test_a_stack_loses_validation_loss_model_by_model():
    stack = Stack(3).double()
    x = torch.randn(3, 8, 5, dtype=torch.float64)
    xv, yv = torch.randn(3, 6, 5, dtype=torch.float64), torch.randint(0, K, (3, 6))
    pi = gradient_products(
        stack, x, validation_gradient(stack, xv, yv, loss=CrossEntropy(layout="stack"))
    )
    y = soft_labels(pi, torch.full_like(pi, 1 / K), tau=0)
    w = sample_weights(pi, y)
    predicted = (w * (pi * y).sum(-1)).sum(-1)
    for r in range(3):
        alone = Single(stack, r).double()
        args = (x[r], y[r], w[r])
        before = loss_after_a_step(alone, *args, 0.0, xv[r], yv[r])
        after = loss_after_a_step(alone, *args, 1e-4, xv[r], yv[r])
        assert before - after == pytest.approx(1e-4 * predicted[r].item(), rel=1e-2)


def box_objective(pi, y, w):
    """Equation 4's linear objective; w in the box [0, 1]^B, y in the simplex."""
    return (w * (pi * y).sum(-1)).sum(-1)


@pytest.fixture(scope="module")
def products():
    torch.manual_seed(3)
    model = mlp()
    g = validation_gradient(model, inputs("mlp", 10), torch.arange(10) % K)
    x = inputs("mlp", 8)
    # All three outputs: only the raw logits ever make rejecting a sample worth it.
    return {o: gradient_products(model, x, g, output=o) for o in ("log-probabilities", "logits")}


def derived_choice(pi):
    y = soft_labels(pi, torch.zeros_like(pi), tau=0)
    return y, ((pi * y).sum(-1) >= 0).to(pi)


@pytest.mark.parametrize("output", ["log-probabilities", "logits"])
def test_ten_thousand_random_choices_never_beat_the_derived_one(products, output):
    pi = products[output]
    best = box_objective(pi, *derived_choice(pi))
    generator = torch.Generator().manual_seed(1)
    # From uniform to nearly one-hot, and from blind to informed by Pi: rivals must be strong ones.
    noise = torch.randn(10_000, *pi.shape, generator=generator, dtype=pi.dtype)
    informed = torch.rand(10_000, 1, 1, generator=generator, dtype=pi.dtype) * 4 * pi / pi.std()
    sharpness = torch.rand(10_000, 1, 1, generator=generator, dtype=pi.dtype) * 10
    y = torch.softmax(sharpness * (noise + informed), -1)
    w = torch.rand(10_000, pi.shape[0], generator=generator, dtype=pi.dtype).sqrt()
    w[5_000:].round_()
    tried = box_objective(pi, y, w)
    assert tried.max() <= best + 1e-12
    assert tried.max() > 0.9 * best, "rivals too poor to be a test"


@pytest.mark.parametrize("output", ["log-probabilities", "logits"])
def test_a_linear_programming_solver_does_not_beat_the_derived_choice(products, output):
    # With u_ik = w_i y_ik the box-constrained problem is a linear programme: u >= 0, sum_k u <= 1.
    pi = products[output].numpy()
    batch, classes = pi.shape
    rows = np.kron(np.eye(batch), np.ones(classes))
    solved = linprog(-pi.ravel(), A_ub=rows, b_ub=np.ones(batch), bounds=(0, None))
    assert solved.status == 0
    ours = box_objective(products[output], *derived_choice(products[output])).item()
    assert ours == pytest.approx(-solved.fun, rel=1e-9)


def test_the_printed_weight_rule_is_beaten(products):
    # The same solver shows that Theorem 1's rule is not optimal for raw logits.
    pi = products["logits"]
    y, w = derived_choice(pi)
    theorem = (pi.sum(-1) >= 0).to(pi)
    assert not torch.equal(theorem, w)
    assert box_objective(pi, y, theorem) < box_objective(pi, y, w) - 1e-6
