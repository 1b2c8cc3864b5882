"""compare-server: right beside our own server, and telling of a wrong one how wrong it is."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import picture
from tests.serving.helpers import mini, running
from workshop.causal_server import make_causal

from paliglass.cli import main
from paliglass.errors import PaliglassError
from paliglass.evaluation.servers import (
    Asked,
    Compared,
    Server,
    agreement,
    compare,
    drawings,
)
from paliglass.model import load
from paliglass.serving import Engine

Answer = tuple[int, Any]  # HTTP's status, and a body: JSON, or bytes as they are

Answering = Callable[[str, dict[str, Any] | None], Answer]  # a path; a body, or None
Serve = Callable[[Answering], str]


@contextmanager
def fake(answer: Answering) -> Iterator[str]:
    """A server's address."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            if body is not None:
                body["key"] = self.headers.get("Authorization")
            status, content = answer(self.path, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = reply  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def says(text: str, **more: Any) -> Answering:
    """A server that has one answer to everything."""

    def answer(path: str, body: dict[str, Any] | None) -> Answer:
        if body is None:
            return 200, {"data": [{"id": "pali", "owned_by": "vllm"}]}
        return 200, {"choices": [{"message": {"content": text}, **more}]}

    return answer


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(says("a"))` is the address of a fake server that runs until the test ends."""
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(fake(answer))


@pytest.fixture
def asked() -> list[Asked]:
    return [some for some in drawings() if some.name == "two"]


def test_our_own_server_answers_as_this_package_does() -> None:
    prompts = drawings()
    with running(Engine(mini)) as server:
        cases = list(compare(mini(), Server(server.url), prompts))
    assert {case.asked.task for case in cases} >= {"caption", "answer", "detect", "segment", "ocr"}
    assert len(cases) == len(prompts)
    assert all(case.is_same and case.refused is None for case in cases)
    assert all(case.token is None for case in cases)
    gaps = [case.log_prob_gap for case in cases]
    assert all(gap is not None and gap < 1e-4 for gap in gaps)
    assert {case.iou for case in cases if case.asked.task == "detect"} == {1.0}


def test_a_server_whose_prompt_is_causal_is_found_out() -> None:
    """Some texts may well be right; the log-probabilities are not."""
    wrong = make_causal(load("mini", device="cpu", dtype="float32"))
    with running(Engine(lambda: wrong)) as server:
        cases = list(compare(mini(), Server(server.url), drawings()))
    assert not all(case.is_same for case in cases)
    gaps = [case.log_prob_gap for case in cases if case.log_prob_gap is not None]
    assert len(gaps) > len(cases) // 2
    assert max(gaps) > 0.1


def test_of_a_wrong_answer_it_tells_where_it_differs(serve: Serve, asked: list[Asked]) -> None:
    [detect] = [some for some in asked if some.task == "detect"]
    [right] = compare(mini(), Server(serve(says(""))), [detect])
    assert right.there == ""
    assert right.character == right.token == 0
    assert right.iou == 0.0
    boxes = right.here.split(" ; ")
    assert len(boxes) == 2
    # One of two boxes, and without the end of a sentence that a server left in the text.
    [case] = compare(mini(), Server(serve(says(f"{boxes[0]}<eos>"))), [detect])
    assert case.there == boxes[0]
    assert case.character == len(boxes[0])
    assert case.token == len(mini().processor.encode_suffix(boxes[0])) - 1
    assert case.iou == 0.5
    # What most often is wrong with location tokens: they are left out.
    [bare] = compare(mini(), Server(serve(says("red circle"))), [detect])
    assert bare.iou == 0.0
    assert bare.log_prob_gap is None


def test_log_probabilities_count_up_to_the_first_token_that_differs(
    serve: Serve, asked: list[Asked]
) -> None:
    [caption] = [some for some in asked if some.task == "caption"]
    [plain] = compare(mini(), Server(serve(says("")), None), [caption])
    ids = mini().processor.encode_suffix(plain.here)[:-1]
    words = [mini().processor.tokenizer.decode([i], skip_special_tokens=False) for i in ids]
    entries = [{"token": word, "logprob": -100.0 - i} for i, word in enumerate(words[:2])]
    entries.append({"token": "elephant", "logprob": -1e6})
    address = serve(says(plain.here, logprobs={"content": entries}))
    [case] = compare(mini(), Server(address), [caption])
    assert case.is_same
    assert case.log_prob_gap == pytest.approx(101, abs=2)


def test_fields_that_a_server_does_not_know_are_left_out_from_then_on(
    serve: Serve, asked: list[Asked]
) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(path: str, body: dict[str, Any] | None) -> Answer:
        if body is None:
            return says("")(path, body)
        bodies.append(body)
        if "skip_special_tokens" in body:
            return 400, {"error": {"message": "unknown field skip_special_tokens"}}
        return says("a")(path, body)

    server = Server(serve(answer), key="secret")
    list(compare(mini(), server, asked[:3]))
    assert ["skip_special_tokens" in body for body in bodies] == [True, False, False, False]
    assert all(body["logprobs"] is True and body["temperature"] == 0 for body in bodies[1:])
    assert {body["key"] for body in bodies} == {"Bearer secret"}
    parts = bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text"]
    assert parts[1]["text"] == "caption en"
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_refused_prompt_is_counted_and_the_others_go_on(serve: Serve, asked: list[Asked]) -> None:
    def answer(path: str, body: dict[str, Any] | None) -> Answer:
        if body is not None and "segment" in json.dumps(body["messages"]):
            return 500, {"detail": "no masks here"}
        return says("a")(path, body)

    cases = list(compare(mini(), Server(serve(answer)), asked))
    refused = [case.refused for case in cases if case.refused is not None]
    assert len(refused) == 1
    assert "HTTP 500: no masks here" in refused[0]
    found = agreement([case for case in cases if case.asked.task == "segment"])
    assert (found.prompts, found.refused, found.iou) == (1, 1, None)


def test_agreement_is_of_all_answers() -> None:
    some = drawings()[0]
    cases = [
        Compared(some, "a", "a", log_prob_gap=0.1),
        Compared(some, "ab", "ac", 1, 1, iou=0.5, log_prob_gap=0.3),
        Compared(some, "a", "abcd", 1, 4, iou=1.0),
    ]
    found = agreement(cases)
    assert found.same == pytest.approx(1 / 3)
    assert (found.token, found.iou, found.log_prob_gap) == (4, 0.75, 0.3)


@pytest.mark.parametrize(
    ("answer", "name", "said"),
    [
        (lambda path, body: (401, {}), None, "wants a key"),
        (lambda path, body: (200, b"<html>"), None, "not JSON"),
        (lambda path, body: (404, b"nothing"), None, "HTTP 404; is it an OpenAI-compatible"),
        (lambda path, body: (200, {"data": 3}), None, "lists no models"),
        (lambda path, body: (200, {"data": []}), None, "has no model None; there is none"),
        (lambda path, body: (302, b""), None, "HTTP 302"),
        (says(""), "other", "has no model 'other'; there is 'pali'"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_line(answer: Any, name: Any, said: str) -> None:
    with fake(answer) as address, pytest.raises(PaliglassError, match=said):
        Server(address, name)


def test_an_address_that_is_none_or_refuses_is_one_line() -> None:
    for address in ("localhost:8000", "file:///etc/passwd", "http://", "http://[::1"):
        with pytest.raises(PaliglassError, match="is no address"):
            Server(address)
    with fake(says("")) as address:
        pass
    with pytest.raises(PaliglassError, match="cannot be asked"):
        Server(address)


def test_an_answer_of_another_form_is_one_line(serve: Serve, asked: list[Asked]) -> None:
    def answer(path: str, body: dict[str, Any] | None) -> Answer:
        return says("")(path, body) if body is None else (200, {"choices": []})

    with pytest.raises(PaliglassError, match="no chat completion"):
        list(compare(mini(), Server(serve(answer)), asked))


def run_command(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ending:
        main(["compare-server", *words, "--dtype", "float32"])
    out, err = capsys.readouterr()
    assert ending.value.code == code, err
    return out, err


def test_the_table_has_80_columns_and_json_has_all(
    serve: Serve,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("red", "blue"):
        picture(tmp_path / f"{name}.png", name)
    address = serve(says("x" * 200 + "\x1b[2J"))
    words = (address, str(tmp_path), "--detect", "red square", "--max-new-tokens", "20")
    piped, _ = run_command(capsys, *words)
    assert "x" * 200 in piped
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out, _ = run_command(capsys, *words)
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in out
    assert [line.split()[0] for line in lines[1:6]] == "caption answer ocr detect segment".split()
    assert any(line.startswith("0 of 10 answers") for line in lines)
    assert "and 5 more; --json has all" in out
    out, _ = run_command(capsys, *words, "--json")
    found = json.loads(out)
    assert len(found["cases"]) == 10
    assert list(found["tasks"]) == "caption answer ocr detect segment".split()
    assert found["cases"][0]["there"].startswith("xxx")


def test_a_files_own_prompts_are_asked(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture(tmp_path / "red.png", "red")
    line = {"image": "red.png", "prefix": "answer en what colour is it?", "suffix": "red"}
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    address = serve(says("red"))
    out, _ = run_command(capsys, address, str(tmp_path / "data.jsonl"), "--json")
    [case] = json.loads(out)["cases"]
    assert case["prompt"] == line["prefix"]


def test_what_was_compared_before_a_server_ended_is_told(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture(tmp_path / "a.png", "red")
    (tmp_path / "b.png").write_bytes(b"no picture")
    asked: list[str] = []

    def answer(path: str, body: dict[str, Any] | None) -> Answer:
        if body is not None:
            asked.append(path)
        return (200, b"half an ans") if len(asked) == 3 else says("red")(path, body)

    out, err = run_command(capsys, serve(answer), str(tmp_path), code=1)
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [
        ["caption", "1"],
        ["answer", "1"],
    ]
    assert "not JSON" in err
    asked += ["from", "now", "on"]
    out, _ = run_command(capsys, serve(answer), str(tmp_path), "--json")
    refused = [case["refused"] for case in json.loads(out)["cases"] if case["refused"]]
    assert len(refused) == 3  # the one that is no picture, with three prompts
    assert all("is not a picture" in one for one in refused)


def test_errors_of_the_command_are_one_line(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    address = serve(lambda p, b: says("")(p, b) if b is None else (500, b"broken"))
    source = str(picture(tmp_path / "pictures" / "red.png", "red").parent)
    _, err = run_command(capsys, address, source, code=1)
    assert err.count("\n") == 1
    assert "HTTP 500" in err
    _, err = run_command(capsys, address, str(tmp_path / "nowhere"), code=1)
    assert "no such file or folder" in err
    (tmp_path / "key").write_text(" \n")
    _, err = run_command(capsys, address, "--api-key-file", str(tmp_path / "key"), code=1)
    assert "holds no key" in err
