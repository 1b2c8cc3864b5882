"""How far an OpenAI-compatible server's answers are from this package's, prompt by prompt.

A server may load the right weights and still be wrong: a prompt that attends causally, a picture
resized another way, a newline or `<bos>` that is missing, location tokens left out of the text. All
of it shows in greedy answers and in their log-probabilities, and nothing else does.

- sent is PaliGemma's own prompt as it stands (`detect dog`), the picture as a lossless PNG
- greedy, with log-probabilities, and with special tokens shown, where the server knows the fields
- what answers here is the plain greedy answer; beside a server of this package, which holds detect
  and segment to their grammar, the answer within the grammar
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from PIL import Image, ImageDraw, ImageFont

from paliglass.data.example import OBJECT_TASKS
from paliglass.errors import PaliglassError, PictureError, PromptError
from paliglass.evaluation.objects import intersection_over_union, pair_off
from paliglass.generation import Completion, Request
from paliglass.model import PaliGemma
from paliglass.pictures import Picture, load_picture
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tasks.boxes import parse_boxes
from paliglass.tasks.grammar import ObjectGrammar
from paliglass.tasks.prompts import same_label, split_labels

__all__ = ["Agreement", "Asked", "Compared", "Reply", "Server", "agreement", "compare", "drawings"]

OWN = "paliglass"  # who owns the models of this package's servers
# Not OpenAI's: vLLM and SGLang leave special tokens out of the text unless they are told not to.
SHOW_SPECIAL = {"skip_special_tokens": False}
FIELDS: tuple[dict[str, Any], ...] = (
    {**SHOW_SPECIAL, "logprobs": True},
    {"logprobs": True},
    SHOW_SPECIAL,
    {},
)
"""What is asked for beyond OpenAI's plainest request: the first that a server takes."""
UNKNOWN_FIELD = (400, 422)


@dataclass(frozen=True)
class Asked:
    """A prompt about a picture. name: what messages call the picture."""

    name: str
    picture: Picture
    prompt: str

    @property
    def task(self) -> str:
        """The prompt's first word: "caption", "answer", "detect" …"""
        return self.prompt.partition(" ")[0]


@dataclass(frozen=True)
class Reply:
    """A server's answer. tokens: the text of each and its log-probability, nats, where told."""

    text: str
    tokens: tuple[tuple[str, float], ...] = ()


class Server:
    """An OpenAI-compatible server.

    url: with or without the `/v1` at its end. name: the model's, by default the only one there is.
    key: sent as a bearer token. seconds: that an answer may take.

    Raises PaliglassError, one line, where it cannot be reached, wants another key, does not speak
    JSON, or has no such model.
    """

    def __init__(
        self, url: str, name: str | None = None, key: str | None = None, seconds: float = 120.0
    ) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:  # an unfinished [ of IPv6
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise PaliglassError(f"{url}: is no address; give one like http://127.0.0.1:8000")
        base = url.rstrip("/")
        self.url = base if base.endswith("/v1") else f"{base}/v1"
        self.key, self.seconds = key, seconds
        self.fields = list(FIELDS)
        self.name, self.owner = self._find_model(name)

    def ask(self, prompt: str, picture: Image.Image, max_tokens: int) -> Reply:
        """The greedy answer. Raises RefusedError where the server does not take this request."""
        text = {"type": "text", "text": prompt}
        image = {"type": "image_url", "image_url": {"url": data_address(picture)}}
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": [image, text]}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        refusal: RefusedError | None = None
        for fields in self.fields:
            try:
                found = self._call("chat/completions", {**body, **fields})
            except RefusedError as error:
                refusal = refusal or error
                if error.status not in UNKNOWN_FIELD:
                    break
                continue
            # What one request was taken with, all later ones are asked with.
            self.fields = [fields]
            return self._read(found)
        assert refusal is not None
        raise refusal

    def _find_model(self, name: str | None) -> tuple[str, str]:
        """(name, owner) of the model that is asked."""
        try:
            found = self._call("models")
        except RefusedError as error:
            if error.status == 404 and name is not None:  # not all servers list them
                return name, ""
            raise PaliglassError(f"{error}; is it an OpenAI-compatible server?") from None
        try:
            models = {str(model["id"]): str(model.get("owned_by", "")) for model in found["data"]}
        except (KeyError, TypeError, AttributeError):
            raise PaliglassError(
                f"{self.url}/models: lists no models; is it an OpenAI-compatible server?"
            ) from None
        if name is None and models:
            name = next(iter(models))
        if name is None or name not in models:
            there = ", ".join(map(repr, models)) or "none"
            raise PaliglassError(f"{self.url}: has no model {name!r}; there is {there}")
        return name, models[name]

    def _read(self, found: Any) -> Reply:
        try:
            choice = found["choices"][0]
            text = choice["message"]["content"] or ""
            entries = (choice.get("logprobs") or {}).get("content") or []
            tokens = tuple((str(e["token"]), float(e["logprob"])) for e in entries)
            if not isinstance(text, str):
                raise TypeError
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise PaliglassError(
                f"{self.url}: what it answers is no chat completion of OpenAI's form"
            ) from None
        return Reply(text.removesuffix("<eos>").strip(), tokens)

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        address = f"{self.url}/{path}"
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, headers)
        try:
            with _opener.open(request, timeout=self.seconds) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(address, error.code, error.read(1 << 16)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, TimeoutError):
                cause = f"no answer in {self.seconds:g} s"
            raise PaliglassError(f"{address}: cannot be asked ({cause})") from None
        try:
            return json.loads(content)
        except ValueError:
            raise PaliglassError(
                f"{address}: answers with something that is not JSON; is it an OpenAI-compatible "
                "server?"
            ) from None

    def _refusal(self, address: str, status: int, content: bytes) -> PaliglassError:
        if status in (401, 403):
            given = "another key" if self.key else "a key"
            return PaliglassError(f"{address}: wants {given} (HTTP {status}); see --api-key-file")
        return RefusedError(address, status, _told(content))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows none: a key is for the server that was named."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


class RefusedError(PaliglassError):
    """A request that a server does not take. status: HTTP's."""

    def __init__(self, address: str, status: int, told: str) -> None:
        super().__init__(f"{address}: refused with HTTP {status}" + (f": {told}" if told else ""))
        self.status = status


def _told(content: bytes) -> str:
    """What an error's body says, in OpenAI's form or in others that are about."""
    try:
        found = json.loads(content)
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and found.get(key):
                found = found[key]
        return str(found)[:200]
    except ValueError:
        return ""


def data_address(picture: Image.Image) -> str:
    """A picture as a data: address of a PNG, which loses nothing."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Compared:
    """One prompt's two answers, and how far they are apart.

    here, there: the texts. character, token: the places of the first that differ, from 0; None
    where the answers are the same. iou: mean of the boxes' intersection over union, a box without
    its like counts as 0; None where neither answer has boxes. log_prob_gap: the largest difference,
    nats, of the log-probabilities of tokens up to the first that differs; None without any.
    refused: why there is no answer.
    """

    asked: Asked
    here: str
    there: str = ""
    character: int | None = None
    token: int | None = None
    iou: float | None = None
    log_prob_gap: float | None = None
    refused: str | None = None

    @property
    def is_same(self) -> bool:
        return self.refused is None and self.character is None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "picture": self.asked.name,
            "prompt": self.asked.prompt,
            "same": self.is_same,
            **{name: getattr(self, name) for name in ("here", "there", "character", "token")},
            **{name: getattr(self, name) for name in ("iou", "log_prob_gap", "refused")},
        }


@dataclass(frozen=True)
class Agreement:
    """How far a task's answers agree; see `Compared`.

    same: the share that is the same to the letter. token: the median place of the first token that
    differs, among answers that do. iou: the mean; log_prob_gap: the largest.
    """

    prompts: int
    refused: int
    same: float
    token: int | None
    iou: float | None
    log_prob_gap: float | None


def agreement(cases: Sequence[Compared]) -> Agreement:
    """Of one task's answers, one at least."""
    answered = [case for case in cases if case.refused is None]
    tokens = sorted(case.token for case in answered if case.token is not None)
    ious = [case.iou for case in answered if case.iou is not None]
    gaps = [case.log_prob_gap for case in answered if case.log_prob_gap is not None]
    return Agreement(
        len(cases),
        len(cases) - len(answered),
        sum(case.is_same for case in answered) / max(1, len(answered)),
        tokens[len(tokens) // 2] if tokens else None,
        sum(ious) / len(ious) if ious else None,
        max(gaps, default=None),
    )


def compare(
    model: PaliGemma, server: Server, prompts: Iterable[Asked], max_new_tokens: int = 64
) -> Iterable[Compared]:
    """Asks both, prompt by prompt; a picture that cannot be read is refused, and the others go on.

    Raises PaliglassError as `Server` does.
    """
    processor = model.processor
    for asked in prompts:
        try:
            picture = load_picture(asked.picture)
        except PictureError as error:
            yield Compared(asked, "", refused=str(error))
            continue
        held, limit = None, max_new_tokens
        try:
            if server.owner == OWN and asked.task in OBJECT_TASKS:
                labels = split_labels(asked.prompt.partition(" ")[2], asked.task)
                held = ObjectGrammar(processor, labels, masks=asked.task == "segment").start()
                limit = max(limit, held.fair_budget)
            prepared = [processor.prepare(picture)]
            request = Request(asked.prompt, prepared, held, max_new_tokens=limit)
            [done] = model.complete([request], raises=False)
        except PromptError as error:
            yield Compared(asked, "", refused=str(error))
            continue
        if done.error is not None:
            yield Compared(asked, "", refused=str(done.error))
            continue
        try:
            reply = server.ask(asked.prompt, picture, limit)
        except RefusedError as error:
            yield Compared(asked, processor.decode(done.ids).strip(), refused=str(error))
        else:
            yield _compared(asked, done, reply, processor)


def _compared(
    asked: Asked, done: Completion, reply: Reply, processor: PaliGemmaProcessor
) -> Compared:
    here, there = processor.decode(done.ids).strip(), reply.text
    own = [processor.tokenizer.decode([i], skip_special_tokens=False) for i in done.ids]
    gaps = []
    for text, log_prob, (other, other_log_prob) in zip(
        own, done.log_probs, reply.tokens, strict=False
    ):
        if text.strip() != other.strip():
            break
        gaps.append(abs(log_prob - other_log_prob))
    ids = [processor.encode_suffix(text) for text in (here, there)]
    return Compared(
        asked,
        here,
        there,
        _first_difference(here, there),
        _first_difference(*ids),
        _overlap(here, there),
        max(gaps, default=None),
    )


def _first_difference(a: Sequence[Any], b: Sequence[Any]) -> int | None:
    if a == b:
        return None
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _overlap(here: str, there: str) -> float | None:
    ours, theirs = parse_boxes(here), parse_boxes(there)
    if not ours and not theirs:
        return None
    fits = (
        (intersection_over_union(a.box, b.box), i, j)
        for i, a in enumerate(theirs)
        for j, b in enumerate(ours)
        if same_label(a.label, b.label)
    )
    pairs = pair_off(fits)
    return sum(fit for _, fit in pairs.values()) / max(len(ours), len(theirs))


# --------------------------------------------------------------------- prompts


# As mini's world has them; it was trained on no others.
_COLOURS = {
    "red": (222, 32, 38),
    "blue": (35, 95, 215),
    "green": (45, 160, 65),
    "orange": (250, 135, 20),
    "purple": (130, 55, 170),
    "black": (22, 22, 24),
}


def drawings() -> list[Asked]:
    """Drawings with prompts of every task, for who has no pictures at hand."""
    scenes = {
        "two": [("red", "circle", (20, 70, 110, 160)), ("blue", "square", (140, 60, 220, 140))],
        "three": [
            ("green", "square", (30, 30, 90, 90)),
            ("orange", "circle", (130, 30, 200, 100)),
            ("purple", "triangle", (80, 140, 170, 220)),
        ],
        "one": [("black", "triangle", (60, 60, 200, 190))],
    }
    asked = []
    for name, shapes in scenes.items():
        picture = Image.new("RGB", (256, 256), "white")
        for colour, shape, box in shapes:
            _draw(ImageDraw.Draw(picture), colour, shape, box)
        colour, shape, _ = shapes[0]
        labels = [f"{colour} {shape}" for colour, shape, _ in shapes]
        prompts = [
            "caption en",
            f"answer en what colour is the {shape}?",
            f"detect {' ; '.join(labels)}",
            f"segment {labels[0]}",
        ]
        asked += [Asked(name, picture, prompt) for prompt in prompts]
    for word in ("OPEN", "EXIT 24"):
        picture = Image.new("RGB", (256, 256), "white")
        ImageDraw.Draw(picture).text((30, 100), word, "black", ImageFont.load_default(48))
        asked.append(Asked(word, picture, "ocr"))
    return asked


def _draw(
    draw: ImageDraw.ImageDraw, colour: str, shape: str, box: tuple[int, int, int, int]
) -> None:
    x0, y0, x1, y1 = box
    fill = _COLOURS[colour]
    if shape == "circle":
        draw.ellipse(box, fill)
    elif shape == "square":
        draw.rectangle(box, fill)
    else:
        draw.polygon([((x0 + x1) / 2, y0), (x1, y1), (x0, y1)], fill)
