"""How packed matrices lie in memory, the same on every processor.

- int8: panels of 64 output channels, padded with zeros to full panels and a multiple of 64 inputs.
  A panel holds, for every four inputs, 64 × 4 bytes: four inputs of each channel side by side. It
  is what oneDNN makes of a matrix where it has AVX-512 VNNI, so that one copy serves both; like
  there, minus the sum of each channel's integers, an int32, follows the last panel. The float32
  scale of each channel lies apart.
- int4: blocks of 16 channels, padded alike. A block holds, for every 64 inputs, the float16 scales
  of 2 groups of 32 inputs × 16 channels, then 8 × 16 × 4 bytes: of each byte the low half belongs
  to one of eight inputs' first four, the high half to one of the last. Half a byte says which of
  16 `CODES` stands for the weight.
"""

BLOCK = 16  # channels
PANEL = 64  # channels
SPAN = 64  # inputs
GROUP = {8: 64, 4: 32}  # inputs that share a token's scale; of int4, a weight's too
SPAN_8, SPAN_4 = PANEL * SPAN, 9 * SPAN  # bytes of 64 inputs: of a panel, of a block
SCRATCH = 4 * SPAN * 16  # bytes that a thread needs for itself between two products
# int4's values, dense where weights are: what Lloyd's algorithm ("Least squares quantization in
# PCM", 1982) makes of normally distributed groups of 32, each divided by its best scale. They leave
# 0.90 of the error of −8 … 7.
CODES = (-127, -101, -80, -62, -47, -34, -21, -9, 2, 13, 25, 37, 50, 65, 83, 107)


def packed_bytes(bits: int, rows: int, columns: int) -> int:
    """Of a matrix of so many channels and inputs, int8's sums included."""
    spans = -(-columns // SPAN)
    if bits == 4:
        return -(-rows // BLOCK) * spans * SPAN_4
    return -(-rows // PANEL) * (spans * SPAN_8 + 4 * PANEL)
