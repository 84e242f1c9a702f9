"""Typed errors. Every message says what was given, what was expected and what to do about it."""

__all__ = [
    "CheckError",
    "EmptyValidationError",
    "EstimatorError",
    "LabelError",
    "NoTrainableParametersError",
    "NonFiniteGradientError",
    "SaflexError",
    "SettingError",
    "ShapeError",
]


class SaflexError(Exception):
    """Base of every error raised by this package."""


class SettingError(SaflexError, ValueError):
    """A setting has an unknown name, a value out of its range, or contradicts another one."""


class LabelError(SaflexError, ValueError):
    """Labels out of range, or rows that are not a distribution over the classes."""


class ShapeError(SaflexError, ValueError):
    """Shapes that do not belong together, such as a model and labels with different K."""


class EmptyValidationError(SaflexError, ValueError):
    """The validation source has no (more) samples."""


class NoTrainableParametersError(SaflexError, ValueError):
    """No parameter of the model needs a gradient, so no step could lower the validation loss."""


class NonFiniteGradientError(SaflexError, ArithmeticError):
    """The validation gradient holds an infinity or a NaN."""


class EstimatorError(SaflexError, RuntimeError):
    """The chosen estimator of the gradient products cannot handle this model."""


class CheckError(EstimatorError):
    """The self-check found that gradient, derivative or logits of this model disagree."""
