"""The eight facts about the printed text (docs/method.md, Section 3), one test or more each."""

import pytest
import torch
from reference_models import K, convnet, inputs, mlp
from scipy.optimize import linprog
from scipy.stats import chisquare

from saflex import (
    Saflex,
    gradient_products,
    inner_products,
    sample_weights,
    soft_cross_entropy,
    soft_labels,
    validation_gradient,
)
from saflex.products import logit_derivatives

BATCH = 64


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(5)
    model = mlp(16).eval()
    # A vector common to all classes' weights changes no probability, but every raw logit.
    with torch.no_grad():
        model[-1].weight += 3 * torch.randn(16, dtype=torch.float64)
    x, x_val, y_val = inputs("mlp", BATCH), inputs("mlp", 32), torch.arange(32) % K
    g = validation_gradient(model, x_val, y_val)
    z, dz = logit_derivatives(model, x, g)
    pi = {
        o: inner_products(z, dz, output=o) for o in ("log-probabilities", "logits", "probabilities")
    }
    return {"model": model, "x": x, "val": (x_val, y_val), "z": z, "dz": dz, **pi}


def one_hot_best(pi):
    return soft_labels(pi, torch.zeros_like(pi), tau=0)


def validation_loss_change(case, y, w, alpha=1e-3) -> float:
    model, (x_val, y_val) = case["model"], case["val"]
    params = dict(model.named_parameters())
    loss = soft_cross_entropy(model(case["x"]), y, w)
    grads = torch.autograd.grad(loss, list(params.values()))
    moved = {n: p - alpha * g for (n, p), g in zip(params.items(), grads, strict=True)}
    logits = torch.func.functional_call(model, moved, (x_val,))
    loss_at = torch.nn.functional.cross_entropy
    return (loss_at(logits, y_val) - loss_at(model(x_val), y_val)).item()


# 1. Sign


def test_1_the_printed_sign_raises_the_validation_loss(case):
    uniform = torch.full((BATCH,), 1 / BATCH, dtype=torch.float64)
    # Equation 9 as printed, and for f = log-probabilities: +J_f g.
    for printed in (-case["probabilities"], -case["log-probabilities"]):
        assert validation_loss_change(case, one_hot_best(printed), uniform) > 0
    assert validation_loss_change(case, one_hot_best(case["log-probabilities"]), uniform) < 0


def test_1_the_presets_have_the_signs_they_say(case):
    for preset, raises in ((Saflex.printed, True), (Saflex.derived, False)):
        refine = preset(case["model"], validation=case["val"], gumbel=False)
        batch = refine(case["x"], torch.zeros(BATCH, dtype=torch.long))
        uniform = torch.full_like(batch.w, 1 / BATCH)
        assert (validation_loss_change(case, batch.y, uniform) > 0) == raises
        assert (refine.diagnostics()["gain"] < 0) == raises


# 2. Three readings of f


def test_2_logits_and_log_probabilities_differ_by_a_constant_per_sample(case):
    difference = case["logits"] - case["log-probabilities"]
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference))
    assert torch.equal(case["logits"].argmax(-1), case["log-probabilities"].argmax(-1))
    y = one_hot_best(case["logits"])
    by_logits = sample_weights(case["logits"], y) > 0
    by_log_probabilities = sample_weights(case["log-probabilities"], y) > 0
    assert not torch.equal(by_logits, by_log_probabilities)


def test_2_raw_softmax_chooses_other_labels(case):
    # It multiplies row entries by p_k: improbable labels cannot win however much they would help.
    other = case["probabilities"].argmax(-1) != case["log-probabilities"].argmax(-1)
    assert other.any()


# 3. Theorem 1's weight rule


def test_3_the_sum_over_softmax_outputs_is_identically_zero(case):
    assert case["probabilities"].sum(-1).abs().max() < 1e-12
    assert case["probabilities"].abs().sum(-1).min() > 1e-5


def test_3_the_rule_is_optimal_for_no_reading(case):
    for output in ("log-probabilities", "logits"):
        pi = case[output]
        y = one_hot_best(pi)
        theorem = (sample_weights(pi, y, rule="theorem-1") > 0).to(pi)
        algorithm = (sample_weights(pi, y) > 0).to(pi)
        gain = (pi * y).sum(-1)
        assert (theorem * gain).sum() < (algorithm * gain).sum() - 1e-6


# 4. Log-probabilities never reject their own arg max


def test_4_the_mean_under_p_is_zero_so_the_best_label_is_never_rejected(case):
    pi, p = case["log-probabilities"], case["z"].softmax(-1)
    assert (p * pi).sum(-1).abs().max() < 1e-12
    assert (pi.max(-1).values >= 0).all()
    w = sample_weights(pi, one_hot_best(pi))
    torch.testing.assert_close(w, torch.full_like(w, 1 / BATCH))


def test_4_weights_of_zero_come_from_beta_noise_or_raw_logits(case):
    pi = case["log-probabilities"]
    upstream = torch.nn.functional.one_hot(torch.arange(BATCH) % K, K).to(pi)
    kept = soft_labels(pi, upstream, beta=1e3, tau=0)
    noisy = soft_labels(pi, upstream, gumbel=True, tau=0, generator=torch.Generator())
    for weights in (
        sample_weights(pi, kept),
        sample_weights(pi, noisy),
        sample_weights(case["logits"], one_hot_best(case["logits"])),
    ):
        assert 0 < (weights == 0).sum() < BATCH
        assert weights.sum() == pytest.approx(1)


# 5. sum w = 1


def test_5_the_printed_constraint_puts_all_weight_on_one_sample(case):
    gain = case["log-probabilities"].max(-1).values.numpy()
    solved = linprog(-gain, A_eq=[[1.0] * BATCH], b_eq=[1.0], bounds=(0, 1))
    assert sorted(solved.x)[-2:] == pytest.approx([0, 1])
    assert solved.x.argmax() == gain.argmax()


def test_5_all_rejected_is_a_loss_of_exactly_zero_and_not_a_nan():
    pi = -torch.ones(3, 2)
    y = torch.full((3, 2), 0.5)
    w = sample_weights(pi, y)
    assert torch.equal(w, torch.zeros(3))
    logits = torch.randn(3, 2, requires_grad=True)
    loss = soft_cross_entropy(logits, y, w)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(3, 2))


# 6. Gumbel


@pytest.mark.parametrize("tau", [0.0, 1e-4, 0.01])
def test_6_gumbel_labels_are_draws_from_softmax_of_pi_plus_beta_e(tau):
    draws = 20_000
    pi, beta = torch.tensor([0.7, -0.4, 0.1, 0.0], dtype=torch.float64), 0.8
    upstream = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    y = soft_labels(
        pi.expand(draws, K),
        upstream.expand(draws, K),
        beta=beta,
        tau=tau,
        gumbel=True,
        generator=torch.Generator().manual_seed(11),
    )
    counts = torch.bincount(y.argmax(-1), minlength=K)
    expected = draws * torch.softmax(pi + beta * upstream, -1)
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01
    # The test has power: the distribution that small tau suggests is rejected outright.
    wrong = draws * torch.softmax((pi + beta * upstream) / 0.5, -1)
    assert chisquare(counts.numpy(), wrong.numpy()).pvalue < 1e-6


def test_6_where_pi_is_small_labels_are_random_whatever_tau(case):
    pi = case["log-probabilities"] * 1e-4
    best = pi.argmax(-1)
    for tau in (0.0, 1e-6, 0.01):
        agree = [
            (soft_labels(pi, torch.zeros_like(pi), tau=tau, gumbel=True).argmax(-1) == best)
            for _ in range(60)
        ]
        share = torch.stack(agree).double().mean()
        assert share == pytest.approx(1 / K, abs=0.04)
    steady = soft_labels(pi, torch.zeros_like(pi), tau=0, gumbel=False)
    assert torch.equal(steady.argmax(-1), best)


# 7. beta = 0


def test_7_beta_zero_discards_the_upstream_label(case):
    pi = case["log-probabilities"]
    one, other = torch.eye(K, dtype=pi.dtype)[torch.randint(0, K, (2, BATCH))]
    assert torch.equal(
        soft_labels(pi, one, beta=0, tau=0.01), soft_labels(pi, other, beta=0, tau=0.01)
    )
    assert not torch.equal(soft_labels(pi, one, beta=1), soft_labels(pi, other, beta=1))


def test_7_beta_is_a_margin_and_weighs_soft_upstream_labels():
    pi = torch.tensor([[0.0, 0.5]])
    e = torch.tensor([[1.0, 0.0]])
    assert soft_labels(pi, e, beta=0.4, tau=0).argmax() == 1
    assert soft_labels(pi, e, beta=0.6, tau=0).argmax() == 0
    mixed = torch.tensor([[0.7, 0.3]])  # mixup: a margin of 0.6 * (0.7 - 0.3) is not enough
    assert soft_labels(pi, mixed, beta=0.6, tau=0).argmax() == 1


# 8. What is left open


def test_8_the_clean_batch_of_equation_3_does_not_change_the_choice(case):
    # <g, grad(clean + aug)> is the sum of both: the clean term is a constant in (w, y).
    model, x = case["model"], case["x"]
    g = validation_gradient(model, *case["val"])
    x_clean, y_clean = inputs("mlp", 16), torch.arange(16) % K

    def product_with_g(loss):
        grads = torch.autograd.grad(loss, list(model.parameters()))
        return sum((a * b).sum() for a, b in zip(grads, g.values(), strict=True))

    def clean():
        return torch.nn.functional.cross_entropy(model(x_clean), y_clean)

    assert product_with_g(clean()).abs() > 1e-4
    for _ in range(3):
        y = torch.randn(BATCH, K, dtype=torch.float64).softmax(-1)
        w = torch.rand(BATCH, dtype=torch.float64)
        both = product_with_g(clean() + soft_cross_entropy(model(x), y, w))
        # Equation 4 maximises <g, grad L_aug> = sum w (Pi . y): the sign of fact 1 again.
        own = (w * (case["log-probabilities"] * y).sum(-1)).sum()
        torch.testing.assert_close(both - product_with_g(clean()), own)


def test_8_the_mode_matters_and_evaluation_mode_makes_each_row_its_own():
    model = convnet().train()
    x, x_val, y_val = inputs("convnet", 6), inputs("convnet", 8), torch.arange(8) % K
    g = validation_gradient(model, x_val, y_val)
    whole = gradient_products(model, x, g)
    part = gradient_products(model, x[:3], g)
    torch.testing.assert_close(whole[:3], part, rtol=1e-10, atol=1e-12)
    # In training mode the batch mates decide: the same three samples give other logits.
    assert not torch.allclose(model(x)[:3], model(x[:3]))
