"""Data to learn from and to be judged by: pictures with a prompt and an answer."""
