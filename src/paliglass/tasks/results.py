"""What the friendly interface returns: answers, boxes and masks, and what can be made of them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from paliglass.errors import PaliglassError
from paliglass.tasks.boxes import Box

# numpy, Pillow and supervision are imported where they are used: `import paliglass` is to be quick.
if TYPE_CHECKING:
    import numpy as np
    import supervision
    from numpy.typing import NDArray
    from PIL import Image

    from paliglass.generation import FinishReason


class Answer(str):
    """A text that knows how sure the model is of it: equal to, and hashed as, the plain string.

    score: in (0, 1]. finish_reason: "stop" where the model ended it, "length" where the limit did.
    """

    score: float
    finish_reason: FinishReason

    def __new__(cls, text: str, score: float, finish_reason: FinishReason = "stop") -> Self:
        answer = super().__new__(cls, text)
        answer.score, answer.finish_reason = score, finish_reason
        return answer

    def __getnewargs__(self) -> tuple[str, float, FinishReason]:  # type: ignore[override]
        # What copy and pickle make it anew from.
        return str(self), self.score, self.finish_reason

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the score to 1/10 000."""
        found = {"answer": str(self), "score": round(self.score, 4)}
        return found | ({"finish_reason": "length"} if self.finish_reason == "length" else {})


@dataclass(frozen=True)
class Detection:
    """Something found.

    label: as the model says it. box: (x0, y0, x1, y1) in pixels of the upright picture. score:
    in (0, 1], how sure the model is of box and label.
    """

    label: str
    box: Box
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON: pixels to 1/100, the score to 1/10 000."""
        box = [round(edge, 2) for edge in self.box]
        return {"label": self.label, "box": box, "score": round(self.score, 4)}


@dataclass(frozen=True, eq=False)
class Segment:
    """Something found, pixel by pixel.

    label, box, score: as in `Detection`. mask: H × W of the whole upright picture, True where it
    is.
    """

    label: str
    box: Box
    mask: NDArray[np.bool_]
    score: float

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segment):
            return NotImplemented
        mine, theirs = ((s.label, s.box, s.score) for s in (self, other))
        same: bool = self.mask.shape == other.mask.shape and (self.mask == other.mask).all()
        return mine == theirs and bool(same)

    def __hash__(self) -> int:
        return hash((self.label, self.box, self.score))

    def rle(self) -> dict[str, Any]:
        """The mask in COCO's compressed run lengths; see `encode_rle`."""
        from paliglass.formats.rle import encode_rle

        return encode_rle(self.mask)

    def polygons(self) -> list[list[tuple[int, int]]]:
        """The mask's outlines along the edges of its pixels; see `outlines`."""
        from paliglass.formats.polygons import outlines

        return outlines(self.mask)

    def mask_image(self) -> Image.Image:
        """The mask as a picture of one bit a pixel, white where it is."""
        from PIL import Image

        return Image.fromarray(self.mask)

    def mask_png(self) -> bytes:
        """The mask as the bytes of a PNG file."""
        buffer = io.BytesIO()
        self.mask_image().save(buffer, format="PNG")
        return buffer.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """As `Detection.to_dict`, with the mask in COCO's run lengths."""
        return {**Detection(self.label, self.box, self.score).to_dict(), "mask": self.rle()}


T = TypeVar("T", bound=Detection | Segment)


class Found(list[T], Generic[T]):
    """What was found in one picture: a list of `Detection` or of `Segment`.

    width, height: of the upright picture, in pixels. finish_reason: "length" where the limit cut
    the answer, so that there may be more; else "stop".
    """

    def __init__(
        self,
        items: Iterable[T],
        width: int,
        height: int,
        finish_reason: FinishReason = "stop",
    ) -> None:
        super().__init__(items)
        self.width = width
        self.height = height
        self.finish_reason = finish_reason

    def above(self, min_score: float) -> Found[T]:
        """Those whose score is at least `min_score`."""
        kept = [item for item in self if item.score >= min_score]
        return Found(kept, self.width, self.height, self.finish_reason)

    def draw(self, picture: Any, scale: int = 1, scores: bool = True) -> Image.Image:
        """The picture (a path, a PIL image, bytes or an array) with all of it drawn in.

        `scale` enlarges a small picture first, so that labels can be read; `scores`: whether labels
        tell them. Raises PictureError, or PaliglassError where the picture's size is another.
        """
        from paliglass.drawing import draw_objects
        from paliglass.pictures import load_picture

        image = load_picture(picture)
        if image.size != (self.width, self.height):
            raise PaliglassError(
                f"the picture has {image.width} × {image.height} pixels, the results are of one "
                f"with {self.width} × {self.height}; give the picture they came from"
            )
        return draw_objects(
            image,
            [item.label for item in self],
            [item.box for item in self],
            [item.mask if isinstance(item, Segment) else None for item in self],
            [item.score for item in self] if scores else None,
            scale,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it."""
        detections = [item.to_dict() for item in self]
        return {"width": self.width, "height": self.height, "detections": detections}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Found[Any]:
        """What `to_dict` wrote, other keys aside. Raises KeyError, TypeError or ValueError."""
        from paliglass.formats.rle import decode_rle

        found: list[Any] = []
        for item in record["detections"]:
            label, box, score = item["label"], Box(*map(float, item["box"])), item["score"]
            if "mask" in item:
                found.append(Segment(label, box, decode_rle(item["mask"]), score))
            else:
                found.append(Detection(label, box, score))
        return Found(found, record["width"], record["height"])

    def to_coco(
        self, image_id: int = 1, categories: Mapping[str, int] | None = None, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """COCO annotations, good as COCO results too; masks as compressed run lengths.

        bbox is [x, y, width, height] and area in pixels; `first_id` counts up. categories: label →
        id; without it, the labels in alphabetical order from 1. Raises PaliglassError for a label
        that has no category.
        """
        from paliglass.formats.coco import annotation

        ids = self._classes(1) if categories is None else categories
        return [
            annotation(
                number,
                image_id,
                _class_of(item.label, ids),
                item.box,
                item.score,
                item.mask if isinstance(item, Segment) else None,
            )
            for number, item in enumerate(self, first_id)
        ]

    def to_yolo(self, class_names: Sequence[str]) -> list[str]:
        """Lines of a YOLO label file, in shares of the picture's width and height.

        A box is `class cx cy w h`; a mask `class x y x y …`, its parts and holes joined to one
        polygon by seams without width. Scores have no place there. Raises PaliglassError for a
        label that is not among `class_names`.
        """
        from paliglass.formats.yolo import to_line

        ids = {name: number for number, name in enumerate(class_names)}
        lines = (
            to_line(
                _class_of(item.label, ids),
                item.box,
                self.width,
                self.height,
                item.mask if isinstance(item, Segment) else None,
            )
            for item in self
        )
        return [line for line in lines if line is not None]

    def to_supervision(self, class_names: Sequence[str] | None = None) -> supervision.Detections:
        """For the supervision library: xyxy, mask, confidence, class_id, data["class_name"].

        class_names: what class ids count; without it, the labels in alphabetical order. Raises
        PaliglassError where supervision is not installed, or for a label not in `class_names`.
        """
        try:
            import supervision
        except ImportError:
            raise PaliglassError(
                "to_supervision needs the supervision library: pip install supervision"
            ) from None
        import numpy as np

        ids = self._classes(0) if class_names is None else {n: i for i, n in enumerate(class_names)}
        masks = [item.mask for item in self if isinstance(item, Segment)]
        return supervision.Detections(
            xyxy=np.array([item.box for item in self], dtype=np.float32).reshape(-1, 4),
            mask=np.stack(masks) if masks else None,
            confidence=np.array([item.score for item in self], dtype=np.float32),
            class_id=np.array([_class_of(item.label, ids) for item in self], dtype=int),
            data={"class_name": np.array([item.label for item in self], dtype=str)},
        )

    def _classes(self, first: int) -> dict[str, int]:
        names = sorted({item.label for item in self})
        return {name: number for number, name in enumerate(names, first)}


def _class_of(label: str, ids: Mapping[str, int]) -> int:
    if label not in ids:
        raise PaliglassError(f"{label!r} is not among the classes ({', '.join(ids)}); add it")
    return ids[label]
