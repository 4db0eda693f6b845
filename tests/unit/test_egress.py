"""The one way out: what it refuses is never connected to, seen by a real listener."""

from __future__ import annotations

import ast
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from models_cache import egress_policy
from models_cache.egress import Outgoing, exchange, resolve_name
from models_cache.egress_errors import EgressFailed, ForbiddenUrl
from models_cache.egress_policy import Address, EgressPolicy, is_special, read_url
from tests.canary import Canary, OddServer, odd_server

_REPOSITORY = Path(__file__).resolve().parents[2]

#: Refused as they are written. `{port}` is the listener's.
UNREADABLE = (
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0x7f.1:{port}/",
    "http://2130706433:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://017700000001:{port}/",
    "http://127.0.0.01:{port}/",
    "http://127.0.0.256:{port}/",
    "http://127.0.0.0x1:{port}/",
    "http://0:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://１２７.0.0.1:{port}/",
    "http://127。0。0。1:{port}/",
    "http://loсalhost:{port}/",  # a Cyrillic letter
    "http://localhost.:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://ok@127.0.0.1:{port}/",
    "http://example.com:80@127.0.0.1:{port}/",
    "http://example.com%40127.0.0.1:{port}/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http://example.com#@127.0.0.1:{port}/",
    "http://127.0.0.1%2f:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.0.1\n:{port}/",
    "http://127.0.0.1\r\nX: y:{port}/",
    "http:// 127.0.0.1:{port}/",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/a b",
    "http://127.0.0.1:{port}/\x00",
    "http://[::1%25lo]:{port}/",
    "http://[fe80::1%eth0]:{port}/",
    "http://[127.0.0.1]:{port}/",
    "http://[::1:{port}/",
    "http://::1:{port}/",
    "http://[v1.fe80]:{port}/",
    "http://[::1].example.com:{port}/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:65536/",
    "http://127.0.0.1:{port}:80/",
    "http://127.0.0.1:٨٠/",
    "http://127.0.0.1:/",
    "http:127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}",
    "file:///etc/passwd",
    "file://127.0.0.1:{port}/etc/passwd",
    "gopher://127.0.0.1:{port}/_x",
    "ftp://127.0.0.1:{port}/",
    "data:text/plain,x",
    "jar:http://127.0.0.1:{port}/!/",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "http://-a.example.com:{port}/",
    "http://a..b:{port}/",
    "http://" + "a" * 64 + ".com:{port}/",
    "http://127.0.0.1:{port}/" + "a" * 2048,
    "",
)
#: Read well, and they lead where nothing may: by themselves, or by what the name resolves to.
PRIVATE = (
    "http://127.0.0.1:{port}/",
    "HTTP://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "http://127.255.255.254:{port}/",
    "http://localhost:{port}/",
    "http://LocalHost:{port}/",
    "http://a.localhost:{port}/",
    "http://[::1]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]:{port}/",
    "http://[fe80::1]:{port}/",
    "http://[fd00:ec2::254]:{port}/",
    "http://[ff02::1]:{port}/",
    "http://0.0.0.0:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://100.100.100.200/",
    "http://100.64.0.1/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://198.18.0.1/",
    "http://192.88.99.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://10.0.0.1/",
    "http://172.31.0.1/",
    "http://192.168.1.1/",
    "http://loopback.test:{port}/",
    "http://mixed.test:{port}/",
    "http://mapped.test:{port}/",
    "http://six.test:{port}/",
    "http://metadata.test:{port}/",
    "http://xn--0pt0ba.test:{port}/",
)
NAMES = {
    "mixed.test": ["93.184.216.34", "127.0.0.1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "six.test": ["::1"],
    "metadata.test": ["169.254.169.254"],
}


def resolve_here(host: str, port: int) -> list[Address]:
    """Resolve names as this file says; whatever is not named leads to the listener."""
    if host.replace(".", "").isdecimal() or ":" in host or host.startswith("0x"):
        return resolve_name(host, port)
    return [ip_address(text) for text in NAMES.get(host, ["127.0.0.1"])]


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    """A listener on a port that is allowed, so that only the address can be why it is refused."""
    listener = Canary()
    monkeypatch.setattr(egress_policy, "PORTS", egress_policy.PORTS | {listener.port})
    yield listener
    listener.close()


@pytest.fixture
def server() -> Iterator[OddServer]:
    with odd_server() as running:
        yield running


def get(url: str, policy: EgressPolicy, **different: object) -> bytes:
    outgoing = Outgoing(**{"url": url, "total_seconds": 5.0, **different})  # type: ignore[arg-type]
    with exchange(policy, outgoing, resolve_here) as answer:
        return answer.beginning(100)


def test_no_form_of_a_private_address_is_connected_to(canary: Canary) -> None:
    forms = [url.replace("{port}", str(canary.port)) for url in (*UNREADABLE, *PRIVATE)]
    assert len(set(forms)) >= 100
    for url in forms:
        with pytest.raises(ForbiddenUrl):
            get(url, EgressPolicy())
    assert canary.seen == 0
    with pytest.raises(EgressFailed):  # it closes at once; but it was reached
        get(f"http://loopback.test:{canary.port}/", EgressPolicy.of(["127.0.0.0/8"]))
    assert canary.seen == 1


@pytest.mark.parametrize("url", UNREADABLE)
def test_what_is_not_written_plainly_is_not_read(url: str) -> None:
    with pytest.raises(ForbiddenUrl) as raised:
        read_url(url.replace("{port}", "80"))
    assert "127" not in str(raised.value)  # nothing of it is repeated


def test_an_allowed_network_does_not_let_odd_forms_in(canary: Canary) -> None:
    everything = EgressPolicy.of(["0.0.0.0/0", "::/0"])
    for url in UNREADABLE:
        with pytest.raises(ForbiddenUrl):
            get(url.replace("{port}", str(canary.port)), everything)
    assert canary.seen == 0


@pytest.mark.parametrize(
    "text",
    ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_public_addresses_are_no_special_ones(text: str) -> None:
    assert not is_special(ip_address(text))


def test_only_the_ports_of_web_servers_unless_the_host_is_allowed() -> None:
    for port in (80, 443, 8080, 8443):
        assert EgressPolicy().check(f"https://example.com:{port}/x?y").port == port
    for port in (22, 25, 6379, 8265):
        with pytest.raises(ForbiddenUrl, match="port"):
            EgressPolicy().check(f"https://example.com:{port}/")
        assert EgressPolicy.of(["example.com"]).check(f"https://example.com:{port}/").port == port
        policy = EgressPolicy.of(["10.0.0.0/8"])
        target = policy.check(f"https://example.com:{port}/")  # its address is not known yet
        with pytest.raises(ForbiddenUrl, match="port"):
            policy.judge(target, [ip_address("93.184.216.34")])
        policy.judge(target, [ip_address("10.1.2.3")])


def test_behind_a_proxy_an_allowed_network_opens_no_port_of_a_name() -> None:
    policy = EgressPolicy.of(["10.0.0.0/8", "named.example"], "http://10.0.0.1:3128")
    with pytest.raises(ForbiddenUrl, match="port"):
        policy.check("http://other.example:22/")
    assert policy.check("http://named.example:22/").port == 22
    assert policy.check("http://10.2.3.4:22/").port == 22


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "http://x", "a b", "", "127.1/40", "*.x"])
def test_a_setting_that_is_neither_network_nor_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="is no network"):
        EgressPolicy.of([entry])


def test_a_name_that_resolves_differently_the_second_time_changes_nothing(
    canary: Canary, server: OddServer
) -> None:
    """Rebinding: what was judged is what is connected to, and the name is asked once."""
    asked: list[str] = []

    def rebinding(host: str, _port: int) -> list[Address]:
        asked.append(host)
        return [ip_address("127.0.0.2" if len(asked) == 1 else "127.0.0.1")]

    policy = EgressPolicy.of(["127.0.0.2"])  # stands for the public one
    outgoing = Outgoing(url=f"http://rebind.test:{canary.port}/", total_seconds=5)
    with pytest.raises(EgressFailed), exchange(policy, outgoing, rebinding):
        pass
    assert (asked, canary.seen) == (["rebind.test"], 0)
    with pytest.raises(ForbiddenUrl), exchange(policy, outgoing, rebinding):
        pass
    assert canary.seen == 0


def test_the_name_is_sent_to_the_pinned_address(server: OddServer) -> None:
    policy = EgressPolicy.of(["127.0.0.1"])
    assert get(f"http://name.test:{server.port}/ok?a=b", policy) == b"ok"
    assert server.heads[0].startswith(b"GET /ok?a=b HTTP/1.1\r\n")
    assert f"Host: name.test:{server.port}".encode() in server.heads[0]


@pytest.mark.parametrize(
    "place",
    [
        "http://127.0.0.1:{canary}/",
        "http://metadata.test/latest/",
        "http://169.254.169.254/",
        "//127.0.0.1:{canary}/",
        "http://127.1:{canary}/",
        "http://u:p@127.0.0.1:{canary}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{canary}/",
    ],
)
def test_redirect_to_a_private_address_is_not_followed(
    place: str, canary: Canary, server: OddServer
) -> None:
    """The first host is allowed by name, where it leads is not."""
    policy = EgressPolicy.of(["hooks.test"])
    url = f"http://hooks.test:{server.port}/to/{place.replace('{canary}', str(canary.port))}"
    with pytest.raises(ForbiddenUrl):
        get(url, policy, may_follow=lambda _url: True)
    assert canary.seen == 0
    assert len(server.heads) == 1


def test_redirects_end_and_hand_no_credentials_on(server: OddServer) -> None:
    policy = EgressPolicy.of(["a.test", "b.test"])
    start, other = f"http://a.test:{server.port}", f"http://b.test:{server.port}"
    secret = {"Authorization": "Basic c2VjcmV0"}
    follow = {"headers": secret, "may_follow": lambda _url: True}
    assert get(f"{start}/to/{start}/to/{other}/ok", policy, **follow) == b"ok"
    assert [b"Authorization" in head for head in server.heads] == [True, True, False]
    server.heads.clear()
    with pytest.raises(EgressFailed, match="more than 5 redirects"):
        get(f"{start}{'/to/' * 9}/ok", policy, **follow)
    assert len(server.heads) == 6
    with pytest.raises(EgressFailed, match="not allowed"):
        get(f"{start}/to/{other}/ok", policy, may_follow=lambda _url: False)
    with exchange(
        policy, Outgoing(url=f"{start}/to/{other}/ok", total_seconds=5), resolve_here
    ) as a:
        assert a.status == 302  # the caller did not ask for more


@pytest.mark.parametrize("path", ["/drip", "/drip-head", "/silent"])
def test_slow_answers_end_with_the_time(path: str, server: OddServer) -> None:
    started = time.monotonic()
    with pytest.raises(EgressFailed):
        get(
            f"http://127.0.0.1:{server.port}{path}",
            EgressPolicy.of(["127.0.0.1"]),
            total_seconds=0.5,
        )
    assert time.monotonic() - started < 4  # the servers drip for 20 seconds


def test_endless_answers_cost_what_was_asked_for(server: OddServer) -> None:
    policy = EgressPolicy.of(["127.0.0.1"])
    assert get(f"http://127.0.0.1:{server.port}/endless", policy) == b"x" * 100
    with pytest.raises(EgressFailed):
        get(f"http://127.0.0.1:{server.port}/heads", policy)


def test_refused_and_silent_are_told_as_the_same_kind(server: OddServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    kinds = set()
    for url in (f"http://127.0.0.1:{closed}/", f"http://127.0.0.1:{server.port}/silent"):
        with pytest.raises(EgressFailed) as raised:
            get(url, EgressPolicy.of(["127.0.0.1"]), total_seconds=0.3)
        kinds.add(raised.value.kind)
    assert kinds == {"no-answer"}


_ALLOWED = {
    "models_cache/egress.py": {"httpcore2"},
    # To our own inference process:
    "service/http_connections.py": {"asyncio.open_connection", "asyncio.open_unix_connection"},
    # To the collector of spans that the operator names:
    "models_cache/tracing.py": {"opentelemetry.exporter.otlp.proto.http.trace_exporter"},
    # To the service, from its users' side:
    "service/connection.py": {"httpx2"},
    "service/client.py": {"httpx2"},
    "service/cli/commands.py": {"httpx2"},
}
_CLIENTS = {
    "httpx2",
    "httpx",
    "httpcore2",
    "httpcore",
    "requests",
    "urllib3",
    "urllib.request",
    "http.client",
    "aiohttp",
    "ftplib",
    "smtplib",
    "xmlrpc.client",
    "obstore",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "torch.hub",
    "torchvision.datasets.utils",
}
_CALLS = {"create_connection", "open_connection", "open_unix_connection", "sock_connect"}


def _ways_out(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name in _CLIENTS or _top(a.name) in _CLIENTS}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
            found |= {name for name in names if name in _CLIENTS or _top(name) in _CLIENTS}
        elif isinstance(node, ast.Attribute) and node.attr in _CALLS:
            base = node.value.id if isinstance(node.value, ast.Name) else "?"
            found.add(f"{base}.{node.attr}")
        elif isinstance(node, ast.Attribute) and node.attr == "connect":
            base = node.value.id if isinstance(node.value, ast.Name) else "?"
            if base not in {"sqlite_library", "?"}:
                found.add(f"{base}.connect")
    return found


def _top(name: str) -> str:
    return name.partition(".")[0]


def test_no_other_module_makes_requests() -> None:
    seen: dict[str, set[str]] = {}
    for package in ("models_cache", "jobs", "service"):
        for path in (_REPOSITORY / package).rglob("*.py"):
            ways = _ways_out(ast.parse(path.read_text()))
            if ways:
                seen[str(path.relative_to(_REPOSITORY))] = ways
    assert seen == _ALLOWED
