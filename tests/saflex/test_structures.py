"""Inputs of any structure: models get containers of the types that were passed, joined or not."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from reference_models import K
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from saflex import Saflex
from saflex import errors as e
from saflex.structures import joined_inputs, map_tensors, tensors_of
from saflex.validation import as_source

Pair = namedtuple("Pair", "a b")
A, B = torch.randn(6, 5), torch.randn(6, 5)
Y = torch.arange(6) % K


@dataclass(frozen=True)
class Fields:
    a: Tensor
    b: Tensor
    name: str = "fields"


KINDS = {
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "named tuple": Pair,
    "dataclass": Fields,
    "dict": lambda a, b: {"a": a, "b": b},
    "OrderedDict": lambda a, b: OrderedDict(a=a, b=b),
    "UserDict": lambda a, b: UserDict(a=a, b=b),
    "read-only mapping": lambda a, b: MappingProxyType({"a": a, "b": b}),
    "nested": lambda a, b: ([a], {"b": (b, "flag", 2, None)}),
}


def both(x) -> tuple[Tensor, Tensor]:
    a, b = tensors_of(x)
    return a, b


class Strict(nn.Module):
    """Takes containers of one type alone."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(5, K), kind

    def forward(self, x):
        assert type(x) is self.kind
        a, b = both(x)
        return self.layer(a * b + a)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("estimator", ["forward-mode", "finite-difference", "last-layer"])
def test_a_model_sees_the_containers_of_its_user(name, estimator):
    make = KINDS[name]
    model = Strict(type(make(A, B)))
    plain = nn.Sequential(model.layer)
    given, x = make(A, B), make(B, A)
    settings = {"estimator": estimator, "check": "always"}
    refine = Saflex(model, validation=lambda: (given, Y), unpack=False, **settings)
    alone = Saflex(plain, validation=(A * B + A, Y), **settings)
    for _ in range(2):
        batch, expected = refine(x, Y), alone(A * B + B, Y)
        torch.testing.assert_close(batch.y, expected.y, rtol=1e-3, atol=1e-4)
    found = refine.loss(model, batch, clean=(given, Y))
    torch.testing.assert_close(
        found, alone.loss(plain, expected, clean=(A * B + A, Y)), rtol=1e-3, atol=1e-4
    )
    assert batch.x is x
    refine.report()


@pytest.mark.parametrize("name", KINDS)
def test_mapping_and_joining_keep_types_and_leave_what_was_given(name):
    x = KINDS[name](A, B)
    doubled, joined = map_tensors(x, lambda t: 2 * t), joined_inputs([x, x])
    assert type(doubled) is type(joined) is type(x)
    for found, a in ((doubled, 2 * A), (joined, torch.cat([A, A]))):
        assert torch.equal(both(found)[0], a)
    assert both(x)[0] is A


def test_a_list_that_the_forward_writes_to_stays_as_it_was():
    class Pathways(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(5, 5), nn.Linear(5, K)

        def forward(self, x):
            for i in range(len(x)):
                x[i] = torch.tanh(self.mix(x[i]))
            return self.head(x[0] + x[1])

    x = [A, B]
    refine = Saflex(Pathways(), validation=lambda: ([B, A], Y), check="always")
    first = refine(x, Y)
    assert x[0] is A
    assert x[1] is B
    torch.testing.assert_close(refine(x, Y).y, first.y)


def test_a_batch_with_labels_keeps_its_type():
    batch = UserDict(a=A, labels=Y)
    x, y = as_source([batch]).next()
    assert type(x) is UserDict
    assert list(x) == ["a"]
    assert y is Y
    assert "labels" in batch


def test_packed_sequences_are_joined():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head = nn.LSTM(5, 6), nn.Linear(6, K)

        def forward(self, x):
            return self.head(self.net(x)[1][0][-1])

    def packed(*lengths):
        return pack_sequence([torch.randn(n, 5) for n in lengths], enforce_sorted=False)

    model, x, clean = Recurrent(), packed(5, 3, 4, 4), packed(2, 6, 1, 3)
    refine = Saflex(model, validation=lambda: (clean, Y[:4]))
    batch = refine(x, Y[:4])
    found = refine.loss(model, batch, clean=(clean, Y[:4]))
    refined = -(batch.w[:, None] * batch.y * model(x).log_softmax(-1)).sum()
    torch.testing.assert_close(
        found, (nn.functional.cross_entropy(model(clean), Y[:4]) + refined) / 2
    )
    assert "not measured, the validation inputs have no rows" in refine.report()


def test_what_goes_with_every_batch_is_joined_once():
    shared = {"x": A, "scale": torch.tensor(2.0), "mode": "linear"}
    joined = joined_inputs([shared, {**shared, "scale": torch.tensor(2.0)}])
    assert joined["x"].shape == (12, 5)
    assert joined["scale"] == 2
    assert joined["mode"] == "linear"


@pytest.mark.parametrize(
    "other",
    [
        {"x": A, "scale": torch.tensor(3.0)},
        {"x": A},
        [A, torch.tensor(2.0)],
        {"x": A.numpy(), "scale": torch.tensor(2.0)},
        {"x": SimpleNamespace(a=A), "scale": torch.tensor(2.0)},
    ],
)
def test_what_cannot_be_joined_is_refused(other):
    with pytest.raises(e.ShapeError, match="cannot be joined"):
        joined_inputs([other, {"x": A, "scale": torch.tensor(2.0)}])


def test_things_of_other_kinds_are_refused_by_name():
    with pytest.raises(e.ShapeError, match="types ndarray, ndarray cannot be joined"):
        joined_inputs([A.numpy(), A.numpy() + 1])
    with pytest.raises(e.ShapeError, match="types Graph, Graph cannot be joined"):
        joined_inputs([Graph(), Graph()])


class Graph:
    """Of a library of its own."""
