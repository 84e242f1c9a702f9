"""Models and loops of all kinds: right, or refused by name in one line."""

import copy
from contextlib import nullcontext

import pytest
import torch
from reference_models import K, brute_force_products, inputs, mlp
from torch import nn

from saflex import Saflex, gradient_products, validation_gradient
from saflex import errors as e
from saflex.precondition import preconditioned

X, Y = inputs("mlp", 8), torch.arange(8) % K


# The optimiser's metric

OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, 1e-2),
    "AMSGrad": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0),
    "RAdam": lambda p: torch.optim.RAdam(p, 1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, 1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-2),
    "centred RMSprop": lambda p: torch.optim.RMSprop(p, 1e-2, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, lr_decay=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 1e-2),
    "SGD": lambda p: torch.optim.SGD(p, 1e-2),
}


def step(model, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs("mlp", 8)), Y).backward()
    optimizer.step()


@pytest.mark.parametrize("steps", [3, 12])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_step_taken_is_what_the_metric_says(kind, steps):
    """``theta' - theta = -lr D^-1 m``, with m the gradient or its corrected mean."""
    model = mlp()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(steps):
        before = [p.detach().clone() for p in model.parameters()]
        squares = copy.deepcopy(optimizer.state_dict()["state"])
        step(model, optimizer)
    moved, params = {}, dict(model.named_parameters())
    for i, (name, p) in enumerate(params.items()):
        state = optimizer.state[p]
        mean = p.grad
        if "exp_avg" in state:
            mean = state["exp_avg"] / (1 - 0.9 ** int(state["step"]))
        moved[name] = mean
        if kind == "Adadelta":  # its numerator is that of before the step
            state["acc_delta"] = squares[i]["acc_delta"]
    v = preconditioned(moved, params, optimizer)
    for p, old, found in zip(params.values(), before, v.values(), strict=True):
        torch.testing.assert_close(old - p.detach(), 1e-2 * found, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", ["Adam", "RMSprop", "Adagrad"])
def test_a_complex_parameter_is_divided_as_the_pair_that_its_optimiser_sees(kind):
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(3, 4, dtype=torch.complex128))
    pair = nn.Parameter(torch.view_as_real(w.detach()).clone())
    found = []
    for p in (w, pair):
        optimizer = OPTIMIZERS[kind]([p])
        for _ in range(3):
            optimizer.zero_grad()
            z = p if p.is_complex() else torch.view_as_complex(p)
            (z * (1 + 2j)).sum().abs().square().backward()
            optimizer.step()
        g = torch.arange(24).view(3, 4, 2).double() - 7
        g = torch.view_as_complex(g) if p.is_complex() else g
        found.append(preconditioned({"w": g}, {"w": p}, optimizer)["w"])
    torch.testing.assert_close(torch.view_as_real(found[0]), found[1])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimiser_that_has_not_stepped_divides_by_one(kind):
    model = mlp()
    g = validation_gradient(model, X, Y)
    v = preconditioned(g, dict(model.named_parameters()), OPTIMIZERS[kind](model.parameters()))
    assert all(torch.equal(g[name], v[name]) for name in g)


class Own(torch.optim.Adam):
    def step(self, closure=None):
        return None


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adafactor,
        torch.optim.Rprop,
        torch.optim.LBFGS,
        Own,
        lambda p: torch.optim.Muon([q for q in p if q.ndim == 2]),
    ],
)
def test_an_optimiser_whose_metric_is_not_known_is_refused(make):
    model = mlp()
    with pytest.raises(e.SettingError, match="not known here"):
        Saflex(model, validation=(X, Y), optimizer=make(model.parameters()), precondition=True)


def test_a_subclass_without_a_step_of_its_own_is_known():
    class Renamed(torch.optim.AdamW):
        pass

    model = mlp()
    optimizer = Renamed(model.parameters())
    step(model, optimizer)
    Saflex(model, validation=(X, Y), optimizer=optimizer, precondition=True)(X, Y)


def test_an_optimiser_of_another_model_is_refused():
    other = torch.optim.Adam(mlp().parameters())
    with pytest.raises(e.SettingError, match="holds none of the model's 4"):
        Saflex(mlp(), validation=(X, Y), optimizer=other, precondition=True)(X, Y)


def test_rows_that_training_has_not_reached_do_not_silence_the_others():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, K)

        def forward(self, t):
            return self.head(torch.tanh(self.table(t)).mean(1))

    model = Words()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        t = torch.randint(0, 19, (32, 5))
        nn.functional.cross_entropy(model(t), torch.randint(0, K, (32,))).backward()
        optimizer.step()
    validation = torch.randint(0, 20, (64, 5)), torch.randint(0, K, (64,))
    t, y, found = torch.randint(0, 19, (16, 5)), torch.randint(0, K, (16,)), []
    for rare in (False, True):
        if rare:
            t[0, 0] = 19
        refine = Saflex(model, validation=validation, optimizer=optimizer, precondition=True)
        refine(t, y)
        found.append(refine.diagnostics()["pi_mean_abs"])
    assert 0.5 < found[1] / found[0] < 2


# The last layer


class Headed(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), head

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


class Doubled(nn.Linear):
    def forward(self, h):
        return 2 * super().forward(h)


class ByKeyword(Headed):
    def forward(self, x):
        return self.head(input=torch.tanh(self.body(x)))


def hooked() -> nn.Module:
    head = nn.Linear(6, K)
    head.register_forward_hook(lambda _m, _i, out: 3 * out)
    return Headed(head)


def parametrised() -> nn.Module:
    return Headed(nn.utils.parametrizations.orthogonal(nn.Linear(6, K)))


def replaced_forward() -> nn.Module:
    head = nn.Linear(6, K)
    head.forward = lambda h: nn.functional.linear(h, head.weight) - head.bias
    return Headed(head)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Headed(nn.Linear(6, K)),
        lambda: Headed(Doubled(6, K)),
        lambda: ByKeyword(nn.Linear(6, K)),
        hooked,
        parametrised,
        replaced_forward,
    ],
)
def test_last_layers_of_other_kinds(make):
    model = make().double()
    g = validation_gradient(model, X, Y)
    head = {n: v for n, v in g.items() if n.startswith("head.")}
    pi = gradient_products(model, X, head, estimator="last-layer", classifier="head")
    expected = brute_force_products(model, X, head, "log-probabilities")
    torch.testing.assert_close(pi, expected, rtol=1e-7, atol=1e-9)
    Saflex(model, validation=(X, Y), estimator="last-layer", classifier="head")(X, Y)


@pytest.mark.parametrize(
    "change",
    [
        lambda out: out.mul_(2),
        lambda out: out / 2,
        lambda out: out.T if out.shape[0] == out.shape[1] else out.clone(),
    ],
)
def test_what_happens_after_the_last_layer_is_refused(change):
    class Changed(Headed):
        def forward(self, x):
            return change(super().forward(x))

    model = Changed(nn.Linear(6, K)).double()
    with pytest.raises(e.EstimatorError, match="not that of its last layer"):
        Saflex(model, validation=(X, Y), estimator="last-layer")(X, Y)
    with pytest.raises(e.EstimatorError, match="something happens after"):
        Saflex(model, validation=(X, Y), estimator="last-layer", classifier="head")(X, Y)


class WithToken(Headed):
    """A network that owns a parameter beside its layers, as a vision transformer does."""

    def __init__(self, head):
        super().__init__(head)
        self.token = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)) + self.token)


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


def test_the_last_layer_of_a_wrapped_network_is_its_head():
    for model, head in (
        (Wrapped(WithToken(nn.Linear(6, K))), "net.head"),
        (Wrapped(Wrapped(WithToken(Doubled(6, K)))), "net.net.head"),
    ):
        refine = Saflex(model.double(), validation=(X, Y), estimator="last-layer")
        refine(X, Y)
        assert refine.direction.classifier == head
        assert set(refine.direction.tangent) == {f"{head}.weight", f"{head}.bias"}


def test_a_whole_network_is_no_last_layer():
    class Halved(WithToken):
        def forward(self, x):
            return super().forward(x) / 2

    model = Wrapped(Halved(nn.Linear(6, K))).double()
    with pytest.raises(e.EstimatorError, match=r"last layer with parameters \('net.head'\)"):
        Saflex(model, validation=(X, Y), estimator="last-layer")(X, Y)


# State


class Writes(nn.Module):
    """Every way to write to a buffer in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 6, max_norm=0.5), nn.Linear(6, K)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", None)
        self.register_buffer("shared", torch.zeros(2))
        self.head.register_buffer("shared", self.shared)

    def forward(self, t):
        self.count.data += 1
        self.mean = t.double().mean()
        self.head.shared += 1
        self.register_buffer("late", torch.ones(1))
        return self.head(torch.tanh(self.table(t)).mean(1))


@pytest.mark.parametrize("estimator", ["forward-mode", "finite-difference", "last-layer"])
def test_whatever_a_forward_writes_is_left_as_found(estimator):
    model = Writes()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    validation = torch.randint(0, 9, (8, 3)), Y
    refine = Saflex(model, validation=validation, estimator=estimator, check="never")
    refused = estimator == "finite-difference"  # by the table's max_norm
    with pytest.raises(e.EstimatorError, match="max_norm") if refused else nullcontext():
        refine(torch.randint(0, 9, (6, 3)), Y[:6])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert model.mean is None
    assert model.head.shared is model.shared


def test_threads_wait_for_each_other():
    import threading

    found, errors = {}, []

    def job(seed):
        try:
            torch.manual_seed(0)
            refine = Saflex(models[seed], validation=(X, Y))
            for _ in range(30):
                found[seed] = refine(X, Y).y
        except Exception as error:
            errors.append(error)

    models = [mlp(), mlp()]
    threads = [threading.Thread(target=job, args=(seed,)) for seed in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors
    for seed, model in enumerate(models):
        assert torch.equal(found[seed], Saflex(model, validation=(X, Y))(X, Y).y)


def test_a_used_refiner_can_be_copied_with_its_model():
    from torch.utils.data import DataLoader, TensorDataset

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()
            loader = DataLoader(TensorDataset(X, Y), 3, shuffle=True)
            self.refine = Saflex(self.net, validation=loader, ema=0.5)

    owner = Owner()
    owner.refine(X, Y)
    copied = copy.deepcopy(owner)
    assert copied.refine.model is copied.net
    for _ in range(4):
        assert torch.equal(owner.refine(X, Y).y, copied.refine(X, Y).y)


# Errors of passes


def refuse(says, error, call):
    with pytest.raises(error, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_obscure_failures_are_one_line():
    refuse("augmented batch is empty", e.ShapeError, lambda: run(X[:0], Y[:0]))
    refuse("x.to\\(torch.float64\\)", e.ShapeError, lambda: run(X.float(), Y))
    bad = X.clone()
    bad[3] = torch.nan
    refuse(r"1 of 8 augmented rows, first \[3\]", e.NonFiniteGradientError, lambda: run(bad, Y))
    with torch.inference_mode():
        refuse("torch.no_grad", e.SettingError, lambda: run(X, Y))


def run(x, y, model=None):
    return Saflex(model or mlp(), validation=(X, Y))(x, y)


def test_a_forward_without_gradient_is_refused():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        @torch.no_grad()
        def forward(self, x):
            return self.net(x)

    refuse("under torch.no_grad", e.EstimatorError, lambda: run(X, Y, Frozen()))


def test_checkpointing_of_the_old_kind_names_the_new():
    class Checkpointed(Headed):
        def forward(self, x):
            h = torch.tanh(self.body(x))
            return torch.utils.checkpoint.checkpoint(self.head, h, use_reentrant=self.old)

    model = Checkpointed(nn.Linear(6, K)).double()
    model.old = True
    refuse("use_reentrant=False", e.EstimatorError, lambda: run(X, Y, model))
    model.old = False
    run(X, Y, model)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_nets_in_single_precision_have_tangents(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = kind(5, 6, batch_first=True), nn.Linear(6, K)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    x = torch.randn(8, 3, 5)
    Saflex(Net(), validation=(x, Y))(x, Y)
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cudnn.enabled


def test_sparse_gradients_are_made_dense():
    def net(sparse):
        torch.manual_seed(3)
        return nn.Sequential(nn.Embedding(9, 6, sparse=sparse), nn.Flatten(), nn.Linear(18, K))

    t = torch.randint(0, 9, (8, 3))
    batches = [Saflex(net(sparse), validation=(t, Y))(t, Y) for sparse in (False, True)]
    assert torch.equal(batches[0].y, batches[1].y)


def test_a_row_that_is_not_a_number_spoils_no_other_on_an_accelerator():
    refine = Saflex(mlp(), validation=(X, Y))
    pi, p = torch.randn(3, K), torch.full((3, K), 0.25)
    pi[1] = torch.nan

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    refine(X, Y)
    found, even = refine.direction.without_non_finite(pi.as_subclass(Elsewhere), p)
    assert torch.equal(torch.as_tensor(found)[[0, 2]], pi[[0, 2]])
    assert (found[1] == 0).all()
    assert torch.equal(torch.as_tensor(even), p)
    with pytest.raises(e.NonFiniteGradientError, match="augmented row"):
        refine.diagnostics()


# Accelerators, as far as a machine without one can tell


@pytest.mark.parametrize("estimator", ["forward-mode", "finite-difference", "last-layer"])
@pytest.mark.parametrize("settings", [{}, {"ema": 0.5}, {"precondition": True}])
def test_no_step_waits_for_the_device(estimator, settings):
    """On `meta` there are no numbers, so reading one is an error, and devices cannot be mixed."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, K)).to("meta")
    optimizer = torch.optim.Adam(model.parameters())
    if settings.get("precondition"):
        for p in model.parameters():
            moments = {"exp_avg": torch.empty_like(p), "exp_avg_sq": torch.empty_like(p)}
            optimizer.state[p] = {"step": torch.tensor(1.0), **moments}
    x, y = X.float().to("meta"), Y.to("meta")
    fixed = {"fd_step": 1e-4} if estimator == "finite-difference" else {}
    refine = Saflex(
        model, validation=(x, y), estimator=estimator, check="never", optimizer=optimizer,
        refresh_every=2, **fixed, **settings,
    )  # fmt: skip
    refine.direction.steps = 2  # labels are looked at in the first step, g in every hundredth
    refine.direction.refreshes = 1
    for _ in range(3):
        batch = refine(x, y)
    assert batch.y.device.type == batch.w.device.type == "meta"
