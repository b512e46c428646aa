"""Files from other machines, where the server's owner allows it: from public addresses alone, which a name is tied to.

A name is resolved once, every address of it must be public, and the connection goes to the one that was checked: no
second look-up can lead elsewhere. No redirection is followed, no proxy and no cookie is used, and time and bytes end.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from isobit.errors import UsageError

SECONDS = 20.0  # for all files of one request
PORTS = {"http": 80, "https": 443}
_LONGEST = 2048  # characters of an address
_PIECE = 1 << 16
# Of IPv6 what is given to hosts, without what carries an IPv4 address within (Teredo, 6to4) or is for special uses.
_GIVEN = ipaddress.ip_network("2000::/3")
_WITHIN = tuple(map(ipaddress.ip_network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
Resolve = Callable[[str, int], Iterable[str]]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's hosts: not of this machine, its network, or a special use."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return found.is_global and not found.is_multicast
    return found in _GIVEN and not any(found in network for network in _WITHIN)


def resolved(host: str, port: int) -> list[str]:
    """The addresses of a name, as the machine's resolver gives them."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def fetch(url: str, limit: int, name: str, until: float, resolve: Resolve = resolved) -> bytes:
    """The bytes of a file elsewhere.

    Args:
        url: http or https, of the usual port.
        limit: bytes it may have.
        name: what errors call it.
        until: when it must be here, of ``time.monotonic``.
        resolve: the addresses of a name.

    Raises:
        UsageError: the address is none that may be asked, nothing comes in time, or it is no file; nothing is said of
            what lies behind the address.
    """
    scheme, host, target = _parsed(url, name)
    try:
        addresses = list(resolve(host, PORTS[scheme]))
    except (OSError, UnicodeError):
        addresses = []
    if not addresses or not all(is_public(one) for one in addresses):
        raise UsageError(f"{name}: its address is none of a public host")
    connection = _Tied(scheme == "https", host, addresses[0], max(0.1, until - time.monotonic()))
    watch = threading.Timer(max(0.1, until - time.monotonic()), connection.cut)  # a drop at a time is too slow, too
    watch.daemon = True
    watch.start()
    try:
        return _body(connection, target, limit, name)
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        late = time.monotonic() >= until
        reason = f"it did not come within {SECONDS:g} seconds" if late else "it could not be fetched"
        raise UsageError(f"{name}: {reason}") from error
    finally:
        watch.cancel()
        connection.close()


def _parsed(url: str, name: str) -> tuple[str, str, str]:
    """Scheme, host, and what is asked of it."""
    try:
        if len(url) > _LONGEST or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise ValueError
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), parts.hostname
        if scheme not in PORTS or not host or parts.username is not None or parts.password is not None:
            raise ValueError
        if parts.port not in (None, PORTS[scheme]):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{name} must be an address like https://host/file, of ASCII, without a port, a name or a password"
        ) from None
    return scheme, host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _body(connection: _Tied, target: str, limit: int, name: str) -> bytes:
    connection.request("GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "isobit"})
    reply = connection.getresponse()
    if 300 <= reply.status < 400:
        raise UsageError(f"{name}: the address leads to another, which is not followed: give that one")
    if reply.status != 200:
        raise UsageError(f"{name}: its host answers with status {reply.status}")
    if (reply.getheader("content-encoding") or "identity").lower() != "identity":
        raise UsageError(f"{name}: its host sends it compressed, which was not asked for")
    data = bytearray()
    while len(data) <= limit and (piece := reply.read(_PIECE)):
        data += piece
    if len(data) > limit:
        raise UsageError(f"{name} has more than {limit:,} bytes, which is the limit")
    if reply.length or connection.was_cut:  # both look like an end
        raise http.client.IncompleteRead(b"")
    return bytes(data)


class _Tied(http.client.HTTPConnection):
    """A connection to one address, by whatever name it is asked for.

    Attributes:
        was_cut: it was ended by :meth:`cut`.
    """

    def __init__(self, secure: bool, host: str, address: str, seconds: float) -> None:
        super().__init__(host, PORTS["https" if secure else "http"], timeout=seconds)
        self._secure, self._address = secure, address
        self._live: socket.socket | None = None  # http.client forgets its own when the body begins
        self.was_cut = False

    def connect(self) -> None:
        """To the address."""
        made = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            context = ssl.create_default_context()
            secured = context.wrap_socket(made, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = self._live = secured
            secured.do_handshake()
        else:
            self.sock = self._live = made
        if self.was_cut:
            raise TimeoutError

    def cut(self) -> None:
        """Ends it, whatever it waits for."""
        self.was_cut = True
        try:
            if self._live is not None:
                self._live.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError):
            pass
