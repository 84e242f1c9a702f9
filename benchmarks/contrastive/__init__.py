"""Contrastive fine-tuning of image-text models (Section 5, Table 4): one loop, fine-tuners as refinements."""
