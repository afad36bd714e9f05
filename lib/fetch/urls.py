"""Addresses of media: which ones are accepted, and the one spelling each is known by."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import urljoin

import idna

from reelmill.errors import Rejected

STORES: Final = ("s3", "gs", "az", "abfs", "hf")
"""Schemes of object stores: ``scheme://bucket/key``, whose keys are opaque."""
SCHEMES: Final = ("http", "https", *STORES, "file")
MAX_LENGTH: Final = 8192
"""Longest accepted URL, in characters, before and after normalisation."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# RFC 3986, appendix B, with the scheme and authority optional: it matches every string.
_PARTS = re.compile(
    r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL
)
_OBJECT = re.compile(
    r"(s3|gs|az|abfs|hf)://([A-Za-z0-9][A-Za-z0-9._-]{1,254}(?:@[A-Za-z0-9.-]{1,253})?)/(.+)",
    re.DOTALL,
)
_STORE = re.compile(r"(s3|gcs|gs|az|abfs|hf)://", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_PORT = re.compile(r"0*([0-9]{1,5})")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# A percent-encoded byte, or text that must become one. "%" alone is in the second group.
_PATH = re.compile(r"%([0-9A-Fa-f]{2})|(%|[^A-Za-z0-9\-._~!$&'()*+,;=:@/%]+)")
_QUERY = re.compile(r"%([0-9A-Fa-f]{2})|(%|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%]+)")


_SEGMENT: Final = (
    r"(?:[A-Za-z0-9\-_~!$&'()*+,;=:@]|{code})(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|{code})*"
)
# Upper-case codes of what a URL cannot hold as it is.
_CODE: Final = "%(?:[018-9A-F][0-9A-F]|2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[B-DF])"
NORMAL: Final = (
    r"^(?:https?://(?:[a-z0-9_-]{1,40}\.){0,5}[a-z][a-z0-9_-]{0,40}(?::[1-9][0-9]{3})?"
    rf"(?:/(?:{_SEGMENT.format(code=_CODE)})?)+(?:\?(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|{_CODE})*)?"
    rf"|(?:s3|gs|az|abfs|hf)://[A-Za-z0-9][A-Za-z0-9._-]{{1,63}}/[!-~]+"
    r"|file://(?:/[A-Za-z0-9\-_~!$&'()*+,;=:@][A-Za-z0-9\-._~!$&'()*+,;=:@]*)+)$"
)
"""A regular expression, in the syntax of RE2 as well, of URLs that `normalise` returns as they are:
most that are one line of ASCII and at most `MAX_LENGTH` characters, but by far not all."""


class SplitURL(NamedTuple):
    """The parts of a normalised URL; a part that is absent is empty or None."""

    scheme: str
    host: str
    port: int | None
    path: str
    query: str


def normalise(url: str) -> str:
    """Return the one spelling of ``url`` by which duplicates are found and files are fetched.

    Only what RFC 3986 calls equivalent is changed, so that the result names the same file:

    * surrounding white space and the fragment go;
    * scheme and host become lower case, the host IDNA (UTS 46), IP addresses canonical;
    * a default port goes; an empty path becomes ``/``; dot segments are resolved;
    * percent-encodings of unreserved characters are decoded, others get upper-case digits, and
      characters that a URL may not hold are encoded as UTF-8. Reserved ones stay as they are.

    The query keeps its order, and the path its case and trailing slash. The key in an
    object store is opaque: nothing in it is decoded, dropped or resolved; ``gcs:`` is ``gs:``. A
    ``file`` URL is absolute and local.

    The function is idempotent.

    Raises:
        Rejected: ``bad_url`` for anything else: no or another scheme, no host, user names and
            passwords (they would end up in the dataset), control characters, more than
            `MAX_LENGTH` characters.
    """
    url = url.strip()
    if len(url) > MAX_LENGTH:
        raise _bad(f"longer than {MAX_LENGTH} characters")
    if _CONTROL.search(url):
        raise _bad("holds control characters")
    store = _STORE.match(url)
    if store is not None:
        return _normalise_object(store[1].lower(), url[store.end() :])
    scheme, host, port, path, query = _split(url)
    netloc = f"[{host}]" if ":" in host else host
    if port is not None:
        netloc += f":{port}"
    result = f"{scheme}://{netloc}{path}{query}"
    if len(result) > MAX_LENGTH:
        raise _bad(f"longer than {MAX_LENGTH} characters when percent-encoded")
    return result


def host_of(url: str) -> str:
    """Return the normalised host of ``url``: no port, no brackets; or the bucket.

    It is empty for ``file`` URLs.

    Raises:
        Rejected: ``bad_url``, as `normalise` does.
    """
    url = normalise(url)
    match = _OBJECT.fullmatch(url)
    return match[2] if match else _split(url).host


def join(base: str, reference: str) -> str:
    """Return the normalised URL that ``reference`` (a ``Location``) means at ``base``.

    Raises:
        Rejected: ``bad_url``, as `normalise` does.
    """
    try:
        return normalise(urljoin(base, reference.strip()))
    except ValueError:
        raise _bad("cannot be parsed") from None


def s3_location(url: str) -> tuple[str, str]:
    """Return the bucket and the key of a normalised ``s3`` URL."""
    match = _OBJECT.fullmatch(url)
    assert match
    return match[2], match[3]


def _normalise_object(scheme: str, rest: str) -> str:
    scheme = "gs" if scheme == "gcs" else scheme
    url = f"{scheme}://{rest}"
    match = _OBJECT.fullmatch(url)
    # Only Azure has containers of accounts: container@account.dfs.core.windows.net.
    if match is None or ("@" in match[2] and scheme not in ("az", "abfs")):
        raise _bad(f"expected {scheme}://bucket/key")
    return url


def _split(url: str) -> SplitURL:
    match = _PARTS.fullmatch(url)
    assert match
    scheme, authority, path, query = match.groups(default="")
    if not scheme:
        raise _bad("no scheme; begin with https:// for a web address, file:// for a local path")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise _bad(f"scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
    if scheme == "file":
        return _split_file(url, authority, path)
    if "@" in authority:
        raise _bad("holds a user name or password")
    host, port = _host_and_port(authority)
    if port == _DEFAULT_PORTS.get(scheme):
        port = None
    path = _resolve_dots(_PATH.sub(_percent, path)) or "/"
    return SplitURL(scheme, host, port, path, _QUERY.sub(_percent, query))


def _split_file(url: str, authority: str, path: str) -> SplitURL:
    if authority.lower() not in ("", "localhost"):
        raise _bad("a file URL names no host; write file:///absolute/path")
    if "?" in url or "#" in url:
        raise _bad("write ? as %3F and # as %23 in a file URL")
    path = _resolve_dots(_PATH.sub(_percent, path)) if path.startswith("/") else "/"
    if path == "/":
        raise _bad("a file URL needs an absolute path; write file:///absolute/path")
    if "%00" in path or "%2F" in path:
        raise _bad("a file name cannot hold a zero byte or a slash")
    return SplitURL("file", "", None, path, "")


def _host_and_port(authority: str) -> tuple[str, int | None]:
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", authority)
    if bracketed:
        host, port = bracketed.groups()
        try:
            if "%" in host:
                raise ValueError("zone")
            return str(ipaddress.IPv6Address(host)), _port(port)
        except ipaddress.AddressValueError:
            raise _bad("its IPv6 address is malformed") from None
        except ValueError:
            raise _bad("its IPv6 address names a zone") from None
    host, _, port = authority.partition(":")
    return _hostname(host), _port(port)


def _port(text: str | None) -> int | None:
    if not text:
        return None
    match = _PORT.fullmatch(text)
    if match is None or not 0 < int(match[1]) < 65536:
        raise _bad("its port is not a number from 1 to 65535")
    return int(match[1])


@lru_cache(maxsize=4096)
def _hostname(host: str) -> str:
    if not host:
        raise _bad("no host")
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True, std3_rules=True).decode("ascii")
        except UnicodeError:
            raise _bad("its host is not a valid international domain name") from None
    host = host.lower()
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise _bad("its host is not a domain name or an IP address")
    # inet_aton reads 2130706433, 0x7f.1 and 0177.0.0.1 as addresses too; one spelling is enough.
    if labels[-1].isdigit() or re.fullmatch(r"0x[0-9a-f]*", labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ipaddress.AddressValueError:
            raise _bad("its IPv4 address is malformed") from None
    return host


def _percent(match: re.Match[str]) -> str:
    code, raw = match.groups()
    if code is None:
        return "".join(f"%{byte:02X}" for byte in raw.encode())
    character = chr(int(code, 16))
    return character if character in _UNRESERVED else f"%{code.upper()}"


def _resolve_dots(path: str) -> str:
    """Remove dot segments as RFC 3986, section 5.2.4 does for an absolute path."""
    if "/." not in path:
        return path
    segments: list[str] = []
    parts = path.split("/")[1:]
    for part in parts:
        if part == "..":
            del segments[-1:]
        elif part != ".":
            segments.append(part)
    if parts[-1] in (".", ".."):
        segments.append("")
    return "/" + "/".join(segments)


def _bad(message: str) -> Rejected:
    return Rejected("bad_url", message)
