"""An address that somebody else chose reaches named public hosts alone, and for a while alone."""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from paliglass import fetching
from paliglass.errors import PictureError
from paliglass.fetching import _is_public, fetch_picture

BODY = b"what the server has"
PATIENCE = 60.0


class PlainSocket(socket.socket):
    """Takes the place of an encrypted one."""

    def do_handshake(self) -> None:
        pass


class PlainContext(ssl.SSLContext):
    """Takes the place of TLS, and remembers for which host it was asked to vouch."""

    hosts: list[str]

    def wrap_socket(  # type: ignore[override]
        self, raw: socket.socket, server_hostname: str, **_: Any
    ) -> PlainSocket:
        self.hosts.append(server_hostname)
        timeout = raw.gettimeout()
        plain = PlainSocket(raw.family, raw.type, raw.proto, raw.detach())
        plain.settimeout(timeout)
        return plain


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        self.server.answers[self.path](self)  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass


def body(data: bytes = BODY, status: int = 200, **headers: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for key, value in ({"Content_Length": str(len(data))} | headers).items():
            handler.send_header(key.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def to(place: str) -> Callable[[Handler], None]:
    return body(b"", 302, Location=place)


class Net:
    """Some hosts' names, all of which lead to one server on this machine."""

    def __init__(self, server: ThreadingHTTPServer, context: PlainContext) -> None:
        self.server, self.context = server, context
        self.port = server.server_address[1]
        self.addresses: dict[str, list[str]] = {"good.example": ["127.0.0.1"]}
        self.lookups: list[str] = []
        server.answers = {"/": body()}  # type: ignore[attr-defined]
        server.seen = []  # type: ignore[attr-defined]

    @property
    def answers(self) -> dict[str, Callable[[Handler], None]]:
        return self.server.answers  # type: ignore[attr-defined]

    @property
    def seen(self) -> list[tuple[str, str]]:
        return self.server.seen  # type: ignore[attr-defined]

    def resolve(self, host: str, port: int) -> list[tuple[str, int]]:
        self.lookups.append(host)
        if host not in self.addresses:
            raise socket.gaierror("no such host")
        return [(address, port) for address in self.addresses[host]]

    def fetch(self, path: str = "/", host: str = "good.example", **options: Any) -> bytes:
        hosts = options.pop("hosts", [f"good.example:{self.port}", f"other.example:{self.port}"])
        address = f"https://{host}:{self.port}{path}"
        return fetch_picture(address, hosts, **{"seconds": PATIENCE, **options})


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        context = PlainContext(ssl.PROTOCOL_TLS_CLIENT)
        context.hosts = []
        net = Net(server, context)
        monkeypatch.setattr(fetching, "_context", lambda: context)
        monkeypatch.setattr(fetching, "_ask_system", net.resolve)
        real = fetching._is_public
        # This machine stands for a public one; all others are judged as ever.
        monkeypatch.setattr(fetching, "_is_public", lambda a: a == "127.0.0.1" or real(a))
        yield net
        server.shutdown()


def test_the_bytes_come_and_the_host_is_vouched_for(net: Net) -> None:
    net.answers["/a%20b?size=1"] = body()
    assert net.fetch("/a%20b?size=1") == BODY
    assert net.seen == [("/a%20b?size=1", f"good.example:{net.port}")]
    assert net.context.hosts == ["good.example"]


def test_certificates_and_names_are_checked() -> None:
    context = fetching._context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://good.example/", "only https"),
        ("file:///etc/passwd", "only https"),
        ("good.example/x.png", "only https"),
        ("https://user:secret@good.example/", "user's name"),
        ("https://bad.example/", "not allowed"),
        ("https://good.example.evil.example/", "not allowed"),
        ("https://good.example:8443/", "not allowed"),
        ("https://good.example:port/", "is not an address"),
        ("https://good.example\\@bad.example/", "is not an address"),
        ("https://good.example/\r\nX: y", "is not an address"),
        ("https://[::1/", "is not an address"),
        ("https://", "not allowed"),
    ],
)
def test_other_addresses_are_refused_unasked(net: Net, address: str, said: str) -> None:
    with pytest.raises(PictureError, match=said) as error:
        fetch_picture(address, ["good.example"])
    assert "secret" not in str(error.value).replace(address, "")
    assert not net.lookups
    assert not net.seen


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "255.255.255.255", "224.0.0.1", "::1", "::", "fe80::1%eth0", "fc00::1"),
        *("ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
        "nonsense",
    ],
)
def test_no_address_of_ones_own_network_is_public(address: str) -> None:
    assert not _is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert _is_public(address)


def test_one_private_address_among_public_ones_is_enough_to_refuse(net: Net) -> None:
    net.addresses["good.example"] = ["127.0.0.1", "10.0.0.7"]
    with pytest.raises(PictureError, match="not public"):
        net.fetch()
    assert not net.seen


def test_a_name_is_resolved_once(net: Net) -> None:
    """A second look-up could give another answer than the one that was checked."""
    assert net.fetch() == BODY
    assert net.lookups == ["good.example"]


def test_redirects_are_followed_among_the_hosts(net: Net) -> None:
    net.addresses["other.example"] = ["127.0.0.1"]
    net.answers["/1"], net.answers["/2"] = to("/2"), to(f"https://other.example:{net.port}/")
    assert net.fetch("/1") == BODY
    assert [host for _, host in net.seen][-1] == f"other.example:{net.port}"
    assert net.lookups == ["good.example", "good.example", "other.example"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("http://good.example/", "only https"),
        ("https://127.0.0.1/", "not allowed"),
        ("https://bad.example/", "not allowed"),
        ("file:///etc/passwd", "only https"),
        ("//bad.example/", "not allowed"),
    ],
)
def test_a_redirect_is_checked_as_its_start_was(net: Net, place: str, said: str) -> None:
    net.answers["/"] = to(place)
    with pytest.raises(PictureError, match=said):
        net.fetch()


def test_a_redirect_into_ones_own_network_is_refused(net: Net) -> None:
    net.addresses["other.example"] = ["10.0.0.1"]
    net.answers["/"] = to(f"https://other.example:{net.port}/")
    with pytest.raises(PictureError, match="not public"):
        net.fetch()


def test_redirects_end(net: Net) -> None:
    net.answers["/"] = to("/")
    with pytest.raises(PictureError, match="redirects more than"):
        net.fetch()
    assert len(net.seen) == fetching.MAX_REDIRECTS + 1


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in itertools.count():
        try:
            handler.wfile.write(bytes(65536))
        except OSError:
            return


@pytest.mark.parametrize(
    "answer", [endless, body(bytes(10_001)), body(b"", Content_Length="9" * 12)]
)
def test_what_is_too_long_is_refused(net: Net, answer: Callable[[Handler], None]) -> None:
    net.answers["/"] = answer
    with pytest.raises(PictureError, match="more than 10,000 bytes"):
        net.fetch(max_bytes=10_000)


def test_the_longest_allowed_comes_whole(net: Net) -> None:
    net.answers["/"] = body(bytes(10_000))
    assert len(net.fetch(max_bytes=10_000)) == 10_000


def trickle(start: bytes) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.wfile.write(start)
        while not handler.server.is_over.wait(0.05):  # type: ignore[attr-defined]
            try:
                handler.wfile.write(b"x")
                handler.wfile.flush()
            except OSError:
                return

    return answer


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_who_answers_drop_by_drop_is_cut_off(net: Net, start: bytes) -> None:
    net.server.is_over = threading.Event()  # type: ignore[attr-defined]
    net.answers["/"] = trickle(start)
    with pytest.raises(PictureError, match="took too long"):
        net.fetch(seconds=0.5)
    net.server.is_over.set()  # type: ignore[attr-defined]


def test_a_resolver_that_hangs_is_not_waited_for(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(fetching, "_ask_system", lambda *_: over.wait() and [])
    with pytest.raises(PictureError, match="took too long"):
        net.fetch(seconds=0.05)
    over.set()


@pytest.mark.parametrize("status", [404, 500, 304])
def test_an_answer_that_is_none_is_told(net: Net, status: int) -> None:
    net.answers["/x"] = body(b"", status)
    with pytest.raises(PictureError, match=f"the server answers {status}"):
        net.fetch("/x")


def test_messages_do_not_tell_what_stands_behind_the_question_mark(net: Net) -> None:
    net.answers["/x?key=secret"] = body(b"", 404)
    with pytest.raises(PictureError) as error:
        net.fetch("/x?key=secret")
    assert "secret" not in str(error.value)


def test_a_host_that_is_not_there_or_does_not_listen_is_told(net: Net) -> None:
    with pytest.raises(PictureError, match="no such host"):
        net.fetch(host="other.example")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(PictureError, match="no connection"):
            fetch_picture(
                f"https://good.example:{port}/", [f"good.example:{port}"], seconds=PATIENCE
            )
