"""Thirty sound models of many kinds, each with inputs: the self-check must accuse none of them."""

from collections.abc import Callable

import torch
from reference_models import AttentionBlock, ConvNet, K
from torch import nn
from torch.nn import functional as F


class Squashed(nn.Module):
    def forward(self, weight):
        return torch.tanh(weight)


class Lambda(nn.Module):
    def __init__(self, function: Callable, *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


def dense(*layers: nn.Module, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), *layers, nn.Linear(width, K))


def image(*layers: nn.Module, channels: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(channels, K),
    )  # fmt: skip


def tied() -> nn.Module:
    table, out = nn.Embedding(K, 6), nn.Linear(6, K, bias=False)
    out.weight = table.weight
    return Lambda(lambda t, e, o: o(torch.tanh(e(t).mean(1))), table, out)


def parametrised() -> nn.Module:
    model = dense(nn.Tanh())
    nn.utils.parametrize.register_parametrization(model[0], "weight", Squashed())
    return model


def frozen_start() -> nn.Module:
    model = dense(nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    model[0].requires_grad_(False)
    return model


def squeeze(x, conv, squeeze, head):
    h = torch.relu(conv(x))
    return head((h * torch.sigmoid(squeeze(h.mean((2, 3))))[..., None, None]).mean((2, 3)))


def recurrent(kind: type[nn.Module]) -> nn.Module:
    return Lambda(lambda x, r, h: h(r(x)[0][:, -1]), kind(8, 6, batch_first=True), nn.Linear(6, K))


FLAT, IMAGE, SEQUENCE, TOKENS = "flat", "image", "sequence", "tokens"
MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "linear": (FLAT, lambda: nn.Linear(5, K)),
    "tanh": (FLAT, lambda: dense(nn.Tanh())),
    "relu": (FLAT, lambda: dense(nn.ReLU())),
    "gelu": (FLAT, lambda: dense(nn.GELU())),
    "silu": (FLAT, lambda: dense(nn.SiLU())),
    "dropout": (FLAT, lambda: dense(nn.Tanh(), nn.Dropout(0.5))),
    "noise in evaluation": (
        FLAT,
        lambda: Lambda(
            lambda x, a, b: b(F.dropout(torch.tanh(a(x)), 0.3, training=True)),
            nn.Linear(5, 8),
            nn.Linear(8, K),
        ),
    ),
    "batch norm": (FLAT, lambda: dense(nn.BatchNorm1d(8), nn.ReLU())),
    "layer norm": (FLAT, lambda: dense(nn.LayerNorm(8), nn.GELU())),
    "rms norm": (FLAT, lambda: dense(nn.RMSNorm(8), nn.SiLU())),
    "deep": (FLAT, lambda: dense(*[m for _ in range(8) for m in (nn.Linear(8, 8), nn.Tanh())])),
    "wide": (FLAT, lambda: dense(nn.Tanh(), width=256)),
    "residual": (
        FLAT,
        lambda: Lambda(
            lambda x, a, b, c: c((h := torch.tanh(a(x))) + torch.tanh(b(h))),
            nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, K),
        ),
    ),
    "detached branch": (
        FLAT,
        lambda: Lambda(
            lambda x, a, b: b((h := torch.tanh(a(x))) * h.detach().norm(dim=-1, keepdim=True)),
            nn.Linear(5, 8), nn.Linear(8, K),
        ),
    ),
    "shared layer": (
        FLAT,
        lambda: Lambda(
            lambda x, a, b, c: c(torch.tanh(b(torch.tanh(b(a(x)))))),
            nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, K),
        ),
    ),
    "parametrised": (FLAT, parametrised),
    "frozen start": (FLAT, frozen_start),
    "cosine head": (
        FLAT,
        lambda: Lambda(
            lambda x, a, b: 5 * F.linear(F.normalize(a(x), dim=-1), F.normalize(b.weight, dim=-1)),
            nn.Linear(5, 8), nn.Linear(8, K),
        ),
    ),
    "convolutions": (IMAGE, lambda: image(nn.ReLU())),
    "convolutions, batch norm": (IMAGE, lambda: ConvNet(nn.ReLU)),
    "group norm": (IMAGE, lambda: image(nn.GroupNorm(2, 6), nn.SiLU())),
    "max pooling": (IMAGE, lambda: image(nn.ReLU(), nn.MaxPool2d(2))),
    "depthwise": (IMAGE, lambda: image(nn.Conv2d(6, 6, 3, groups=6), nn.Hardswish())),
    "transposed, interpolated": (
        IMAGE,
        lambda: image(nn.ConvTranspose2d(6, 6, 2), nn.Upsample(scale_factor=2), nn.ReLU()),
    ),
    "squeeze and excitation": (
        IMAGE,
        lambda: Lambda(squeeze, nn.Conv2d(2, 6, 3), nn.Linear(6, 6), nn.Linear(6, K)),
    ),
    "attention": (SEQUENCE, AttentionBlock),
    "lstm": (SEQUENCE, lambda: recurrent(nn.LSTM)),
    "gru": (SEQUENCE, lambda: recurrent(nn.GRU)),
    "tied embedding": (TOKENS, tied),
    "embedding with max_norm": (
        TOKENS,
        lambda: Lambda(
            lambda t, e, o: o(torch.tanh(e(t)).mean(1)),
            nn.Embedding(K, 6, max_norm=1.0),
            nn.Linear(6, K),
        ),
    ),
}  # fmt: skip


#: Those whose output is not that of one layer with parameters of its own.
NO_LAST_LAYER = {"linear", "cosine head", "tied embedding"}
#: Those whose gradient is not the slope of their logits: a difference obeys no detach().
NO_DIFFERENCE = {"detached branch", "embedding with max_norm"}


def inputs_of(kind: str, batch: int, dtype: torch.dtype) -> torch.Tensor:
    if kind == TOKENS:
        return torch.randint(0, K, (batch, 3))
    shape = {FLAT: (5,), IMAGE: (2, 6, 6), SEQUENCE: (3, 8)}[kind]
    return torch.randn(batch, *shape).to(dtype)
