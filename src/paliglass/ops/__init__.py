"""What the towers share: attention, positions, masks, norms, cache, losses."""
