"""Multimodal pre-training on the picture world: `python -m workshop.pretrain`."""
