"""Looking inside: what a checkpoint is and needs, whether it is right, what a run computed."""
