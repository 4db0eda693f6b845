"""Where outgoing requests may lead: addresses are read strictly, and IP addresses judged. Pure.

A URL that two programs could read differently is refused, not interpreted: user and password,
backslashes, control characters, numbers that are no plain IPv4 address (`127.1`, `0x7f000001`),
names that are not ASCII, a trailing dot. What a name resolves to is judged by the module that
connects (`models_cache.egress`), with the functions here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from models_cache.egress_errors import ForbiddenUrl

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Of hosts that no setting names; anything else at a public address is no web server of hooks.
PORTS = frozenset({80, 443, 8080, 8443})

_MAX_URL_CHARACTERS = 2048
_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)://([^/?]*)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")

_PRIVATE = "its address is private or reserved; an operator can allow it with GRAFT_EGRESS_ALLOW"
_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
_METADATA_NAMES = ("metadata", "metadata.google.internal", "instance-data")
_METADATA = IPv4Address("169.254.169.254")

#: IANA's registry of special addresses, written out: `ipaddress` calls some of them global.
_DENIED_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers; 100.100.100.200 is a cloud's metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's metadata at a public address
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_DENIED_V6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # Teredo, ORCHID, benchmarks: nobody is reached there
        "2001:db8::/32",
        "2002::/16",  # 6to4: holds an IPv4 address
        "3fff::/20",
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Target:
    """A URL in its parts, as read once.

    Args:
        scheme: `http` or `https`.
        host: A name in lower case, or an IP address without brackets.
        port: From the URL, or the scheme's own.
        path: Path and query; begins with a slash.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Scheme, host and port: fit to be shown, it holds no secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True)
class EgressPolicy:
    """Where requests may lead beside public addresses.

    Args:
        networks: Private or reserved ones that may be reached, on every port.
        hosts: Names or addresses that may be reached, wherever they lead, on every port.
        proxy: URL of a forward proxy that makes the connections and judges names, or empty.
    """

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    proxy: str = ""

    @classmethod
    def of(cls, allow: Sequence[str] = (), proxy: str = "") -> EgressPolicy:
        """Make a policy of settings: networks (`10.1.0.0/16`, `10.1.2.3`) and host names.

        Raises:
            ValueError: An entry is neither.
        """
        networks: list[Network] = []
        hosts: set[str] = set()
        for entry in allow:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                if not _is_name(entry.lower()):
                    raise ValueError(f"{entry!r} is no network and no host name") from None
                hosts.add(entry.lower())
        return cls(tuple(networks), frozenset(hosts), proxy)

    def as_json(self) -> dict[str, Any]:
        """Return the arguments of `of` that make this policy."""
        allow = [*map(str, self.networks), *sorted(self.hosts)]
        return {"allow": allow, "proxy": self.proxy}

    def allowing(self, url: str) -> EgressPolicy:
        """Return a policy that also allows the host of a URL that the operator configured."""
        return replace(self, hosts=self.hosts | {read_url(url).host})

    def check(self, url: str) -> Target:
        """Read a URL and judge what can be judged without asking for its name.

        Raises:
            ForbiddenUrl: It cannot be read in one way only, or leads where nothing may.
        """
        target = read_url(url)
        known = _addresses_known(target.host)
        if known:
            self.judge(target, known)
        elif self.proxy or not self.networks:  # else the port is judged with the addresses
            self._judge_port(target)
        return target

    def judge(self, target: Target, addresses: Iterable[Address]) -> None:
        """Judge every address that a host has.

        Raises:
            ForbiddenUrl: One of them, or the port, is not allowed.
        """
        others = [a for a in addresses if not any(_plain(a) in n for n in self.networks)]
        if target.host in self.hosts or not others:
            return
        if any(is_special(address) for address in others):
            raise ForbiddenUrl(target.origin, _PRIVATE)
        self._judge_port(target)

    def _judge_port(self, target: Target) -> None:
        if target.port not in PORTS and target.host not in self.hosts:
            known = ", ".join(map(str, sorted(PORTS)))
            reason = f"its port is none of {known}; an operator can allow the host with "
            raise ForbiddenUrl(target.origin, f"{reason}GRAFT_EGRESS_ALLOW")


PUBLIC_ONLY = EgressPolicy()


def read_url(url: str) -> Target:
    """Return the parts of an absolute http or https URL.

    Raises:
        ForbiddenUrl: It is anything else, or could be read in two ways.
    """
    if len(url) > _MAX_URL_CHARACTERS:
        raise _unreadable(f"it is longer than {_MAX_URL_CHARACTERS} characters")
    if not _PRINTABLE.fullmatch(url) or "\\" in url or "#" in url:
        raise _unreadable("it holds spaces, control characters, `\\`, `#` or letters beyond ASCII")
    match = _URL.fullmatch(url)
    if match is None:
        raise _unreadable("it does not begin with http:// or https:// and a host")
    scheme, authority, path, query = match.groups()
    if "@" in authority:
        raise _unreadable("it holds a user or password")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise _unreadable("its host or port is not written plainly")
    host = _address_text(parts[1]) if parts[1] else _name(parts[2])
    port = int(parts[3]) if parts[3] else _DEFAULT_PORTS[scheme.lower()]
    if not 0 < port < 65536:
        raise _unreadable("its port is none")
    return Target(scheme.lower(), host, port, f"{path or '/'}{query or ''}")


def is_special(address: Address) -> bool:
    """Tell whether an address is not one of the public internet.

    IPv4 addresses inside IPv6 ones (mapped, NAT64) are judged themselves; 6to4, Teredo and the
    other old forms are refused as they are.
    """
    plain = _plain(address)
    if isinstance(plain, IPv4Address):
        return any(plain in network for network in _DENIED_V4)
    return plain not in _GLOBAL_V6 or any(plain in network for network in _DENIED_V6)


def _plain(address: Address) -> Address:
    """Return the IPv4 address inside a mapped or NAT64 one, else the address without its zone."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    unscoped = IPv6Address(int(address))
    if unscoped in _NAT64:
        return IPv4Address(int(unscoped) & 0xFFFF_FFFF)
    return unscoped


def _addresses_known(host: str) -> list[Address]:
    """Return the addresses that a host has without being resolved; none for other names."""
    if host in _LOCAL_NAMES or host.endswith(".localhost"):
        return [IPv4Address("127.0.0.1")]
    if host in _METADATA_NAMES:
        return [_METADATA]
    try:
        return [ip_address(host)]
    except ValueError:
        return []


def _address_text(text: str) -> str:
    try:
        return str(IPv6Address(text))
    except ValueError:
        raise _unreadable("its address in brackets is no IPv6 address") from None


def _name(text: str) -> str:
    """Return a host name or IPv4 address in lower case."""
    host = text.lower()
    if _NUMBER.fullmatch(host.rpartition(".")[2]):  # every resolver would read a number here
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise _unreadable("its host is a number, but no plain IPv4 address") from None
    if not _is_name(host):
        raise _unreadable("its host is no name")
    return host


def _is_name(host: str) -> bool:
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in host.split("."))


def _unreadable(reason: str) -> ForbiddenUrl:
    return ForbiddenUrl("this URL", reason)
