"""Small float64 models of every kind the library claims, and Pi by brute force."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

K = 4  # classes of every model here but the two towers


def mlp(width: int = 7) -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, width), nn.Tanh(), nn.Dropout(0.5), nn.Linear(width, K)
    ).double()


class ConvNet(nn.Module):
    """Convolutions with BatchNorm whose running statistics have seen some data."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), activation(), nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def convnet(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    model = ConvNet(activation).double().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 2, 6, 6, dtype=torch.float64) * 2 + 1)
    return model


class AttentionBlock(nn.Module):
    """Both fused paths of torch: an encoder layer and a bare MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, K)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.head(h.mean(1))


class TwoTowers(nn.Module):
    """CLIP-shaped: normalised towers, a learned scale, the (B, B) matrix of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 4), nn.Embedding(9, 4)
        self.scale = nn.Parameter(torch.tensor(1.2))

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        image = nn.functional.normalize(torch.tanh(self.image(pair[0])), dim=-1)
        text = nn.functional.normalize(self.text(pair[1]), dim=-1)
        return self.scale.exp() * image @ text.T


class Stack(nn.Module):
    """R models side by side, one batched matrix product per layer: (R, B, F) -> (R, B, K)."""

    def __init__(self, replicas: int, width: int = 7) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(replicas, 5, width) / 2)
        self.w2 = nn.Parameter(torch.randn(replicas, width, K) / 2)
        self.b2 = nn.Parameter(torch.zeros(replicas, 1, K))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.b2, torch.tanh(torch.bmm(x, self.w1)), self.w2)


class Single(nn.Module):
    """One member of a `Stack`, on its own."""

    def __init__(self, stack: Stack, r: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(stack.w1[r].detach().clone())
        self.w2 = nn.Parameter(stack.w2[r].detach().clone())
        self.b2 = nn.Parameter(stack.b2[r].detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w1) @ self.w2 + self.b2


def inputs(kind: str, batch: int) -> Tensor | tuple[Tensor, Tensor]:
    if kind == "two towers":
        return torch.randn(batch, 6, dtype=torch.float64), torch.arange(batch) % 9
    shape = {"mlp": (5,), "convnet": (2, 6, 6), "attention": (3, 8)}[kind]
    return torch.randn(batch, *shape, dtype=torch.float64)


#: Bound on the relative error of finite differences in float32: (central, one-sided). A ReLU kink
#: between the two parameter vectors costs digits that smooth models keep.
FINITE_DIFFERENCE_ERROR = {
    "mlp": (1e-3, 1e-3),
    "convnet, smooth": (1e-3, 1e-3),
    "convnet": (5e-3, 1e-2),
    "attention": (1e-3, 1e-3),
    "two towers": (1e-3, 2e-3),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convnet": convnet,
    "attention": lambda: AttentionBlock().double(),
    "two towers": lambda: TwoTowers().double(),
}
OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "log-probabilities": lambda z: z.log_softmax(-1),
    "probabilities": lambda z: z.softmax(-1),
    "logits": lambda z: z,
}


def brute_force_products(model, x, tangent: dict[str, Tensor], output: str) -> Tensor:
    """Pi from K * B separate backward passes, each dotted with the tangent."""
    named = dict(model.named_parameters())
    params = [named[name] for name in tangent]
    mode = model.training
    model.eval()
    f = OUTPUTS[output](model(x))
    pi = torch.zeros_like(f)
    for index in torch.cartesian_prod(*map(torch.arange, f.shape)).tolist():
        grads = torch.autograd.grad(f[tuple(index)], params, retain_graph=True, allow_unused=True)
        pi[tuple(index)] = -sum(
            (g * v).sum() for g, v in zip(grads, tangent.values(), strict=True) if g is not None
        )
    model.train(mode)
    return pi.detach()
