"""Lines 2-3 of Algorithm 1: Pi, the inner product of each label's gradient with the validation one.

Pi is a directional derivative of the model's outputs along the validation gradient, with the sign
for which large means: training on this label lowers the validation loss (docs/method.md, fact 1).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saflex.errors import ShapeError
from saflex.estimators import finite_difference, forward_mode, last_layer
from saflex.failures import explained
from saflex.forward import ModelView, require_tangent
from saflex.passes import undisturbed
from saflex.settings import CHOICES, require_choice
from saflex.transpose import require_transpose

__all__ = ["gradient_products", "inner_products", "logit_derivatives"]


def gradient_products(
    model: nn.Module,
    x: Any,
    tangent: Mapping[str, Tensor],
    *,
    estimator: str = "forward-mode",
    output: str = "log-probabilities",
    classifier: str | None = None,
    fd_step: float | None = None,
    logits: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Pi for a batch: what one unit of each label is worth in validation loss.

    Parameters
    ----------
    model : nn.Module
        Used in evaluation mode and left untouched.
    x
        B augmented inputs.
    tangent : dict of str to Tensor
        From `validation_gradient`, possibly averaged or preconditioned.
    estimator : "forward-mode", "finite-difference" or "last-layer"
    output : "log-probabilities", "logits" or "probabilities"
        Which f of the paper; only the first makes Pi the exact first-order gain.
    classifier, fd_step, logits
        See `logit_derivatives`.
    check : bool
        Compare the derivative with backward passes, see `saflex.transpose.require_transpose`
        (`Saflex` has a check of its own).

    Returns
    -------
    Tensor, shape (..., B, K)
        Training on (x_i, k) with weight w and step size alpha lowers the validation loss by
        ``alpha w Pi_ik`` to first order (for log-probabilities).

    Raises
    ------
    EstimatorError, CheckError, SettingError, ShapeError, NoTrainableParametersError

    References
    ----------
    Notation 1; Appendix A, Equation 9 with the sign of Equation 7 kept.
    """
    if estimator == "last-layer" and classifier is None:
        classifier = last_layer.classifier_name(model, x)
    z, dz = logit_derivatives(
        model,
        x,
        tangent,
        estimator=estimator,
        classifier=classifier,
        fd_step=fd_step,
        logits=logits,
    )
    if check:
        if estimator == "last-layer":
            tangent = {n: v for n, v in tangent.items() if n.startswith(f"{classifier}.")}
        require_transpose(ModelView(model), x, tangent, dz, estimator=estimator)
    return inner_products(z, dz, output=output)


def logit_derivatives(
    model: nn.Module,
    x: Any,
    tangent: Mapping[str, Tensor],
    *,
    estimator: str = "forward-mode",
    classifier: str | None = None,
    fd_step: float | None = None,
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits z and ``dz = J_z v`` for the direction v, each of shape (..., B, K).

    Parameters
    ----------
    classifier : str, optional
        The last layer's name for ``estimator="last-layer"``; found (with one more forward) if None.
    fd_step : float, optional
        Relative step for ``estimator="finite-difference"``; if None it is searched for on these
        inputs, which takes up to sixteen forwards (`saflex.Saflex` searches once).
    logits : Tensor, optional
        Evaluation-mode logits at the current parameters; saves "finite-difference" a forward.
    """
    require_choice("estimator", estimator, CHOICES["estimator"])
    view = ModelView(model)
    require_tangent(view.require_trainable(), tangent)
    if estimator == "last-layer" and classifier is None:
        classifier = last_layer.classifier_name(view.model, x)
    with undisturbed(view), explained(view, x):
        if estimator == "forward-mode":
            z, dz = forward_mode.derivative(view, x, tangent)
        elif estimator == "finite-difference":
            step = fd_step or finite_difference.settled_step(view, x, tangent).step
            z, dz = finite_difference.derivative(view, x, tangent, step=step, logits=logits)
        else:
            z, dz = last_layer.derivative(view, x, tangent, classifier=classifier)
    return z.detach(), dz.detach()


def inner_products(logits: Tensor, d_logits: Tensor, *, output: str) -> Tensor:
    """Pi from the logits and their derivative, for one of three readings of f.

    With p the softmax of the logits z::

        log-probabilities   -(dz_k - sum_j p_j dz_j)
        logits              -dz_k
        probabilities       -p_k (dz_k - sum_j p_j dz_j)

    Parameters
    ----------
    logits, d_logits : Tensor, shape (..., B, K)

    Returns
    -------
    Tensor, shape (..., B, K)
    """
    require_choice("output", output, CHOICES["output"])
    if logits.shape != d_logits.shape:
        raise ShapeError(
            f"logits have shape {tuple(logits.shape)} and their derivative "
            f"{tuple(d_logits.shape)}: they must be equal."
        )
    # Under autocast the logits may be bfloat16; differences of labels deserve float32.
    exact = torch.promote_types(logits.dtype, torch.float32)
    z, dz = logits.to(exact), d_logits.to(exact)
    if output == "logits":
        return -dz
    p = torch.softmax(z, -1)
    # Relative to the top class: its own Pi is then a sum over the others, and keeps its digits (and the
    # sign that decides w) where p is so near 1 that sum_j p_j dz_j and dz_k agree in all of theirs.
    d = dz - dz.gather(-1, z.argmax(-1, keepdim=True))
    pi = (p * d).sum(-1, keepdim=True) - d
    return pi if output == "log-probabilities" else p * pi
