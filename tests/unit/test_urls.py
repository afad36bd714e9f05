"""One spelling for every URL, and a clear refusal for what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelmill.errors import Rejected
from reelmill.fetch.urls import MAX_LENGTH, host_of, join, normalise


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("  HTTP://Example.COM \n", "http://example.com/"),
        ("https://example.com:443/a", "https://example.com/a"),
        ("https://example.com:80/a", "https://example.com:80/a"),
        ("http://example.com:/a", "http://example.com/a"),
        ("http://example.com:0080/a", "http://example.com/a"),
        ("http://example.com/a#t=10", "http://example.com/a"),
        ("http://example.com?", "http://example.com/?"),
        ("http://example.com/a?b=2&a=1", "http://example.com/a?b=2&a=1"),
        ("http://example.com/%7euser/%2f%3a", "http://example.com/~user/%2F%3A"),
        ("http://example.com/100%/%zz", "http://example.com/100%25/%25zz"),
        ("http://example.com/a b|c", "http://example.com/a%20b%7Cc"),
        ("http://example.com/ü?ü", "http://example.com/%C3%BC?%C3%BC"),
        ("http://example.com/a/../b/./c/..", "http://example.com/b/"),
        ("http://example.com/%2e%2E/a/%2e", "http://example.com/a/"),
        ("http://example.com/../../a//b/", "http://example.com/a//b/"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://BÜCHER。example./", "http://xn--bcher-kva.example./"),
        ("http://my_bucket.example.com/", "http://my_bucket.example.com/"),
        ("http://192.0.2.1:8080/a", "http://192.0.2.1:8080/a"),
        ("http://[2001:DB8:0::1]:80/", "http://[2001:db8::1]/"),
        ("S3://bucket/a/../b%20c?d#e", "s3://bucket/a/../b%20c?d#e"),
        ("s3://bucket//k", "s3://bucket//k"),
        ("GCS://bucket/a b", "gs://bucket/a b"),
        ("az://container@account/a/../b", "az://container@account/a/../b"),
        ("hf://datasets/user/name/a.mp4", "hf://datasets/user/name/a.mp4"),
        ("file://localhost/a/../b%20c.mp4", "file:///b%20c.mp4"),
        ("file:/a.mp4", "file:///a.mp4"),
    ],
)
def test_normalise(url: str, expected: str) -> None:
    assert normalise(url) == expected
    assert normalise(expected) == expected


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "no scheme"),
        ("/data/a.mp4", "file://"),
        ("a.mp4", "file://"),
        ("//example.com/a", "no scheme"),
        ("ftp://example.com/a", "'ftp' is not one of http, https, s3, gs, az, abfs, hf, file"),
        ("javascript:alert(1)", "'javascript'"),
        ("C:\\a.mp4", "'c' is not"),
        ("http://", "no host"),
        ("http:///a", "no host"),
        ("http:a", "no host"),
        ("http://:80/", "no host"),
        ("http://user:secret@example.com/", "user name or password"),
        ("http://good.example\\@evil.example/", "user name or password"),
        ("http://good.example\\evil.example/", "not a domain name"),
        ("http://ex%61mple.com/", "not a domain name"),
        ("http://a..b/", "not a domain name"),
        ("http://" + "a" * 64 + ".example/", "not a domain name"),
        ("http://" + "a." * 127 + "example/", "not a domain name"),
        ("http://\u2603\u200d.example/", "international"),
        ("http://2130706433/", "IPv4"),
        ("http://0x7f.1/", "IPv4"),
        ("http://0177.0.0.1/", "IPv4"),
        ("http://127.0.0.1./", "IPv4"),
        ("http://\uff11\uff12\uff17.1/", "IPv4"),
        ("http://[::1/", "not a domain name"),
        ("http://[::g]/", "IPv6"),
        ("http://[fe80::1%25eth0]/", "zone"),
        ("http://example.com:99999/", "port"),
        ("http://example.com:0/", "port"),
        ("http://example.com:8x/", "port"),
        ("http://example.com/a\nb", "control"),
        ("http://example.com/\x7f", "control"),
        ("http://example.com/\ud800", "control"),
        ("http://example.com/" + "a" * MAX_LENGTH, "longer"),
        ("http://example.com/" + "ü" * 4000, "percent-encoded"),
        ("s3://bucket", "s3://bucket/key"),
        ("s3://bucket/", "s3://bucket/key"),
        ("gcs://bucket", "gs://bucket/key"),
        ("s3://name@bucket/key", "s3://bucket/key"),
        ("gs://user:secret@bucket/key", "gs://bucket/key"),
        ("s3://a b/c", "s3://bucket/key"),
        ("file://server/share/a.mp4", "no host"),
        ("file:a.mp4", "absolute"),
        ("file:a/../b.mp4", "absolute"),
        ("file:///", "absolute"),
        ("file:///a?b", "%3F"),
        ("file:///a%2fb", "slash"),
        ("file:///a%00b", "zero byte"),
    ],
)
def test_refused(url: str, words: str) -> None:
    with pytest.raises(Rejected, match="bad_url") as caught:
        normalise(url)
    assert caught.value.reason == "bad_url"
    assert words in caught.value.message


def test_passwords_are_not_repeated() -> None:
    with pytest.raises(Rejected) as caught:
        normalise("http://user:secret@example.com/")
    assert "secret" not in str(caught.value)


_texts = st.one_of(
    st.text(),
    st.text(alphabet="htps3:/file@%2e5F#?&=[].\\ -aü0", max_size=60),
    st.builds(
        lambda scheme, host, rest: f"{scheme}://{host}/{rest}",
        st.sampled_from(["http", "HTTPS", "s3", "file"]),
        st.sampled_from(["", "example.com", "Ünï.example", "127.0.0.1:81", "[::1]", "x:443"]),
        st.text(alphabet="ab/.%25eEfF?#~ ü&=\u3002", max_size=60),
    ),
)


@given(_texts)
def test_normalise_is_idempotent_and_total(url: str) -> None:
    try:
        once = normalise(url)
    except Rejected:
        return
    assert normalise(once) == once
    assert len(once) <= MAX_LENGTH
    host_of(once)
    if not once.startswith("s3:"):
        assert once.isascii()
        assert "/../" not in once.partition("?")[0]
        assert "#" not in once


@given(st.text(alphabet="abcXYZ019-._~/!$&'()*+,;=:@", max_size=40))
def test_encoding_unreserved_characters_changes_nothing(path: str) -> None:
    encoded = "".join(f"%{ord(c):02x}" if c.isalnum() or c in "-._~" else c for c in path)
    assert normalise(f"http://h/{encoded}") == normalise(f"HTTP://H:80/{path}#x")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("HTTPS://Example.com:8443/a", "example.com"),
        ("http://[::1]:80/", "::1"),
        ("s3://bucket/key", "bucket"),
        ("file:///a", ""),
    ],
)
def test_host_of(url: str, host: str) -> None:
    assert host_of(url) == host


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("/b", "http://h/b"),
        ("c", "http://h/a/c"),
        ("../c", "http://h/c"),
        ("?q", "http://h/a/b?q"),
        ("//other/x", "http://other/x"),
        (" HTTPS://Other/x#f ", "https://other/x"),
        ("", "http://h/a/b"),
    ],
)
def test_join(reference: str, expected: str) -> None:
    assert join("http://h/a/b", reference) == expected


@pytest.mark.parametrize("reference", ["http://[", "http://[::1", "gopher://h/", "http://u@h/"])
def test_join_refuses(reference: str) -> None:
    with pytest.raises(Rejected):
        join("http://h/", reference)
