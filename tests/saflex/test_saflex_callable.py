"""The callable over many steps: sources, refreshing, averaging, the optimiser's metric, resuming."""

import io
import math

import pytest
import torch
from reference_models import K, Single, Stack, inputs, mlp
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from saflex import (
    Mixture,
    Saflex,
    SaflexSettings,
    gradient_products,
    sample_weights,
    soft_cross_entropy,
    soft_labels,
    validation_gradient,
)
from saflex.errors import SettingError
from saflex.precondition import preconditioned
from saflex.validation import as_source

X, Y = inputs("mlp", 9), torch.arange(9) % K
XV, YV = inputs("mlp", 12), torch.arange(12) % K


def train(model, refine, steps, optimizer):
    seen = []
    for _ in range(steps):
        batch = refine(X, Y)
        loss = soft_cross_entropy(model(batch.x), batch.y, batch.w)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append((batch.y, batch.w))
    return seen


# Algorithm 1 as its parts


@pytest.mark.parametrize("preset", [Saflex, Saflex.printed, Saflex.derived])
def test_the_callable_is_its_pure_functions_in_order(preset):
    model = mlp().eval()
    refine = preset(model, validation=(XV, YV), seed=5)
    batch, s = refine(X, Y), refine.settings
    g = validation_gradient(model, XV, YV)
    pi = gradient_products(model, X, g, output=s.output)
    pi = -pi if preset == Saflex.printed else pi
    y = soft_labels(
        pi, nn.functional.one_hot(Y, K).double(), beta=s.beta, tau=s.tau, gumbel=s.gumbel,
        prior=s.prior, scale=s.scale, eps=s.eps, probabilities=model(X).softmax(-1).detach(),
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    torch.testing.assert_close(batch.y, y)
    torch.testing.assert_close(batch.w, sample_weights(pi, y, rule=s.rule))
    assert batch.x is X


def test_presets_are_the_documented_settings():
    printed, derived = SaflexSettings.printed(beta=1.0), SaflexSettings.derived()
    paper = {"tau": 0.01, "gumbel": True, "prior": "label", "scale": None, "rule": "algorithm-1"}
    for settings in (printed, derived):
        assert {name: settings.as_dict()[name] for name in paper} == paper
    assert (printed.output, printed.sign, printed.beta) == ("probabilities", "printed", 1.0)
    assert (derived.output, derived.sign, derived.beta) == ("log-probabilities", "descent", 0.0)
    default = SaflexSettings()
    assert (default.prior, default.eps, default.tau, default.scale, default.rule) == (
        "entropic", 0.5, 1.0, "batch-std", "algorithm-1",
    )  # fmt: skip
    assert SaflexSettings.from_mapping(default.as_dict()) == default


def test_hard_and_soft_upstream_labels_agree():
    model = mlp()
    hard = Saflex(model, validation=(XV, YV))(X, Y)
    soft = Saflex(model, validation=(XV, YV))(X, nn.functional.one_hot(Y, K).double())
    assert torch.equal(hard.y, soft.y)
    mixed = Saflex(model, validation=(XV, YV))(X, torch.full((9, K), 1 / K))
    assert not torch.equal(hard.y, mixed.y)


def test_weights_only_keeps_the_upstream_labels():
    batch = Saflex(mlp(), validation=(XV, YV), relabel=False, rule="soft")(X, Y)
    assert torch.equal(batch.y, nn.functional.one_hot(Y, K).double())
    assert len(batch.w.unique()) > 3


# Sources


def gradient_of(source, model):
    return validation_gradient(model, *source.next())


def test_a_pair_of_tensors_is_used_whole_or_row_by_row_without_replacement():
    whole = as_source((XV, YV))
    assert whole.next()[0] is XV
    drawn = as_source((torch.arange(12.0)[:, None], YV), batch_size=4, seed=1)
    for _ in range(3):
        rows = torch.cat([drawn.next()[0] for _ in range(3)]).flatten()
        assert sorted(rows.tolist()) == list(range(12))
    again = as_source((torch.arange(12.0)[:, None], YV), batch_size=4, seed=1)
    other = as_source((torch.arange(12.0)[:, None], YV), batch_size=4, seed=2)
    first = as_source((torch.arange(12.0)[:, None], YV), batch_size=4, seed=1).next()[0]
    assert torch.equal(again.next()[0], first)
    assert not torch.equal(other.next()[0], first)


def test_replicated_rows_are_drawn_along_the_sample_dimension():
    x, y = torch.randn(3, 12, 5), torch.randint(0, K, (3, 12))
    xb, yb = as_source((x, y), batch_size=4, dim=1).next()
    assert (xb.shape, yb.shape) == ((3, 4, 5), (3, 4))


@pytest.mark.parametrize("kind", ["loader", "list", "function"])
def test_other_sources_cycle_and_leave_the_global_stream_alone(kind):
    pairs = [(XV[i : i + 4], YV[i : i + 4]) for i in (0, 4, 8)]
    source = {
        "loader": lambda: DataLoader(TensorDataset(XV, YV), 4, shuffle=True),
        "list": lambda: pairs,
        "function": lambda: lambda: (XV + torch.randn_like(XV), YV),
    }[kind]()
    state = torch.get_rng_state()
    opened = as_source(source, seed=3)
    batches = [opened.next() for _ in range(7)]
    assert torch.equal(state, torch.get_rng_state())
    if kind == "loader":
        seen = torch.cat([x for x, _ in batches[:3]])
        assert torch.equal(seen.sort(0).values, XV.sort(0).values)
    repeated = as_source(source, seed=3)
    for x, _ in batches:
        assert torch.equal(repeated.next()[0], x)


def test_a_mixture_is_the_mean_over_the_union():
    model = mlp()
    mixture = as_source(Mixture((XV, YV), lambda: (X, Y)))
    found = gradient_of(mixture, model)
    union = validation_gradient(model, torch.cat([XV, X]), torch.cat([YV, Y]))
    for name in union:
        torch.testing.assert_close(found[name], union[name])
    refine = Saflex(model, validation=Mixture((XV, YV), [(X, Y)]), validation_batch=5)
    assert refine(X, Y).y.shape == (9, K)


# Over steps


def counted(model, **settings):
    calls = []

    def draw():
        calls.append(1)
        return XV, YV

    return Saflex(model, validation=draw, **settings), calls


def test_refresh_every_r_steps():
    refine, calls = counted(mlp(), refresh_every=3)
    for _ in range(7):
        refine(X, Y)
    assert len(calls) == 3


def test_the_exponential_average_is_bias_corrected():
    model = mlp()
    pairs = [(inputs("mlp", 4), torch.arange(4)) for _ in range(3)]
    refine = Saflex(model, validation=pairs, ema=0.8)
    for _ in range(3):
        refine(X, Y)
    gradients = [validation_gradient(model, *pair) for pair in pairs]
    shares = torch.tensor([0.8**2, 0.8, 1.0], dtype=torch.float64)
    for name, found in refine.direction.gradient.items():
        stacked = torch.stack([g[name] for g in gradients])
        wanted = torch.tensordot(shares / shares.sum(), stacked, 1)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, 1e-3),
        lambda p: torch.optim.AdamW(p, 1e-3, amsgrad=True, weight_decay=0),
        lambda p: torch.optim.RMSprop(p, 1e-3),
        lambda p: torch.optim.Adagrad(p, 1e-3),
        lambda p: torch.optim.SGD(p, 1e-3),
    ],
)
def test_the_tangent_is_divided_by_what_the_optimiser_divides_by(make):
    model = mlp()
    params = dict(model.named_parameters())
    optimizer = make(list(params.values()))
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs("mlp", 8)), torch.arange(8) % K).backward()
        optimizer.step()
    g = validation_gradient(model, XV, YV)
    v = preconditioned(g, params, optimizer)
    for name, p in params.items():
        state = optimizer.state[p]
        if "exp_avg_sq" in state:
            moment = state.get("max_exp_avg_sq", state["exp_avg_sq"])
            root = (moment / (1 - 0.999 ** int(state["step"]))).sqrt() + 1e-8
        elif "square_avg" in state:
            root = state["square_avg"].sqrt() + 1e-8
        elif "sum" in state:
            root = state["sum"].sqrt() + 1e-10
        else:
            root = torch.ones_like(p)
        torch.testing.assert_close(v[name], g[name] / root.detach())


def test_preconditioning_promises_the_fall_of_an_adam_step_with_frozen_moments():
    model = mlp().eval()
    params = dict(model.named_parameters())
    optimizer = torch.optim.Adam(params.values(), 1e-3)
    train(model, Saflex(model, validation=(XV, YV)), 4, optimizer)
    refine = Saflex(model, validation=(XV, YV), precondition=optimizer)
    batch = refine(X, Y)
    gain = refine.diagnostics()["gain"]
    grads = torch.autograd.grad(
        soft_cross_entropy(model(batch.x), batch.y, batch.w), list(params.values())
    )
    step = preconditioned(dict(zip(params, grads, strict=True)), params, optimizer)
    alpha = 1e-7
    moved = {n: p - alpha * step[n] for n, p in params.items()}
    after = nn.functional.cross_entropy(torch.func.functional_call(model, moved, (XV,)), YV)
    before = nn.functional.cross_entropy(model(XV), YV)
    assert (before - after).item() == pytest.approx(alpha * gain, rel=1e-3)


def test_parameters_that_do_not_move_do_not_count():
    model = mlp()
    params = dict(model.named_parameters())
    slow, fast = model[0].weight, model[3].weight
    optimizer = torch.optim.SGD([{"params": [slow], "lr": 0.1}, {"params": [fast], "lr": 1.0}])
    g = validation_gradient(model, XV, YV)
    v = preconditioned(g, params, optimizer)
    torch.testing.assert_close(v["0.weight"], 0.1 * g["0.weight"])
    assert torch.equal(v["3.weight"], g["3.weight"])
    assert v["0.bias"].abs().sum() == v["3.bias"].abs().sum() == 0


# Resuming


class Noisy(Dataset):
    """Augments with the global stream, as torchvision's transforms do."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return XV[i] + torch.randn(5).double(), YV[i]


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ("rows", {"validation_batch": 5}),
        ("loader", {"gumbel": True, "prior": "label", "ema": 0.9, "refresh_every": 2}),
        ("function", {"ema": 0.5, "estimator": "last-layer", "cosine_every": 2}),
        ("mixture", {"estimator": "finite-difference", "validation_batch": 3}),
    ],
)
@pytest.mark.parametrize("stop", [0, 4])
def test_a_resumed_run_is_bit_identical(source, settings, stop):
    def start():
        torch.manual_seed(2)
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        loader = DataLoader(Noisy(), 5, shuffle=True)
        validation = {
            "rows": (XV, YV),
            "loader": loader,
            "function": lambda: (XV + torch.randn_like(XV), YV),
            "mixture": Mixture((XV, YV), loader),
        }[source]
        refine = Saflex(model, validation=validation, precondition=optimizer, **settings)
        return model, refine, optimizer

    model, refine, optimizer = start()
    train(model, refine, stop, optimizer)
    file = io.BytesIO()
    torch.save([m.state_dict() for m in (model, refine, optimizer)], file)
    random_state = torch.get_rng_state()
    expected = train(model, refine, 5, optimizer)
    file.seek(0)
    resumed = start()
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(random_state)
    found = train(resumed[0], resumed[1], 5, resumed[2])
    for (y, w), (y2, w2) in zip(expected, found, strict=True):
        assert torch.equal(y, y2)
        assert torch.equal(w, w2)
    assert refine.diagnostics() == resumed[1].diagnostics()


def saved(**settings):
    model = mlp()
    refine = Saflex(model, **{"validation": (XV, YV), "refresh_every": 5, **settings})
    refine(X, Y)
    return model, refine.state_dict()


@pytest.mark.parametrize("change", ["unfrozen", "another estimator", "metric", "another head"])
def test_a_direction_of_another_make_is_not_taken_up(change):
    settings = {"refresh_every": 5, "validation": (XV, YV)}
    if change == "unfrozen":
        model = mlp()
        model[0].requires_grad_(False)
        refine = Saflex(model, **settings)
        refine(X, Y)
        state = refine.state_dict()
        model[0].requires_grad_(True)
    else:
        model, state = saved(
            estimator="last-layer" if change == "another estimator" else "forward-mode"
        )
    if change == "metric":
        settings["optimizer"] = optimizer = torch.optim.Adam(model.parameters())
        settings["precondition"] = True
        model(X).logsumexp(-1).mean().backward()
        optimizer.step()
    if change == "another head":
        model[3] = nn.Linear(7, K, bias=False).double()
    resumed = Saflex(model, **settings)
    resumed.load_state_dict(state)
    resumed(X, Y)
    fresh = Saflex(model, **settings)
    fresh(X, Y)
    assert resumed.direction.tangent.keys() == fresh.direction.tangent.keys()
    for name, v in fresh.direction.tangent.items():
        torch.testing.assert_close(resumed.direction.tangent[name], v)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_layer_replaced_by_one_of_its_shape_has_no_past(ema):
    model = mlp().eval()
    refine = Saflex(model, validation=(XV, YV), refresh_every=5, ema=ema)
    refine(X, Y)
    model[3] = nn.Linear(7, K).double()
    refine(X, Y)
    g = validation_gradient(model, XV, YV)
    torch.testing.assert_close(refine.direction.tangent["3.weight"], g["3.weight"])


def test_the_classifier_named_is_the_one_used_after_resuming():
    model, state = saved()
    resumed = Saflex(
        model, validation=(XV, YV), refresh_every=5, estimator="last-layer", classifier="3"
    )
    resumed.load_state_dict(state)
    resumed(X, Y)
    assert resumed.direction.classifier == "3"
    assert set(resumed.direction.tangent) == {"3.weight", "3.bias"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"validation": (XV[:7], YV[:7])}, "of 12 validation rows and there are 7"),
        (
            {"validation": [(XV, YV)], "validation_batch": None},
            "kind of validation source than list",
        ),
        ({"validation": Mixture((XV, YV))}, "kind of validation source than Mixture of 1"),
        ({"memory": 1.0}, "this refiner has memory=1.0 and the state was saved without one"),
    ],
)
def test_a_state_of_another_refiner_is_refused(changes, says):
    model, state = saved(validation_batch=5)
    settings = {"validation": (XV, YV), "validation_batch": 5, **changes}
    resumed = Saflex(model, **settings)
    with pytest.raises(SettingError, match=says):
        resumed.load_state_dict(state)
    assert resumed.direction.steps == 0  # nothing half taken up


def test_a_mixture_of_another_number_of_sources_is_refused():
    model, state = saved(validation=Mixture((XV, YV), (X, Y)))
    resumed = Saflex(model, validation=Mixture((XV, YV)))
    with pytest.raises(SettingError, match="Mixture of 2 sources and this one has 1"):
        resumed.load_state_dict(state)


# Stacks of models


@pytest.mark.parametrize("estimator", ["forward-mode", "finite-difference"])
def test_replicas_trained_at_once_equal_replicas_trained_alone(estimator):
    stack = Stack(3).double()
    singles = [Single(stack, r).double() for r in range(3)]
    x, y = torch.randn(3, 9, 5, dtype=torch.float64), torch.randint(0, K, (3, 9))
    xv, yv = torch.randn(3, 6, 5, dtype=torch.float64), torch.randint(0, K, (3, 6))
    settings = {"ema": 0.7, "refresh_every": 2, "rule": "soft", "estimator": estimator}

    def run(model, pair, validation):
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        layout = "stack" if model is stack else "samples"
        refine = Saflex(
            model, validation=validation, precondition=optimizer, layout=layout, **settings
        )
        for _ in range(4):
            batch = refine(*pair)
            optimizer.zero_grad()
            refine.loss(model, batch).backward()
            optimizer.step()
        return batch

    together = run(stack, (x, y), (xv, yv))
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if estimator == "forward-mode" else {
        "rtol": 1e-4, "atol": 1e-5}  # fmt: skip
    for r, model in enumerate(singles):
        alone = run(model, (x[r], y[r]), (xv[r], yv[r]))
        torch.testing.assert_close(together.y[r], alone.y, **tolerance)
        torch.testing.assert_close(together.w[r], alone.w, **tolerance)
        torch.testing.assert_close(stack.w1[r], model.w1, **tolerance)


# Diagnostics


def test_diagnostics_are_what_they_say():
    model = mlp().eval()
    refine = Saflex(model, validation=(XV, YV), cosine_every=1, tau=0.3)
    batch = refine(X, Y)
    found = refine.diagnostics(reset=True)
    g = validation_gradient(model, XV, YV)
    pi = gradient_products(model, X, g)
    norm = math.sqrt(sum(v.square().sum().item() for v in g.values()))
    own = torch.autograd.grad(
        soft_cross_entropy(model(X), batch.y, batch.w), list(model.parameters())
    )
    product = sum((a * b).sum().item() for a, b in zip(own, g.values(), strict=True))
    own_norm = math.sqrt(sum(v.square().sum().item() for v in own))
    accepted = (batch.w > 0).double().mean().item()
    expected = {
        "steps": 1,
        "pi_mean_abs": pi.abs().mean().item(),
        "pi_std": pi.std(correction=0).item(),
        "label_unchanged": (batch.y.argmax(-1) == Y).double().mean().item(),
        "label_entropy": torch.distributions.Categorical(batch.y).entropy().mean().item(),
        "weight_mean": accepted,
        "accepted": accepted,
        "effective_share": accepted,
        "all_rejected": 0.0,
        "gain": product,
        "gain_upstream": pi[torch.arange(9), Y].mean().item(),
        "gradient_norm": norm,
        "cosine": product / (norm * own_norm),
    }
    assert found == pytest.approx(expected)
    assert refine.diagnostics() == {"steps": 0.0}


def test_diagnostics_average_over_steps_and_count_rejected_batches():
    refine = Saflex(mlp(), validation=(XV, YV), output="logits", relabel=False)
    refine(X, Y)
    one = refine.diagnostics(reset=True)
    refine(X[:3], Y[:3]), refine(X[3:6], Y[3:6])
    two = refine.diagnostics()
    assert two["steps"] == 2
    assert "cosine" not in two
    # A batch of one sample whose label raises the loss is rejected whole.
    model = mlp().eval()
    pi = gradient_products(model, X, validation_gradient(model, XV, YV))
    worst = pi.argmin(-1)
    refine = Saflex(model, validation=(XV, YV), relabel=False)
    batch = refine(X[:1], worst[:1])
    assert batch.w.item() == 0
    assert refine.diagnostics()["all_rejected"] == 1
    assert one["all_rejected"] == 0
