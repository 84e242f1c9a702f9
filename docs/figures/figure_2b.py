"""Figure 2b of the paper from a toy problem: what refinement does to samples thrown astray.

One training sample of the green class is perturbed by wide Gaussian noise. Some copies land where
no validation sample lives, others inside the orange class. `python docs/figures/figure_2b.py`
writes figure_2b.png beside this file; tests/saflex/test_figure_2b.py asserts what it shows, and
what it does not: see docs/method.md, Section 6.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saflex import Batch, Saflex

GREEN, ORANGE = 0, 1
SOURCE = (-0.45, 0.0)  # the perturbed training sample
SPREAD = 1.5  # standard deviation of the perturbation
COPIES = 160
STEPS = 1  # of training before refinement: later, Pi shows what is still missing


class LocalFeatures(nn.Module):
    """A linear classifier on Gaussian bumps: what it learns in one place stays there."""

    def __init__(self, width: float = 0.7) -> None:
        super().__init__()
        axis = torch.linspace(-5, 5, 21)
        self.register_buffer("centres", torch.cartesian_prod(axis, axis))
        self.width = width
        self.head = nn.Linear(len(self.centres), 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.exp(-(torch.cdist(x, self.centres) ** 2) / (2 * self.width**2)))


class Toy(NamedTuple):
    """The picture's data: validation samples, perturbed copies, refined batches by setting."""

    x_val: Tensor
    y_val: Tensor
    x_aug: Tensor
    refined: dict[str, Batch]

    def lonely(self) -> Tensor:
        """Copies further than 1.5 from every validation sample."""
        return torch.cdist(self.x_aug, self.x_val).amin(-1) > 1.5

    def astray(self) -> Tensor:
        """Copies whose nine nearest validation samples, all within reach, are all orange."""
        distance, nearest = torch.cdist(self.x_aug, self.x_val).topk(9, largest=False)
        return (distance[:, -1] < 0.7) & (self.y_val[nearest] == ORANGE).all(-1)

    def at_home(self) -> Tensor:
        """The same with green."""
        distance, nearest = torch.cdist(self.x_aug, self.x_val).topk(9, largest=False)
        return (distance[:, -1] < 0.7) & (self.y_val[nearest] == GREEN).all(-1)


def blobs(count: int) -> tuple[Tensor, Tensor]:
    y = torch.arange(count) % 2
    centre = torch.tensor([[-1.1, 0.0], [1.1, 0.0]])[y]
    return centre + torch.randn(count, 2) * torch.tensor([0.55, 0.75]), y


def toy(model: nn.Module | None = None, seed: int = 0) -> Toy:
    """Train briefly on clean samples, perturb one green sample, refine the copies three ways."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model or LocalFeatures()
        x, y = blobs(60)
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(STEPS):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x_val, y_val = blobs(120)
        x_aug = torch.tensor(SOURCE) + SPREAD * torch.randn(COPIES, 2)
    upstream = torch.full((COPIES,), GREEN)
    refiners = {
        "derived": Saflex.derived(model, validation=(x_val, y_val), gumbel=False, tau=0.0),
        "default": Saflex(model, validation=(x_val, y_val)),
        "soft": Saflex(model, validation=(x_val, y_val), rule="soft"),
    }
    refined = {"upstream": Batch.uniform(x_aug, upstream, 2)}
    refined |= {name: refine(x_aug, upstream) for name, refine in refiners.items()}
    return Toy(x_val, y_val, x_aug, refined)


PANELS = {
    "upstream": "As thrown: every copy green, every weight equal",
    "derived": "Algorithm 1, derived sign, tau = 0:\nlabels follow validation data, all w = 1 (fact 4)",
    "default": "Default (entropic prior, Algorithm 1's weights):\nlabels soften; a far copy goes by its sign",
    "soft": "Default with rule='soft', local features:\nfar copies lose their weight",
}


def draw(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap

    data = toy()
    shades = LinearSegmentedColormap.from_list("label", ["#1b7f4d", "#cfcfcf", "#d9730d"])
    figure, axes = plt.subplots(2, 2, figsize=(8.6, 9.0), sharex=True, sharey=True)
    for axis, (name, title) in zip(axes.flat, PANELS.items(), strict=True):
        batch = data.refined[name]
        for label, colour in ((GREEN, "#1b7f4d"), (ORANGE, "#d9730d")):
            at = data.x_val[data.y_val == label]
            axis.scatter(*at.T, marker="+", s=26, linewidths=0.8, color=colour, alpha=0.55)
        kept = batch.w > 0
        size = 34 * batch.w * len(batch.w)
        axis.scatter(
            *data.x_aug[kept].T,
            s=size[kept].clamp(2, 150),
            c=batch.y[kept, ORANGE],
            cmap=shades,
            vmin=0,
            vmax=1,
            edgecolors="white",
            linewidths=0.4,
            zorder=3,
        )
        axis.scatter(
            *data.x_aug[~kept].T, s=16, facecolors="none", edgecolors="#888888", linewidths=0.6
        )
        axis.scatter(*SOURCE, marker="*", s=190, c="#1b7f4d", edgecolors="black", zorder=4)
        axis.set_title(title, fontsize=9.5, loc="left")
        axis.set_aspect("equal")
        axis.set(xlim=(-4.4, 4.0), ylim=(-4.2, 4.2), xticks=[], yticks=[])
    _legend(figure, shades)
    figure.subplots_adjust(0.02, 0.08, 0.98, 0.95, wspace=0.04, hspace=0.13)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _legend(figure, shades) -> None:
    from matplotlib.lines import Line2D

    def entry(label, **style):
        return Line2D([], [], linestyle="none", label=label, **style)

    figure.legend(
        handles=[
            entry("validation samples", marker="+", color="#777777"),
            entry(
                "perturbed training sample",
                marker="*",
                color="#1b7f4d",
                markeredgecolor="black",
                markersize=12,
            ),
            entry("label green", marker="o", color=shades(0.0)),
            entry("label undecided", marker="o", color=shades(0.5)),
            entry("label orange", marker="o", color=shades(1.0)),
            entry("weight 0", marker="o", markerfacecolor="none", color="#888888"),
        ],
        loc="lower center",
        ncol=6,
        frameon=False,
        fontsize=8.5,
        columnspacing=1.2,
        handletextpad=0.2,
        title="area of a dot = its weight",
        title_fontsize=8.5,
    )


if __name__ == "__main__":
    draw(Path(__file__).with_name("figure_2b.png"))
