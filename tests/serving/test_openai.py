"""OpenAI's own client, unmodified, against the server: what it hears is what Python hears."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal

import numpy as np
import pytest
from tests.serving.helpers import SCENE, Running, chat, data_address, scene_address

from paliglass.generation import Request, complete
from paliglass.model import PaliGemma
from paliglass.tasks.grammar import ChoiceGrammar

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def turn(text: str, *addresses: str) -> dict[str, Any]:
    return chat(text, *(addresses or (scene_address(),)))["messages"][0]


def create(client: Any, text: str, **options: Any) -> Any:
    return client.chat.completions.create(model="mini", messages=[turn(text)], **options)


def test_the_models_are_told(client: Any) -> None:
    assert [found.id for found in client.models.list()] == ["mini", "mini-dual"]
    assert client.models.retrieve("mini").owned_by == "paliglass"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4o'"):
        client.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("caption en", "caption en"),
        ("what colour is the star?", "answer en what colour is the star?"),
        ("ocr", "ocr"),
    ],
)
def test_a_chat_says_what_python_says(
    client: Any, model: PaliGemma, text: str, prompt: str
) -> None:
    answer = create(client, text)
    [choice] = answer.choices
    assert choice.message.content == model.generate(SCENE, prompt)
    assert choice.finish_reason == "stop"
    picture = model.processor.prepare(str(SCENE))
    [done] = complete(model.model, model.processor, [Request(prompt, [picture])])
    prompt_tokens = len(model.processor.encode_prefix(prompt))
    assert answer.usage.prompt_tokens == prompt_tokens
    assert answer.usage.completion_tokens == done.num_tokens
    assert answer.usage.total_tokens == prompt_tokens + done.num_tokens


def test_a_stream_says_the_same_piece_by_piece(client: Any) -> None:
    whole = create(client, "caption en")
    chunks = list(create(client, "caption en", stream=True, stream_options={"include_usage": True}))
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 5
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_detect_is_held_to_its_grammar_and_supervision_reads_it(
    client: Any, model: PaliGemma
) -> None:
    supervision = pytest.importorskip("supervision")
    text = create(client, "detect tractor ; doughnut").choices[0].message.content
    found = supervision.Detections.from_vlm(
        supervision.VLM.PALIGEMMA, text, resolution_wh=(512, 512), classes=["tractor", "doughnut"]
    )
    expected = model.detect(SCENE, "tractor ; doughnut")
    assert list(found.data["class_name"]) == [item.label for item in expected]
    # supervision counts 1024 steps to a side, PaliGemma 1023
    np.testing.assert_allclose(found.xyxy, [item.box for item in expected], atol=0.5)


def test_samples_are_n_and_repeat_with_the_seed(client: Any) -> None:
    def texts(**options: Any) -> list[str]:
        found = create(client, "describe the picture", temperature=2, **options)
        assert [choice.index for choice in found.choices] == list(range(len(found.choices)))
        return [choice.message.content for choice in found.choices]

    three = texts(seed=1, n=3)
    assert three == texts(seed=1, n=3)
    assert texts(seed=1) == three[:1]
    assert len(set(three)) > 1
    assert texts(seed=2, n=3) != three


def test_stop_cuts_the_text_and_max_tokens_the_tokens(client: Any) -> None:
    whole = create(client, "caption en").choices[0].message.content
    across = re.search(r"\w\w \w\w", whole)  # the end of a token and the next one's beginning
    assert across is not None
    for stop in (f" {whole.split()[1]}", ["nothing", across[0]]):
        [choice] = create(client, "caption en", stop=stop).choices
        place = whole.index(stop if isinstance(stop, str) else stop[1])
        assert (choice.message.content, choice.finish_reason) == (whole[:place], "stop")
        chunks = list(create(client, "caption en", stop=stop, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole[:place]
    [short] = create(client, "caption en", max_tokens=3).choices
    assert short.finish_reason == "length"
    assert whole.startswith(short.message.content)
    assert create(client, "caption en", max_completion_tokens=3).usage.completion_tokens == 3


def test_log_probabilities_are_the_models_own(client: Any, model: PaliGemma) -> None:
    answer = create(client, "caption en", logprobs=True, top_logprobs=3)
    [choice] = answer.choices
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == choice.message.content
    assert bytes(b for entry in entries for b in entry.bytes).decode() == choice.message.content
    picture = model.processor.prepare(str(SCENE))
    [done] = complete(model.model, model.processor, [Request("caption en", [picture])])
    assert [entry.logprob for entry in entries] == pytest.approx(done.log_probs, abs=1e-4)
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert sum(math.exp(other.logprob) for other in entry.top_logprobs) <= 1 + 1e-6
    streamed = list(create(client, "caption en", logprobs=True, stream=True))
    told = [c.choices[0].logprobs for c in streamed]
    assert [e.token for found in told if found for e in found.content] == [e.token for e in entries]


class Colour(pydantic.BaseModel):
    colour: Literal["red", "yellow", "blue"]
    score: float


class Thing(pydantic.BaseModel):
    label: Literal["tractor", "doughnut"]
    box: list[float]
    score: float


class Things(pydantic.BaseModel):
    things: list[Thing]


def test_a_schema_is_kept_to(client: Any, model: PaliGemma) -> None:
    found = client.chat.completions.parse(
        model="mini", messages=[turn("what colour is the star?")], response_format=Colour
    )
    parsed = found.choices[0].message.parsed
    expected = model.ask(SCENE, "what colour is the star?", choices=["red", "yellow", "blue"])
    assert parsed.colour == expected
    assert parsed.score == pytest.approx(expected.score, abs=1e-3)
    found = client.chat.completions.parse(
        model="mini", messages=[turn("find them all")], response_format=Things
    )
    boxes = model.detect(SCENE, ["tractor", "doughnut"])
    things = found.choices[0].message.parsed.things
    assert [thing.label for thing in things] == [item.label for item in boxes]
    for thing, item in zip(things, boxes, strict=True):
        assert thing.box == pytest.approx(list(item.box), abs=0.01)
        assert thing.score == pytest.approx(item.score, abs=1e-3)


def test_a_schema_with_the_stream_comes_whole(client: Any, model: PaliGemma) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}
    chunks = list(create(client, "is there a tractor?", response_format=form, stream=True, seed=0))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert json.loads(text) == model.ask(SCENE, "is there a tractor?", choices=["yes", "no"])


def test_responses_say_the_same(client: Any) -> None:
    whole = create(client, "caption en")
    content = [
        {"type": "input_text", "text": "caption en"},
        {"type": "input_image", "image_url": scene_address(), "detail": "auto"},
    ]
    asked = {"model": "mini", "input": [{"role": "user", "content": content}]}
    found = client.responses.create(**asked, metadata={"a": "b"})
    assert found.output_text == whole.choices[0].message.content
    assert (found.status, found.metadata) == ("completed", {"a": "b"})
    assert found.usage.total_tokens == whole.usage.total_tokens
    events = list(client.responses.create(**asked, stream=True))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == found.output_text
    assert len(deltas) > 5
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == found.output_text
    assert [e.sequence_number for e in events] == list(range(len(events)))
    cut = client.responses.create(**asked, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == found.output_text


def test_a_response_may_have_a_form_and_log_probabilities(client: Any, model: PaliGemma) -> None:
    question = "what colour is the star?"
    content = [
        {"type": "input_text", "text": question},
        {"type": "input_image", "image_url": scene_address()},
    ]
    asked = {"model": "mini", "input": [{"role": "user", "content": content}]}
    parsed = client.responses.parse(**asked, text_format=Colour)
    assert parsed.output_parsed.colour == model.ask(
        SCENE, question, choices=["red", "yellow", "blue"]
    )
    told = client.responses.create(
        **asked, include=["message.output_text.logprobs"], top_logprobs=2
    )
    entries = told.output[0].content[0].logprobs
    said = model.generate(SCENE, f"answer en {question}")
    assert "".join(entry.token for entry in entries) == told.output_text == said
    assert {len(entry.top_logprobs) for entry in entries} == {2}


def test_embeddings_are_the_dual_encoders(client: Any) -> None:
    from paliglass.contrastive.folders import load_contrastive
    from paliglass.contrastive.index import embed_pictures, embed_words
    from paliglass.pictures import load_picture

    dual, processor = load_contrastive("mini-dual", "cpu")
    texts = ["a red apple", "a tractor"]
    found = client.embeddings.create(model="mini-dual", input=[texts[0], scene_address(), texts[1]])
    rows = np.array([item.embedding for item in found.data])
    expected = embed_words(dual, processor, texts).float().numpy()
    np.testing.assert_allclose(rows[[0, 2]], expected, atol=2e-2)
    picture = embed_pictures(dual, processor, [load_picture(SCENE)]).float().numpy()
    np.testing.assert_allclose(rows[[1]], picture, atol=2e-2)
    assert found.usage.prompt_tokens == int(processor.words(texts)["attention_mask"].sum())
    plain = client.embeddings.create(model="mini-dual", input=texts[0], encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, rows[0], atol=2e-2)
    with pytest.raises(openai.NotFoundError, match="mini-dual"):
        client.embeddings.create(model="mini", input="a")
    with pytest.raises(openai.BadRequestError, match="50,000 characters"):
        client.embeddings.create(model="mini-dual", input=["a " * 20_000] * 2)


def test_a_jpeg_is_compared_on_its_own_bytes(client: Any, model: PaliGemma) -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.open(SCENE).convert("RGB").save(buffer, "JPEG", quality=60)
    data = buffer.getvalue()
    found = client.chat.completions.create(
        model="mini", messages=[turn("caption en", data_address(data, "jpeg"))]
    )
    assert found.choices[0].message.content == model.caption(data)


def test_errors_reach_the_client_as_its_own(client: Any) -> None:
    for options, match in (
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools cannot be honoured"),
        ({"presence_penalty": 0.5}, "presence_penalty cannot"),
        ({"logit_bias": {"1": 2}}, "logit_bias cannot"),
        ({"extra_body": {"best_of": 3}}, "no field best_of"),
        ({"temperature": 7}, "temperature"),
        ({"n": 99}, "n is 99"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"response_format": {"type": "json_object"}}, "json_schema"),
    ):
        with pytest.raises(openai.BadRequestError, match=match) as refused:
            create(client, "caption en", **options)
        assert refused.value.body["param"]
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.chat.completions.create(model="gpt-4o", messages=[turn("caption en")])
    create(
        client, "caption en", presence_penalty=0, tools=[], user="me", store=False
    )  # ask nothing


def test_choices_are_the_grammars_to_the_letter(client: Any, model: PaliGemma) -> None:
    names = ["a yellow star", "two red stars"]
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": names}}}
    said = create(client, "what is there?", response_format=form).choices[0].message.content
    grammar = ChoiceGrammar(model.processor, names)
    picture = model.processor.prepare(str(SCENE))
    request = Request("answer en what is there?", [picture], grammar.start())
    [done] = complete(model.model, model.processor, [request])
    assert json.loads(said) == grammar.read(done.ids)
