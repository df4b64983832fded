"""Addresses as URLs have them."""

from urllib.parse import urlsplit

import pytest

from pipeline.host.address import host_and_port


@pytest.mark.parametrize("host", ["127.0.0.1", "trainer", "::", "::1", "fe80::1", "2001:db8::8:800:200c:417a"])
def test_a_url_gives_the_host_and_the_port_back(host: str) -> None:
    url = urlsplit(f"http://{host_and_port(host, 8000)}/metrics")
    assert (url.hostname, url.port) == (host, 8000)
