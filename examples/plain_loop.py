"""SAFLEX in a plain training loop: three lines. ``python examples/plain_loop.py``

Two spirals, 40 % of the training labels wrong, a small clean validation set, Gaussian jitter as the
upstream augmentation. Both runs train on clean and jittered rows, half the loss each; one of them
refines the jittered ones. Prints test loss and accuracy of both, and what the refiner says of itself.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from saflex import Batch, Saflex


def spirals(count: int, *, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Points on two interleaved spirals; a share `noise` of the labels is flipped."""
    y = torch.randint(0, 2, (count,))
    angle = torch.rand(count).sqrt() * 3 * math.pi
    turned = angle + math.pi * y
    x = torch.stack([turned.cos(), turned.sin()], -1) * angle[:, None] / 5
    flip = torch.rand(count) < noise
    return x + 0.05 * torch.randn_like(x), torch.where(flip, 1 - y, y)


def augment(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x + 0.1 * torch.randn_like(x), y


def train(*, refined: bool, epochs: int = 30, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    train_set, val_set = spirals(800, noise=0.4), spirals(200)
    x_test, y_test = spirals(1000)
    model = nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    loader = DataLoader(TensorDataset(*train_set), batch_size=64, shuffle=True)
    refine = Saflex(model, validation=val_set, optimizer=optimizer, precondition=True)  # line 1

    for _ in range(epochs):
        for x, y in loader:
            augmented = augment(x, y)
            batch = refine(*augmented) if refined else Batch.uniform(*augmented, 2)  # line 2
            loss = refine.loss(model, batch, clean=(x, y))  # line 3
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    if refined:
        print(refine.report())
    with torch.no_grad():
        logits = model(x_test)
    return {
        "test_loss": nn.functional.cross_entropy(logits, y_test).item(),
        "test_accuracy": (logits.argmax(-1) == y_test).float().mean().item(),
        **refine.diagnostics(),
    }


def main(epochs: int = 30) -> dict[str, dict[str, float]]:
    results = {
        name: train(refined=name == "saflex", epochs=epochs) for name in ("clean+aug", "saflex")
    }
    for name, found in results.items():
        print(f"{name:9s} loss {found['test_loss']:.3f}  accuracy {found['test_accuracy']:.3f}")
    return results


if __name__ == "__main__":
    main()
