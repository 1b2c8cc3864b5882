"""How packed matrices lie in memory, the same on every processor.

A matrix of N output channels and K inputs is a row of blocks of 16 channels, each with all inputs,
padded with zeros to full blocks and to a multiple of 64 inputs. A block holds, for every 64 inputs:

- int8: 16 × 16 × 4 bytes: four inputs of each channel side by side, 128 above their value. The
  float32 scale of each channel lies apart.
- int4: the float16 scales of 2 groups of 32 inputs × 16 channels, then 8 × 16 × 4 bytes: of each
  byte the low half belongs to one of eight inputs' first four, the high half to one of the last.
  Half a byte says which of 16 `CODES` stands for the weight.
"""

BLOCK = 16  # channels
SPAN = 64  # inputs
GROUP = {8: 64, 4: 32}  # inputs that share a token's scale; of int4, a weight's too
BYTES = {8: 16, 4: 9}  # of a block, for each input
SCRATCH = 4 * SPAN * 16  # bytes that a thread needs for itself between two products
# int4's values, dense where weights are: what Lloyd's algorithm ("Least squares quantization in
# PCM", 1982) makes of normally distributed groups of 32, each divided by its best scale. They leave
# 0.90 of the error of −8 … 7.
CODES = (-127, -101, -80, -62, -47, -34, -21, -9, 2, 13, 25, 37, 50, 65, 83, 107)
