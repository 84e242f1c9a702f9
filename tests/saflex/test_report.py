"""`refine.report()`: each sentence where its condition holds and only there, and no trace in the run."""

import pytest
import torch
from reference_models import K, inputs, mlp
from torch import nn

from saflex import Saflex
from saflex.course import MOST_STRETCHES, Course
from saflex.report import Findings, findings, report

X, Y = inputs("mlp", 8), torch.arange(8) % K
XV, YV = inputs("mlp", 12), torch.arange(12) % K

HEALTHY = {
    "pi_mean_abs": 0.1, "label_unchanged": 0.9, "label_entropy": 0.4, "accepted": 0.95,
    "effective_share": 0.9, "all_rejected": 0.0, "gain": 0.5, "gain_upstream": 0.1,
    "validation_loss": 0.6,
}  # fmt: skip


def found(*, course=({}, {}), halves=0.8, settings=None, **mean):
    return Findings(
        steps=100,
        settings={"sign": "descent", "relabel": True, "scale": "batch-std", **(settings or {})},
        mean=HEALTHY | mean,
        course=[HEALTHY | mean | point for point in course],
        halves=halves,
        validation_rows=64,
    )


def course(name, *values):
    """Eight stretches of the run."""
    return [{name: value} for value in values for _ in range(8 // len(values))]


# Sentences


def test_a_healthy_run_gives_no_warning():
    assert findings(found()) == []
    assert "Nothing stands out" in report(found())


CASES = [
    ({"pi_mean_abs": 0.0}, "Pi is 0 everywhere"),
    ({"gain": -0.1, "settings": {"sign": "printed"}}, "erratum 1"),
    ({"gain": -0.1}, "raise the validation loss"),
    ({"all_rejected": 0.2}, "20.0 % of the batches were rejected whole"),
    ({"effective_share": 0.05}, "like 5.0 % of its samples"),
    ({"label_unchanged": 0.3}, "Labels changed 70.0 %"),
    ({"label_unchanged": 1.0, "label_entropy": 0.01}, "what the upstream gave"),
    ({"course": course("pi_mean_abs", 0.01, 0.05, 0.1, 0.1)}, "grew 10.0-fold while"),
    (
        {"course": course("pi_mean_abs", 0.01, 0.1), "settings": {"scale": None}},
        "scale='batch-std'",
    ),
    ({"course": course("validation_loss", 0.5, 0.6, 0.7, 0.8)}, "rose from 0.5 to 0.8"),
    ({"course": course("validation_loss", 1.0, 0.5, 0.2, 0.05)}, "these rows are being fitted"),
    ({"halves": 0.12}, "disagree about Pi (correlation 0.12)"),
    ({"cosine": -0.2}, "point apart (cosine -0.20)"),
]


@pytest.mark.parametrize(("changes", "says"), CASES, ids=[says for _, says in CASES])
def test_each_sentence_has_its_condition(changes, says):
    (sentence,) = findings(found(**changes))
    assert says in sentence
    assert says in report(found(**changes))


def test_growing_products_are_no_news_while_the_validation_loss_falls():
    both = [{"pi_mean_abs": 0.01}] * 4 + [{"pi_mean_abs": 0.1, "validation_loss": 0.3}] * 4
    assert findings(found(course=both)) == []


@pytest.mark.parametrize(
    "values",
    [
        (1.0, 1.0, 1.4, 1.4),  # too few stretches
        (1.0, 1.8, 0.9, 1.7, 0.8, 1.6, 1.2, 1.7),  # noise
    ],
)
def test_a_trend_needs_stretches_and_must_exceed_their_noise(values):
    assert findings(found(course=[{"validation_loss": value} for value in values])) == []


def test_halves_tell_nothing_of_labels_once_the_loss_has_fallen():
    late = found(halves=-0.5, course=course("validation_loss", 1.0, 0.8, 0.6, 0.4))
    assert findings(late) == []
    assert "correlate by -0.50 (the loss has fallen" in report(late)


# Of real runs


def trained(validation, *, steps=30, reports=False, seed=0, **settings):
    torch.manual_seed(seed)
    centres = 2 * torch.randn(K, 5, dtype=torch.float64)
    y = torch.arange(40) % K
    x = centres[y] + 0.3 * torch.randn(40, 5, dtype=torch.float64)
    x_val = centres[y] + 0.3 * torch.randn(40, 5, dtype=torch.float64)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    refine = Saflex(model, validation=(x_val, validation(y)), **settings)
    for _ in range(steps):
        batch = refine(x + 0.1 * torch.randn_like(x), y)
        loss = refine.loss(model, batch, clean=(x, y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if reports:
            refine.report()
    return model, refine


def right(y):
    return y


def random_labels(y):
    return torch.randint(0, K, y.shape, generator=torch.Generator().manual_seed(1))


def test_halves_with_right_labels_agree_and_with_random_ones_do_not():
    for steps in (3, 150):
        _, good = trained(right, steps=steps)
        assert "disagree" not in good.report()
    _, bad = trained(random_labels, steps=30)
    assert "disagree about Pi" in bad.report()


def test_a_report_leaves_no_trace():
    with_reports, talked = trained(right, reports=True, ema=0.5, refresh_every=2)
    without, silent = trained(right, ema=0.5, refresh_every=2)
    for a, b in zip(with_reports.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)
    assert talked.diagnostics() == silent.diagnostics()
    assert talked.report() == silent.report() == silent.report()


def test_numbers_are_those_of_the_whole_run_whatever_was_reset():
    _, refine = trained(right, steps=6)
    before = refine.report()
    refine.diagnostics(reset=True)
    assert refine.report() == before
    assert "Saflex after 6 refined batches" in before


def test_the_report_continues_after_resuming():
    _, refine = trained(right, steps=6)
    model = mlp()
    resumed = Saflex(model, validation=(XV, YV))
    resumed.load_state_dict(refine.state_dict())
    resumed(X, Y)
    assert "Saflex after 7 refined batches" in resumed.report()


def test_nothing_is_known_before_the_first_batch():
    assert "no batch refined yet" in Saflex(mlp(), validation=(XV, YV)).report()


@pytest.mark.parametrize("estimator", ["forward-mode", "finite-difference", "last-layer"])
def test_every_estimator_and_the_optimisers_metric(estimator):
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, K)).double()
    optimizer = torch.optim.Adam(model.parameters())
    model(X).logsumexp(-1).mean().backward()
    optimizer.step()
    refine = Saflex(
        model, validation=(XV, YV), optimizer=optimizer, precondition=True, estimator=estimator
    )
    refine(X, Y)
    assert "Pi by two halves of 12 validation rows: correlate by" in refine.report()


def test_what_cannot_be_halved_says_so():
    refine = Saflex(mlp(), validation=(XV[:3], YV[:3]))
    refine(X, Y)
    assert "3 validation rows are too few to halve" in refine.report()


def test_a_half_without_labels_says_so():
    loss = nn.CrossEntropyLoss()
    ignored = torch.where(torch.arange(12) > 0, -100, YV)
    refine = Saflex(mlp(), validation=(XV, ignored), loss=loss)
    refine(X, Y)
    assert "a half alone cannot be used (EmptyValidationError)" in refine.report()


def test_a_model_that_never_steps_has_no_trend():
    for seed in range(10):
        torch.manual_seed(seed)
        refine = Saflex(mlp(), validation=(XV, YV), validation_batch=4, seed=seed, check="never")
        for _ in range(8):
            refine(X, Y)
        said = refine.report()
        assert "rose from" not in said
        assert "fitted" not in said


# The course of a run


@pytest.mark.parametrize("steps", [1, 5, MOST_STRETCHES, MOST_STRETCHES + 1, 1000])
def test_a_course_holds_the_mean_of_every_stretch_in_bounded_memory(steps):
    values = torch.randn(steps, 11, dtype=torch.float64)
    losses = torch.randn(steps, dtype=torch.float64)
    whole, resumed = Course(), Course()
    for i in range(steps):
        whole.add(values[i], losses[i])
        resumed.add(values[i], losses[i])
        if i == steps // 2:
            state = resumed.state_dict()
            resumed = Course()
            resumed.load_state_dict(state, torch.device("cpu"))
    stretches = whole.means()
    assert len(stretches) <= MOST_STRETCHES
    assert stretches == resumed.means()
    for stretch, rows in zip(stretches, values.split(whole.length), strict=True):
        assert stretch["pi_mean_abs"] == pytest.approx(rows[:, 0].mean().item())
    for stretch, rows in zip(stretches, losses.split(whole.length), strict=True):
        assert stretch["validation_loss"] == pytest.approx(rows.mean().item())
    assert whole.mean()["gain"] == pytest.approx(values[:, 8].mean().item())
