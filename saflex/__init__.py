"""SAFLEX (Ding et al., ICLR 2024): learned soft labels and sample weights for any augmentation.

>>> from saflex import Saflex                                                    # doctest: +SKIP
>>> refine = Saflex(model, validation=val_loader)                                # doctest: +SKIP
>>> batch = refine(x_aug, y_aug)                                                 # doctest: +SKIP
>>> loss = refine.loss(model, batch, clean=(x, y))                               # doctest: +SKIP

Names are loaded on first use, so that ``import saflex.settings`` (checking a configuration,
planning an experiment) does not pay for importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "Batch": "batch",
    "soft_cross_entropy": "batch",
    "soft_rows": "batch",
    "validation_gradient": "gradient",
    "gradient_products": "products",
    "inner_products": "products",
    "logit_derivatives": "products",
    "soft_labels": "labels",
    "sample_weights": "weighting",
    "Saflex": "algorithm",
    "SaflexSettings": "settings",
    "Mixture": "validation",
    "ContrastiveSaflex": "contrastive",
    "ImageTextLogits": "contrastive",
    "contrastive_cross_entropy": "contrastive",
    "CrossEntropy": "losses",
    "SaflexError": "errors",
}

__all__ = [
    "Batch",
    "ContrastiveSaflex",
    "CrossEntropy",
    "ImageTextLogits",
    "Mixture",
    "Saflex",
    "SaflexError",
    "SaflexSettings",
    "contrastive_cross_entropy",
    "gradient_products",
    "inner_products",
    "logit_derivatives",
    "sample_weights",
    "soft_cross_entropy",
    "soft_labels",
    "soft_rows",
    "validation_gradient",
]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'saflex' has no attribute {name!r}; it has {__all__}")
    value = getattr(import_module(f"saflex.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if TYPE_CHECKING:
    from saflex.algorithm import Saflex
    from saflex.batch import Batch, soft_cross_entropy, soft_rows
    from saflex.contrastive import ContrastiveSaflex, ImageTextLogits, contrastive_cross_entropy
    from saflex.errors import SaflexError
    from saflex.gradient import validation_gradient
    from saflex.labels import soft_labels
    from saflex.losses import CrossEntropy
    from saflex.products import gradient_products, inner_products, logit_derivatives
    from saflex.settings import SaflexSettings
    from saflex.validation import Mixture
    from saflex.weighting import sample_weights
