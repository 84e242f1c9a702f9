"""LP-A3 against its formulas one by one, and as a good citizen of the one training loop."""

from __future__ import annotations

import math

import pytest
import torch
from image_runs import image_spec, stripes
from small_runs import blobs
from small_runs import spec as tabular_spec
from torch import Tensor, nn
from torch.nn import functional as nnf

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import lp_a3
from benchmarks.refiners.lp_a3 import Reference
from benchmarks.train import Training
from benchmarks.upstream import Augmented


def training(**settings) -> Training:
    settings = {"warm_up": 1, **settings}
    return Training(image_spec(refiner="lp-a3", settings=settings), stripes())


def batch(run: Training, rows: int = 16) -> Augmented:
    index = torch.arange(rows)
    x, y = run.train.x[index], run.train.y[index]
    return Augmented(x=run.data.normalize(x), y=y, index=index)


def own_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


# Formulas --------------------------------------------------------------------------------------------


def test_step_falls_from_b_and_multiplier_rises_from_a_tenth():
    steps = [lp_a3.step_size(t, 5, 0.02) for t in range(6)]
    weights = [lp_a3.multiplier(t, 5) for t in range(6)]
    assert steps[0] == pytest.approx(0.02)
    assert steps[5] == pytest.approx(0.002)
    assert weights[0] == pytest.approx(0.1)
    assert weights[5] == pytest.approx(1)
    for t in range(5):
        assert steps[t + 1] / steps[t] == pytest.approx(0.1**0.2)
        assert weights[t + 1] / weights[t] == pytest.approx(10**0.2)


def test_features_are_unit_vectors_at_each_place_weighted_by_its_area():
    maps = [torch.randn(2, 5, 4, 3), torch.randn(2, 7, 2, 2)]
    flat = lp_a3.normalized_features(maps)
    expected = []
    for b in range(2):
        values = []
        for stage in maps:
            _, c, h, w = stage.shape
            for k in range(c):
                for i in range(h):
                    for j in range(w):
                        length = stage[b, :, i, j].norm()
                        values.append(stage[b, k, i, j] / length / math.sqrt(h * w))
        expected.append(torch.stack(values))
    assert torch.allclose(flat, torch.stack(expected), atol=1e-6)
    assert torch.allclose(flat.norm(dim=1), torch.tensor(2.0).sqrt())  # each stage has length 1


def test_the_loss_rewards_distance_and_punishes_a_fall_beyond_the_bound():
    features, reference_features = torch.randn(3, 6), torch.randn(3, 6)
    log_p, before = torch.randn(3, 4).log_softmax(1), torch.randn(3, 4).log_softmax(1)
    predicted = before.argmax(1)
    reference = Reference(predicted=predicted, log_p=before, features=reference_features)
    loss = lp_a3.perturbation_loss(features, log_p, reference, bound=0.05, weight=0.3)
    distance = sum((features[i] - reference_features[i]).norm() for i in range(3)) / 3
    falls = [before[i, predicted[i]] - log_p[i, predicted[i]] - 0.05 for i in range(3)]
    violation = sum(max(0.0, fall.item()) for fall in falls) / 3
    assert violation > 0
    assert loss.item() == pytest.approx((-distance + 0.3 * violation).item(), rel=1e-5)


def test_the_change_of_a_prediction_is_the_sources_kl_divergence():
    memory, now = torch.randn(5, 4).log_softmax(1), torch.randn(5, 4).log_softmax(1)
    expected = nnf.kl_div(memory, now.exp(), reduction="none").mean(1)
    assert torch.allclose(lp_a3.prediction_change(memory, now), expected, atol=1e-7)
    assert torch.equal(lp_a3.prediction_change(now, now), torch.zeros(5))


def literal_perturbation(refiner, x: Tensor, generator: torch.Generator) -> Tensor:
    """The protocol's five steps written down plainly, through the same second set of norms."""
    bound, steps, norms = refiner.bound, refiner.steps, refiner.norms
    with torch.no_grad():
        logits, phi = norms.logits_and_features(x)
        yhat, log_before = logits.argmax(1), logits.log_softmax(1)
    picked = torch.arange(len(x)), yhat
    delta = torch.rand(x.shape, generator=generator) * 0.02 - 0.01
    delta = torch.maximum(torch.minimum(delta, 1 - x), -1 - x)
    for t in range(steps):
        delta = delta.detach().requires_grad_()
        logits, features = norms.logits_and_features(x + delta)
        log_now = logits.log_softmax(1)
        slack = log_before[picked] - log_now[picked] - bound
        objective = -(features - phi).norm(dim=1).mean()
        objective = objective + 0.1 ** (1 - t / steps) * slack.clamp(min=0).mean()
        objective.backward()
        unit = torch.stack([g / (g.norm() + 1e-8) for g in delta.grad])
        with torch.no_grad():
            log_after = norms.logits(x + delta - 0.1 * unit).log_softmax(1)
            speed = (log_now[picked] - log_after[picked]).abs() / 0.1
            size = bound * 0.1 ** (t / steps) / (speed + 1e-4)
            delta = delta - size[:, None, None, None] * unit
            delta = torch.maximum(torch.minimum(delta, 1 - x), -1 - x)
    return (x + delta).detach()


def test_the_perturbation_is_the_protocols_five_steps():
    run = training(bound=0.02)
    given = batch(run)
    expected = literal_perturbation(
        run.refiner, given.x, torch.Generator().manual_seed(run.refiner.context.seed)
    )
    run.refiner.begin_epoch(1)
    run.refiner(given)
    ours = run.refiner.adversarial[0].x
    assert torch.allclose(ours, expected, atol=1e-5)
    assert (ours - given.x).abs().max() > 0.01  # beyond the random start


def test_perturbed_pixels_stay_possible_ones():
    run = training(bound=5.0)  # steps so large that the box decides
    run.refiner.begin_epoch(1)
    run.refiner(batch(run))
    x = run.refiner.adversarial[0].x
    assert x.min() == -1
    assert x.max() == 1


def test_a_small_bound_preserves_predictions_better_than_a_large_one():
    def fall(bound: float) -> float:
        run = training(bound=bound)
        for _ in range(3):
            run._run_epoch(lambda t: None)
            run.epoch, run.step_in_epoch = run.epoch + 1, 0
        given = batch(run, 48)
        norms = run.refiner.norms
        run.refiner.begin_epoch(3)
        run.refiner(given)
        with torch.no_grad():
            before = norms.logits(given.x).log_softmax(1)
            after = norms.logits(run.refiner.adversarial[0].x).log_softmax(1)
        return (before - after).gather(1, before.argmax(1)[:, None]).clamp(min=0).mean().item()

    assert fall(0.002) < fall(0.5)


# Selection ------------------------------------------------------------------------------------------


def test_at_first_every_sample_counts_then_the_half_that_changes_most():
    run = training(portion=0.5)
    refiner, given = run.refiner, batch(run, 16)
    refiner.begin_epoch(0)
    log_p = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)).log_softmax(1)
    assert refiner._remember(given.index, log_p).tolist() == [1] * 16
    change = 0.99 * nnf.kl_div(torch.full((16, 3), -math.log(3)), log_p.exp(), reduction="none")
    assert torch.allclose(refiner.change[:16], change.mean(1), atol=1e-6)
    assert refiner.seen.sum() == 16

    refiner.begin_epoch(1)
    before = refiner.change[:16].clone()
    selected = refiner._remember(given.index, log_p)
    assert torch.equal(selected.bool(), before > before.sort().values[8])
    assert selected.sum() == 7  # above the median of 16, as in the source
    # The same predictions again: nothing new, the memory fades by its decay.
    assert torch.allclose(refiner.change[:16], 0.01 * before, atol=1e-7)


def test_the_adversarial_loss_is_half_the_mean_over_the_selected():
    run = training()
    refiner, given = run.refiner, batch(run)
    refiner.begin_epoch(1)
    refiner.threshold = 0.01
    refiner.change[:16] = torch.linspace(0, 0.02, 16)
    refined = refiner(given)
    adversarial, _ = refiner.adversarial
    mask = torch.linspace(0, 0.02, 16) > 0.01
    loss = refiner.loss(run.model, refined)
    task = nnf.cross_entropy(run.model(given.x), given.y)
    with refiner.norms.swapped():
        each = nnf.cross_entropy(run.model(adversarial.x), given.y, reduction="none")
    assert 0 < mask.sum() < 16
    assert torch.allclose(loss, task + 0.5 * (mask * each).sum() / 16, atol=1e-6)


def test_before_the_warm_up_is_over_the_loss_is_the_tasks():
    run = training(warm_up=5)
    plain = Training(image_spec(), stripes())
    for step in range(6):
        index = torch.arange(16) + 8 * (step % 4)
        run.refiner.begin_epoch(4)
        run.step(index)
        plain.step(index)
    ours, theirs = run.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# A good citizen -------------------------------------------------------------------------------------


def test_the_second_norms_leave_the_networks_own_alone():
    run = training()
    own = own_norms(run.model)
    before = [(m.running_mean.clone(), m.num_batches_tracked.clone()) for m in own]
    run.model.train()
    run.refiner.begin_epoch(1)
    run.refiner(batch(run))
    for module, (mean, count) in zip(own_norms(run.model), before, strict=True):
        assert torch.equal(module.running_mean, mean)
        assert torch.equal(module.num_batches_tracked, count)
    assert [id(m) for m in own_norms(run.model)] == [id(m) for m in own]
    run.step(torch.arange(16))
    assert {int(m.num_batches_tracked) for m in own} == {1}


def test_a_pass_that_fails_puts_the_networks_own_norms_back():
    run = training()
    own = [id(m) for m in own_norms(run.model)]
    with pytest.raises(RuntimeError):
        run.refiner.norms.logits(torch.zeros(2, 5, 16, 16))
    assert [id(m) for m in own_norms(run.model)] == own


def test_evaluation_does_not_depend_on_the_second_norms():
    run = training()
    run.step(torch.arange(16))
    before = run.logits(run.data.test)
    for parameter in run.refiner.norms.second.parameters():
        nn.init.normal_(parameter)
    assert torch.equal(run.logits(run.data.test), before)


def test_the_second_norms_are_trained_by_the_same_optimiser_after_the_warm_up():
    run = training(warm_up=1)
    second = list(run.refiner.norms.second.parameters())
    start = [p.detach().clone() for p in second]
    run._run_epoch(lambda t: None)
    assert all(torch.equal(p, s) for p, s in zip(second, start, strict=True))
    run.epoch, run.step_in_epoch = 1, 0
    run._run_epoch(lambda t: None)
    assert all(not torch.equal(p, s) for p, s in zip(second, start, strict=True))
    assert len(run.optimizer.param_groups) == 2
    assert len({group["lr"] for group in run.optimizer.param_groups}) == 1


def test_refining_touches_neither_gradients_nor_the_random_stream():
    run = training()
    run.step(torch.arange(16))
    gradients = [p.grad.clone() for p in run.model.parameters()]
    stream = torch.get_rng_state()
    run.refiner.begin_epoch(1)
    run.refiner(batch(run))
    assert torch.equal(torch.get_rng_state(), stream)
    for p, gradient in zip(run.model.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, gradient)


def test_it_trains_and_reports_what_it_did():
    run = Training(
        image_spec(refiner="lp-a3", settings={"warm_up": 2}, epochs=12, lr=0.01), stripes()
    )
    run.run()
    assert run.last["test/accuracy"] > 0.9
    assert run.curves["refiner/selected"][:2] == [0, 0]
    assert 0.2 < run.curves["refiner/selected"][-1] < 0.6
    assert run.curves["refiner/perturbation_norm"][-1] > 0
    assert run.curves["refiner/prediction_change"][0] > 0


def test_wrong_models_and_settings_are_named():
    with pytest.raises(BenchmarkError, match="residual network"):
        Training(tabular_spec(refiner="lp-a3"), blobs())
    with pytest.raises(BenchmarkError, match="steps 0"):
        training(steps=0)
