"""A training loop that ignores the refined batch cannot tell that it was ever computed."""

import copy
import random

import numpy as np
import pytest
import torch
from reference_models import MODELS, K, convnet, inputs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from saflex import Mixture, Saflex

ESTIMATORS = ("forward-mode", "finite-difference", "last-layer")


class Awkward(nn.Module):
    """Dropout and BatchNorm, a tied weight, a frozen layer, and buffers its forward writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.head = nn.Linear(5, K)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x):
        self.calls += 1  # in place, in evaluation mode too
        self.last = x.detach().mean().repeat(2)  # replaced
        h = nn.functional.dropout(self.norm(self.first(x)), 0.3, training=True)  # always on
        return self.head(torch.relu(self.frozen(torch.relu(self.second(h)))))


def loop(refine_with: str | None, steps: int = 5, **settings):
    """Train and return everything a refinement might have touched."""
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    model = Awkward().train()
    model.norm.eval()  # a mixed mode, as in fine-tuning
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    data = DataLoader(TensorDataset(torch.randn(40, 5), torch.arange(40) % K), 8, shuffle=True)
    val = DataLoader(TensorDataset(torch.randn(24, 5), torch.arange(24) % K), 6, shuffle=True)
    refine = None
    if refine_with is not None:
        refine = Saflex(
            model,
            validation=val,
            estimator=refine_with,
            precondition=optimizer,
            ema=0.5,
            **settings,
        )
    losses = []
    for x, y in data:
        x = x + torch.randn_like(x) * random.random() * np.random.rand()
        before = [id(p.grad) for p in model.parameters()]
        if refine is not None:
            refine(x, y)
        assert before == [id(p.grad) for p in model.parameters()]
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    streams = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    modes = [m.training for m in model.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return losses, copy.deepcopy(model.state_dict()), optimizer.state_dict(), grads, modes, streams


def assert_identical(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_identical(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_identical(one, other)
    else:
        assert a == b


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("noise", [False, True])
def test_the_trajectory_is_bit_identical_to_one_without_refinement(estimator, noise):
    settings = {"gumbel": noise, "prior": "label" if noise else "entropic", "cosine_every": 2}
    assert_identical(loop(None), loop(estimator, **settings))


def test_the_comparison_notices_one_extra_draw():
    # A test that cannot fail proves nothing: one number taken from the stream must show.
    plain = loop(None)
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    torch.rand(1)
    assert not torch.equal(plain[-1][0], torch.get_rng_state())
    changed = loop(None, steps=5)
    changed[1]["calls"] += 1
    with pytest.raises(AssertionError):
        assert_identical(plain, changed)


def test_running_statistics_and_modes_after_an_error():
    model = convnet().train()
    before = copy.deepcopy(model.state_dict())
    refine = Saflex(model, validation=(inputs("convnet", 4), torch.arange(4) % K))
    with pytest.raises(RuntimeError):
        refine(torch.randn(3, 9, 6, 6, dtype=torch.float64), torch.arange(3))  # 9 channels
    assert_identical(before, dict(model.state_dict()))
    assert all(m.training for m in model.modules())
    assert all(type(p) is nn.Parameter for p in model.parameters())


def test_parameters_are_the_same_objects_and_their_hooks_do_not_fire():
    model = MODELS["mlp"]()
    fired = []
    for p in model.parameters():
        p.register_hook(lambda g: fired.append(1))
    identities = [id(p) for p in model.parameters()]
    refine = Saflex(model, validation=(inputs("mlp", 4), torch.arange(4)))
    batch = refine(inputs("mlp", 3), torch.arange(3))
    assert [id(p) for p in model.parameters()] == identities
    assert not fired
    assert not batch.y.requires_grad
    assert not batch.w.requires_grad


def test_the_loops_own_loader_with_persistent_workers_may_be_a_source():
    data = TensorDataset(torch.arange(12).float()[:, None].expand(12, 5), torch.arange(12) % K)
    loader = DataLoader(data, 4, num_workers=1, persistent_workers=True)
    refine = Saflex(
        nn.Linear(5, K), validation=Mixture((torch.randn(4, 5), torch.arange(4)), loader)
    )
    seen = []
    for epoch in range(2):
        for x, y in loader:
            seen += x[:, 0].tolist()
            refine(x / 12, y)
            assert len(seen) <= 12 * (epoch + 1)
        copy.deepcopy(refine)  # its position, and nobody else's
    assert seen == 2 * list(range(12))
