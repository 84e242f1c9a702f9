"""A memory averages the scaled Pi of a row over its visits before it decides."""

import pytest
import torch
from reference_models import K, Stack, inputs, mlp

from saflex import ContrastiveSaflex, Saflex, SaflexSettings, inner_products, logit_derivatives
from saflex import errors as e
from saflex.labels import scaled_products, soft_labels
from saflex.memory import Memory
from saflex.weighting import sample_weights

X, Y = inputs("mlp", 12), torch.arange(12) % K


def visits(rows: int = 30, batch: int = 8, count: int = 12):
    """Batches of distinct rows of a fixed set, and a model that moves between them."""
    x, y = inputs("mlp", rows), torch.arange(rows) % K
    for _ in range(count):
        index = torch.randperm(rows)[:batch]
        yield index, x[index], y[index]


def averages(history: dict[int, list], decay: float, index) -> torch.Tensor:
    """By the definition: sum over visits of decay^age times Pi, over the sum of the powers."""
    out = []
    for i in index.tolist():
        powers = [decay ** (len(history[i]) - 1 - v) for v in range(len(history[i]))]
        out.append(sum(a * pi for a, pi in zip(powers, history[i], strict=True)) / sum(powers))
    return torch.stack(out)


@pytest.mark.parametrize("decay", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("changes", [{}, {"scale": "cosine", "tau": 0.5}, {"relabel": False}])
def test_label_and_weight_follow_the_average_of_all_visits(decay, changes):
    model = mlp().eval()
    refine = Saflex(model, validation=(X, Y), memory=decay, **changes)
    s, history = refine.settings, {i: [] for i in range(30)}
    agreed = depth = 0.0
    for index, x, y in visits(count=12):
        batch = refine(x, y, index=index)
        z, dz = logit_derivatives(model, x, refine.direction.tangent)
        p = z.softmax(-1)
        now = scaled_products(
            inner_products(z, dz, output="log-probabilities"), scale=s.scale, probabilities=p
        )
        for i, row in zip(index.tolist(), now, strict=True):
            history[i].append(row)
        pi = averages(history, decay, index)
        upstream = torch.nn.functional.one_hot(y, K).double()
        wanted = upstream
        if s.relabel:
            wanted = soft_labels(
                pi, upstream, tau=s.tau, prior="entropic", eps=s.eps, probabilities=p
            )
        torch.testing.assert_close(batch.y, wanted)
        torch.testing.assert_close(batch.w, sample_weights(pi, wanted))
        agreed += (pi.argmax(-1) == now.argmax(-1)).double().mean()
        weights = [sum(decay**v for v in range(len(h))) for h in history.values() if h]
        depth += sum(weights) / len(weights)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    found = refine.diagnostics()
    assert found["memory_agreement"] == pytest.approx(agreed / 12)
    assert found["memory_depth"] == pytest.approx(depth / 12)


def test_a_first_visit_decides_as_without_a_memory():
    model = mlp()
    plain = Saflex(model, validation=(X, Y), scale=None)(X, Y)
    remembered = Saflex(model, validation=(X, Y), scale=None, memory=0.9)(
        X, Y, index=torch.arange(12)
    )
    assert torch.equal(plain.y, remembered.y)
    assert torch.equal(plain.w, remembered.w)


def test_a_row_that_occurs_twice_in_a_batch_counts_twice():
    memory = Memory(0.5)
    memory(torch.tensor([3, 1]), torch.tensor([[8.0], [0.0]]))
    now = memory(torch.tensor([3, 3]), torch.tensor([[1.0], [2.0]]))
    torch.testing.assert_close(now, torch.full((2, 1), (4 + 1 + 2) / (0.5 + 2)))
    assert memory.weight.tolist() == [0, 1, 0, 2.5]
    assert memory.depth() == (1 + 2.5) / 2


def test_each_model_of_a_stack_remembers_for_itself():
    rows = torch.randn(5, 3, 4, K, dtype=torch.float64)
    together, alone = Memory(0.9), [Memory(0.9) for _ in range(3)]
    for row in rows:
        index = torch.stack([torch.randperm(9)[:4] for _ in range(3)])
        found = together(index, row)
        for r in range(3):
            torch.testing.assert_close(found[r], alone[r](index[r], row[r]))
    stack = Stack(3).double()
    x, y = torch.randn(3, 12, 5, dtype=torch.float64), torch.arange(36).view(3, 12) % K
    refine = Saflex(stack, validation=(x, y), memory=1.0, layout="stack")
    refine(x, y, index=torch.arange(12).expand(3, 12))
    assert len(refine.log.each()) == 3


def test_the_memory_is_resumed():
    def run(model, batches, state=None):
        refine = Saflex(model, validation=(X, Y), memory=0.8)
        if state:
            refine.load_state_dict(state)
        out = [refine(x, y, index=index).y for index, x, y in batches]
        return out, refine

    model, batches = mlp(), list(visits())
    whole, _ = run(model, batches)
    first, halfway = run(model, batches[:6])
    second, _ = run(model, batches[6:], halfway.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(whole, first + second, strict=True))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"memory": 0.0}, r"\(0, 1\]"),
        ({"memory": 1.1}, r"\(0, 1\]"),
        ({"memory": 0.9, "gumbel": True, "prior": "label"}, "gumbel=False"),
        ({"memory": 0.9, "sign": "printed"}, "sign='descent'"),
    ],
)
def test_settings(settings, says):
    with pytest.raises(e.SettingError, match=says):
        SaflexSettings(**settings)


@pytest.mark.parametrize(
    ("index", "error", "says"),
    [
        (None, e.SettingError, "index=rows"),
        ([0] * 12, e.SettingError, "tensor of integers"),
        (torch.rand(12), e.SettingError, "float32, expected a tensor of integers"),
        (torch.arange(11), e.ShapeError, r"\(11,\), expected \(12,\)"),
        (torch.arange(12) - 1, e.SettingError, "rows count from 0"),
        (torch.arange(12) + 10**12, e.SettingError, "Pass the position of each sample"),
    ],
)
def test_index(index, error, says):
    with pytest.raises(error, match=says):
        Saflex(mlp(), validation=(X, Y), memory=1.0)(X, Y, index=index)


def test_contrastive_batches_have_nothing_to_remember():
    with pytest.raises(e.SettingError, match="memory=None"):
        ContrastiveSaflex(mlp(), validation=(X, Y), memory=1.0)
