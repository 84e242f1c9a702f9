"""What a forward may write to, draw from and be made of: left as found, and right or refused."""

import random
import warnings

import numpy as np
import torch
from promises import keeps_promise
from reference_models import K, brute_force_products
from situations import refused, situation
from torch import nn
from torch.nn import functional as F

from saflex import Saflex, gradient_products, validation_gradient
from saflex import errors as e

STATE, FORWARDS = "What a forward writes and draws", "Forwards of all kinds"
Y, YV = torch.arange(8) % K, torch.arange(12) % K
ESTIMATORS = ("forward-mode", "finite-difference", "last-layer")
KEPT = "right: left as found, by every estimator"


class Plain(nn.Module):
    """Two layers, and what `forward` does beside them."""

    def __init__(self, beside=lambda self, x: None):
        super().__init__()
        self.body, self.head = nn.Linear(5, 7), nn.Linear(7, K)
        self.beside = beside

    def forward(self, x):
        self.beside(self, x)
        return self.head(torch.tanh(self.body(x)))


def data():
    torch.manual_seed(0)
    return torch.randn(8, 5).double(), torch.randn(12, 5).double()


def kept(make, found):
    """Refine twice with each estimator; what `found` reads of the model stays as it is."""
    for estimator in ESTIMATORS:
        x, xv = data()
        model = make().double()
        before = found(model)
        refine = Saflex(model, validation=(xv, YV), estimator=estimator, check="always")
        refine(x, Y), refine(x, Y)
        assert repr(found(model)) == repr(before)
        expected = data()
        assert torch.equal(x, expected[0])
        assert torch.equal(xv, expected[1])
    return KEPT


def right(make, **settings):
    """Pi of a checked refiner's direction is that of K x B backward passes."""
    x, xv = data()
    model = make().double()
    refine = Saflex(model, validation=(xv, YV), check="always", **settings)
    refine(x, Y), refine(x, Y)
    g = validation_gradient(model, xv, YV)
    found = gradient_products(model, x, g)
    expected = brute_force_products(model.eval(), x, g, "log-probabilities")
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    return "right: Pi as by K x B backward passes"


# What is written and drawn


@situation(STATE, "a frozen parameter that counts calls through `.data`")
def _():
    def make():
        model = Plain(lambda self, x: self.count.data.add_(1))
        model.count = nn.Parameter(torch.zeros(1), requires_grad=False)
        return model

    return kept(make, lambda model: model.count.item())


@situation(STATE, "a large frozen layer that follows another one, `k.data = k.data * m + q.data`")
def _():
    def follow(self, x):
        self.key.data = self.key.data * 0.9 + 0.1

    def make():
        model = Plain(follow)
        model.key = nn.Parameter(torch.zeros(300, 300), requires_grad=False)
        return model

    return kept(make, lambda model: model.key.sum().item())


@situation(STATE, "the same in place, `k.data.mul_(m)`")
def _():
    model = Plain(lambda self, x: self.key.data.mul_(0.9)).double()
    model.key = nn.Parameter(torch.ones(300, 300).double(), requires_grad=False)
    x, xv = data()
    return refused(
        e.CheckError,
        lambda: Saflex(model, validation=(xv, YV))(x, Y),
        naming="writes into the frozen parameter key",
    )


class Constrained(nn.Linear):
    """A norm kept in the forward, as in EEGNet."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.1)
        return super().forward(x)


class ConstrainedInPlace(nn.Linear):
    def forward(self, x):
        self.weight.data.renorm_(2, 0, 0.1)
        return super().forward(x)


def constrained(kind):
    model = nn.Sequential(kind(5, 7), nn.Tanh(), nn.Linear(7, K))
    return model.double()


for _kind, _how in ((Constrained, "replaced"), (ConstrainedInPlace, "changed in place")):

    @situation(STATE, f"a weight whose norm the forward constrains, {_how}")
    def _(kind=_kind):
        x, xv = data()
        model = constrained(kind)
        before = model[0].weight.detach().clone()
        batch = Saflex(model, validation=(xv, YV), check="always")(x, Y)
        assert torch.equal(model[0].weight, before)
        model(x)  # as the next training step does
        g = validation_gradient(model, xv, YV)
        expected = brute_force_products(model, x, g, "log-probabilities")
        torch.testing.assert_close(gradient_products(model, x, g), expected, rtol=1e-7, atol=1e-9)
        assert torch.isfinite(batch.y).all()
        return "right: Pi as by K x B backward passes, the weight left as found"

    @situation(STATE, f"the same under finite differences, {_how}")
    def _(kind=_kind):
        x, xv = data()
        return refused(
            e.EstimatorError,
            lambda: Saflex(constrained(kind), validation=(xv, YV), estimator=ESTIMATORS[1])(x, Y),
            naming="writes to its parameter 0.weight",
        )


@situation(STATE, "a buffer written through an alias, and a counter that is a plain tensor")
def _():
    def count(self, x):
        self.stats["seen"].add_(1)
        self.calls += 1

    def make():
        model = Plain(count)
        model.register_buffer("seen", torch.zeros(()))
        model.stats, model.calls = {"seen": model.seen}, torch.zeros(())
        return model.double()

    return kept(make, lambda model: (model.seen.item(), model.stats, model.calls))


@situation(STATE, "inputs changed in place: `x.relu_()`, `x.sub_(0.5).mul_(2)`")
def _():
    said = {
        kept(lambda f=f: Plain(f), lambda model: None)
        for f in (lambda self, x: x.relu_(), lambda self, x: x.sub_(0.5).mul_(2))
    }
    return said.pop()


@situation(STATE, "a cache that evaluation fills, of values that depend on parameters")
def _():
    class Cached(Plain):
        """As the attention biases of timm's LeViT."""

        def __init__(self):
            super().__init__()
            self.cache = {}

        def forward(self, x):
            if not self.training:
                self.cache.setdefault("bias", self.body.bias * 2)
            bias = self.body.bias * 2 if self.training else self.cache["bias"]
            return self.head(torch.tanh(F.linear(x, self.body.weight, bias)))

    kept(Cached, lambda model: model.cache)
    x, xv = data()
    model = Cached().double()
    batch = (refine := Saflex(model, validation=(xv, YV)))(x, Y)
    return keeps_promise(refine, model, batch, lambda: F.cross_entropy(model.train()(xv), YV))


@situation(STATE, "features that a hook puts into a dict of the model's")
def _():
    class Hooked(Plain):
        def __init__(self):
            super().__init__()
            self.seen = seen = {}
            self.body.register_forward_hook(lambda m, x, out: seen.update(body=out))

        def forward(self, x):
            return super().forward(x) + self.seen["body"][:, :K]

    x, xv = data()
    with torch.no_grad():
        stale = (model := Hooked().double())(xv)
    before = model.seen["body"]
    batch = (refine := Saflex(model, validation=(xv, YV), check="always"))(x, Y)
    assert model.seen["body"] is before
    torch.testing.assert_close(model(xv), stale)
    return keeps_promise(refine, model, batch, lambda: F.cross_entropy(model(xv), YV))


@situation(STATE, "Python's, NumPy's and the model's own random streams")
def _():
    def draw(self, x):
        random.random(), np.random.uniform()
        self.own.normal(), self.python.random()
        torch.randn(1, generator=self.generator)

    def make():
        model = Plain(draw)
        model.own, model.python = np.random.default_rng(0), random.Random(0)
        model.generator = torch.Generator().manual_seed(0)
        return model

    def streams(model):
        own = model.own.bit_generator.state, model.python.getstate(), model.generator.get_state()
        return random.getstate(), np.random.get_state(), own

    return kept(make, streams)


@situation(STATE, "noise from a `torch.Generator` that is the model's")
def _():
    class Noisy(Plain):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x):
            noise = torch.randn(x.shape, generator=self.generator).double()
            return super().forward(x + 0.1 * noise)

    def found(model):
        return model.generator.get_state().sum().item()

    return kept(Noisy, found)


@situation(STATE, "hooks on modules' backward passes")
def _():
    def make():
        model = Plain()
        model.fired = fired
        model.body.register_full_backward_hook(lambda *_: fired.append(1))
        model.head.register_full_backward_pre_hook(lambda *_: fired.append(1))
        return model

    fired = []
    said = kept(make, lambda model: len(fired))
    model = make()
    model(torch.randn(2, 5, requires_grad=True)).sum().backward()
    assert len(fired) == 2
    return said


# Forwards


class Energy(Plain):
    """The logits are of a derivative by the input."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(super().forward(x).sum(), x, create_graph=True)
        return self.head(torch.tanh(self.body(slope)))


class FunctionalGradient(Plain):
    def forward(self, x):
        plain = super().forward
        slopes = torch.func.vmap(torch.func.grad(lambda v: plain(v).square().sum()))(x)
        return plain(slopes)


class LeafInput(Plain):
    def forward(self, x):
        return super().forward(x.detach().requires_grad_(torch.is_grad_enabled()))


for _name, _make in {
    "an input that the forward makes a leaf": LeafInput,
    "`torch.autograd.grad` in the forward": Energy,
    "`torch.func.grad` in the forward": FunctionalGradient,
}.items():
    situation(FORWARDS, _name)(lambda make=_make: right(make))


@situation(FORWARDS, "a forward compiled by `model.forward = torch.compile(model.forward)`")
def _():
    def make():
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, K)).double()
        plain = model.forward
        model.forward = torch.compile(plain, backend="aot_eager")
        model(torch.randn(8, 5).double()).sum().backward()
        return model

    x, xv = data()
    model = make()
    batch = (refine := Saflex(model, validation=(xv, YV), check="always"))(x, Y)
    return keeps_promise(refine, model, batch, lambda: F.cross_entropy(model(xv), YV))


@situation(FORWARDS, "complex parameters")
def _():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 5, dtype=torch.complex128) / 2)
            self.head = nn.Linear(8, K, dtype=torch.float64)

        def forward(self, x):
            return self.head(torch.tanh(torch.fft.irfft(torch.fft.rfft(x) @ self.w, n=8)))

    said = set()
    for estimator in ESTIMATORS[:2]:
        x, xv = data()
        model = Spectral()
        refine = Saflex(model, validation=(xv, YV), estimator=estimator, check="always")
        batch = refine(x, Y)
        said.add(
            keeps_promise(refine, model, batch, lambda m=model, v=xv: F.cross_entropy(m(v), YV))
        )
    return said.pop()


@situation(FORWARDS, "TorchScript modules, scripted or traced, whole or as a block")
def _():
    plain = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, K)).double()
    x, xv = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        traced = torch.jit.trace(plain, x)
    return refused(
        e.SettingError,
        lambda: Saflex(nn.Sequential(traced, nn.Linear(K, K)), validation=(xv, YV)),
        naming="TorchScript module ('0')",
    )


@situation(FORWARDS, "weights tied through `.data`")
def _():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, K))
    model.insert(2, nn.Linear(5, 5))
    model[2].weight.data = model[0].weight.data
    x, xv = data()
    model = model.float()
    return refused(
        e.CheckError,
        lambda: Saflex(model, validation=(xv.float(), YV))(x.float(), Y),
        naming="0.weight and 2.weight share memory",
    )


@situation(FORWARDS, "parameters that are parts of one flat tensor")
def _():
    def make():
        model = Plain().double()
        flat = torch.randn(sum(p.numel() for p in model.parameters())).double() / 3
        at = 0
        for p in model.parameters():
            p.data = flat[at : at + p.numel()].view_as(p)
            at += p.numel()
        return model

    return right(make)
