"""Addresses of hosts: which ones are public."""

from __future__ import annotations

import ipaddress
from typing import Final

_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# Public by their number alone: protocol assignments and a cloud's metadata (192.0.0.0/24), anycast
# relays, another cloud's metadata.
_NOT_PUBLIC: Final = tuple(
    map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"))
)


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
