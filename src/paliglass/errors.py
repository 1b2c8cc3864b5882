"""The one exception a user is meant to read: a single line that names the cause and the mend."""

from __future__ import annotations


class PaliglassError(Exception):
    """Something the user can put right. The command line prints its message and exits with 1."""


class CheckpointError(PaliglassError):
    """A checkpoint that is not what it should be: the message names the key, the file or both."""


class ConfigError(PaliglassError, ValueError):
    """A configuration with an unknown key or a value this implementation does not have."""


class PictureError(PaliglassError):
    """A file that is not a picture, or one that must not be opened."""


class PromptError(PaliglassError, ValueError):
    """A prompt that does not fit its pictures or the model's length."""
