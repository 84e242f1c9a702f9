"""Labels and weights as functions: ranges, closed forms, limits, leading dimensions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from saflex import Batch, sample_weights, soft_cross_entropy, soft_labels, soft_rows
from saflex.labels import scaled_products

RULES = ("algorithm-1", "theorem-1", "soft", "uniform")
leads = st.sampled_from([(), (1,), (3,), (2, 2)])


def problem(lead, batch, classes, spread=1.0):
    pi = torch.randn(*lead, batch, classes, dtype=torch.float64) * spread
    y = torch.rand(*lead, batch, classes, dtype=torch.float64)
    p = torch.randn(*lead, batch, classes, dtype=torch.float64).softmax(-1)
    return pi, y / y.sum(-1, keepdim=True), p


@given(
    leads, st.integers(1, 5), st.integers(2, 5),
    st.sampled_from(["label", "entropic"]), st.sampled_from([None, "batch-std", "cosine", 0.1]),
    st.sampled_from([0.0, 1e-6, 0.01, 1.0, 100.0]), st.sampled_from([0.0, 1.0]),
    st.sampled_from([1e-12, 1.0, 1e6]),
)  # fmt: skip
def test_labels_are_distributions_whatever_the_settings(
    lead, batch, classes, prior, scale, tau, beta, spread
):
    pi, upstream, p = problem(lead, batch, classes, spread)
    y = soft_labels(pi, upstream, prior=prior, scale=scale, tau=tau, beta=beta, probabilities=p)
    assert y.shape == pi.shape
    assert (y >= 0).all()
    torch.testing.assert_close(y.sum(-1), torch.ones_like(y[..., 0]))


@given(st.sampled_from([(2,), (2, 3)]), st.integers(1, 5), st.integers(2, 4))
def test_leading_dimensions_are_independent_problems(lead, batch, classes):
    pi, upstream, p = problem(lead, batch, classes)
    for scale in (None, "batch-std", "cosine"):
        settings = {"prior": "entropic", "scale": scale, "tau": 0.3}
        together = soft_labels(pi, upstream, probabilities=p, **settings)
        index = tuple(0 for _ in lead)
        alone = soft_labels(pi[index], upstream[index], probabilities=p[index], **settings)
        torch.testing.assert_close(together[index], alone)
    for rule in RULES:
        torch.testing.assert_close(
            sample_weights(pi, upstream, rule=rule)[index],
            sample_weights(pi[index], upstream[index], rule=rule),
        )


@given(st.floats(0.05, 5), st.floats(0, 1))
def test_the_entropic_prior_maximises_gain_minus_kl(tau, eps):
    pi, upstream, p = problem((), 3, 4)
    y = soft_labels(pi, upstream, prior="entropic", tau=tau, eps=eps, probabilities=p)
    q = (1 - eps) * upstream + eps * p

    def objective(label):
        return (pi * label).sum(-1) - tau * (label * (label / q).log()).sum(-1)

    best = objective(y)
    torch.testing.assert_close(best, tau * (pi / tau + q.log()).logsumexp(-1))
    for _ in range(50):
        rival = torch.softmax(y.log() + torch.randn_like(y) * 0.3, -1)
        assert (objective(rival) <= best + 1e-9).all()


def test_limits_of_the_temperature():
    pi, upstream, p = problem((), 4, 3)
    hard = torch.nn.functional.one_hot(pi.argmax(-1), 3).to(pi)
    assert torch.equal(soft_labels(pi, upstream, tau=0), hard)
    torch.testing.assert_close(soft_labels(pi, upstream, tau=1e-5), hard)
    cold = soft_labels(pi, upstream, prior="entropic", tau=1e9, probabilities=p)
    torch.testing.assert_close(cold, 0.5 * upstream + 0.5 * p)
    # With eps = 0 a hard upstream label has all of q: nothing can move it.
    e = torch.eye(3, dtype=pi.dtype)[[0, 1, 2, 0]]
    for tau in (0.0, 0.01, 1.0):
        assert torch.equal(soft_labels(pi, e, prior="entropic", eps=0, tau=tau), e)


@given(leads, st.integers(1, 4), st.integers(2, 5), st.floats(1e-3, 1e3))
def test_scales_make_labels_blind_to_the_size_of_pi(lead, batch, classes, factor):
    pi, _, p = problem(lead, batch, classes)
    for scale in ("batch-std", "cosine"):
        one = scaled_products(pi, scale=scale, probabilities=p)
        torch.testing.assert_close(
            one, scaled_products(pi * factor, scale=scale, probabilities=p), rtol=1e-6, atol=1e-9
        )
    torch.testing.assert_close(scaled_products(pi, scale=4.0), pi / 4)
    entries = scaled_products(pi, scale="batch-std").flatten(-2)
    spread = (entries - entries.mean(-1, keepdim=True)).square().mean(-1)
    torch.testing.assert_close(spread, torch.ones_like(spread))


def test_cosine_is_the_cosine_of_logit_gradients():
    z = torch.randn(5, 4, dtype=torch.float64)
    dz = torch.randn(5, 4, dtype=torch.float64)
    p = z.softmax(-1)
    pi = (p * dz).sum(-1, keepdim=True) - dz
    centred = dz - dz.mean(-1, keepdim=True)
    # Gradient of -log p_k in the logits is p - e_k; its cosine with the direction, label by label.
    label = p.unsqueeze(1) - torch.eye(4, dtype=torch.float64)
    expected = torch.cosine_similarity(label, centred.unsqueeze(1).expand_as(label), dim=-1)
    found = scaled_products(pi, scale="cosine", probabilities=p)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() <= 1


def test_a_pi_of_zero_survives_every_scale():
    pi, upstream, p = torch.zeros(3, 2), torch.full((3, 2), 0.5), torch.full((3, 2), 0.5)
    for scale in ("batch-std", "cosine"):
        y = soft_labels(pi, upstream, scale=scale, probabilities=p)
        torch.testing.assert_close(y, upstream)


@given(leads, st.integers(1, 6), st.integers(2, 4), st.sampled_from(RULES))
def test_weights_sum_to_one_or_to_nothing(lead, batch, classes, rule):
    pi, y, _ = problem(lead, batch, classes)
    w = sample_weights(pi, y, rule=rule)
    assert w.shape == pi.shape[:-1]
    assert (w >= 0).all()
    total, gain = w.sum(-1), (pi * y).sum(-1)
    sums_to_one = (total - 1).abs() < 1e-9
    assert (sums_to_one | (total == 0)).all()
    if rule == "algorithm-1":
        assert torch.equal(w > 0, gain >= 0)
    if rule == "soft":
        positive = gain.clamp_min(0)
        torch.testing.assert_close(w * positive.sum(-1, keepdim=True), positive)


@given(leads, st.integers(1, 5), st.integers(2, 4))
def test_the_loss_is_cross_entropy(lead, batch, classes):
    logits, y, _ = problem(lead, batch, classes)
    hard = torch.randint(0, classes, (*lead, batch))
    rows = soft_rows(hard, classes, dtype=torch.float64)
    flat = torch.nn.functional.cross_entropy(logits.reshape(-1, classes), hard.reshape(-1))
    # Mean over samples, sum over leading dimensions.
    stacks = torch.Size(lead).numel()
    torch.testing.assert_close(soft_cross_entropy(logits, rows), flat * stacks)
    uniform = Batch.uniform(logits, hard, classes)
    torch.testing.assert_close(soft_cross_entropy(logits, uniform.y, uniform.w), flat * stacks)
    torch.testing.assert_close(
        soft_cross_entropy(logits, y, torch.ones_like(y[..., 0])),
        torch.nn.functional.cross_entropy(
            logits.reshape(-1, classes), y.reshape(-1, classes), reduction="sum"
        ),
    )
