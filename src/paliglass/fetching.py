"""A picture behind an https address, fetched as carefully as a server must.

An address that somebody else chose may point into one's own network, answer for ever, or never.
So only named hosts are asked; a host's name is resolved once, and refused if any of its addresses
is not public; the connection goes to that very address; a redirect is checked like a new address;
time and bytes are limited.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Collection
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from paliglass.errors import PictureError

__all__ = ["MAX_BYTES", "MAX_REDIRECTS", "SECONDS", "fetch_picture"]

SECONDS = 5.0
MAX_BYTES = 20_000_000
MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)


def fetch_picture(
    address: str, hosts: Collection[str], *, seconds: float = SECONDS, max_bytes: int = MAX_BYTES
) -> bytes:
    """The bytes of a file behind an address, for `load_picture`.

    Args:
        address: https://HOST[:PORT]/…, without user and password.
        hosts: the hosts that may be asked, as "upload.example.org" or "example.org:8443"; without
            a port, 443 is meant. Redirects have to stay among them.
        seconds: for all of it, redirects included.
        max_bytes: of the file.

    Raises PictureError: another scheme or host, an address that is not public, an answer that is
    none, too long or too slow.
    """
    allowed = {_host_and_port(host) for host in hosts}
    deadline = time.monotonic() + seconds
    for _ in range(MAX_REDIRECTS + 1):
        found = _get(_checked(address, allowed), deadline, max_bytes)
        if isinstance(found, bytes):
            return found
        address = urljoin(address, found)
    raise PictureError(f"{_shown(address)}: redirects more than {MAX_REDIRECTS} times")


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if colon and port.isdecimal():
        return host.lower(), int(port)
    return text.lower(), 443


def _checked(address: str, allowed: Collection[tuple[str, int]]) -> SplitResult:
    name = _shown(address)
    try:
        if re.search(r"[\x00-\x20\x7f\\]", address):
            raise ValueError
        parts = urlsplit(address)
        host, port = (parts.hostname or "").encode("idna").decode("ascii"), parts.port or 443
    except (ValueError, UnicodeError):
        raise PictureError(f"{name}: is not an address") from None
    if parts.scheme != "https":
        raise PictureError(f"{name}: only https addresses are fetched")
    if parts.username is not None or parts.password is not None:
        raise PictureError(f"{name}: holds a user's name; leave it out")
    if (host.lower(), port) not in allowed:
        where = host if port == 443 else f"{host}:{port}"
        raise PictureError(f"{name}: pictures are not fetched from {where}; it is not allowed")
    return parts._replace(netloc=f"{host}:{port}", fragment="")


def _get(parts: SplitResult, deadline: float, max_bytes: int) -> bytes | str:
    """The body, or where a redirect leads."""
    host, _, port = parts.netloc.rpartition(":")
    name = _shown(parts.geturl())
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    target = "".join(c if "!" <= c <= "~" else quote(c, safe="") for c in path)
    context = _context()
    try:
        raw = _connect(_resolve(host, int(port), deadline, name), deadline)
        socket_ = context.wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
    except OSError as error:
        raise PictureError(f"{name}: no connection ({error.strerror or error})") from None
    # A server that sends a byte now and then never runs into a timeout of the socket.
    alarm = threading.Timer(_left(deadline), _cut, [socket_])
    alarm.daemon = True
    alarm.start()
    connection = http.client.HTTPSConnection(host, int(port), context=context)
    connection.sock = socket_
    try:
        socket_.do_handshake()
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "paliglass"}
        connection.request("GET", target, headers={**headers, "Connection": "close"})
        with contextlib.closing(connection.getresponse()) as answer:
            if answer.status in _REDIRECTS and (place := answer.getheader("Location")):
                return place
            if answer.status != 200:
                raise PictureError(f"{name}: the server answers {answer.status}")
            length = answer.length or 0  # as announced
            body = answer.read(max_bytes + 1) if length <= max_bytes else b""
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise PictureError(f"{name}: took too long") from None
        raise PictureError(f"{name}: cannot be fetched ({error})") from None
    finally:
        alarm.cancel()
        connection.close()
        socket_.close()
    if time.monotonic() >= deadline:  # cut off, which may look like the end
        raise PictureError(f"{name}: took too long")
    if max(length, len(body)) > max_bytes:
        raise PictureError(f"{name}: has more than {max_bytes:,} bytes")
    return body


def _resolve(host: str, port: int, deadline: float, name: str) -> list[tuple[str, int]]:
    """(address, port) of a host, all public."""
    found: list[tuple[str, int]] = []

    def look_up() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found.extend(_ask_system(host, port))

    thread = threading.Thread(target=look_up, daemon=True)  # the system's resolver has no deadline
    thread.start()
    thread.join(_left(deadline))
    if thread.is_alive():
        raise PictureError(f"{name}: took too long")
    if not found:
        raise PictureError(f"{name}: there is no such host")
    if not all(_is_public(address) for address, _ in found):
        raise PictureError(f"{name}: the host's address is not public")
    return found


def _ask_system(host: str, port: int) -> list[tuple[str, int]]:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(str(entry[4][0]), int(entry[4][1])) for entry in answers]


def _is_public(address: str) -> bool:
    """Whether an address is one of the open internet, and hides none that is not."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(part is not None and not _is_public(str(part)) for part in inner):
            return False
    return ip.is_global and not ip.is_multicast


def _connect(places: list[tuple[str, int]], deadline: float) -> socket.socket:
    problem: OSError = OSError("no address")
    for place in places:
        try:
            return socket.create_connection(place, timeout=_left(deadline))
        except OSError as error:
            problem = error
    raise problem


def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _left(deadline: float) -> float:
    """Seconds until then; never 0, which would mean: do not wait, or wait for ever."""
    return max(deadline - time.monotonic(), 0.001)


def _cut(raw: socket.socket) -> None:
    with contextlib.suppress(OSError):  # over already
        socket.socket.shutdown(raw, socket.SHUT_RDWR)  # not the one of TLS, which takes turns


def _shown(address: str) -> str:
    """An address as messages show it: without query, which may hold keys, and not too long."""
    return re.split(r"[?#]", address)[0][:200]
