"""What the towers share: attention, rotary positions, masks, norms, the cache, the loss."""
