"""How right a model is: metrics, the picture world's splits, and data of one's own."""
