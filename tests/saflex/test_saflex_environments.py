"""Autocast, compiled models, two DDP processes, memory formats, tied and frozen parameters."""

import socket

import pytest
import torch
import torch.multiprocessing
from reference_models import AttentionBlock, ConvNet, K, brute_force_products, inputs, mlp
from torch import nn

from saflex import Saflex, gradient_products, soft_cross_entropy, validation_gradient
from saflex.errors import EstimatorError

X, Y = inputs("mlp", 8), torch.arange(8) % K
XV, YV = inputs("mlp", 6), torch.arange(6) % K


# Autocast


@pytest.mark.parametrize("estimator", ["forward-mode", "finite-difference", "last-layer"])
def test_autocast_inside_and_outside_the_training_loops_context(estimator):
    torch.manual_seed(1)
    model = ConvNet(nn.SiLU).eval()
    x, xv = inputs("convnet", 32).float(), inputs("convnet", 16).float()
    labels, val = torch.arange(32) % K, (xv, torch.arange(16) % K)
    refine = Saflex(model, validation=val, estimator=estimator)
    exact = refine(x, labels)
    with torch.autocast("cpu", torch.bfloat16):
        batch = refine(x, labels)
        # The weights' casts cached by our passes (no graph) must not reach this forward.
        loss = soft_cross_entropy(model(batch.x), batch.y, batch.w)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert batch.y.dtype == batch.w.dtype == torch.float32
    assert (batch.y - exact.y).abs().max() < 0.1
    assert torch.corrcoef(torch.stack([batch.y.flatten(), exact.y.flatten()]))[0, 1] > 0.99


def test_float16_autocast_is_switched_off_inside():
    seen = []

    class Watch(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    model = Watch(5, K)
    refine = Saflex(model, validation=(XV.float(), YV))
    with torch.autocast("cpu", torch.float16):
        refine(X.float(), Y)
        model(X.float())
    assert set(seen[:-1]) == {torch.float32}
    assert seen[-1] == torch.float16, "the loop's own autocast goes on"


# Compiled models


@pytest.mark.parametrize("how", ["wrapper", "in place", "a part"])
def test_compiled_models_are_refined_as_their_originals(how):
    plain = mlp()
    expected = Saflex(plain, validation=(XV, YV))(X, Y)
    model = plain
    if how == "wrapper":
        model = torch.compile(plain, backend="eager")
    elif how == "in place":
        plain.compile(backend="eager")
    else:
        plain[0] = torch.compile(plain[0], backend="eager")
    for _ in range(2):
        model.train()
        model(X).sum().backward()  # the compiled training step goes on working
        batch = Saflex(model, validation=(XV, YV))(X, Y)
        assert torch.equal(batch.y, expected.y)
        assert torch.equal(batch.w, expected.w)
    torch.compiler.reset()


def test_refining_never_compiles_anything():
    compilations = []

    def backend(graph, _):
        compilations.append(1)
        return graph.forward

    model = mlp()
    model[0] = torch.compile(model[0], backend=backend)
    refine = Saflex(model, validation=(XV, YV))
    for _ in range(2):
        refine(X, Y)
    assert not compilations
    model(X)
    assert compilations, "the training step itself is compiled"
    torch.compiler.reset()


# Distributed


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(mlp())
    generator = torch.Generator().manual_seed(100 + rank)
    xv = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    yv = torch.randint(0, K, (6,), generator=generator)
    x = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    refine = Saflex(model, validation=(xv, yv), ema=0.5)
    record = []
    for _ in range(3):
        start = {n: p.detach().clone() for n, p in model.module.named_parameters()}
        batch = refine(x, torch.zeros(4, dtype=torch.long))
        own = validation_gradient(model, xv, yv)
        optimizer.zero_grad()
        soft_cross_entropy(model(batch.x), batch.y, batch.w).backward()
        optimizer.step()
        record.append(
            {
                "parameters": start,
                "tangent": dict(refine.direction.tangent),
                "own": own,
                "y": batch.y,
            }
        )
    torch.save(record, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_refine_against_the_same_averaged_gradient(tmp_path):
    # Forked: two fresh interpreters would spend ten seconds importing torch.
    torch.multiprocessing.start_processes(
        _rank, args=(_free_port(), str(tmp_path)), nprocs=2, start_method="fork"
    )
    one, two = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    average: dict = {}
    for step, (a, b) in enumerate(zip(one, two, strict=True), start=1):
        assert not torch.equal(a["y"], b["y"]), "each rank refines its own samples"
        for name in a["tangent"]:
            assert torch.equal(a["parameters"][name], b["parameters"][name])
            assert torch.equal(a["tangent"][name], b["tangent"][name])
            assert not torch.equal(a["own"][name], b["own"][name])
            mean = (a["own"][name] + b["own"][name]) / 2
            average[name] = 0.5 * average.get(name, 0) + 0.5 * mean
            torch.testing.assert_close(a["tangent"][name], average[name] / (1 - 0.5**step))


# Layouts and parameters


def test_channels_last_and_contiguous_agree():
    model = ConvNet().double()
    x, xv, yv = inputs("convnet", 5), inputs("convnet", 6), torch.arange(6) % K
    expected = gradient_products(model, x, validation_gradient(model, xv, yv))
    model = model.to(memory_format=torch.channels_last)
    x, xv = (v.to(memory_format=torch.channels_last) for v in (x, xv))
    for estimator in ("forward-mode", "finite-difference"):
        found = gradient_products(model, x, validation_gradient(model, xv, yv), estimator=estimator)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert model.features[0].weight.is_contiguous(memory_format=torch.channels_last)


class Language(nn.Module):
    """An embedding tied to the output layer, a frozen layer, an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(K, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.out = nn.Linear(6, K, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.frozen(self.embed(tokens).mean(1))))


def test_tied_weights_move_together_and_frozen_ones_not_at_all():
    model = Language().double()
    tokens, x = torch.randint(0, K, (7, 3)), torch.randint(0, K, (5, 3))
    g = validation_gradient(model, tokens, torch.arange(7) % K)
    assert set(g) == {"embed.weight", "unused"}
    assert g["unused"].abs().sum() == 0
    expected = brute_force_products(model, x, g, "log-probabilities")
    torch.testing.assert_close(gradient_products(model, x, g), expected, rtol=1e-8, atol=1e-10)
    assert model.out.weight is model.embed.weight
    close = gradient_products(model, x, g, estimator="finite-difference")
    torch.testing.assert_close(close, expected, rtol=1e-5, atol=1e-7)


def test_recurrent_weights_which_live_in_two_lists():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(5, 4, batch_first=True), nn.Linear(4, K)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    model = Recurrent().double()
    x, xv = torch.randn(3, 4, 5).double(), torch.randn(6, 4, 5).double()
    g = validation_gradient(model, xv, torch.arange(6) % K)
    expected = brute_force_products(model, x, g, "log-probabilities")
    for estimator, tolerance in (("forward-mode", 1e-8), ("finite-difference", 1e-5)):
        pi = gradient_products(model, x, g, estimator=estimator)
        torch.testing.assert_close(pi, expected, rtol=tolerance, atol=tolerance)
    assert all(a is b for a, b in zip(model.rnn._flat_weights, model.rnn.parameters(), strict=True))


class Squashed(nn.Module):
    def forward(self, weight):
        return torch.tanh(weight)


def test_parametrised_weights():
    model = mlp()
    nn.utils.parametrize.register_parametrization(model[0], "weight", Squashed())
    g = validation_gradient(model, XV, YV)
    assert "0.parametrizations.weight.original" in g
    expected = brute_force_products(model, X, g, "log-probabilities")
    torch.testing.assert_close(gradient_products(model, X, g), expected, rtol=1e-8, atol=1e-10)


def test_weight_norm_has_no_forward_formula_in_torch_and_works_by_finite_differences():
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    g = validation_gradient(model, XV, YV)
    with pytest.raises(EstimatorError, match="finite-difference"):
        gradient_products(model, X, g)
    expected = brute_force_products(model, X, g, "log-probabilities")
    close = gradient_products(model, X, g, estimator="finite-difference")
    torch.testing.assert_close(close, expected, rtol=1e-5, atol=1e-7)


def test_the_fused_attention_path_is_left_on():
    model = AttentionBlock().double()
    was = torch.backends.mha.get_fastpath_enabled()
    Saflex(model, validation=(inputs("attention", 4), torch.arange(4)))(
        inputs("attention", 3), torch.arange(3)
    )
    assert torch.backends.mha.get_fastpath_enabled() is was is True


def test_mappings_as_inputs_and_outputs_with_logits():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, values, shift=0.0):
            return Output(self.inner(values + shift))

    model = Named()
    source = [{"values": XV, "shift": torch.zeros(()).double(), "labels": YV}]
    batch = Saflex(model, validation=source)({"values": X}, Y)
    expected = Saflex(model.inner, validation=(XV, YV))(X, Y)
    assert torch.equal(batch.y, expected.y)
