"""Three ways to a directional derivative of the logits, one contract (docs/method.md, Section 4).

Each module has one function ``derivative(model, x, tangent, ...) -> (logits, d_logits)``, both of
shape (..., B, K), to be called inside `saflex.forward.undisturbed`.
"""
