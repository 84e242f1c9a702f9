"""The controls: closed forms, brute force, and the rows that say what a gain must beat."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from image_runs import image_spec, stripes
from small_runs import blobs, spec
from torch import nn

from benchmarks import registry
from benchmarks import suite as suites
from benchmarks.data import Split
from benchmarks.errors import BenchmarkError
from benchmarks.models.saint import build_saint
from benchmarks.refiners.bootstrapped import evaluated
from benchmarks.refiners.l2rw import reweighted
from benchmarks.refiners.loss_weights import weights_by_loss
from benchmarks.suite import shared_rows
from benchmarks.train import Interrupted, Training
from benchmarks.upstream import Augmented
from saflex import Saflex, SaflexSettings

CONTROLS = ("label-smoothing", "ema-teacher", "bootstrapped", "loss-weights", "l2rw")


def started(refiner: str, *, steps: int = 0, images: bool = False, **changes) -> Training:
    """A run that has taken some steps, in training mode."""
    build, data = (image_spec, stripes()) if images else (spec, blobs())
    training = Training(build(refiner=refiner, **changes), data)
    training.model.train()
    for _ in range(steps):
        training.step(torch.arange(16))
    return training


def augmented(training: Training, rows: int = 24) -> Augmented:
    split = training.train
    return Augmented(x=training.data.normalize(split.x[:rows]), y=split.y[:rows])


def parameters(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("refiner", CONTROLS)
def test_a_control_gives_distributions_and_leaves_the_run_alone(refiner, images):
    training = started(refiner, steps=2, images=images)
    batch = augmented(training)
    state = {name: value.clone() for name, value in training.model.state_dict().items()}
    stream, grads = torch.get_rng_state(), [p.grad.clone() for p in training.model.parameters()]
    refined = training.refiner(batch)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(
        torch.equal(value, state[name]) for name, value in training.model.state_dict().items()
    )
    assert all(map(torch.equal, (p.grad for p in training.model.parameters()), grads))
    assert training.model.training
    assert refined.x is batch.x
    assert not refined.y.requires_grad
    assert not refined.w.requires_grad
    assert torch.allclose(refined.y.sum(-1), torch.ones(24))
    assert float(refined.w.sum()) == pytest.approx(1, abs=1e-5)
    assert (refined.w >= 0).all()


@pytest.mark.parametrize("refiner", CONTROLS)
def test_a_control_works_on_saint(refiner):
    training = started(refiner)
    training.model = build_saint(training.data, dim=8, evaluation_batch=32)
    context = vars(training.refiner.context) | {"model": training.model}
    control = registry.load("refiners", refiner)(type(training.refiner.context)(**context))
    refined = control(augmented(training))
    assert refined.y.isfinite().all()
    assert refined.w.isfinite().all()


@pytest.mark.parametrize("refiner", CONTROLS)
def test_a_resumed_control_is_bit_identical(refiner, tmp_path):
    def interrupt(run):
        if run.steps == 5:
            torch.save(run.state_dict(), tmp_path / "state.pt")
            raise Interrupted

    whole, resumed = started(refiner), started(refiner)
    whole.run()
    with pytest.raises(Interrupted):
        started(refiner).run(after_step=interrupt)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.run()
    assert torch.equal(parameters(whole.model), parameters(resumed.model))
    assert whole.curves == resumed.curves


@pytest.mark.parametrize("table", ["controls-tabular", "controls-images"])
def test_bootstrapped_is_saflex_with_pi_zero_in_the_settings_that_its_table_gives_both(table):
    rows = {
        run.row: run.settings.refiner for run in suites.plan(suites.load("controls"), table=table)
    }
    training = started("bootstrapped", steps=6, settings=rows["bootstrapped"].settings)
    batch = augmented(training)
    split = training.data.validation
    refine = Saflex(
        training.model,
        validation=(split.x, split.y),
        settings=SaflexSettings(**rows["saflex"].settings),
        loss=lambda logits, y: 0 * logits.sum(),  # a validation loss that nothing changes: Pi = 0
    )
    expected, found = refine(batch.x, batch.y), training.refiner(batch)
    assert torch.allclose(found.y, expected.y, atol=1e-6)
    assert torch.allclose(found.w, expected.w)
    hard = nn.functional.one_hot(batch.y, 3).float()
    assert not torch.allclose(found.y, hard, atol=1e-2)


@pytest.mark.parametrize("name", suites.names())
def test_bootstrapped_has_the_prior_of_the_saflex_row_beside_it(name):
    prior = SaflexSettings.from_mapping
    beside = defaultdict(dict)
    for run in suites.plan(suites.load(name)):
        beside[run.table, run.dataset, run.backbone, run.upstream][run.row] = (
            run.settings.refiner.settings
        )
    for place, rows in beside.items():
        if "bootstrapped" in rows:
            saflex, bootstrapped = prior(rows["saflex"]), prior(rows["bootstrapped"])
            for setting in suites.PRIOR:
                assert getattr(saflex, setting) == getattr(bootstrapped, setting), place


def test_label_smoothing_is_the_closed_form():
    training = started("label-smoothing", settings={"eps": 0.3})
    refined = training.refiner(batch := augmented(training))
    expected = torch.full((24, 3), 0.1).scatter(1, batch.y[:, None], 0.8)
    assert torch.allclose(refined.y, expected)


@pytest.mark.parametrize("images", [False, True])
def test_the_teachers_weights_are_the_exponential_average_of_the_models(images):
    decay = 0.6
    training = started("ema-teacher", images=images, settings={"decay": decay})
    average = None
    for step in range(6):
        now = parameters(training.model)
        # 1, 1/2, then 1 - decay for ever: a plain average that becomes an exponential one.
        share = max(1 / (step + 1), 1 - decay)
        average = now if average is None else (1 - share) * average + share * now
        training.step(torch.arange(16))
    assert torch.allclose(parameters(training.refiner.teacher), average, atol=1e-6)


def test_the_teachers_prediction_enters_the_label_by_eps():
    training = started("ema-teacher", steps=4, settings={"eps": 0.25})
    batch = augmented(training)
    found = training.refiner(batch)
    p = torch.softmax(evaluated(training.refiner.teacher.module, batch.x), -1)
    hard = nn.functional.one_hot(batch.y, 3).float()
    assert torch.allclose(found.y, 0.75 * hard + 0.25 * p, atol=1e-6)


def test_weights_by_loss_fall_with_the_loss_and_know_no_scale():
    losses = torch.tensor([0.1, 2.0, 0.5, 7.0])
    w = weights_by_loss(losses, slope=1.0)
    assert w.argsort(descending=True).tolist() == losses.argsort().tolist()
    assert torch.allclose(w, weights_by_loss(10 * losses + 3, slope=1.0))
    z = (losses - losses.mean()) / losses.std(correction=0)
    assert torch.allclose(w, torch.sigmoid(-z) / torch.sigmoid(-z).sum())
    assert torch.allclose(weights_by_loss(losses, slope=0), torch.full((4,), 0.25))
    assert torch.allclose(weights_by_loss(torch.ones(4), slope=1.0), torch.full((4,), 0.25))


def gradients_one_by_one(model: nn.Module, x, y) -> torch.Tensor:
    """Gradient of every sample's own cross-entropy, (B, m): the brute force."""
    rows = []
    for i in range(len(y)):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())]))
    return torch.stack(rows)


def test_double_backward_gives_the_inner_products_of_gradients():
    training = started("l2rw", steps=5)
    model, batch, split = training.model.eval(), augmented(training), training.data.validation
    each = gradients_one_by_one(model, batch.x, batch.y)
    w = (each @ gradients_one_by_one(model, split.x, split.y).mean(0)).clamp_min(0)
    hard = [nn.functional.one_hot(y, 3).float() for y in (batch.y, split.y)]
    found = reweighted(model, (batch.x, hard[0]), (split.x, hard[1]))
    assert torch.allclose(found, w / w.sum(), atol=1e-6)
    assert 0 < (found == 0).sum() < 24


@pytest.mark.parametrize(("mode", "same"), [("eval", True), ("train", False)])
@pytest.mark.parametrize("images", [False, True])
def test_weights_only_is_l2rw_where_no_layer_has_a_mode(images, mode, same):
    """Dropout (MLP) and batch statistics (ResNet) are what the two differ by, and nothing else."""
    training = started("weights-only", steps=5, images=images)
    batch, split = augmented(training), training.data.validation
    x = training.data.normalize(split.x)
    hard = [nn.functional.one_hot(y, 3).float() for y in (batch.y, split.y)]
    training.model.train(mode == "train")
    theirs = reweighted(training.model, (batch.x, hard[0]), (x, hard[1]))
    ours = training.refiner(batch).w  # its B' of 128 is the whole validation split here
    assert torch.allclose(ours, theirs, atol=1e-4) == same


def imbalanced(refiner: str, **changes) -> Training:
    """Three classes of 8, 32 and 40 training rows, after some steps, in evaluation mode."""
    data = blobs()
    rows = torch.cat([(data.train.y == k).nonzero()[:n, 0] for k, n in enumerate((8, 32, 40))])
    data = replace(data, train=Split(data.train.x[rows], data.train.y[rows]))
    training = Training(spec(refiner=refiner, class_weights=True, **changes), data)
    for _ in range(5):
        training.step(torch.arange(0, 80, 5))
    training.model.eval()
    return training


def test_with_class_weights_l2rw_is_still_weights_only_where_no_layer_has_a_mode():
    training, plain = imbalanced("weights-only"), imbalanced("l2rw")
    plain.model.load_state_dict(training.model.state_dict())
    batch = Augmented(x=training.train.x[::4], y=training.train.y[::4])
    ours, theirs = training.refiner(batch).w, plain.refiner(batch).w
    assert torch.allclose(ours, theirs, atol=1e-5)
    plain.refiner.context = SimpleNamespace(**vars(plain.refiner.context) | {"class_weights": None})
    assert not torch.allclose(ours, plain.refiner(batch).w, atol=1e-3)


def test_with_class_weights_weights_by_loss_go_by_the_loss_that_is_trained():
    training = imbalanced("loss-weights")
    batch = Augmented(x=training.train.x[::4], y=training.train.y[::4])
    losses = nn.functional.cross_entropy(
        evaluated(training.model, batch.x), batch.y, weight=training.class_weights, reduction="none"
    )
    found = training.refiner(batch).w
    assert torch.allclose(found, weights_by_loss(losses, slope=1.0), atol=1e-6)


def test_a_step_that_no_sample_helps_is_skipped():
    model = nn.Linear(2, 2)
    x, y = torch.randn(4, 2), torch.eye(2)[[0, 1, 0, 1]]
    # The validation labels are the batch's, swapped: every sample raises the validation loss.
    assert (reweighted(model, (x[:1], y[:1]), (x[:1], 1 - y[:1])) == 0).all()


@pytest.mark.parametrize(
    ("refiner", "settings"),
    [
        ("label-smoothing", {"eps": 1.1}),
        ("ema-teacher", {"decay": 1.0}),
        ("bootstrapped", {"eps": -0.1}),
        ("bootstrapped", {"beta": -1.0}),
        ("loss-weights", {"slope": "steep"}),
        ("l2rw", {"validation_batch": 0}),
    ],
)
def test_a_setting_out_of_range_is_refused(refiner, settings):
    with pytest.raises(BenchmarkError, match="expected"):
        started(refiner, settings=settings)


def test_controls_differ_from_their_neighbours_in_what_their_name_says():
    rows = {name: row.model_dump() for name, row in shared_rows().items()}

    def difference(one: str, other: str) -> set[str]:
        return {key for key in rows[one] if rows[one][key] != rows[other][key]}

    for name in ("label-smoothing", "ema-teacher", "bootstrapped", "loss-weights", "weights-only"):
        assert difference(name, "clean+aug") == {"refiner"}, name
    assert difference("val-only+aug", "clean+aug") == {"train_on"}
    assert difference("val-only", "none") == {"train_on"}
    assert difference("l2rw", "upstream") == {"refiner"}
    for name in ("saflex-printed", "saflex-derived", "upstream", "clean+aug"):
        assert difference(f"{name}-tuned", name) == {"tuned"}
