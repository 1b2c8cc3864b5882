"""7 · What is asked and what comes back: prompts, boxes, typed results, drawings."""
