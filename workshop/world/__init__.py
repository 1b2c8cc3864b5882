"""The picture world: scenes of stickers, drawings, shapes, text and documents, with exact truth.

The mini model is trained on it. Nothing else in the package needs it.
"""

from __future__ import annotations

from workshop.world.concepts import PATCH_CLASSES
from workshop.world.engine import World
from workshop.world.scenes import Scene, SceneObject
from workshop.world.tasks import Example

__all__ = ["PATCH_CLASSES", "Example", "Scene", "SceneObject", "World"]
