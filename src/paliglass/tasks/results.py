"""What the friendly interface returns: answers, boxes and masks, and what can be made of them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Generic, Self, SupportsIndex, TypeVar, overload

from paliglass.errors import PaliglassError, not_installed
from paliglass.tasks.boxes import Box

# numpy, pandas and the like are imported where they are used: `import paliglass` is to be quick.
if TYPE_CHECKING:
    import numpy as np
    import pandas
    import supervision
    from numpy.typing import NDArray
    from PIL import Image

    from paliglass.generation import FinishReason

__all__ = ["Answer", "Detection", "Found", "Segment"]


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
        score = round(self.score, 4)
        return {"answer": str(self), "score": score, "finish_reason": self.finish_reason}

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        cut = ", cut at the limit" if self.finish_reason == "length" else ""
        text = escape(str(self)).replace("\n", "<br>")
        return f"<div>{text} <small>(score {self.score:.2f}{cut})</small></div>"


@dataclass(frozen=True)
class Detection:
    """Something found.

    label: as the model says it. box: (x0, y0, x1, y1) in pixels of the upright picture. score:
    in (0, 1], how sure the model is of box and label.
    """

    label: str
    box: Box
    score: float

    def __repr__(self) -> str:
        return f"Detection({self.label!r}, {self.box!r}, score={self.score:.4f})"

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

    def __repr__(self) -> str:
        height, width = self.mask.shape
        mask = f"{int(self.mask.sum()):,} of {width} × {height} pixels"
        return f"Segment({self.label!r}, {self.box!r}, {mask}, score={self.score:.4f})"

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

    def _repr_png_(self) -> bytes:
        """As a notebook shows it."""
        return self.mask_png()

    def to_dict(self) -> dict[str, Any]:
        """As `Detection.to_dict`, with the mask in COCO's run lengths."""
        return {**Detection(self.label, self.box, self.score).to_dict(), "mask": self.rle()}


_EDGES = ("x0", "y0", "x1", "y1")
T = TypeVar("T", bound=Detection | Segment)


class Found(list[T], Generic[T]):
    """What was found in one picture: a list of `Detection` or of `Segment`.

    width, height: of the upright picture, in pixels. finish_reason: "length" where the limit cut
    the answer, so that there may be more; else "stop". picture: what was looked in, as it was
    given, to be drawn on; None where it is not known any more.
    """

    def __init__(
        self,
        items: Iterable[T],
        width: int,
        height: int,
        finish_reason: FinishReason = "stop",
        picture: Any = None,
    ) -> None:
        super().__init__(items)
        self.width = width
        self.height = height
        self.finish_reason = finish_reason
        self.picture = picture

    @property
    def labels(self) -> list[str]:
        return [item.label for item in self]

    @property
    def scores(self) -> NDArray[np.float32]:
        """N."""
        import numpy as np

        return np.array([item.score for item in self], dtype=np.float32)

    @property
    def xyxy(self) -> NDArray[np.float32]:
        """The boxes, N × 4: x0, y0, x1, y1 in pixels."""
        import numpy as np

        return np.array([item.box for item in self], dtype=np.float32).reshape(-1, 4)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """N × H × W, of `Segment`s. Raises PaliglassError for boxes without a mask."""
        import numpy as np

        masks = [item.mask for item in self if isinstance(item, Segment)]
        if len(masks) < len(self):
            raise PaliglassError("these have boxes and no masks; segment gives both")
        return np.array(masks, dtype=bool).reshape(-1, self.height, self.width)

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Found[T]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> T | Found[T]:
        """One of them, or some as a `Found` of the same picture."""
        if isinstance(index, slice):
            return self._with(super().__getitem__(index))
        return super().__getitem__(index)

    def above(self, min_score: float) -> Found[T]:
        """Those whose score is at least `min_score`."""
        return self._with(item for item in self if item.score >= min_score)

    def _with(self, items: Iterable[T]) -> Found[T]:
        """Others of the same picture."""
        return Found(items, self.width, self.height, self.finish_reason, self.picture)

    def draw(self, picture: Any = None, scale: int = 1, scores: bool = True) -> Image.Image:
        """The picture (by default the one that was looked in) with all of it drawn in.

        `scale` enlarges a small picture first, so that labels can be read; `scores`: whether labels
        tell them. Raises PictureError, or PaliglassError where the picture's size is another, or
        where none is known.
        """
        picture = self.picture if picture is None else picture
        if picture is None:
            raise PaliglassError("these results do not know their picture: draw(picture)")
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

    def show(self, picture: Any = None, scale: int = 1) -> None:
        """Shows the drawn picture: in the notebook, or in the system's viewer of pictures."""
        from paliglass.formats.notebook import show

        show(self.draw(picture, scale))

    def _repr_html_(self) -> str:
        """As a notebook shows it: the drawn picture, where it is known, and a table."""
        from paliglass.formats.notebook import image_tag, table

        drawn = self._drawn()
        rows = [
            (item.label, f"{item.score:.2f}", *(f"{edge:.0f}" for edge in item.box))
            for item in self
        ]
        found = table(("label", "score", *_EDGES), rows) if rows else "nothing found"
        return found if drawn is None else image_tag(drawn) + found

    def _repr_png_(self) -> bytes | None:
        """As a frontend shows it that takes no HTML."""
        from paliglass.formats.notebook import to_png

        drawn = self._drawn()
        return None if drawn is None else to_png(drawn)

    def _drawn(self) -> Image.Image | None:
        """The drawn picture, where it is known and still there."""
        try:
            return self.draw()
        except PaliglassError:
            return None

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each: label, score, x0, y0, x1, y1, and a mask's area in pixels.

        Raises PaliglassError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise PaliglassError(f"to_pandas: {not_installed('pandas')}") from None
        rows = [
            {"label": item.label, "score": item.score}
            | dict(zip(_EDGES, item.box, strict=True))
            | ({"area": int(item.mask.sum())} if isinstance(item, Segment) else {})
            for item in self
        ]
        return pandas.DataFrame(rows, columns=None if rows else ["label", "score", *_EDGES])

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it."""
        return {
            "width": self.width,
            "height": self.height,
            "finish_reason": self.finish_reason,
            "detections": [item.to_dict() for item in self],
        }

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Found[Any]:
        """What `to_dict` wrote, other keys aside. Raises PaliglassError that says what is wrong."""
        from paliglass.formats.jsonl import FoundLine
        from paliglass.formats.records import decode
        from paliglass.formats.rle import decode_rle

        given = dict(record) if isinstance(record, Mapping) else record
        line = decode(given, FoundLine, "the record")
        found: list[Any] = []
        for item in line.detections:
            label, box, score = item.label, Box(*item.box), item.score
            if item.mask is None:
                found.append(Detection(label, box, score))
                continue
            try:
                found.append(Segment(label, box, decode_rle(item.mask), score))
            except (KeyError, TypeError, ValueError) as error:
                what = f"the mask of {label!r} is no run lengths ({error})"
                raise PaliglassError(f"the record: {what}") from None
        return Found(found, line.width, line.height, line.finish_reason)

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
            raise PaliglassError(f"to_supervision: {not_installed('supervision')}") from None
        import numpy as np

        ids = self._classes(0) if class_names is None else {n: i for i, n in enumerate(class_names)}
        masks = [item.mask for item in self if isinstance(item, Segment)]
        return supervision.Detections(
            xyxy=self.xyxy,
            mask=np.stack(masks) if masks else None,
            confidence=self.scores,
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
