"""Do two halves of a validation batch agree about Pi? The noise of line 1, measured when asked for."""

from typing import Any

import torch
from torch import Tensor

from saflex.direction import ValidationDirection
from saflex.errors import SaflexError
from saflex.estimators import last_layer
from saflex.forward import ModelView
from saflex.gradient import validation_gradient
from saflex.layouts import Layout
from saflex.precondition import preconditioned
from saflex.products import inner_products, logit_derivatives
from saflex.structures import map_tensors

__all__ = ["halves_agreement"]


def halves_agreement(
    direction: ValidationDirection, pair: tuple[Any, Tensor], x_aug: Any
) -> float | str:
    """Correlation over (sample, class) of Pi by two random halves of a validation batch.

    Two gradients of half the rows each, and two derivatives of the batch's logits; nothing is drawn
    from any stream and nothing of the refiner changes.

    Parameters
    ----------
    direction : ValidationDirection
        Whose model, loss and settings are used, at the parameters as they are now.
    pair : (x, y)
        A validation batch.
    x_aug
        Augmented inputs.

    Returns
    -------
    float in [-1, 1], or str
        Why there is none.
    """
    settings = direction.settings
    if settings.layout == "stack":
        return "not measured for a stack of models"
    x, y = pair
    if len(y) < 4:
        return f"not measured, {len(y)} validation rows are too few to halve"
    device = next(p.device for p in direction.model.parameters() if p.requires_grad)
    order = torch.randperm(len(y), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    products = []
    for rows in order.chunk(2):

        def half(t: Tensor, rows: Tensor = rows) -> Tensor:
            if t.ndim == 0:
                return t.to(device)
            if len(t) != len(y):
                raise IndexError
            return t.index_select(0, rows.to(t.device)).to(device)

        try:
            x_half, y_half = map_tensors((x, y), half)
        except (IndexError, RuntimeError):
            return "not measured, the validation inputs have no rows to halve"
        try:
            products.append(_products(direction, x_half, y_half, x_aug))
        except SaflexError as error:  # one without a label that counts, say
            return f"not measured, a half alone cannot be used ({type(error).__name__})"
    return torch.corrcoef(torch.stack(products))[0, 1].nan_to_num(0.0).item()


def _products(direction: ValidationDirection, x: Any, y: Tensor, x_aug: Any) -> Tensor:
    model, s = direction.model, direction.settings
    if s.estimator == "last-layer":
        g = last_layer.classifier_gradient(
            model, x, y, classifier=direction.classifier, loss=direction.loss
        )
    else:
        g = validation_gradient(model, x, y, loss=direction.loss, check=False)
    if s.precondition:
        g = preconditioned(g, ModelView(model).require_trainable(), direction.optimizer)
    z, dz = logit_derivatives(
        model,
        x_aug,
        g,
        estimator=s.estimator,
        classifier=direction.classifier,
        fd_step=direction.fd_step,
    )
    rows = Layout(s.layout).rows
    return inner_products(rows(z), rows(dz), output="log-probabilities").flatten()
