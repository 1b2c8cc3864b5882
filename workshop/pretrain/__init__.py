"""Multimodal pre-training on the picture world: how the mini that ships is made.

    python -m workshop.pretrain --out runs/mini --minutes 60

- weights start from nothing, from another model's, or the vision tower's from a dual encoder that
  `python -m workshop.contrastive` made, as PaliGemma's does
- first the vision tower alone learns to name what covers each patch, to bound it and to spell the
  characters in it (a linear head that is dropped afterwards); then prompts, several in a row behind
  their picture; at the end a row for each prompt, as at inference (see `batches`)
- on accelerate: several processes under `torchrun` or `accelerate launch` share each step's scenes,
  and have the losses of one process. On a CPU, two of one thread each get more done than one of two
"""
