"""`loss=` decides everything: class weights, smoothing and ignored labels in g, Pi and training alike."""

import pytest
import torch
from reference_models import K, brute_force_products, inputs, mlp
from torch import nn
from torch.nn import functional as F

from saflex import Saflex, inner_products, soft_cross_entropy, soft_labels, validation_gradient
from saflex import errors as e
from saflex.labels import scaled_products
from saflex.losses import CrossEntropy, as_loss

X, Y = inputs("mlp", 8), torch.arange(8) % K
XV, YV = inputs("mlp", 12), torch.arange(12) % K
C = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
IGNORED = torch.where(torch.arange(8) % 3 == 0, -100, Y)

LOSSES = {
    "plain": nn.CrossEntropyLoss(),
    "class weights": nn.CrossEntropyLoss(weight=C),
    "smoothing": nn.CrossEntropyLoss(label_smoothing=0.2),
    "both": nn.CrossEntropyLoss(weight=C, label_smoothing=0.2),
}


@pytest.fixture
def model():
    return mlp().eval()


# The validation loss is torch's


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("labels", [Y, IGNORED], ids=["all", "some ignored"])
def test_for_hard_labels_it_is_torchs_cross_entropy(loss, labels):
    logits = torch.randn(8, K, dtype=torch.float64)
    torch.testing.assert_close(as_loss(loss)[1](logits, labels), loss(logits, labels))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("layout", ["tokens", "pixels", "stack"])
def test_and_so_in_every_layout(loss, layout):
    shape = {"tokens": (3, 5, K), "pixels": (2, K, 3, 4), "stack": (3, 5, K)}[layout]
    logits = torch.randn(shape, dtype=torch.float64)
    labels = torch.randint(0, K, (shape[:1] + shape[2:]) if layout == "pixels" else shape[:-1])
    if layout == "tokens":
        expected = loss(logits.flatten(0, 1), labels.flatten())
    elif layout == "pixels":
        expected = loss(logits, labels)
    else:  # a mean for each model, and their sum
        expected = sum(loss(z, y) for z, y in zip(logits, labels, strict=True))
    torch.testing.assert_close(as_loss(loss, layout=layout)[1](logits, labels), expected)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_validation_gradient_is_that_of_the_loss(model, loss):
    refine = Saflex(model, validation=(XV, YV), loss=loss)
    refine(X, Y)
    expected = torch.autograd.grad(loss(model(XV), YV), list(model.parameters()))
    for found, wanted in zip(refine.direction.gradient.values(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


# Pi is the slope of the training loss


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("labels", [Y, IGNORED], ids=["all", "some ignored"])
def test_a_small_step_on_the_training_loss_lowers_the_validation_loss_as_promised(
    model, loss, labels
):
    refine = Saflex(model, validation=(XV, YV), loss=loss)
    batch = refine(X, labels)
    before = loss(model(XV), YV)
    step = 1e-6
    grads = torch.autograd.grad(refine.loss(model(X), batch), list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), grads, strict=True):
            p -= step * g
    fall = (before - loss(model(XV), YV)) / step
    promised = refine.diagnostics()["gain"]
    assert promised > 0
    assert fall.item() == pytest.approx(promised, rel=1e-3)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_no_other_labels_and_weights_would_lower_it_more(model, loss):
    # tau=0 without a prior is the optimum of the linear programme: compare with random choices.
    refine = Saflex(model, validation=(XV, YV), loss=loss, prior="label", tau=0.0, scale=None)
    batch = refine(X, Y)
    g = list(refine.direction.gradient.values())

    def gain(candidate):
        own = torch.autograd.grad(refine.loss(model(X), candidate), list(model.parameters()))
        return sum((a * b).sum() for a, b in zip(g, own, strict=True)).item()

    best = gain(batch)
    for _ in range(200):
        labels = F.one_hot(torch.randint(0, K, (8,)), K).double()
        assert gain(batch._replace(y=labels)) <= best + 1e-12


def test_pi_counts_a_class_as_often_as_the_loss_does(model):
    g = validation_gradient(model, XV, YV, loss=nn.CrossEntropyLoss(weight=C))
    pi = brute_force_products(model, X, g, "log-probabilities")
    expected = soft_labels(
        pi * C,
        F.one_hot(Y, K).double(),
        probabilities=model(X).softmax(-1).detach(),
        prior="entropic",
        scale="batch-std",
    )
    found = Saflex(model, validation=(XV, YV), loss=nn.CrossEntropyLoss(weight=C))(X, Y)
    torch.testing.assert_close(found.y, expected)


@pytest.mark.parametrize("factor", [0.1, 30.0])
def test_the_scale_of_the_class_weights_changes_nothing(model, factor):
    losses = [nn.CrossEntropyLoss(weight=C * f) for f in (1.0, factor)]
    refiners = [Saflex(model, validation=(XV, YV), loss=loss) for loss in losses]
    one, two = (refine(X, Y) for refine in refiners)
    torch.testing.assert_close(one.y, two.y)
    torch.testing.assert_close(refiners[0].loss(model(X), one), refiners[1].loss(model(X), two))


# The training loss


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("labels", [Y, IGNORED], ids=["all", "some ignored"])
def test_with_the_upstreams_labels_and_even_weights_it_is_the_loss_given(model, loss, labels):
    refine = Saflex(model, validation=(XV, YV), loss=loss, relabel=False, rule="uniform")
    found = refine.loss(model(X), refine(X, labels))
    torch.testing.assert_close(found, loss(model(X), labels))


def test_its_denominator_does_not_depend_on_what_was_learned(model):
    refine = Saflex(model, validation=(XV, YV), loss=nn.CrossEntropyLoss(weight=C))
    batch, logp = refine(X, Y), model(X).log_softmax(-1)
    w = batch.w / batch.w.sum()
    expected = -(w * (batch.y * C * logp).sum(-1)).sum() / C[Y].mean()
    torch.testing.assert_close(refine.loss(model(X), batch), expected)


@pytest.mark.parametrize("loss", [None, *LOSSES.values()], ids=["none", *LOSSES])
@pytest.mark.parametrize("share", [0.5, 0.2, 0.0, 1.0])
def test_clean_rows_have_their_share_of_it(model, loss, share):
    refine = Saflex(model, validation=(XV, YV), loss=loss)
    batch = refine(X, Y)
    x, y = XV[:5], YV[:5]
    found = refine.loss(model, batch, clean=(x, y), share=share)
    clean = (loss or F.cross_entropy)(model(x), y)
    expected = share * clean + (1 - share) * refine.loss(model(X), batch)
    torch.testing.assert_close(found, expected)


def test_a_callable_is_the_validation_loss_alone(model):
    def steep(logits, y):
        return 3 * F.cross_entropy(logits, y)

    refine, plain = (Saflex(model, validation=(XV, YV), loss=f) for f in (steep, None))
    batch = refine(X, Y)
    plain(X, Y)
    for name, g in plain.direction.gradient.items():
        torch.testing.assert_close(refine.direction.gradient[name], 3 * g)
    torch.testing.assert_close(
        refine.loss(model(X), batch), soft_cross_entropy(model(X), batch.y, batch.w)
    )


# Ignored rows


def test_ignored_rows_weigh_nothing_and_change_nothing(model):
    refine = Saflex(model, validation=(XV, YV), loss=nn.CrossEntropyLoss())
    batch = refine(X, IGNORED)
    counted = IGNORED != -100
    alone = Saflex(model, validation=(XV, YV), loss=nn.CrossEntropyLoss())(X[counted], Y[counted])
    assert not batch.w[~counted].any()
    torch.testing.assert_close(batch.w[counted], alone.w)
    torch.testing.assert_close(batch.y[counted], alone.y)
    again = Saflex(model, validation=(XV, YV), loss=nn.CrossEntropyLoss())
    again(X[counted], Y[counted])
    found, expected = refine.diagnostics(), again.diagnostics()
    assert found == pytest.approx(expected)


def test_without_saying_so_an_ignored_label_is_an_error(model):
    with pytest.raises(e.LabelError, match="ignore_index"):
        Saflex(model, validation=(XV, YV))(X, IGNORED)
    with pytest.raises(e.LabelError, match="ignore_index"):
        Saflex(model, validation=(X, IGNORED))(X, Y)


def test_a_validation_batch_without_labels_is_an_error(model):
    refine = Saflex(model, validation=(XV, YV * 0 - 100), loss=nn.CrossEntropyLoss())
    with pytest.raises(e.EmptyValidationError, match="ignored"):
        refine(X, Y)


# What it cannot be


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (nn.BCEWithLogitsLoss(), "multi-label"),
        (F.binary_cross_entropy_with_logits, "multi-label"),
        (nn.MSELoss(), "regression"),
        (F.l1_loss, "regression"),
        (nn.CrossEntropyLoss(reduction="none"), "reduction='mean'"),
        (nn.CrossEntropyLoss(reduction="sum"), "reduction='mean'"),
        ("cross_entropy", "CrossEntropyLoss"),
        (nn.CrossEntropyLoss(weight=-C), ">= 0"),
    ],
)
def test_losses_refused_by_name(model, loss, says):
    with pytest.raises(e.SettingError, match=says):
        Saflex(model, validation=(XV, YV), loss=loss)


def test_a_loss_that_is_no_number(model):
    def each(logits, y):
        return F.cross_entropy(logits, y, reduction="none")

    with pytest.raises(e.ShapeError, match=r"shape \(12,\), expected one number"):
        Saflex(model, validation=(XV, YV), loss=each)(X, Y)


def test_as_many_class_weights_as_classes(model):
    with pytest.raises(e.SettingError, match="3 class weights and the model 4"):
        Saflex(model, validation=(XV, YV), loss=nn.CrossEntropyLoss(weight=C[:3]))(X, Y)


def test_the_cosine_knows_no_class_weights(model):
    with pytest.raises(e.SettingError, match="cosine"):
        Saflex(model, validation=(XV, YV), loss=LOSSES["class weights"], scale="cosine")


# Labels


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (Y.tolist(), "list, expected a tensor"),
        (Y.numpy(), "ndarray, expected a tensor"),
        (F.one_hot(Y, K), r"y\.float\(\)"),
        (Y.double(), r"y\.long\(\)"),
        (F.one_hot(Y, K).bool(), "torch.bool"),
        (torch.tensor([[1.0, 1, 0, 0]] * 8), "multi-label"),
        (Y[:, None], "Every input needs one label"),
    ],
)
def test_labels_of_the_wrong_kind_say_what_to_pass(model, labels, says):
    with pytest.raises((e.LabelError, e.ShapeError), match=says):
        Saflex(model, validation=(XV, YV))(X, labels)


def test_labels_that_require_grad_hold_no_graph(model):
    refine = Saflex(model, validation=(XV, YV))
    head = nn.Linear(5, K).double()
    batch = refine(X, head(X).softmax(-1))
    assert not batch.y.requires_grad
    assert not batch.w.requires_grad


def test_a_class_masked_out_by_the_model_costs_nothing_where_no_label_wants_it():
    logits = torch.tensor([[1.0, 2, -torch.inf]], requires_grad=True)
    y = torch.tensor([[1.0, 0, 0]])
    loss = soft_cross_entropy(logits, y)
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([0])))
    loss.backward()
    assert logits.grad.isfinite().all()


class Renamed(nn.CrossEntropyLoss):
    """A subclass that adds nothing to the forward."""


class Focal(nn.CrossEntropyLoss):
    def forward(self, logits, y):
        return super().forward(logits, y) ** 2


def test_class_weights_and_smoothing_that_change_on_the_way_are_followed(model):
    loss = nn.CrossEntropyLoss()
    refine = Saflex(model, validation=(XV, YV), loss=loss)
    refine(X, Y)
    loss.weight, loss.label_smoothing = C, 0.1
    batch = refine(X, Y)
    g = torch.autograd.grad(loss(model(XV), YV), list(model.parameters()))
    torch.testing.assert_close(list(refine.direction.gradient.values()), list(g))
    own = CrossEntropy(weight=C, label_smoothing=0.1, ignore_index=-100)
    torch.testing.assert_close(refine.loss(model, batch), own.training_loss(model(X), batch))
    loss.weight = -C
    with pytest.raises(e.SettingError, match="class weights"):
        refine(X, Y)
    cosine = Saflex(model, validation=(XV, YV), loss=nn.CrossEntropyLoss(), scale="cosine")
    cosine.task.module.weight = C
    with pytest.raises(e.SettingError, match="cosine"):
        cosine(X, Y)


def test_a_subclass_is_its_settings_unless_its_forward_is_its_own(model):
    loss = Renamed(weight=C, label_smoothing=0.1)
    refine = Saflex(model, validation=(XV, YV), loss=loss)
    even = refine.task.clean(X, Y, refine(X, Y))
    torch.testing.assert_close(refine.loss(model, even), loss(model(X), Y))
    with pytest.raises(e.SettingError, match=r"loss=Focal\(...\) has a forward of its own"):
        Saflex(model, validation=(XV, YV), loss=Focal())
    with pytest.raises(e.SettingError, match=r"nn\.CrossEntropyLoss with the same settings"):
        Saflex(model, validation=(XV, YV), loss=nn.NLLLoss(weight=C))


@pytest.mark.parametrize("name", LOSSES)
def test_soft_validation_labels_cost_what_torch_says(model, name):
    soft = torch.rand(12, K, dtype=torch.float64).softmax(-1)
    found, _ = as_loss(LOSSES[name])
    torch.testing.assert_close(found(model(XV), soft), LOSSES[name](model(XV), soft))


# Numbers where float32 has few


@pytest.mark.parametrize("output", ["log-probabilities", "probabilities"])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_pi_and_its_cosine_keep_their_digits_where_p_is_nearly_one(output, lead):
    torch.manual_seed(0)
    z, dz = torch.randn(2, *lead, 200, K, dtype=torch.float32).double()
    top = F.one_hot(torch.randint(0, K, z.shape[:-1]), K)
    z = (z + 14 * top).float()  # p of the top class is 1 - 1e-7 to 1 - 1e-4
    dz = dz.float()
    p = z.double().softmax(-1)
    e = torch.eye(K, dtype=torch.float64)
    expected = -((e - p.unsqueeze(-2)) * dz.double().unsqueeze(-2)).sum(-1)
    found = inner_products(z, dz, output=output)
    factor = p if output == "probabilities" else 1.0
    torch.testing.assert_close(found.double(), factor * expected, rtol=1e-4, atol=1e-12)
    assert torch.equal(found >= 0, expected >= 0)
    if output == "log-probabilities":
        label = torch.linalg.vector_norm(e - p.unsqueeze(-2), dim=-1)
        centred = (dz.double() - dz.double().mean(-1, keepdim=True)).norm(dim=-1, keepdim=True)
        cosine = scaled_products(found, scale="cosine", probabilities=z.softmax(-1))
        torch.testing.assert_close(
            cosine.double(), expected / (label * centred), rtol=1e-4, atol=1e-6
        )


def test_the_cosine_scale_where_p_is_nearly_one():
    z = torch.tensor([[0.0, 18.0, 1.0, -2.0]], dtype=torch.float64)
    dz = torch.tensor([[0.3, -0.2, 0.9, 0.4]], dtype=torch.float64)

    def cosine(dtype):
        p = z.to(dtype).softmax(-1)
        pi = (z.softmax(-1) * (dz - dz[..., 1:2])).sum(-1, keepdim=True) - (dz - dz[..., 1:2])
        return scaled_products(pi.to(dtype), scale="cosine", probabilities=p)

    p = z.softmax(-1)
    label = torch.eye(4, dtype=torch.float64) - p
    centred = dz - dz.mean()
    expected = -(label @ centred.T).T / (label.norm(dim=-1) * centred.norm())
    torch.testing.assert_close(cosine(torch.float64), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(cosine(torch.float32).double(), expected, rtol=1e-5, atol=1e-6)


def test_batch_deviation_of_the_rows_that_count():
    pi, counted = torch.randn(2, 6, K), torch.tensor([True, False, True, True, False, True])
    found = scaled_products(pi, scale="batch-std", counted=counted.expand(2, 6))
    expected = scaled_products(pi[:, counted], scale="batch-std")
    torch.testing.assert_close(found[:, counted], expected)


def test_settings_of_the_loss_are_checked_once_made():
    with pytest.raises(e.SettingError, match="class weights"):
        CrossEntropy(weight=torch.ones(2, 2))
