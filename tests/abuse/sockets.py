"""F of the catalogue: HTTP itself, over sockets, since no client library would send it."""

from __future__ import annotations

from tests.abuse.case import Build, Call, Case, Outcome, Raw, refused
from tests.images import shape_bytes

HOST = b"Host: localhost\r\n"
CLOSE = HOST + b"Connection: close\r\n"
_MALFORMED = refused(400, "malformed-request")
_UPLOAD = b"POST /v1/datasets HTTP/1.1\r\n" + HOST
_CHUNKED = _UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n"
_MULTIPART = refused(400, "malformed-multipart")
_GET = b"GET /healthz HTTP/1.1\r\n"
_OK = Outcome(200, "ok")


def _raw(number: str, what: str, data: Build | bytes, outcome: Outcome = _MALFORMED) -> Case:
    build = (lambda: data) if isinstance(data, bytes) else data
    return Case(number, what, Raw((build,)), outcome)


def _slow(number: str, what: str, *parts: bytes) -> Case:
    """Return a case whose sender stops; the services of the corpus wait for 2 seconds."""
    builds = tuple((lambda part=part: part) for part in parts)
    return Case(number, what, Raw(builds, 0.5), refused(408, "request-timeout"), 8.0)


def _multipart(number: str, what: str, body: Build | bytes, kind: str = "b") -> Case:
    build = (lambda: body) if isinstance(body, bytes) else body
    headers = {
        "content-type": f"multipart/form-data; boundary={kind}" if kind else "multipart/form-data"
    }
    return Case(number, what, Call("POST", "/v1/datasets", build, headers), _MULTIPART)


def _part(name: str, data: bytes, more: str = "") -> bytes:
    return (
        f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
        + data
        + b"\r\n"
    )


def _from(number: str, what: str, status: int, code: str, **headers: str) -> Case:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Case(
        number,
        what,
        Call("POST", "/v1/jobs/job_absent/cancel", bytes, named),
        refused(status, code),
    )


_SLOW = (
    _slow("FH01-silent", "a connection that says nothing"),
    _slow("FH01-head", "half a head", b"GET /healthz HT"),
    _slow("FH01-bytes", "a byte now and then", *(bytes([byte]) for byte in b"GET / H")),
    _slow("FH01-headers", "headers without end", _GET + HOST, *([b"X: y\r\n"] * 5)),
    _slow("FH01-body", "half a body", _UPLOAD + b"Content-Length: 1000\r\n\r\nPK\3\4"),
    _slow("FH01-chunk", "half a chunk", _CHUNKED + b"1000\r\nPK\3\4"),
    _slow(
        "FH01-json",
        "half a JSON body",
        b"POST /v1/jobs HTTP/1.1\r\n"
        + HOST
        + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    ),
    _slow("FH03-bare", "bare line feeds", _CHUNKED.replace(b"\r\n", b"\n") + b"1\nx\n0\n\n"),
    _slow("FH13-redis", "Redis", b"*1\r\n$4\r\nPING\r\n"),
)

_LENGTHS = (
    _raw(
        "FH02-none",
        "an upload without a length",
        _UPLOAD + b"Connection: close\r\n\r\n",
        refused(415, "archive-type-unknown"),
    ),
    _raw("FH02-negative", "a negative length", _UPLOAD + b"Content-Length: -1\r\n\r\n"),
    _raw("FH02-text", "a length in words", _UPLOAD + b"Content-Length: ten\r\n\r\n"),
    _raw("FH02-plus", "a length with a sign", _UPLOAD + b"Content-Length: +4\r\n\r\nPK\3\4"),
    _raw(
        "FH02-two", "two lengths", _UPLOAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nPK\3\4"
    ),
    _raw(
        "FH02-huge",
        "a length of 5,000 digits",
        _UPLOAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    ),
    _raw(
        "FH02-2-70", "a length of 2^70", _UPLOAD + b"Content-Length: 1180591620717411303424\r\n\r\n"
    ),
    _raw(
        "FH02-3gib",
        "3 GiB declared",
        _UPLOAD + b"Connection: close\r\nContent-Length: 3221225472\r\n\r\nPK",
        refused(413, "payload-too-large"),
    ),
    _raw(
        "FH02-cl-te",
        "both lengths",
        _UPLOAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    _raw(
        "FH02-te-cl",
        "both lengths, the other way",
        _UPLOAD
        + b"Transfer-Encoding: chunked\r\nContent-Length: 30\r\n\r\n"
        + b"0\r\n\r\nGET /v1/jobs HTTP/1.1\r\n\r\n",
    ),
    _raw(
        "FH02-te-te",
        "two encodings",
        _UPLOAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    ),
    _raw(
        "FH02-te-odd",
        "an unknown encoding",
        _UPLOAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    _raw(
        "FH02-te-tab",
        "an encoding behind a tab",
        _UPLOAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    _raw(
        "FH02-te-space",
        "a blank before the colon",
        _UPLOAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    ),
    _raw(
        "FH02-te-10",
        "chunks in HTTP/1.0",
        b"POST /v1/datasets HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        refused(415, "archive-type-unknown"),
    ),
    _raw(
        "FH02-behind",
        "more than was declared",
        b"POST /v1/jobs HTTP/1.1\r\n"
        + CLOSE
        + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n"
        + b"{}GET /v1/jobs HTTP/1.1\r\n\r\n",
        refused(422, "validation-failed"),
    ),
)

_CHUNKS = (
    _raw(
        "FH03-million",
        "1,000,000 chunks of a byte",
        lambda: _CHUNKED + b"1\r\nx\r\n" * 1_000_000,
        refused(413, "payload-too-large"),
    ),
    _raw("FH03-size", "a size that is none", _CHUNKED + b"zz\r\nx\r\n0\r\n\r\n"),
    _raw("FH03-negative", "a negative size", _CHUNKED + b"-1\r\nx\r\n0\r\n\r\n"),
    _raw("FH03-digits", "a size of 40 digits", _CHUNKED + b"f" * 40 + b"\r\n"),
    _raw(
        "FH03-extension",
        "an extension of 1 MB",
        lambda: _CHUNKED + b"1;" + b"x" * 1_000_000 + b"\r\nx\r\n0\r\n\r\n",
    ),
    _raw(
        "FH03-trailer",
        "a trailer of 1 MB",
        lambda: _CHUNKED + b"4\r\nPK\3\4\r\n0\r\n" + b"X: y\r\n" * 170_000 + b"\r\n",
    ),
    _raw("FH03-end", "a chunk with a wrong end", _CHUNKED + b"1\r\nxyz\r\n0\r\n\r\n"),
)

_HEADS = (
    _raw(
        "FH04-100k",
        "a header of 100 KB",
        _GET + HOST + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        refused(431, "headers-too-large"),
    ),
    _raw(
        "FH04-20m",
        "a header of 20 MB",
        lambda: _GET + HOST + b"X: " + b"y" * 20_000_000 + b"\r\n\r\n",
        refused(431, "headers-too-large"),
    ),
    _raw(
        "FH04-count",
        "100,000 headers",
        lambda: _GET + HOST + b"X: y\r\n" * 100_000 + b"\r\n",
        refused(431, "headers-too-large"),
    ),
    _raw(
        "FH04-101",
        "101 headers",
        _GET + HOST + b"X: y\r\n" * 101 + b"\r\n",
        refused(431, "headers-too-large"),
    ),
    _raw("FH04-90", "90 headers", _GET + CLOSE + b"X: y\r\n" * 90 + b"\r\n", _OK),
    _raw(
        "FH04-url",
        "an address of 200 KB",
        lambda: b"GET /healthz?" + b"x" * 200_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        refused(414, "uri-too-long"),
    ),
    _raw(
        "FH04-url-9k",
        "an address of 9 KB",
        b"GET /healthz?" + b"x" * 9_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        refused(414, "uri-too-long"),
    ),
    _raw(
        "FH04-query",
        "1,000 parameters",
        b"GET /v1/jobs?"
        + b"&".join(b"a%d=1" % i for i in range(1000))
        + b" HTTP/1.1\r\n"
        + CLOSE
        + b"\r\n",
        _OK,
    ),
    _raw("FH04-nul", "NUL in a header", _GET + HOST + b"X: a\0b\r\n\r\n"),
    _raw("FH04-cr", "CR in a header", _GET + HOST + b"X: a\rb\r\n\r\n"),
    _raw("FH04-fold", "a folded header", _GET + CLOSE + b"X: a\r\n b\r\n\r\n", _OK),
    _raw("FH04-name", "a blank in a name", _GET + HOST + b"X Y: a\r\n\r\n"),
    _raw("FH04-colon", "no colon", _GET + HOST + b"nonsense\r\n\r\n"),
    _raw("FH04-bytes", "an address of raw bytes", b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n"),
    _raw("FH05-none", "no Host", _GET + b"\r\n"),
    _raw("FH05-two", "two Hosts", _GET + b"Host: a\r\nHost: b\r\n\r\n"),
    _raw(
        "FH05-10",
        "HTTP/1.0 without Host",
        b"GET /healthz HTTP/1.0\r\n\r\n",
        refused(403, "forbidden-origin"),
    ),
    _raw("FH13-none", "no HTTP", b"nonsense\r\n\r\n"),
    _raw("FH13-tls", "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50)),
    _raw("FH13-h2", "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    _raw("FH13-09", "HTTP/0.9", b"GET /\r\n\r\n"),
    _raw(
        "FH13-dots",
        "dots in an address",
        b"GET /v1/jobs/job_absent/files/.. HTTP/1.1\r\n" + CLOSE + b"\r\n",
        refused(404, "job-not-found"),
    ),
    _raw("FH13-3", "HTTP/3.0", b"GET / HTTP/3.0\r\n" + HOST + b"\r\n"),
    _raw("FH13-ssh", "SSH", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    _raw(
        "FH13-websocket",
        "a WebSocket",
        b"GET /healthz HTTP/1.1\r\n"
        + HOST
        + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n"
        + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGVzdA==\r\n\r\n",
        _OK,
    ),
    _raw(
        "FH13-connect",
        "CONNECT",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\nConnection: close\r\n\r\n",
        refused(403, "forbidden-origin"),
    ),
    _raw(
        "FH13-absolute",
        "a proxy's request",
        b"GET http://evil.example/ HTTP/1.1\r\n" + CLOSE + b"\r\n",
        refused(404, "not-found"),
    ),
    _raw(
        "FH13-asterisk",
        "OPTIONS *",
        b"OPTIONS * HTTP/1.1\r\n" + CLOSE + b"\r\n",
        refused(404, "not-found"),
    ),
    _raw(
        "FH13-expect",
        "100-continue of what is refused",
        b"POST /v1/jobs HTTP/1.1\r\n"
        + CLOSE
        + b"Content-Type: application/json\r\nExpect: 100-continue\r\n"
        + b"Content-Length: 9000000\r\n\r\n",
        refused(413, "payload-too-large"),
    ),
    _raw(
        "FH06-pipeline",
        "100 requests at once",
        (_GET + HOST + b"\r\n") * 99 + _GET + CLOSE + b"\r\n",
        _OK,
    ),
    _raw(
        "FH06-unread",
        "a refused body, then a request",
        b"POST /v1/jobs HTTP/1.1\r\n"
        + HOST
        + b"Content-Type: text/plain\r\nContent-Length: 60000\r\n\r\n"
        + b"x" * 60_000
        + _GET
        + CLOSE
        + b"\r\n",
        refused(415, "unsupported-media-type"),
    ),
)

_FORMS = (
    _multipart("FH10-none", "no boundary", b"x", ""),
    _multipart("FH10-long", "a boundary of 100 characters", b"x", "b" * 100),
    _multipart("FH10-nonsense", "nonsense", b"nonsense"),
    _multipart("FH10-bare", "a part without headers", b"--b\r\n\r\nbody\r\n--b--\r\n"),
    _multipart("FH10-other", "another field", _part("other", b"x") + b"--b--\r\n"),
    _multipart("FH10-cut", "cut off", _part("file", b"cut off")[:-4]),
    _multipart(
        "FH10-header",
        "a part header of 70 KB",
        lambda: b"--b\r\nX: " + b"y" * 70_000 + b"\r\n\r\nx\r\n--b--\r\n",
    ),
    _multipart("FH10-two", "two files", _part("file", b"PK") * 2 + b"--b--\r\n"),
    _multipart("FH10-fields", "2,000 fields", lambda: _part("x", b"1") * 2000 + b"--b--\r\n"),
    _multipart(
        "FH10-nested",
        "a form in a form",
        b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n"
        b"--c\r\n\r\nx\r\n--c--\r\n--b--\r\n",
    ),
    _multipart("FH10-end", "nothing but an end", b"--b--\r\n"),
    Case(
        "FH10-name",
        "a file called ../../x",
        Call(
            "POST",
            "/v1/datasets",
            lambda: _part("file", b"0123456789", '; filename="../../x.zip"') + b"--b--\r\n",
            {"content-type": "multipart/form-data; boundary=b"},
        ),
        refused(415, "archive-type-unknown"),
    ),
    Case(
        "FH10-encoded",
        "an encoded file name",
        Call(
            "POST",
            "/v1/datasets",
            lambda: (
                _part("file", shape_bytes("disc"), "; filename*=utf-8''%2e%2e%2fx") + b"--b--\r\n"
            ),
            {"content-type": "multipart/form-data; boundary=b"},
        ),
        refused(415, "archive-type-unknown"),
    ),
)

_ORIGINS = (
    _from("FH05-local", "a local name", 404, "job-not-found", Host="localhost:1"),
    _from("FH05-v6", "a local address", 404, "job-not-found", Host="[::1]:8000"),
    _from("FH05-evil", "a stranger's name", 403, "forbidden-origin", Host="evil.example"),
    _from(
        "FH05-suffix",
        "an address as a prefix",
        403,
        "forbidden-origin",
        Host="127.0.0.1.evil.example:80",
    ),
    _from(
        "FH09-evil", "a page of a stranger", 403, "forbidden-origin", Origin="http://evil.example"
    ),
    _from("FH09-null", "a page without origin", 403, "forbidden-origin", Origin="null"),
)

CASES = (*_SLOW, *_LENGTHS, *_CHUNKS, *_HEADS, *_FORMS, *_ORIGINS)
