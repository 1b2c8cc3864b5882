"""Dual encoders: pictures and texts as vectors of one space, where what belongs together is near.

- `config`, `encoders`, `modeling_contrastive`  the model (losses: paliglass.layers.losses)
- `processing`    pictures and texts → the model's inputs
- `folders`       load, save, and hand the vision tower to PaliGemma
- `zero_shot`     classification and retrieval
- `drawing`       the similarity matrix as a picture
"""
