"""Media that are elsewhere: asked for only where that is allowed, at public addresses, and never for long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from seeing import audio, png, seeing
from served import client, serving

from isobit.errors import UsageError
from isobit.server import parts, remote

PRIVATE = """127.0.0.1 127.8.9.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 239.1.1.1
    255.255.255.255 192.0.2.1 198.18.0.1 240.0.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd12::1 ff02::1 ::ffff:127.0.0.1
    ::ffff:8.8.8.8 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::8.8.8.8 2002:7f00:1:: 2001:0:53aa:64c::1 2001:db8::1 100::1
    3fff::1 2001:10::1 localhost 127.1 0x7f000001""".split()


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not remote.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::8a"])
def test_public_addresses(address: str) -> None:
    assert remote.is_public(address)


@contextmanager
def host(answer: bytes | Callable[[socket.socket], object], monkeypatch: Any) -> Iterator[list[bytes]]:
    """A host on a free port of this machine, taken for a public one on port 80; gives what it is asked."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            while True:
                found, _ = listener.accept()
                with found:
                    asked.append(found.recv(65536))
                    try:
                        found.sendall(answer) if isinstance(answer, bytes) else answer(found)
                    except OSError:
                        continue
        except OSError:
            return

    thread = threading.Thread(target=serve)
    thread.start()
    monkeypatch.setitem(remote.PORTS, "http", listener.getsockname()[1])
    monkeypatch.setattr(remote, "is_public", lambda address: address == "127.0.0.1")
    try:
        yield asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def reply(body: bytes, head: str = "200 OK", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {head}", f"Content-Length: {len(body)}", "Connection: close", *more, "", ""]
    return "\r\n".join(lines).encode() + body


def got(
    url: str = "http://pictures.example/a.png?b=1", limit: int = 10_000, seconds: float = 30.0, **more: Any
) -> bytes:
    options = {"resolve": lambda name, port: ["127.0.0.1"]} | more
    return remote.fetch(url, limit, "the picture", time.monotonic() + seconds, **options)


def test_a_file_comes_from_the_address_that_was_checked(monkeypatch: Any) -> None:
    looked: list[str] = []

    def resolve(name: str, port: int) -> list[str]:
        looked.append(name)
        return ["127.0.0.1"]

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with host(reply(png()), monkeypatch) as asked:
        assert got(resolve=resolve) == png()
    assert looked == ["pictures.example"], "one look-up, and none behind the check"
    head = asked[0].decode()
    assert head.startswith("GET /a.png?b=1 HTTP/1.1\r\nHost: pictures.example")
    assert "Accept-Encoding: identity" in head and "ookie" not in head and "uthoriz" not in head


@pytest.mark.parametrize("addresses", [["127.0.0.1", "10.0.0.1"], ["10.0.0.1"], []])
def test_every_address_of_a_name_must_be_public(addresses: list[str], monkeypatch: Any) -> None:
    with host(reply(png()), monkeypatch) as asked:
        with pytest.raises(UsageError, match="none of a public host"):
            got(resolve=lambda name, port: addresses)
    assert not asked


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (reply(b"", "302 Found", "Location: http://127.0.0.1/"), "leads to another, which is not followed"),
        (reply(b"", "404 Not Found"), "status 404"),
        (reply(b"x" * 10_001), "more than 10,000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 20_000, "more than 10,000 bytes"),
        (reply(b"x", "200 OK", "Content-Encoding: gzip"), "compressed"),
        (b"nonsense\r\n\r\n", "could not be fetched"),
        (b"", "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf", "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "could not be fetched"),
    ],
)
def test_what_is_no_file(answer: bytes, said: str, monkeypatch: Any) -> None:
    with host(answer, monkeypatch), pytest.raises(UsageError, match=said):
        got()


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_host_that_sends_a_drop_at_a_time_is_left(head: bytes, monkeypatch: Any) -> None:
    def drops(found: socket.socket) -> None:
        found.sendall(head)
        for _ in range(1500):
            found.sendall(b"x")
            time.sleep(0.02)

    with host(drops, monkeypatch), pytest.raises(UsageError, match="did not come within"):
        got(seconds=0.3, limit=1 << 30)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/b", "http://", "http:///b", "http://user@a.example/", "http://user:word@a.example/",
        "http://a.example:22/", "http://a.example:x/", "http://a.example\\@b.example/", "http://a.example/ b",
        "http://a.example/\r\nHost: b", "http://ä.example/", "http://[::1", "http://a.example/" + "b" * 3000,
    ],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    def never(name: str, port: int) -> list[str]:
        raise AssertionError("it was looked up")

    with pytest.raises(UsageError, match="must be an address like"):
        got(url, resolve=never)


def test_names_of_this_machine_are_not_asked() -> None:
    """With the machine's own resolver: whatever a name is written as."""
    for name in ("localhost", "127.0.0.1", "[::1]", "127.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]"):
        with pytest.raises(UsageError, match="none of a public host|could not be fetched"):
            got(f"http://{name}/", resolve=remote.resolved)


def ask(http: Any, part: dict[str, Any]) -> Any:
    body = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "a"}]}], "max_tokens": 1}
    return http.post("/v1/chat/completions", json=body)


def test_the_server_fetches_where_it_may(monkeypatch: Any) -> None:
    real = remote.fetch

    def fetch(url: str, *rest: Any) -> bytes:
        return real(url, *rest, lambda name, port: ["127.0.0.1"])

    monkeypatch.setattr(parts.remote, "fetch", fetch)
    served = serving(seeing(), remote=True)
    with host(reply(png(colour=(9, 8, 7))), monkeypatch):
        answer = ask(client(served), {"type": "image_url", "image_url": {"url": "http://pictures.example/a.png"}})
    assert answer.status_code == 200, answer.text
    assert (served.llm.tower.given[0].pixels == (9, 8, 7)).all()


def test_the_server_does_not_fetch_where_it_may_not(monkeypatch: Any) -> None:
    def never(*args: Any) -> bytes:
        raise AssertionError("it was fetched")

    monkeypatch.setattr(parts.remote, "fetch", never)
    http = client(serving(seeing()))
    for part in (
        {"type": "image_url", "image_url": {"url": "http://pictures.example/a.png"}},
        {"type": "image_url", "image_url": {"url": "HTTPS://pictures.example/a.png"}},
        {"type": "video_url", "video_url": {"url": ["http://pictures.example/a.png"]}},
    ):
        error = ask(http, part).json()["error"]
        assert error["param"] == "messages[0].content[0]" and "--allow-remote-media" in error["message"]
    for served in (serving(seeing()), serving(seeing(), remote=True)):
        raw = audio() | {"input_audio": {"data": "http://sounds.example/a.wav", "format": "wav"}}
        error = ask(client(served), raw).json()["error"]
        assert "not in base64" in error["message"], "what is no address of a part is none"


def test_the_server_says_of_a_private_address_no_more_than_that() -> None:
    error = ask(
        client(serving(seeing(), remote=True)), {"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}
    )
    assert error.status_code == 400
    assert error.json()["error"]["message"] == "messages[0].content[0]: its address is none of a public host"
