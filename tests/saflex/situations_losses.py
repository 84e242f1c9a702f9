"""Losses, labels and layouts that were tried."""

from collections import OrderedDict

import torch
from promises import keeps_promise
from reference_models import K, Single, Stack, inputs, mlp
from situations import refused, situation
from torch import nn
from torch.nn import functional as F

from saflex import Mixture, Saflex, soft_cross_entropy, validation_gradient
from saflex import errors as e

LOSSES, LABELS, LAYOUTS = "Losses", "Labels", "Layouts: what a row is"
Y, YV = torch.arange(8) % K, torch.arange(12) % K
C = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


def seeded(model=None):
    torch.manual_seed(0)
    return (model or mlp()).eval(), inputs("mlp", 8), inputs("mlp", 12)


def promise(loss, labels=Y, validation=YV, **settings):
    model, x, xv = seeded()
    refine = Saflex(model, validation=(xv, validation), loss=loss, **settings)
    own = loss or F.cross_entropy
    return keeps_promise(refine, model, refine(x, labels), lambda: own(model(xv), validation))


def attempt(loss=None, labels=Y, validation=YV, **settings):
    model, x, xv = seeded()
    return Saflex(model, validation=(xv, validation), loss=loss, **settings)(x, labels)


# Losses


@situation(LOSSES, "no `loss=`: the mean cross-entropy")
def _():
    return promise(None)


@situation(LOSSES, "`nn.CrossEntropyLoss()`")
def _():
    return promise(nn.CrossEntropyLoss())


@situation(LOSSES, "class weights")
def _():
    return promise(nn.CrossEntropyLoss(weight=C))


@situation(LOSSES, "label smoothing")
def _():
    return promise(nn.CrossEntropyLoss(label_smoothing=0.2))


@situation(LOSSES, "class weights and label smoothing")
def _():
    return promise(nn.CrossEntropyLoss(weight=C, label_smoothing=0.2))


@situation(LOSSES, "class weights, one of them 0")
def _():
    return promise(nn.CrossEntropyLoss(weight=C * torch.tensor([0.0, 1, 1, 1])))


@situation(LOSSES, 'class weights with `rule="soft"`, weights learned alone')
def _():
    return promise(nn.CrossEntropyLoss(weight=C), rule="soft", relabel=False)


@situation(LOSSES, "class weights with mixup's soft labels")
def _():
    mixed = 0.7 * F.one_hot(Y, K).double() + 0.3 * F.one_hot(Y.roll(1), K)
    return promise(nn.CrossEntropyLoss(weight=C), labels=mixed)


@situation(LOSSES, "class weights given in float32 to a float64 model")
def _():
    model, x, xv = seeded()
    loss = nn.CrossEntropyLoss(weight=C.float())
    refine = Saflex(model, validation=(xv, YV), loss=loss)
    own = nn.CrossEntropyLoss(weight=C)
    return keeps_promise(refine, model, refine(x, Y), lambda: own(model(xv), YV))


@situation(LOSSES, "class weights under finite differences")
def _():
    return promise(nn.CrossEntropyLoss(weight=C), estimator="finite-difference")


@situation(LOSSES, "class weights that the loss is given after some steps")
def _():
    model, x, xv = seeded()
    loss = nn.CrossEntropyLoss()
    refine = Saflex(model, validation=(xv, YV), loss=loss)
    refine(x, Y)
    refine.diagnostics(reset=True)
    loss.weight = C
    return keeps_promise(refine, model, refine(x, Y), lambda: loss(model(xv), YV))


class Named(nn.CrossEntropyLoss):
    pass


class Squared(nn.CrossEntropyLoss):
    def forward(self, logits, y):
        return super().forward(logits, y) ** 2


@situation(LOSSES, "a subclass of `nn.CrossEntropyLoss`")
def _():
    return promise(Named(weight=C, label_smoothing=0.2))


@situation(LOSSES, "a subclass of `nn.CrossEntropyLoss` with a forward of its own")
def _():
    return refused(e.SettingError, lambda: attempt(Squared()), naming="forward of its own")


@situation(LOSSES, "`nn.NLLLoss(weight=...)`")
def _():
    return refused(e.SettingError, lambda: attempt(nn.NLLLoss(C)), naming="nn.CrossEntropyLoss")


@situation(LOSSES, "a focal loss as a function, for the validation gradient alone")
def _():
    def focal(logits, y):
        logp = F.log_softmax(logits, -1).gather(-1, y[:, None])
        return -((1 - logp.exp()) ** 2 * logp).mean()

    model, x, xv = seeded()
    refine = Saflex(model, validation=(xv, YV), loss=focal)
    return keeps_promise(refine, model, refine(x, Y), lambda: focal(model(xv), YV))


@situation(LOSSES, "a function that returns a loss for each sample")
def _():
    def each(logits, y):
        return F.cross_entropy(logits, y, reduction="none")

    return refused(e.ShapeError, lambda: attempt(each), naming="shape (12,)")


@situation(LOSSES, '`nn.CrossEntropyLoss(reduction="sum")`')
def _():
    loss = nn.CrossEntropyLoss(reduction="sum")
    return refused(e.SettingError, lambda: attempt(loss), naming="reduction='mean'")


@situation(LOSSES, "`nn.BCEWithLogitsLoss()`: several true classes a sample")
def _():
    return refused(e.SettingError, lambda: attempt(nn.BCEWithLogitsLoss()), naming="multi-label")


@situation(LOSSES, "`F.mse_loss`: regression")
def _():
    return refused(e.SettingError, lambda: attempt(F.mse_loss), naming="regression")


@situation(LOSSES, "three class weights for four classes")
def _():
    loss = nn.CrossEntropyLoss(weight=C[:3])
    return refused(e.SettingError, lambda: attempt(loss), naming="3 class weights")


@situation(LOSSES, 'class weights with `scale="cosine"`')
def _():
    loss = nn.CrossEntropyLoss(weight=C)
    return refused(e.SettingError, lambda: attempt(loss, scale="cosine"), naming="cosine")


# Labels


@situation(LABELS, "some labels ignored (-100), `loss=nn.CrossEntropyLoss()`")
def _():
    return promise(nn.CrossEntropyLoss(), labels=torch.where(Y == 1, -100, Y))


@situation(LABELS, "some validation labels ignored, with class weights")
def _():
    loss = nn.CrossEntropyLoss(weight=C)
    return promise(loss, validation=torch.where(torch.arange(12) < 5, -100, YV))


@situation(LABELS, "-100 without a loss that ignores it")
def _():
    labels = torch.where(Y == 1, -100, Y)
    return refused(e.LabelError, lambda: attempt(labels=labels), naming="ignore_index")


@situation(LABELS, "every validation label ignored")
def _():
    loss = nn.CrossEntropyLoss()
    return refused(
        e.EmptyValidationError, lambda: attempt(loss, validation=YV * 0 - 100), naming="ignored"
    )


@situation(LABELS, "soft validation labels")
def _():
    soft = 0.9 * F.one_hot(YV, K).double() + 0.1 / K
    model, x, xv = seeded()
    refine = Saflex(model, validation=(xv, soft))
    return keeps_promise(refine, model, refine(x, Y), lambda: soft_cross_entropy(model(xv), soft))


@situation(LABELS, "soft validation labels with class weights")
def _():
    return promise(
        nn.CrossEntropyLoss(weight=C), validation=0.9 * F.one_hot(YV, K).double() + 0.1 / K
    )


@situation(LABELS, "one-hot rows of integers")
def _():
    return refused(e.ShapeError, lambda: attempt(labels=F.one_hot(Y, K)), naming="y.float()")


@situation(LABELS, "class numbers as floats")
def _():
    return refused(e.ShapeError, lambda: attempt(labels=Y.float()), naming="y.long()")


@situation(LABELS, "class numbers from 1 to K")
def _():
    return refused(e.LabelError, lambda: attempt(labels=Y + 1), naming="expected 0 to 3")


@situation(LABELS, "two 1s in a row")
def _():
    rows = torch.tensor([[1.0, 1, 0, 0]] * 8)
    return refused(e.LabelError, lambda: attempt(labels=rows), naming="multi-label")


@situation(LABELS, "logits in place of probabilities")
def _():
    torch.manual_seed(0)
    return refused(
        e.LabelError, lambda: attempt(labels=torch.tensor([[2.0, -1, 0, 0]] * 8)), naming="softmax"
    )


@situation(LABELS, "a NumPy array")
def _():
    return refused(e.LabelError, lambda: attempt(labels=Y.numpy()), naming="torch.as_tensor")


@situation(LABELS, "a list")
def _():
    return refused(e.LabelError, lambda: attempt(labels=Y.tolist()), naming="torch.as_tensor")


@situation(LABELS, "booleans")
def _():
    return refused(e.LabelError, lambda: attempt(labels=Y > 1), naming="torch.bool")


@situation(LABELS, "labels of a batch of another size")
def _():
    return refused(e.ShapeError, lambda: attempt(labels=Y[:5]), naming="Every input needs one")


@situation(LABELS, "labels that need a gradient, from another network")
def _():
    model, x, xv = seeded()
    refine = Saflex(model, validation=(xv, YV))
    head = nn.Linear(5, K).double()
    for _ in range(3):
        batch = refine(x, head(x).softmax(-1))
    assert not batch.y.requires_grad
    assert not batch.w.requires_grad
    assert refine.log.last.grad_fn is None
    return "right: label, weight and diagnostics hold no graph"


@situation(LABELS, "a class that the model masks out with a logit of -inf")
def _():
    logits = torch.tensor([[1.0, 2, -torch.inf]])
    found = soft_cross_entropy(logits, torch.tensor([[1.0, 0, 0]]))
    torch.testing.assert_close(found, F.cross_entropy(logits, torch.tensor([0])))
    return "right: costs nothing where no label wants it, as in torch"


# Layouts


class Tokens(nn.Module):
    """(B, T) token numbers -> (B, T, K)."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, K)

    def forward(self, x):
        h = self.embed(x)
        return self.head(torch.tanh(self.mix(h + h.mean(1, keepdim=True))))


class Pixels(nn.Module):
    """(B, 2, H, W) images -> (B, K, H, W)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, K, 1))

    def forward(self, x):
        return self.net(x)


def sequences(*, ignored=False):
    torch.manual_seed(0)
    x, xv = torch.randint(0, 20, (4, 7)), torch.randint(0, 20, (6, 7))
    y, yv = x % K, (xv + xv.roll(1, 1)) % K
    if ignored:
        y, yv = torch.where(x < 5, -100, y), torch.where(xv < 8, -100, yv)
    return Tokens().double(), x, y, xv, yv


def images():
    torch.manual_seed(0)
    x, xv = torch.randn(3, 2, 5, 4).double(), torch.randn(4, 2, 5, 4).double()
    return Pixels().double(), x, torch.randint(0, K, (3, 5, 4)), xv, torch.randint(0, K, (4, 5, 4))


def kept_by_tokens(loss, *, ignored=False, **settings):
    model, x, y, xv, yv = sequences(ignored=ignored)
    refine = Saflex(model, validation=(xv, yv), loss=loss, layout="tokens", **settings)
    batch = refine(x, y)
    assert batch.y.shape == (4, 7, K)
    assert batch.w.shape == (4, 7)
    return keeps_promise(refine, model, batch, lambda: loss(model(xv).flatten(0, 1), yv.flatten()))


@situation(LAYOUTS, 'a label for each token, `layout="tokens"`')
def _():
    return kept_by_tokens(nn.CrossEntropyLoss())


@situation(LAYOUTS, "tokens, some of them -100, class weights and smoothing")
def _():
    loss = nn.CrossEntropyLoss(weight=C, label_smoothing=0.1)
    return kept_by_tokens(loss, ignored=True)


@situation(LAYOUTS, 'tokens with `estimator="last-layer"`')
def _():
    model, x, y, xv, yv = sequences()
    refine = Saflex(model, validation=(xv, yv), layout="tokens", estimator="last-layer")
    for name, p in model.named_parameters():  # the promise is that of the classifier alone
        p.requires_grad_(name.startswith("head"))
    return keeps_promise(
        refine,
        model,
        refine(x, y),
        lambda: F.cross_entropy(model(xv).flatten(0, 1), yv.flatten()),
    )


@situation(LAYOUTS, "tokens, clean sequences in the loss")
def _():
    model, x, y, xv, yv = sequences(ignored=True)
    loss = nn.CrossEntropyLoss(weight=C)
    refine = Saflex(model, validation=(xv, yv), loss=loss, layout="tokens")
    batch = refine(x, y)
    found = refine.loss(model, batch, clean=(xv, yv), share=0.3)
    clean = loss(model(xv).flatten(0, 1), yv.flatten())
    torch.testing.assert_close(found, 0.3 * clean + 0.7 * refine.loss(model, batch))
    return "right: their share of the loss is torch's"


@situation(LAYOUTS, 'a label for each pixel, `layout="pixels"`')
def _():
    model, x, y, xv, yv = images()
    refine = Saflex(model, validation=(xv, yv), layout="pixels")
    batch = refine(x, y)
    assert batch.y.shape == (3, K, 5, 4)
    assert batch.w.shape == (3, 5, 4)
    return keeps_promise(refine, model, batch, lambda: F.cross_entropy(model(xv), yv))


@situation(LAYOUTS, "pixels with class weights and a void class")
def _():
    model, x, y, xv, yv = images()
    loss = nn.CrossEntropyLoss(weight=C, ignore_index=255)
    y, yv = torch.where(x[:, 0] < -0.5, 255, y), torch.where(xv[:, 0] > 0.5, 255, yv)
    refine = Saflex(model, validation=(xv, yv), loss=loss, layout="pixels")
    return keeps_promise(refine, model, refine(x, y), lambda: loss(model(xv), yv))


@situation(LAYOUTS, 'three models side by side, `layout="stack"`')
def _():
    torch.manual_seed(0)
    model = Stack(3).double()
    x, xv = torch.randn(3, 8, 5).double(), torch.randn(3, 12, 5).double()
    y, yv = torch.randint(0, K, (3, 8)), torch.randint(0, K, (3, 12))
    refine = Saflex(model, validation=(xv, yv), layout="stack")
    batch = refine(x, y)
    losses = []
    for r in range(3):
        single = Single(model, r).double()
        own = Saflex(single, validation=(xv[r], yv[r]))
        alone = own(x[r], y[r])
        torch.testing.assert_close(batch.y[r], alone.y)
        torch.testing.assert_close(batch.w[r], alone.w)
        losses.append(own.loss(single, alone))
    torch.testing.assert_close(refine.loss(model, batch), sum(losses))
    return "right: each model gets what it would get alone"


@situation(LAYOUTS, "(B, T, K) logits, nothing declared")
def _():
    model, x, y, xv, yv = sequences()
    refine = Saflex(model, validation=(xv, yv))
    return refused(e.ShapeError, lambda: refine(x, y), naming="layout='tokens'")


@situation(LAYOUTS, "(B, K, H, W) logits, nothing declared")
def _():
    model, x, y, xv, yv = images()
    refine = Saflex(model, validation=(xv, yv))
    return refused(e.ShapeError, lambda: refine(x, y), naming="'pixels'")


@situation(LAYOUTS, "`validation_gradient` of tokens, nothing declared")
def _():
    model, _, _, xv, yv = sequences()
    return refused(
        e.ShapeError, lambda: validation_gradient(model, xv, yv), naming="layout='tokens'"
    )


@situation(LAYOUTS, "`validation_batch=4` of 100 sequences of 7")
def _():
    model, x, y, _, _ = sequences()
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    tokens = torch.randint(0, 20, (100, 7))
    Saflex(model, validation=(tokens, tokens % K), validation_batch=4, layout="tokens")(x, y)
    assert seen[0] == (4, 7)
    return "right: whole sequences are drawn"


@situation(LAYOUTS, "a `Mixture` of two sets of sequences")
def _():
    model, x, y, xv, yv = sequences()
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    Saflex(model, validation=Mixture((xv, yv), (xv, yv)), layout="tokens")(x, y)
    assert seen[0] == (12, 7)
    return "right: joined along the sequences"


@situation(LAYOUTS, "`memory=` with a label for each token")
def _():
    model, _, _, xv, yv = sequences()
    return refused(
        e.SettingError,
        lambda: Saflex(model, validation=(xv, yv), layout="tokens", memory=1.0),
        naming="memory=None",
    )


@situation(LAYOUTS, 'torchvision\'s LR-ASPP: a dict with "out", a label for each pixel')
def _():
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=K
    ).double()
    x, y = torch.randn(2, 3, 32, 32).double(), torch.randint(0, K, (2, 32, 32))
    assert isinstance(model.eval()(x), OrderedDict)
    refine = Saflex(model, validation=(x, y), layout="pixels", logits_from="out")
    return keeps_promise(
        refine,
        model,
        refine(x, y.flip(0)),
        lambda: F.cross_entropy(model(x)["out"], y),
        tolerance=0.02,
    )
