"""The one training loop: Eq. (3)'s loss, pairing, selection, resuming, and a loss that is not finite."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small_runs import blobs, spec
from torch import nn

from benchmarks.data import Split
from benchmarks.errors import BenchmarkError
from benchmarks.spec import Recipe
from benchmarks.tasks import class_weighted
from benchmarks.train import Interrupted, NonFiniteLoss, Training, set_learning_rate
from saflex import Batch, soft_cross_entropy

REFINERS = ("uniform", "saflex-printed", "saflex-derived", "saflex", "weights-only")


def trained(*, after_step=lambda training: None, **changes) -> Training:
    training = Training(spec(**changes), blobs())
    training.run(after_step=after_step)
    return training


def parameters(training: Training) -> torch.Tensor:
    return nn.utils.parameters_to_vector(training.model.parameters()).detach()


def test_mixture_loss_is_the_weighted_sum_of_the_two_mean_losses():
    data, model = blobs(), nn.Linear(5, 3)
    x = data.train.x[1:7].nan_to_num()
    clean = Batch.uniform(x, data.train.y[1:7], 3)
    refined = Batch(
        x + 1, torch.softmax(torch.randn(6, 3), -1), torch.tensor([0, 0.5, 0, 0.5, 0, 0])
    )
    both = Batch.joined(clean, refined, share=0.25)
    loss = soft_cross_entropy(model(both.x), both.y, both.w)
    mean_clean = nn.functional.cross_entropy(model(clean.x), data.train.y[1:7])
    log_p = torch.log_softmax(model(refined.x), -1)
    weighted = -sum(refined.w[i] * (refined.y[i] * log_p[i]).sum() for i in range(6))
    assert torch.allclose(loss, 0.25 * mean_clean + 0.75 * weighted)


def test_one_step_without_augmentation_is_an_ordinary_training_step():
    training = Training(spec(upstream="none", clean_share=0, optimizer="sgd", lr=0.1), blobs())
    twin = Training(spec(upstream="none", clean_share=0, optimizer="sgd", lr=0.1), blobs())
    index = torch.arange(8)
    for run in (training, twin):
        run.model.eval()  # no dropout: the two must agree
    training.step(index)
    x, y = twin.train.x[index], twin.train.y[index]
    nn.functional.cross_entropy(twin.model(x), y).backward()
    twin.optimizer.step()
    assert torch.allclose(parameters(training), parameters(twin))


def test_methods_of_one_seed_share_weights_order_and_augmented_samples():
    seen = {}
    for refiner in REFINERS:
        runs: list = []
        first = Training(spec(refiner=refiner), blobs())
        runs.append(parameters(first))
        first.run(after_step=lambda t, runs=runs: runs.append(t.seen[0].x.clone()))
        seen[refiner] = runs
    for refiner in REFINERS[1:]:
        for ours, reference in zip(seen[refiner], seen["uniform"], strict=True):
            assert torch.equal(ours.nan_to_num(), reference.nan_to_num())


def test_another_seed_gives_other_weights_and_order():
    one, other = Training(spec(seed=0), blobs()), Training(spec(seed=1), blobs())
    assert not torch.equal(parameters(one), parameters(other))
    assert not torch.equal(one.order(), other.order())


@pytest.mark.parametrize("refiner", REFINERS)
def test_a_resumed_run_is_bit_identical_to_an_undisturbed_one(refiner, tmp_path):
    whole = trained(refiner=refiner)
    for stop_at in (3, 7):  # inside the first epoch, inside the second

        def interrupt(training, stop_at=stop_at):
            if training.steps == stop_at:
                torch.save(training.state_dict(), tmp_path / "state.pt")
                raise Interrupted

        with pytest.raises(Interrupted):
            trained(refiner=refiner, after_step=interrupt)
        torch.manual_seed(99)  # whatever the new process has done before
        resumed = Training(spec(refiner=refiner), blobs())
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        resumed.run()
        assert torch.equal(parameters(resumed), parameters(whole))
        assert resumed.curves == whole.curves
        assert (resumed.last, resumed.best) == (whole.last, whole.best)


def test_a_checkpoint_of_another_run_is_refused():
    state = Training(spec(seed=0), blobs()).state_dict()
    with pytest.raises(BenchmarkError, match="belongs to run"):
        Training(spec(seed=1), blobs()).load_state_dict(state)


def test_a_loss_that_is_not_finite_names_its_step():
    def poison(training):
        if training.steps == 5:
            with torch.no_grad():
                next(training.model.parameters()).fill_(math.nan)

    with pytest.raises(NonFiniteLoss, match="step 6"):
        trained(after_step=poison)


def test_weights_that_blow_up_in_the_last_step_are_noticed_too():
    def poison(training):
        if training.steps == 4:  # the last of the only epoch
            with torch.no_grad():
                next(training.model.parameters()).fill_(math.inf)

    with pytest.raises(NonFiniteLoss, match="logits"):
        trained(after_step=poison, epochs=1)


def test_best_validation_keeps_the_first_best_epoch_and_never_looks_at_test():
    training = trained(epochs=8, lr=0.01)
    curve = training.curves["val/accuracy"]
    best = curve.index(max(curve))
    assert training.best["epoch"] == training.curves["epoch"][best]
    assert training.best["test/accuracy"] == training.curves["test/accuracy"][best]
    assert training.last["test/accuracy"] == training.curves["test/accuracy"][-1]


def test_curves_have_at_most_a_hundred_points_and_always_the_last_epoch():
    training = trained(epochs=130, batch_size=128)
    assert training.curves["epoch"][-1] == 130
    assert len(training.curves["epoch"]) == 65


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("milestones", [1, 1, 0.1, 0.01]),
        ("cosine", [1, 0.8535534, 0.5, 0.1464466]),
        ("cosine-steps", [1, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_learning_rate_schedules(schedule, factors):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    recipe = Recipe(schedule=schedule, epochs=4, lr=0.2)
    for epoch, factor in enumerate(factors):
        set_learning_rate(optimizer, recipe, epoch=epoch, step=3 * epoch, total=12)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * factor)


def test_class_weights_make_every_class_count_the_same():
    data = blobs()
    keep = torch.cat([(data.train.y == 0).nonzero()[:4], (data.train.y > 0).nonzero()]).flatten()
    data = type(data)(
        **{**vars(data), "train": type(data.train)(data.train.x[keep], data.train.y[keep])}
    )
    training = Training(spec(class_weights=True, upstream="none", clean_share=0), data)
    weights = training.refiner.context.class_weights
    counts = torch.bincount(data.train.y)
    assert torch.allclose(weights * counts, torch.full((3,), len(data.train) / 3))


def test_a_setting_nobody_knows_is_named_with_its_owner():
    with pytest.raises(BenchmarkError, match=r"refiners/uniform.*strength"):
        Training(spec(settings={"strength": 3}), blobs())


@pytest.mark.parametrize("train_on", ["train", "train+validation", "validation"])
def test_every_row_takes_the_same_steps_of_the_same_sizes(train_on):
    sizes = []
    trained(train_on=train_on, after_step=lambda t: sizes.append(len(t.seen[0].y)), epochs=2)
    assert sizes == 2 * [32, 32, 32, 24]  # 120 training rows, whatever is trained on


@pytest.mark.parametrize(("train_on", "rows"), [("validation", 60), ("train+validation", 180)])
def test_other_rows_are_gone_through_in_whole_passes(train_on, rows):
    """Every row once before any row twice, across the bounds of epochs; a function of the epoch."""
    training = Training(spec(train_on=train_on), blobs())
    stream = []
    for training.epoch in range(3):
        stream += training.order().tolist()
        assert stream[-120:] == training.order().tolist()
    for start in range(0, 360 - rows + 1, rows):
        assert sorted(stream[start : start + rows]) == list(range(rows))
    assert stream[:60] != stream[rows : rows + 60]


def test_a_metric_that_validation_does_not_define_selects_nothing():
    data = blobs()
    one = data.validation.y == 0
    data = replace(data, validation=Split(data.validation.x[one], data.validation.y[one]))
    training = Training(spec(metric="auroc"), data)
    training.run()
    assert training.best == {}
    assert "test/auroc" in training.last


def lacking(*names: str):
    """Three classes, the last of which these splits lack."""
    data = blobs()
    splits = {name: getattr(data, name) for name in names}
    return replace(data, **{n: Split(s.x[s.y < 2], s.y[s.y < 2]) for n, s in splits.items()})


@pytest.mark.parametrize(
    ("train_on", "lacks", "said"),
    [
        (
            "train",
            ("train",),
            "the rows of train (80), which are trained on, have none of class '2'",
        ),
        ("validation", ("validation",), "the rows of validation (40), which"),
        ("train+validation", ("train", "validation"), "the rows of train+validation (120), which"),
        ("train+validation", ("train",), ""),
        ("train", ("validation",), ""),
    ],
)
def test_a_class_that_no_training_row_has_is_said(train_on, lacks, said):
    notes = Training(spec(train_on=train_on), lacking(*lacks)).data.notes
    assert [note for note in notes if "trained on" in note] == list(notes)
    assert len(notes) == bool(said)
    assert all(said in note for note in notes)


def test_class_weights_are_refused_where_training_lacks_a_class():
    with pytest.raises(
        BenchmarkError, match=r"class_weights divide by .* class '2' has none: take more"
    ):
        Training(spec(class_weights=True), lacking("train"))


def test_weighted_loss_is_torchs_where_nothing_is_refined():
    """Divided by the weights of the labels, as ``nn.CrossEntropyLoss(weight=...)`` divides."""
    torch.manual_seed(0)
    weights, logits = torch.tensor([0.5, 2.0, 4.0]), torch.randn(20, 3)
    y = torch.randint(3, (20,))
    given = Batch.uniform(torch.arange(20), y, 3)
    batch = class_weighted(given, given.y, weights)
    expected = nn.functional.cross_entropy(logits, y, weight=weights)
    torch.testing.assert_close(soft_cross_entropy(logits, batch.y, batch.w), expected)


def test_divisor_of_the_weighted_loss_is_that_of_the_labels_as_given():
    """Learning a rare label must not make the whole batch's loss smaller by its divisor."""
    weights = torch.tensor([1.0, 10.0])
    given = Batch.uniform(torch.arange(4), torch.tensor([0, 0, 0, 1]), 2)
    learned = given._replace(y=torch.tensor([[0.0, 1.0]]).expand(4, 2))
    batch = class_weighted(learned, given.y, weights)
    # sum_i w_i sum_k y_ik c_k / sum_i u_i sum_k q_ik c_k = 10 / (13 / 4)
    assert (batch.w[:, None] * batch.y).sum().item() == pytest.approx(40 / 13)


def test_weighted_mixture_is_one_weighted_cross_entropy_over_both_halves():
    data = blobs()
    training = Training(spec(class_weights=True, upstream="none", clean_share=0.5), data)
    index = torch.arange(32)
    clean, augmented = training.inputs(index)
    refined = training.refiner(augmented)
    training.model.eval()
    loss = training.task.backward(training.refiner, clean, augmented.y, refined)
    expected = nn.functional.cross_entropy(
        training.model(data.train.x[index]),
        data.train.y[index],
        weight=training.refiner.context.class_weights,
    )
    torch.testing.assert_close(loss, expected.detach())
