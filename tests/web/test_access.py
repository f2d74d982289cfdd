"""Which Host and Origin are served; RFC 9110 7.2, RFC 3986, the Fetch standard."""

import socket
from typing import Any

import pytest

from msefpn.errors import UserError
from msefpn.web.access import Denied, Doorkeeper
from msefpn.web.server import listen


def status(doorkeeper: Doorkeeper, *headers: tuple[str, str], **scope: Any) -> int:
    given = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    reason = ""
    try:
        doorkeeper.check({"method": "GET", "raw_path": b"/", "headers": given} | scope)
        return 200
    except Denied as denied:
        reason = str(denied)
        return denied.status
    finally:
        assert all(value not in reason for _, value in headers if value)


@pytest.fixture(scope="module")
def local() -> Doorkeeper:
    with listen("127.0.0.1", 0) as taken:
        return Doorkeeper(taken, ["Lab.Example", "2001:db8::0:7"])


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("localhost", 200),
        ("LocalHost:7860", 200),
        ("localhost:1", 200),  # a tunnel has a port of its own
        ("127.0.0.1:7860", 200),
        ("[::1]:7860", 200),
        ("[0:0:0:0:0:0:0:1]", 200),
        ("[::ffff:127.0.0.1]", 200),
        ("lab.example", 200),
        ("[2001:DB8::7]:80", 200),
        ("evil.example", 421),
        ("evil.example:7860", 421),
        ("localhost.evil.example", 421),
        ("localhost.", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.168.1.7", 421),
        ("0.0.0.0", 421),
        ("127.1", 421),
        ("2130706433", 421),
        ("[::2]", 421),
        ("::1", 400),
        ("[127.0.0.1]", 400),
        ("[::1", 400),
        ("[::1]x", 400),
        ("localhost:", 400),
        ("localhost:x", 400),
        ("localhost:99999", 400),
        ("localhost:80:80", 400),
        ("user@localhost", 400),
        ("localhost/", 400),
        ("localhost, evil.example", 400),
        ("localhost\xe4", 400),
        ("", 400),
    ],
)
def test_host(local: Doorkeeper, host: str, wanted: int) -> None:
    assert status(local, ("host", host)) == wanted


def test_one_host_is_needed(local: Doorkeeper) -> None:
    assert status(local) == 400
    assert status(local, ("host", "localhost"), ("host", "localhost")) == 400
    for target in (b"http://localhost/", b"http://evil.example/", b"*", b"localhost:80"):
        assert status(local, ("host", "localhost"), raw_path=target) == 400


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        ("http://localhost:7860", 200),
        ("https://localhost:7860", 200),  # a proxy in front has the certificate
        ("http://LOCALHOST:7860", 200),
        ("http://localhost", 403),
        ("http://localhost:3000", 403),
        ("http://127.0.0.1:7860", 403),
        ("http://evil.example", 403),
        ("file://localhost:7860", 403),
        ("http://localhost:7860.evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_origin(local: Doorkeeper, origin: str, wanted: int) -> None:
    assert status(local, ("host", "localhost:7860"), ("origin", origin)) == wanted
    twice = [("origin", origin)] * 2
    assert status(local, ("host", "localhost:7860"), *twice, method="POST") == 403


@pytest.mark.parametrize(
    ("site", "wanted"), [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)]
)
def test_requests_of_other_pages(local: Doorkeeper, site: str, wanted: int) -> None:
    headers = ("host", "localhost"), ("sec-fetch-site", site)
    assert status(local, *headers, method="POST") == wanted
    assert status(local, *headers, method="GET") == 200, "a link to the page is followed"


def test_every_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Workstation")
    with listen("0.0.0.0", 0) as taken:
        doorkeeper = Doorkeeper(taken)
    assert doorkeeper.address.startswith("http://workstation:")
    came = {"server": ("192.0.2.7", 7860)}
    wanted = {"192.0.2.7": 200, "workstation:7860": 200, "192.0.2.8": 421, "evil.example": 421}
    assert {host: status(doorkeeper, ("host", host), **came) for host in wanted} == wanted
    six = {"server": ("::ffff:192.0.2.7", 7860)}
    assert status(doorkeeper, ("host", "192.0.2.7"), **six) == 200


def test_address_of_ipv6() -> None:
    try:
        with listen("::1", 0) as taken:
            assert Doorkeeper(taken).address == f"http://[::1]:{taken.getsockname()[1]}"
    except UserError:
        pytest.skip("this machine has no IPv6")


@pytest.mark.parametrize("name", ["http://lab.example", "lab.example/", "a b", "*", "", "[::1", "x:1:y"])
def test_allowed_host_is_a_name(name: str) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="is not a host name: give it"):
        Doorkeeper(taken, [name])
