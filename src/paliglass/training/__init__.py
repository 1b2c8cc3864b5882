"""Training: the tokenizer, pre-training on the picture world, evaluation. Inference needs none."""
