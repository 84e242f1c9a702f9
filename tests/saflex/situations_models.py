"""What models take and return, and validation sources and settings of every kind."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import torch
from promises import keeps_promise
from reference_models import K, inputs, mlp
from situations import refused, situation
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from saflex import ContrastiveSaflex, ImageTextLogits, Mixture, Saflex
from saflex import errors as e
from saflex.structures import map_tensors

MODELS, SOURCES, SETTINGS = "Inputs and outputs", "Validation sources", "Settings"
Y, YV = torch.arange(8) % K, torch.arange(12) % K


class Returns(nn.Module):
    """Gives what `form` makes of the logits and of the features."""

    def __init__(self, form):
        super().__init__()
        self.body, self.head, self.form = nn.Linear(5, 7), nn.Linear(7, K), form

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.form(self.head(h), h)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 7)
        self.a, self.b = nn.Linear(7, K), nn.Linear(7, 3)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return {"a": self.a(h), "b": self.b(h)}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(5, 7), nn.Linear(2, 7)
        self.head = nn.Linear(7, K)

    def forward(self, left, right):
        return self.head(torch.tanh(self.left(left) + self.right(right)))


class OneDict(TwoInputs):
    def forward(self, x):
        return super().forward(x["left"], x["right"])


def data():
    torch.manual_seed(0)
    return inputs("mlp", 8), inputs("mlp", 12)


def kept(model, x, xv, read, y=Y, yv=YV, **settings):
    model = model.double()
    refine = Saflex(model, validation=[(xv, yv)], **settings)
    batch = refine(x, y)
    return keeps_promise(refine, model, batch, lambda: F.cross_entropy(read(model, xv), yv))


def returns(form, read, **settings):
    x, xv = data()
    return kept(Returns(form), x, xv, lambda m, x: read(m(x)), **settings)


@situation(MODELS, "a tensor of logits")
def _():
    return returns(lambda z, h: z, lambda out: out)


@situation(MODELS, 'a dict with "logits"')
def _():
    return returns(lambda z, h: {"logits": z, "features": h}, lambda out: out["logits"])


@situation(MODELS, 'a dict with "scores", `logits_from="scores"`')
def _():
    return returns(lambda z, h: {"scores": z}, lambda out: out["scores"], logits_from="scores")


@situation(MODELS, "a tuple, `logits_from=1`")
def _():
    return returns(lambda z, h: (h, z), lambda out: out[1], logits_from=1)


@situation(MODELS, "a tuple, nothing said")
def _():
    return refused(
        e.ShapeError,
        lambda: returns(lambda z, h: (h, z), lambda out: out[1]),
        naming="logits_from=",
    )


@situation(MODELS, "an object, logits by a function of it")
def _():
    class Out:
        def __init__(self, z):
            self.parts = [z]

    return returns(
        lambda z, h: Out(z), lambda out: out.parts[0], logits_from=lambda out: out.parts[0]
    )


@situation(MODELS, "a name that the output does not have")
def _():
    return refused(
        e.ShapeError,
        lambda: returns(lambda z, h: {"scores": z}, None, logits_from="logit"),
        naming="['scores']",
    )


@situation(MODELS, "one output for two classes")
def _():
    return refused(
        e.ShapeError,
        lambda: returns(lambda z, h: z[..., 0], lambda out: out),
        naming="a binary model needs two outputs",
    )


@situation(MODELS, "two inputs, `unpack=True`")
def _():
    (x, xv), extra = data(), torch.randn(12, 2).double()
    return kept(TwoInputs(), (x, extra[:8]), (xv, extra), lambda m, x: m(*x), unpack=True)


@situation(MODELS, "two inputs by name")
def _():
    (x, xv), extra = data(), torch.randn(12, 2).double()
    pair = {"left": x, "right": extra[:8]}, {"left": xv, "right": extra}
    return kept(TwoInputs(), *pair, lambda m, x: m(**x))


@situation(MODELS, "one dict as the only input, `unpack=False`")
def _():
    (x, xv), extra = data(), torch.randn(12, 2).double()
    pair = {"left": x, "right": extra[:8]}, {"left": xv, "right": extra}
    return kept(OneDict(), *pair, lambda m, x: m(x), unpack=False)


@situation(MODELS, 'two inputs with `estimator="last-layer"`')
def _():
    (x, xv), extra = data(), torch.randn(12, 2).double()
    model = TwoInputs()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("head"))
    return kept(
        model,
        (x, extra[:8]),
        (xv, extra),
        lambda m, x: m(*x),
        unpack=True,
        estimator="last-layer",
    )


@situation(MODELS, "two heads of 4 and 3 classes, a refiner for each")
def _():
    x, xv = data()
    said = {
        kept(TwoHeads(), x, xv, lambda m, x, h=h: m(x)[h], y, yv, logits_from=h)
        for h, y, yv in (("a", Y, YV), ("b", Y % 3, YV % 3))
    }
    return said.pop()


@situation(MODELS, "clean rows of a model with two inputs")
def _():
    (x, xv), extra = data(), torch.randn(12, 2).double()
    model = TwoInputs().double()
    refine = Saflex(model, validation=[((xv, extra), YV)], unpack=True)
    batch = refine((x, extra[:8]), Y)
    found = refine.loss(model, batch, clean=((xv, extra), YV))
    alone = F.cross_entropy(model(xv, extra), YV)
    torch.testing.assert_close(found, (alone + refine.loss(model, batch)) / 2)
    return "right: half the loss is torch's"


class Strict(TwoInputs):
    """Takes a container of one type, by what `parts` reads from it, and writes to it where it can."""

    def __init__(self, kind, parts):
        super().__init__()
        self.kind, self.parts = kind, parts

    def forward(self, x):
        assert type(x) is self.kind
        left, right = self.parts(x)
        if isinstance(x, list):
            x[:] = [0 * left, 0 * right]
        return super().forward(left, right)


@dataclass
class Sample:
    left: torch.Tensor
    right: torch.Tensor


Twin = namedtuple("Twin", "left right")


def strict(make):
    torch.manual_seed(0)
    x, xv = data()
    pairs = [make(v, torch.randn(len(v), 2).double()) for v in (x, xv)]
    model = Strict(
        type(pairs[0]), lambda v: v if isinstance(v, list) else (v.left, v.right)
    ).double()
    refine = Saflex(model, validation=lambda: (pairs[1], YV))
    batch = refine(pairs[0], Y)

    def fresh(x):  # lists are written to by the model itself
        return map_tensors(x, lambda t: t)

    def own_loss():
        return F.cross_entropy(model(fresh(pairs[1])), YV)

    found = refine.loss(model, batch, clean=(pairs[1], YV))
    alone = refine.loss(model, batch._replace(x=fresh(batch.x)))
    torch.testing.assert_close(found, (own_loss() + alone) / 2)
    return keeps_promise(refine, model, batch, own_loss)


@situation(MODELS, "a list, which the model tells from a tuple and writes to")
def _():
    return strict(lambda left, right: [left, right])


@situation(MODELS, "a named tuple, in `clean=` too")
def _():
    return strict(Twin)


@situation(MODELS, "a dataclass, in `clean=` too")
def _():
    return strict(Sample)


@situation(MODELS, "parameters without a shape: `nn.LazyLinear`")
def _():
    _, xv = data()
    model = nn.Sequential(nn.LazyLinear(7), nn.LazyLinear(K)).double()
    return refused(
        e.SettingError, lambda: Saflex(model, validation=(xv, YV)), naming="call it once"
    )


@situation(MODELS, "one output, every label 0")
def _():
    x, xv = data()
    refine = Saflex(nn.Linear(5, 1).double(), validation=(xv, 0 * YV))
    return refused(e.ShapeError, lambda: refine(x, 0 * Y), naming="of one class")


@situation(MODELS, 'a network with a token of its own inside a wrapper, `estimator="last-layer"`')
def _():
    class WithToken(Returns):
        def __init__(self):
            super().__init__(lambda logits, h: logits)
            self.token = nn.Parameter(torch.zeros(5))

        def forward(self, x):
            return super().forward(x + self.token)

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = WithToken()

        def forward(self, x):
            return self.net(x)

    x, xv = data()
    refine = Saflex(Wrapper().double(), validation=(xv, YV), estimator="last-layer")
    refine(x, Y)
    assert set(refine.direction.tangent) == {"net.head.weight", "net.head.bias"}
    return "right: the head alone"


@situation(MODELS, "clean and augmented images of different sizes in one loss")
def _():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, K)
    )
    x, small = torch.randn(8, 1, 8, 8), torch.randn(8, 1, 6, 6)
    refine = Saflex(model, validation=(x, Y))
    batch = refine(small, Y)
    return refused(
        e.ShapeError, lambda: refine.loss(model, batch, clean=(x, Y)), naming="cannot be joined"
    )


def bert(kind, **changes):
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=9, num_labels=K, **changes,
    )  # fmt: skip
    tokens = torch.randint(2, 30, (12, 9))
    mask = torch.ones_like(tokens)
    mask[:6, 6:] = 0
    return getattr(transformers, kind)(config).double(), {
        "input_ids": tokens,
        "attention_mask": mask,
    }


@situation(MODELS, "Hugging Face's BertForSequenceClassification")
def _():
    model, xv = bert("BertForSequenceClassification")
    x = {name: t[:8] for name, t in xv.items()}
    return kept(model, x, xv, lambda m, x: m(**x).logits)


@situation(MODELS, "Hugging Face's BertForTokenClassification, -100 on padding and word pieces")
def _():
    model, x = bert("BertForTokenClassification")
    labels = torch.where(x["attention_mask"] == 0, -100, x["input_ids"] % K)
    labels[:, 1::3] = -100
    refine = Saflex(
        model,
        validation=[{**x, "labels": labels}],
        loss=nn.CrossEntropyLoss(),
        layout="tokens",
    )
    return keeps_promise(refine, model, refine(x, labels), lambda: model(**x, labels=labels).loss)


@situation(MODELS, "Hugging Face's CLIPModel in `ImageTextLogits`")
def _():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2
    }  # fmt: skip
    clip = CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 1,
                "bos_token_id": 0, "pad_token_id": 2, **small,
            },
            vision_config={"image_size": 8, "patch_size": 4, **small},
            projection_dim=8,
        )
    )  # fmt: skip

    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.clip = clip

        def forward(self, images, texts):
            return self.clip(input_ids=texts, pixel_values=images)

    model = ImageTextLogits(Towers()).eval()
    pair = torch.randn(4, 3, 8, 8), torch.randint(3, 50, (4, 5))
    expected = clip(input_ids=pair[1], pixel_values=pair[0]).logits_per_image
    torch.testing.assert_close(model(pair), expected)
    refine = ContrastiveSaflex(model, validation=[(pair, torch.arange(4))])
    batch = refine(pair, torch.arange(4))
    assert refine.loss(model, batch).requires_grad
    assert refine.diagnostics()["gain"] > 0
    return "right: the model's own logits_per_image"


@situation(MODELS, "towers that return neither features nor logits_per_image")
def _():
    class Towers(nn.Module):
        def forward(self, images, texts):
            return {"image": images, "text": texts}

    model = ImageTextLogits(Towers())
    pair = torch.randn(2, 3), torch.randn(2, 3)
    return refused(e.ShapeError, lambda: model(pair), naming="image_features")


# Validation sources


def plain():
    torch.manual_seed(0)
    return mlp().eval(), *data()


def gradient_from(source, **settings):
    model, x, _ = plain()
    refine = Saflex(model, validation=source, **settings)
    refine(x, Y)
    return refine.direction.gradient


def same_as_pair(source, rows=None, **settings):
    _, _, xv = plain()
    pair = (xv, YV) if rows is None else (xv[rows], YV[rows])
    found, expected = gradient_from(source, **settings), gradient_from(pair)
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g)
    return "right: the gradient of its mean loss"


class Rows(Dataset):
    """Items of a tensor, one by one."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])


@situation(SOURCES, "a pair of tensors")
def _():
    _, _, xv = plain()
    return same_as_pair((xv, YV))


@situation(SOURCES, "a `TensorDataset`")
def _():
    _, _, xv = plain()
    return same_as_pair(TensorDataset(xv, YV))


@situation(SOURCES, "a `Dataset` of items, fewer than a batch")
def _():
    _, _, xv = plain()
    return same_as_pair(Rows(xv, YV))


@situation(SOURCES, "a `Subset`")
def _():
    _, _, xv = plain()
    return same_as_pair(Subset(Rows(xv, YV), [1, 4, 7]), rows=[1, 4, 7])


@situation(SOURCES, "a `Dataset` in batches: `validation_batch=5`, resumed in the middle")
def _():
    model, x, xv = plain()

    def refiner():
        return Saflex(model, validation=Rows(xv, YV), validation_batch=5)

    whole, first, second = refiner(), refiner(), refiner()
    expected = [whole(x, Y).y for _ in range(5)]
    found = [first(x, Y).y for _ in range(2)]
    second.load_state_dict(first.state_dict())
    found += [second(x, Y).y for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert not torch.equal(expected[0], expected[1])
    return "right: bit for bit"


@situation(SOURCES, "a DataLoader")
def _():
    _, _, xv = plain()
    return same_as_pair(DataLoader(TensorDataset(xv, YV), 12))


@situation(SOURCES, "the training loop's own loader, with persistent workers, in a `Mixture`")
def _():
    model, x, xv = plain()
    loader = DataLoader(TensorDataset(xv, YV), 4, num_workers=1, persistent_workers=True)
    refine = Saflex(model, validation=Mixture((x, Y), loader))
    seen = []
    for rows, y in loader:
        refine(rows, y)
        seen.append(rows)
        assert len(seen) <= 3
    assert torch.equal(torch.cat(seen), xv)
    return "right: an epoch is an epoch"


@situation(SOURCES, 'a list of dicts with "labels"')
def _():
    _, _, xv = plain()
    model, x, _ = plain()

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, values):
            return self.inner(values)

    refine = Saflex(Named(), validation=[{"values": xv, "labels": YV}])
    refine({"values": x}, Y)
    for name, g in gradient_from((xv, YV)).items():
        torch.testing.assert_close(refine.direction.gradient[f"inner.{name}"], g)
    return "right: the gradient of its mean loss"


@situation(SOURCES, "a function")
def _():
    _, _, xv = plain()
    return same_as_pair(lambda: (xv, YV))


@situation(SOURCES, "a `Mixture` of two pairs")
def _():
    _, _, xv = plain()
    return same_as_pair(Mixture((xv[:5], YV[:5]), (xv[5:], YV[5:])))


@situation(SOURCES, "a `Mixture` of hard and soft labels")
def _():
    _, _, xv = plain()
    source = Mixture((xv, YV), (xv, F.one_hot(YV, K).double()))
    return refused(e.ShapeError, lambda: gradient_from(source), naming="several kinds")


@situation(SOURCES, "packed sequences")
def _():
    from torch.nn.utils.rnn import pack_padded_sequence

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, K)

        def forward(self, x):
            return self.head(self.rnn(x)[1][0][0])

    def packed(n):
        return pack_padded_sequence(torch.randn(n, 9, 5).double(), torch.arange(n, 0, -1), True)

    torch.manual_seed(0)
    x, xv = packed(8), packed(9)
    return kept(Recurrent(), x, xv, lambda m, x: m(x), yv=YV[:9])


@situation(SOURCES, "an empty data set")
def _():
    _, _, xv = plain()
    return refused(
        e.EmptyValidationError, lambda: gradient_from(Rows(xv[:0], YV[:0])), naming="is empty"
    )


@situation(SOURCES, "a generator that ran dry")
def _():
    model, x, xv = plain()
    refine = Saflex(model, validation=((xv, YV) for _ in range(1)))
    refine(x, Y)
    return refused(e.EmptyValidationError, lambda: refine(x, Y), naming="only be read once")


@situation(SOURCES, "`validation_batch=` with a DataLoader")
def _():
    _, _, xv = plain()
    loader = DataLoader(TensorDataset(xv, YV), 4)
    return refused(
        e.SettingError,
        lambda: gradient_from(loader, validation_batch=2),
        naming="Set the batch size where the batches are made",
    )


# Settings


@situation(SETTINGS, "NumPy scalars: `np.float32(0.5)`, `np.int64(2)`, `np.bool_(False)`")
def _():
    model, _, xv = plain()
    refine = Saflex(
        model,
        validation=(xv, YV),
        tau=np.float32(0.5),
        refresh_every=np.int64(2),
        relabel=np.bool_(False),
        eps=np.array(0.25),
    )
    found = refine.settings.as_dict()
    chosen = [found[name] for name in ("tau", "refresh_every", "relabel", "eps")]
    assert [type(value) for value in chosen] == [float, int, bool, float]
    return "right: plain numbers, ready for JSON"


def adam(model):
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model(inputs("mlp", 4)).logsumexp(-1).mean().backward()
    optimizer.step()
    return optimizer


def labels_with(choose):
    model, x, xv = plain()
    return Saflex(model, validation=(xv, YV), **choose(adam(model)))(x, Y).y


@situation(
    SETTINGS, "`optimizer=optimizer, precondition=True`, and the old `precondition=optimizer`"
)
def _():
    plain_y = labels_with(lambda o: {"optimizer": o})
    new = labels_with(lambda o: {"optimizer": o, "precondition": True})
    old = labels_with(lambda o: {"precondition": o})
    assert torch.equal(new, old)
    assert not torch.equal(plain_y, new)
    return "right: the same"


@situation(SETTINGS, "`precondition=True` without an optimiser")
def _():
    return refused(
        e.SettingError, lambda: labels_with(lambda o: {"precondition": True}), naming="optimizer="
    )


@situation(SETTINGS, "two different optimisers")
def _():
    return refused(
        e.SettingError,
        lambda: labels_with(
            lambda o: {"optimizer": torch.optim.SGD([torch.ones(1)], 1.0), "precondition": o}
        ),
        naming="pass one of them",
    )


@situation(SETTINGS, "a misspelt setting")
def _():
    return refused(
        e.SettingError, lambda: labels_with(lambda o: {"refresh_evry": 2}), naming="refresh_every"
    )


@situation(SETTINGS, "`repr(refine)`")
def _():
    model, x, xv = plain()
    refine = Saflex(model, validation=(xv, YV), optimizer=adam(model), tau=0.5)
    refine(x, Y)
    said = "Saflex(Sequential, validation=12 rows, optimizer=Adam, tau=0.5; 1 batches refined)"
    assert repr(refine) == said
    return f"right: `{said}`"
