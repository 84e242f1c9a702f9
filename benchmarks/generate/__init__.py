"""Generated images for Table 3: planned, made once, addressed by what made them, listed in a manifest."""
