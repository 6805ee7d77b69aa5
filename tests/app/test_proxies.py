"""Proxies of the environment never come between the app and this machine, and none stops it."""

import os

import httpx
import pytest

from app.proxies import settle_proxies

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        for spelled in (name, name.upper()):
            monkeypatch.setenv(spelled, "to be restored")
            monkeypatch.delenv(spelled)
    return monkeypatch


def proxied(url: str) -> bool:
    """Whether a client that reads the environment sends this through a proxy."""
    with httpx.Client() as client:
        return client._transport_for_url(httpx.URL(url)) is not client._transport


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("value", ["http://127.0.0.1:9", "127.0.0.1:9"])
def test_this_machine_is_asked_directly_and_others_through_the_proxy(environment, name, value):
    environment.setenv(name, value)
    assert settle_proxies("192.168.7.7") == []
    for host in ("127.0.0.1", "localhost", "[::1]", "192.168.7.7"):
        assert not proxied(f"http://{host}:7860/startup-events"), host
    assert proxied("http://example.org/")


def test_what_no_proxy_says_already_stays(environment):
    environment.setenv("https_proxy", "http://127.0.0.1:9")
    environment.setenv("NO_PROXY", "intern.example")
    settle_proxies("127.0.0.1")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intern.example,localhost,127.0.0.1,::1"
    assert not proxied("https://intern.example/") and proxied("https://example.org/")


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "http_proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize("value", ["socks://127.0.0.1:9/", "ftp://x", "quic+v2ray://x:1", "http://a:b"])
def test_a_proxy_of_an_unknown_kind_is_left_out_and_named(environment, name, value):
    environment.setenv(name, value)
    assert settle_proxies("127.0.0.1") == [value]
    httpx.Client().close()  # raised before
    assert not proxied("http://example.org/") and not proxied("http://127.0.0.1/")


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:9", "socks5h://127.0.0.1:9"])
def test_socks_is_used_where_it_can_be(environment, value):
    environment.setenv("ALL_PROXY", value)
    left_out = settle_proxies("127.0.0.1")
    assert proxied("http://example.org/") is not bool(left_out) and not proxied("http://127.0.0.1/")


def test_without_proxies_nothing_changes(environment):
    before = dict(os.environ)
    assert settle_proxies("127.0.0.1") == [] and dict(os.environ) == before
