"""Backbones: a registered function ``build(data, **settings) -> nn.Module`` from inputs to logits (B, K)."""
