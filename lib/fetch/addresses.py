"""Names and addresses of hosts: which ones are public, and what a name resolves to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from time import monotonic
from typing import Final, TypeAlias

from reelmill.fetch.transfer import AttemptError

_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# Public by their number alone: protocol assignments and a cloud's metadata (192.0.0.0/24), anycast
# relays, another cloud's metadata.
_NOT_PUBLIC: Final = tuple(
    map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"))
)

TTL_S: Final = 60.0
"""Seconds for which the addresses of a name are remembered."""

LookUp: TypeAlias = Callable[[str], list[str]]
"""Returns the addresses of a host, blocking; raises `socket.gaierror` where there are none."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, whatever it is wrapped in."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return (
            ip.is_global
            and not (ip.is_multicast or ip.is_reserved)
            and not any(ip in network for network in _NOT_PUBLIC)
        )
    if ip in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    wrapped = ip.ipv4_mapped or ip.sixtofour
    if wrapped is not None:
        return is_public(str(wrapped))
    return ip in _GLOBAL_UNICAST and ip.is_global


def is_address(host: str) -> bool:
    """Whether a normalised host is an IP literal and no name."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def look_up(host: str) -> list[str]:
    """Return the addresses of ``host`` in the order in which they should be tried."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Resolver:
    """Resolves names in the executor of the running loop; one look-up serves all who wait.

    Args:
        timeout_s: Seconds for one look-up.
        look_up: Asked for a name that is not remembered.
        ttl_s: Seconds for which an answer is remembered; failures never are.
    """

    def __init__(
        self, timeout_s: float, look_up: LookUp = look_up, *, ttl_s: float = TTL_S
    ) -> None:
        self._timeout_s = timeout_s
        self._look_up = look_up
        self._ttl_s = ttl_s
        self._known: dict[str, tuple[float, list[str]]] = {}
        self._asked: dict[str, asyncio.Future[list[str]]] = {}

    async def addresses(self, host: str) -> list[str]:
        """Return the addresses of ``host``.

        Raises:
            AttemptError: ``dns``.
        """
        known = self._known.get(host)
        if known is not None and known[0] > monotonic():
            return known[1]
        asked = self._asked.get(host)
        if asked is None:
            loop = asyncio.get_running_loop()
            asked = self._asked[host] = loop.run_in_executor(None, self._look_up, host)
            asked.add_done_callback(lambda answer: self._answered(host, answer))
        try:
            async with asyncio.timeout(self._timeout_s):
                # Others may wait for the same answer.
                return await asyncio.shield(asked)
        except TimeoutError as error:
            message = f"{host} was not resolved in time"
            raise AttemptError("dns", message, transient=True) from error
        except (OSError, UnicodeError) as error:
            again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            raise AttemptError("dns", f"{host} does not resolve", transient=again) from error

    def _answered(self, host: str, answer: asyncio.Future[list[str]]) -> None:
        del self._asked[host]
        if not answer.cancelled() and answer.exception() is None:
            self._known[host] = (monotonic() + self._ttl_s, answer.result())
