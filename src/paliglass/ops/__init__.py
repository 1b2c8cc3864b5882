"""What the towers share and the lessons teach: attention, positions, masks, norms, cache, losses."""
