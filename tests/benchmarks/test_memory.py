"""SAFLEX with memory: averages by hand, equal to SAFLEX at first sight, less noise later, resumable."""

from __future__ import annotations

import pytest
import small_runs
import torch

from benchmarks.errors import BenchmarkError
from benchmarks.models.tabular import build_mlp
from benchmarks.refiners import Context
from benchmarks.refiners.saflex import Recommended
from benchmarks.refiners.saflex_memory import Memory, SaflexMemory
from benchmarks.refiners.tasks import Classification
from benchmarks.upstream import Augmented


def context(*, noise: int = 0) -> Context:
    """A run on blobs; with `noise`, each validation batch is another draw of that many rows."""
    data = small_runs.blobs()
    torch.manual_seed(0)
    model = build_mlp(data)
    generator = torch.Generator().manual_seed(5)

    def validation(size):
        rows = torch.randperm(60, generator=generator)[:noise] if noise else torch.arange(60)
        return data.validation.x[rows], data.validation.y[rows]

    return Context(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data=data,
        task=Classification(model, data),
        validation=validation,
        seed=3,
        epochs=5,
        steps_per_epoch=4,
    )


def augmented(data, rows) -> Augmented:
    return Augmented(x=data.train.x[rows], y=(data.train.y[rows] + 1) % 3, index=rows)


def test_averages_by_hand():
    memory = Memory()
    first = memory(torch.tensor([2, 0]), torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
    assert first.tolist() == [[1.0, 3.0], [5.0, 7.0]]
    second = memory(torch.tensor([2, 4]), torch.tensor([[3.0, 5.0], [9.0, 9.0]]))
    assert second.tolist() == [[2.0, 4.0], [9.0, 9.0]]
    fading = Memory(decay=0.5)
    fading(torch.tensor([0]), torch.tensor([[4.0]]))
    # (0.5 * 4 + 1) / (0.5 + 1): the first measurement counts half of the second.
    assert fading(torch.tensor([0]), torch.tensor([[1.0]])).item() == pytest.approx(2.0)


def test_first_sight_is_plain_saflex():
    rows = torch.arange(20)
    own = context()
    plain = Recommended(context())(augmented(own.data, rows))
    remembered = SaflexMemory(own)(augmented(own.data, rows))
    assert torch.allclose(plain.y, remembered.y, atol=1e-6)
    assert torch.equal(plain.w, remembered.w)


def test_memory_decides_as_the_whole_validation_set_would():
    """Pi against six validation rows is noisy; the average of 30 looks picks the label all rows pick."""
    rows = torch.arange(60)
    whole = context()
    settings = {"tau": 0.0, "eps": 1.0}
    exact = Recommended(whole, **settings)(augmented(whole.data, rows)).y
    noisy = context(noise=6)
    plain, memory = Recommended(noisy, **settings), SaflexMemory(noisy, **settings)
    agreement, remembered = [], None
    for _ in range(30):
        single = plain(augmented(noisy.data, rows)).y
        agreement.append((single.argmax(-1) == exact.argmax(-1)).float().mean())
        remembered = memory(augmented(noisy.data, rows)).y
    noisy_share = torch.stack(agreement).mean()
    share = (remembered.argmax(-1) == exact.argmax(-1)).float().mean()
    assert 1 - share < 0.5 * (1 - noisy_share)


def test_resumes_bit_for_bit():
    data = context().data
    first = SaflexMemory(context())
    for start in range(0, 60, 20):
        first(augmented(data, torch.arange(start, start + 30)))
    state = first.state_dict()
    second = SaflexMemory(context())
    second.load_state_dict(state)
    batches = [r(augmented(data, torch.arange(40))) for r in (first, second)]
    assert torch.equal(batches[0].y, batches[1].y)
    assert torch.equal(batches[0].w, batches[1].w)


def test_diagnostics_count_looks_and_start_anew():
    refiner = SaflexMemory(context())
    data = refiner.context.data
    for _ in range(3):
        refiner(augmented(data, torch.arange(10)))
    found = refiner.diagnostics()
    assert found["memory_depth"] == pytest.approx(2.0)  # 1, 2 and 3 looks
    assert 0 <= found["label_unchanged"] <= 1
    assert refiner.diagnostics() == {}


@pytest.mark.parametrize("settings", [{"gumbel": True, "prior": "label"}, {"sign": "printed"}])
def test_forms_with_noise_are_refused(settings):
    with pytest.raises(BenchmarkError, match="averages Pi"):
        SaflexMemory(context(), **settings)


def test_decay_out_of_range_is_an_error():
    with pytest.raises(BenchmarkError, match="expected a share"):
        SaflexMemory(context(), decay=1.0)
