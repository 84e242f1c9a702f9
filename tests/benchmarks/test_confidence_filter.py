"""ALIA's confidence filter: thresholds by hand, what is dropped, training apart from the run."""

from __future__ import annotations

import pytest
import small_runs
import torch

from benchmarks.errors import BenchmarkError
from benchmarks.models.tabular import build_mlp
from benchmarks.refiners import Context
from benchmarks.refiners.confidence_filter import ConfidenceFilter
from benchmarks.tasks import Classification
from benchmarks.upstream import Augmented


def context(**changes) -> Context:
    data = small_runs.blobs()
    torch.manual_seed(0)
    model = build_mlp(data)
    settings = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "data": data,
        "task": Classification(model, data),
        "validation": None,
        "seed": 3,
        "epochs": 20,
        "steps_per_epoch": 4,
    }
    return Context(**{**settings, **changes})


class Fixed(torch.nn.Module):
    """Logits are the inputs."""

    def forward(self, x):
        return x


@pytest.fixture
def judged():
    """A filter with thresholds 0.6, 0.8, 1.0 whose judge reads off the inputs."""
    refiner = ConfidenceFilter(context())
    refiner.judge, refiner.thresholds = Fixed(), torch.tensor([0.6, 0.8, 1.0])
    return refiner


P = torch.tensor(
    [
        [0.70, 0.20, 0.10],  # label 0: confidently itself, unchanged
        [0.50, 0.40, 0.10],  # label 0: itself, below the class's 0.6
        [0.05, 0.90, 0.05],  # label 0: confidently class 1, mislabelled
        [0.25, 0.70, 0.05],  # label 0: class 1, below 0.8
        [0.00, 0.01, 0.99],  # label 0: class 2, whose threshold is never passed
    ]
)


@pytest.mark.parametrize(
    ("drop", "kept"),
    [("both", [1, 3, 4]), ("mislabelled", [0, 1, 3, 4]), ("unchanged", [1, 2, 3, 4])],
)
def test_confident_images_are_dropped_by_kind(judged, drop, kept):
    judged.drop = drop
    batch = judged(Augmented(x=P.clamp(min=1e-6).log(), y=torch.zeros(5, dtype=torch.long)))
    expected = torch.zeros(5)
    expected[kept] = 1 / len(kept)
    assert torch.allclose(batch.w, expected)
    assert torch.equal(batch.y, torch.eye(3)[[0] * 5])
    assert judged.diagnostics()["dropped"] == pytest.approx(1 - len(kept) / 5)


def test_batch_that_is_dropped_whole_has_no_weight(judged):
    batch = judged(Augmented(x=P[:1].log(), y=torch.zeros(1, dtype=torch.long)))
    assert batch.w.tolist() == [0.0]


def test_threshold_is_the_mean_confidence_in_each_class_over_its_training_images():
    refiner = ConfidenceFilter(context(), epochs=2)
    refiner.begin_epoch(0)
    data = refiner.context.data
    with torch.no_grad():
        p = torch.softmax(refiner.judge.eval()(data.train.x), -1)
    for k in range(3):
        expected = p[data.train.y == k, k].mean()
        assert refiner.thresholds[k] == pytest.approx(expected.item(), abs=1e-6)


def test_finds_labels_that_were_swapped():
    refiner = ConfidenceFilter(context(), drop="mislabelled")
    refiner.begin_epoch(0)
    split = refiner.context.data.test
    wrong = (split.y + 1) % 3
    assert (refiner(Augmented(x=split.x, y=wrong)).w == 0).float().mean() > 0.4
    assert (refiner(Augmented(x=split.x, y=split.y)).w == 0).float().mean() < 0.05


def test_its_training_leaves_run_model_and_random_stream_alone():
    own = context()
    before = {k: v.clone() for k, v in own.model.state_dict().items()}
    stream = torch.get_rng_state()
    ConfidenceFilter(own, epochs=2).begin_epoch(0)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(v, before[k]) for k, v in own.model.state_dict().items())


def test_is_trained_once_and_resumes_without_training():
    first = ConfidenceFilter(context(), epochs=2)
    first.begin_epoch(0)
    state = first.state_dict()
    second = ConfidenceFilter(context(), epochs=2)
    second.load_state_dict(state)
    second._train = None  # a second training would fail
    second.begin_epoch(1)
    split = first.context.data.test
    batches = [r(Augmented(x=split.x, y=split.y)) for r in (first, second)]
    assert torch.equal(batches[0].w, batches[1].w)


def test_unknown_kind_is_an_error():
    with pytest.raises(BenchmarkError, match="both, mislabelled or unchanged"):
        ConfidenceFilter(context(), drop="all")
