"""Line 4 of Algorithm 1: soft labels from Pi, with the paper's prior or an entropic one."""

import torch
from torch import Tensor

from saflex.errors import SettingError, ShapeError
from saflex.settings import SaflexSettings

__all__ = ["deviation", "scaled_products", "soft_labels"]


def soft_labels(
    pi: Tensor,
    y_upstream: Tensor,
    *,
    beta: float = 0.0,
    tau: float = 1.0,
    gumbel: bool = False,
    prior: str = "label",
    scale: str | float | None = None,
    eps: float = 0.5,
    probabilities: Tensor | None = None,
    counted: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The label of each sample: a distribution over classes that prefers large Pi.

    ``prior="label"`` is the paper's ``softmax((Pi + beta y_upstream + G) / tau)``.
    ``prior="entropic"`` maximises ``<Pi + beta y_upstream, y> - tau KL(y || q)``, whose solution is
    ``softmax(log q + (Pi + beta y_upstream) / tau)`` with ``q = (1 - eps) y_upstream + eps p``.

    Parameters
    ----------
    pi : Tensor, shape (..., B, K)
    y_upstream : Tensor, shape (..., B, K)
        Rows of the simplex; one-hot for hard labels.
    beta : float >= 0
    tau : float >= 0
        0 gives the limit, one-hot at the arg max (over the support of q with the entropic prior).
    gumbel : bool
        Add independent Gumbel(0, 1) noise G. As tau falls the label becomes one *draw* from
        ``softmax(Pi + beta y_upstream)``, however small tau is.
    scale : None, "batch-std", "cosine" or float
        See `scaled_products`.
    eps : float in [0, 1]
        Share of the model's own prediction in q.
    probabilities : Tensor, shape (..., B, K), optional
        The model's p; needed by the entropic prior with ``eps > 0`` and by ``scale="cosine"``.
    counted : Tensor of bool, shape (..., B), optional
        Rows behind "batch-std"; the others (ignored labels) get a label that nobody uses.
    generator : torch.Generator, optional
        Source of G. Without it the global stream of the device is used.

    Returns
    -------
    Tensor, shape (..., B, K)
        Rows sum to 1.

    Raises
    ------
    SettingError, ShapeError

    References
    ----------
    Section 3, modifications 1 and 2; Algorithm 1, line 4; Theorem 1 (tau = 0).
    """
    SaflexSettings(beta=beta, tau=tau, gumbel=gumbel, prior=prior, scale=scale, eps=eps)
    if pi.shape != y_upstream.shape:
        raise ShapeError(
            f"pi has shape {tuple(pi.shape)} and y_upstream {tuple(y_upstream.shape)}: both must "
            "be (..., B, K)."
        )
    score = scaled_products(pi, scale=scale, probabilities=probabilities, counted=counted)
    if beta:
        score = score + beta * y_upstream
    if gumbel:
        score = score + _gumbel_like(score, generator)
    if prior == "label":
        return _one_hot_argmax(score) if tau == 0 else torch.softmax(score / tau, -1)
    log_q = _mixture(y_upstream, eps, probabilities).log()
    if tau == 0:
        return _one_hot_argmax(torch.where(log_q > -torch.inf, score, -torch.inf))
    return torch.softmax(log_q + score / tau, -1)


def scaled_products(
    pi: Tensor,
    *,
    scale: str | float | None,
    probabilities: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Pi divided so that beta and tau mean the same at every step (docs/method.md, fact 6).

    "batch-std" divides by the standard deviation over the batch's (B, K) entries. "cosine" divides
    ``Pi_ik = -<e_k - p_i, dz_i>`` by both norms, giving the cosine in [-1, 1] between the label's
    gradient and the validation gradient, as seen at this sample's logits. A number divides as is.

    Parameters
    ----------
    pi : Tensor, shape (..., B, K)
        For "cosine", of the log-probabilities.
    probabilities : Tensor, shape (..., B, K), optional
        p; needed by "cosine".
    counted : Tensor of bool, shape (..., B), optional
        Rows behind "batch-std"; all if not given.

    Returns
    -------
    Tensor, shape (..., B, K)
    """
    if scale is None:
        return pi
    if scale == "batch-std":
        return pi / _at_least_tiny(deviation(pi, counted))
    if scale == "cosine":
        p = _required(probabilities, "scale='cosine'")
        # Centring Pi over k recovers dz up to a shift, which the sum-zero e_k - p does not see.
        label = _label_gradient_norm(p)
        slope = torch.linalg.vector_norm(pi - pi.mean(-1, keepdim=True), dim=-1, keepdim=True)
        return (pi / _at_least_tiny(label * slope)).clamp(-1, 1)
    return pi / scale


def deviation(pi: Tensor, counted: Tensor | None) -> Tensor:
    """Standard deviation over the entries of the rows that count, shape (..., 1, 1)."""
    if counted is None:
        return pi.std((-2, -1), correction=0, keepdim=True)
    share = counted.to(pi.dtype).unsqueeze(-1)
    share = share / (share.sum(-2, keepdim=True) * pi.shape[-1]).clamp_min(1)
    mean = (share * pi).sum((-2, -1), keepdim=True)
    return (share * (pi - mean).square()).sum((-2, -1), keepdim=True).sqrt()


def _label_gradient_norm(p: Tensor) -> Tensor:
    """``|e_k - p|`` of every label, from the other classes' p alone: ``1 - p_k`` has no digits left
    where p_k is nearly 1."""
    top = torch.nn.functional.one_hot(p.argmax(-1), p.shape[-1]).bool()
    others = p.masked_fill(top, 0)
    rest = torch.where(top, others.sum(-1, keepdim=True), 1 - p)
    squares = torch.where(
        top, others.square().sum(-1, keepdim=True), p.square().sum(-1, keepdim=True) - p.square()
    )
    return (rest.square() + squares).sqrt()


def _mixture(y_upstream: Tensor, eps: float, probabilities: Tensor | None) -> Tensor:
    if eps == 0:
        return y_upstream
    p = _required(probabilities, f"prior='entropic' with eps={eps}")
    return (1 - eps) * y_upstream + eps * p


def _required(probabilities: Tensor | None, wanted_by: str) -> Tensor:
    if probabilities is None:
        raise SettingError(
            f"{wanted_by} needs the model's probabilities: pass probabilities=softmax(logits, -1)."
        )
    return probabilities


def _one_hot_argmax(score: Tensor) -> Tensor:
    return torch.zeros_like(score).scatter_(-1, score.argmax(-1, keepdim=True), 1.0)


def _gumbel_like(score: Tensor, generator: torch.Generator | None) -> Tensor:
    # -log of an exponential variable is Gumbel(0, 1); the clamp keeps an exact 0 from becoming inf.
    exponential = torch.empty_like(score).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(score.dtype).tiny).log()


def _at_least_tiny(value: Tensor) -> Tensor:
    return value.clamp_min(torch.finfo(value.dtype).tiny)
