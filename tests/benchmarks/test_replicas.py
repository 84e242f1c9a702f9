"""Seeds trained together give what they give alone; one that diverges does not touch the others."""

from __future__ import annotations

import math

import pytest
import torch
from small_runs import blobs, spec

from benchmarks import record as records
from benchmarks.data import Data
from benchmarks.running import execute as executing
from benchmarks.running import replicas
from benchmarks.running.checkpoint import Checkpoint
from benchmarks.running.stacked import Dropout
from benchmarks.spec import Component, RunSpec
from benchmarks.train import Interrupted, Training

SAINT = {"dim": 4, "heads": 2, "evaluation_batch": 32}
ROWS = {
    "upstream": ("uniform", {}, 0.0),
    "clean+aug": ("uniform", {}, 0.5),
    "weights-only": ("weights-only", {}, 0.5),
    "saflex": ("saflex", {"beta": 1.0, "ema": 0.5, "precondition": True}, 0.5),
    "saflex, augmented only": ("saflex", {}, 0.0),
    # The printed labels without their Gumbel noise, which a stack draws from one stream.
    "saflex-printed": ("saflex-printed", {"gumbel": False, "beta": 1.0}, 0.5),
}


def seeds(
    row: str = "saflex", *, model: str = "mlp", number: int = 3, dropout: float = 0.0, **recipe
) -> list[RunSpec]:
    """Runs of one bundle that are repeatable in every way: no dropout, no Gumbel noise."""
    refiner, settings, share = ROWS[row]
    if model == "saint":
        # Divided by Adam's first second moments its gradient is so ill-conditioned in single precision that
        # initial weights off by 1e-7 change a run alone as much as a stack does.
        settings = {**settings, "precondition": False} if refiner != "uniform" else settings
    recipe = {"dataset": "breast-cancer", "epochs": 3, "batch_size": 64, **recipe}
    runs = []
    for seed in range(number):
        run = spec(
            refiner=refiner, settings=settings, clean_share=share, seed=seed, metric="auroc", **recipe
        )  # fmt: skip
        chosen = Component(
            name=model, settings={"dropout": dropout} | (SAINT if model == "saint" else {})
        )
        changed = run.settings.model_copy(update={"model": chosen, "replicas": True})
        runs.append(run.model_copy(update={"settings": changed}))
    return runs


def alone(specs: list[RunSpec]) -> list[records.Record]:
    return [executing.execute(spec) for spec in specs]


def together(specs: list[RunSpec], **options) -> list[records.Record]:
    groups = [group for group, _ in executing.execute_replicas(specs, **options)]
    return sorted((r for group in groups for r in group), key=lambda record: record.spec.seed)


def trained(specs: list[RunSpec], data: Data | None = None) -> list[Training]:
    return [Training(s, data or blobs(seed=s.seed)) for s in specs]


@pytest.mark.parametrize("model", ["mlp", "saint"])
@pytest.mark.parametrize("row", ROWS)
def test_the_same_results_as_one_after_the_other(row, model):
    specs = seeds(row, model=model)
    for one, other in zip(alone(specs), together(specs), strict=True):
        assert one.key == other.key
        assert one.status == other.status == "complete"
        assert one.curves.keys() == other.curves.keys()
        for selection in ("last", "best_validation"):
            for split in ("val", "test"):
                # A row whose gain is within rounding of zero may be accepted in one and not in the other.
                for metric, tolerance in (("auroc", 1e-4), ("nll", 3e-3)):
                    name = f"{split}/{metric}"
                    assert other.metrics[selection][name] == pytest.approx(
                        one.metrics[selection][name], abs=tolerance
                    )
        assert one.curves["epoch"] == other.curves["epoch"]
        assert other.curves["train/loss"] == pytest.approx(one.curves["train/loss"], abs=1e-3)
        for name, value in one.diagnostics.items():
            assert other.diagnostics[name] == pytest.approx(value, rel=2e-2, abs=1e-3), name


def test_seeds_differ_from_each_other():
    results = [record.metrics["last"]["test/nll"] for record in together(seeds())]
    assert len(set(results)) == 3


def test_augmentation_order_and_validation_draws_are_those_of_each_seed_alone():
    seen = {}
    for run in trained(seeds(dataset="blobs")):
        run.run(after_step=lambda t: seen.setdefault((t.spec.seed, t.steps), t.seen[0].x.clone()))
    stack = replicas.Replicas(trained(seeds(dataset="blobs")))

    def compare(training):
        for replica in range(3):
            torch.testing.assert_close(
                training.seen[0].x[replica], seen[replica, training.steps],
                rtol=0, atol=0, equal_nan=True,
            )  # fmt: skip

    stack.run(after_step=compare)
    assert stack.steps == 6


def test_initial_weights_are_those_of_each_seed_alone():
    specs = seeds()
    own = [{n: p.clone() for n, p in run.model.named_parameters()} for run in trained(specs)]
    stack = replicas.Replicas(trained(specs))
    for name, stacked in stack.model.template.named_parameters():
        for replica, weights in enumerate(own):
            assert torch.equal(stacked[replica], weights[name])


@pytest.mark.parametrize("model", ["mlp", "saint"])
def test_embedding_tables_of_different_length_are_stacked(model):
    """A seed's split decides how many levels its training rows hold."""
    specs = seeds(model=model, dataset="blobs")

    def runs():
        for s in specs:
            data = blobs(seed=s.seed)
            many = 20 + 10 * s.seed
            for part in (data.train, data.validation, data.test):
                generator = torch.Generator().manual_seed(s.seed)
                part.x[:, 0] = torch.randint(0, many, (len(part),), generator=generator).float()
            yield Training(
                s,
                Data(
                    name="blobs", train=data.train, validation=data.validation, test=data.test,
                    num_classes=3, kind="tabular", categories=(many, 0, 0, 0, 0),
                ),
            )  # fmt: skip

    expected = []
    for run in runs():
        torch.manual_seed(run.seed("dropout"))
        run.run()
        expected.append(run.last["test/nll"])
    (group,) = replicas.stacks(runs())
    assert len(group) == 3
    stack = replicas.together(group)
    stack.run()
    found = [run.last["test/nll"] for run in stack.runs]
    assert found == pytest.approx(expected, abs=1e-4)
    tables = [p for n, p in stack.model.named_parameters() if "embeddings.0" in n]
    assert [t.shape[1] for t in tables] == [40]
    assert not tables[0][0, 20:].any()  # padding is never touched


def diverging(step, *, seed: int, at: int):
    """Training.step that spoils the weights of one seed, alone or in a stack."""

    def spoiled(training, index):
        model = training.model
        runs = getattr(training, "runs", [training])
        for run in runs:
            if run.spec.seed == seed and training.steps == at:
                with torch.no_grad():
                    next(run.model.parameters()).fill_(math.nan)
        assert model is training.model
        step(training, index)

    return spoiled


@pytest.mark.parametrize("row", ["clean+aug", "saflex", "weights-only"])
def test_one_that_diverges_fails_alone(row, monkeypatch):
    undisturbed = together(seeds(row))
    step = replicas.Replicas.step
    monkeypatch.setattr(replicas.Replicas, "step", diverging(step, seed=1, at=4))
    result = together(seeds(row))
    assert [record.status for record in result] == ["complete", "failed", "complete"]
    assert "not finite" in result[1].error
    assert result[1].metrics == {}
    for replica in (0, 2):
        assert result[replica].metrics == undisturbed[replica].metrics


def test_it_fails_at_the_step_it_fails_at_alone(monkeypatch):
    monkeypatch.setattr(Training, "step", diverging(Training.step, seed=1, at=4))
    one = alone(seeds("clean+aug"))
    monkeypatch.undo()
    step = replicas.Replicas.step
    monkeypatch.setattr(replicas.Replicas, "step", diverging(step, seed=1, at=4))
    other = together(seeds("clean+aug"))
    assert "loss is not finite at step 5" in one[1].error
    assert other[1].error == one[1].error


def test_all_of_them_diverging_ends_the_stack(monkeypatch):
    step = replicas.Replicas.step
    for seed in range(3):
        step = diverging(step, seed=seed, at=1)
    monkeypatch.setattr(replicas.Replicas, "step", step)
    result = together(seeds("clean+aug", epochs=5))
    assert [record.status for record in result] == ["failed"] * 3
    assert result[0].diagnostics["optimizer_steps"] < 30


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_interrupted_replicas_go_on_bit_for_bit(dropout, tmp_path):
    specs = seeds(dropout=dropout)
    whole = together(specs)
    polls = iter([False] * 7)
    stop = Checkpoint(tmp_path, specs[0], stop=lambda: next(polls, True))
    with pytest.raises(Interrupted, match="stopped at step 8"):
        together(specs, checkpoint=lambda _: stop)
    assert stop.path.exists()
    again = together(specs, checkpoint=lambda s: Checkpoint(tmp_path, s))
    for one, other in zip(whole, again, strict=True):
        assert records.canonical(one) == records.canonical(other)


def test_a_bundle_with_the_setting_trains_together_and_skips_what_is_there(tmp_path, monkeypatch):
    said, sizes = [], []
    start = replicas.Replicas.__init__
    monkeypatch.setattr(
        replicas.Replicas,
        "__init__",
        lambda self, runs: (sizes.append(len(runs)), start(self, runs))[1],
    )
    specs = seeds(epochs=1)
    executing.run_bundle(specs, tmp_path, device="cpu", report=said.append)
    assert sizes == [3]
    assert len(list(tmp_path.rglob("seed*.json"))) == 3
    assert not list(tmp_path.rglob("*.pt"))
    records.path_of(tmp_path, specs[1]).unlink()
    said.clear()
    executing.run_bundle(specs, tmp_path, device="cpu", report=said.append)
    assert sizes == [3]  # one alone needs no stack
    assert ["skipped" in line for line in said] == [True, True, False]


def test_a_seed_left_over_gets_the_record_it_gets_alone():
    specs = seeds(dropout=0.3, number=1)
    (one,), (other,) = alone(specs), together(specs)
    assert records.canonical(one) == records.canonical(other)


def test_what_cannot_be_stacked_is_trained_alone_and_says_why():
    said = []
    specs = [
        s.model_copy(update={"settings": s.settings.model_copy(update={
            "refiner": Component(name="saflex", settings={"estimator": "finite-difference"})})})
        for s in seeds(number=2, epochs=1)
    ]  # fmt: skip
    result = together(specs, report=said.append)
    assert [record.status for record in result] == ["complete", "complete"]
    assert len(said) == 2
    assert "trained alone: estimator finite-difference" in said[0]
    for one, other in zip(alone(specs), result, strict=True):
        assert records.canonical(one) == records.canonical(other)


def test_a_stack_is_no_larger_than_memory_allows(monkeypatch):
    runs = trained(seeds(number=5, dataset="blobs"))
    size = sum(4 * p.numel() for p in runs[0].model.parameters())
    monkeypatch.setitem(replicas.LARGEST_STACK, "cpu", 2 * size)
    assert [len(group) for group in replicas.stacks(runs)] == [2, 2, 1]


def test_models_of_other_shape_are_not_stacked():
    runs = trained(seeds(number=2, dataset="blobs"))
    other = blobs(seed=2)
    other.train.x[3, 3] = torch.nan  # one more missing-value indicator
    runs += trained(seeds(number=1, dataset="blobs"), other)
    assert [len(group) for group in replicas.stacks(runs)] == [2, 1]


@pytest.mark.parametrize("p", [0.1, 0.8])
def test_dropout_of_a_stack_drops_the_share_it_is_told_for_each_model_apart(p):
    torch.manual_seed(0)
    drop = Dropout(p)
    out = torch.func.vmap(drop, randomness="different")(torch.ones(4, 500, 101))
    dropped = out == 0
    error = 5 * math.sqrt(p * (1 - p) / dropped[0].numel())  # five standard deviations
    assert dropped.float().mean((1, 2)).tolist() == pytest.approx([p] * 4, abs=error)
    assert out[~dropped].unique().item() == pytest.approx(1 / (1 - p), rel=1e-3)
    both = (dropped[0] & dropped[1]).float().mean().item()
    assert both == pytest.approx(p * p, abs=error)
    assert torch.equal(drop.eval()(out), out)
