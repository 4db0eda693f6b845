"""The weights vault against real files, a real server, killed processes and a full disk."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from models_cache import faults
from models_cache.catalogue import BackboneInfo, Catalogue, WeightsInfo
from models_cache.egress_policy import EgressPolicy
from models_cache.errors import GraftError, InsufficientStorage
from models_cache.preprocessing import Preprocessing
from models_cache.weights import WeightsVault, obtain
from models_cache.weights_bundle import (
    export_bundle,
    import_bundle,
    list_weights,
    verify_weights,
)
from models_cache.weights_errors import (
    BundleInvalid,
    CatalogueInvalid,
    WeightsHashMismatch,
    WeightsUnavailable,
    WeightsUnverifiable,
)
from tests.integration.weights_server import Offer, WeightsServer, weights_server

REPOSITORY = Path(__file__).resolve().parents[2]
BODY = b"PK\x03\x04" + hashlib.shake_128(b"one").digest(400_000)
OTHER_BODY = b"PK\x03\x04" + hashlib.shake_128(b"two").digest(400_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
LOOPBACK = EgressPolicy.of(["127.0.0.1"])  # where this file's official host is
OFFICIAL_FILE = f"tinynet-{SHA256[:8]}.pth"


@pytest.fixture
def server() -> Iterator[WeightsServer]:
    with weights_server() as running:
        yield running


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    faults.arm("", Path())


def official(server: WeightsServer, file: str = OFFICIAL_FILE) -> WeightsInfo:
    """Weights as torchvision names them: an address, and the beginning of the hash."""
    return WeightsInfo(
        architecture="tinynet",
        name="IMAGENET1K_V1",
        file=file,
        url=server.url + file,
        sha256_prefix=file.removesuffix(".pth").rpartition("-")[2],
        preprocessing=Preprocessing(),
        license="BSD-3-Clause",
        source="test",
        size_bytes=len(BODY),
    )


def own(folder: Path | None = None, body: bytes = BODY, file: str = "own.pth") -> WeightsInfo:
    """Weights as a catalogue file names them: with a full hash."""
    return WeightsInfo(
        architecture="tinynet",
        name="OWN",
        file=file,
        sha256=hashlib.sha256(body).hexdigest(),
        preprocessing=Preprocessing(),
        license="MIT",
        source="test",
        origin="catalogue",
        catalogue_folder=folder,
    )


def catalogue_of(*weights: WeightsInfo) -> Catalogue:
    return Catalogue(
        [BackboneInfo("tinynet", "tiny", 8, 100, 1000, 32, False, weights[0].name, tuple(weights))]
    )


def vault_of(tmp_path: Path, server: WeightsServer | None, *sources: str) -> WeightsVault:
    prefix = server.url if server else "https://no.official.host.invalid/"
    return WeightsVault(tmp_path / "weights", sources, official_url_prefix=prefix, egress=LOOPBACK)


def files_in(root: Path) -> list[str]:
    """Every file of the vault that could be taken for weights, finished or not."""
    return sorted(
        str(p.relative_to(root))
        for p in root.rglob("*")
        if p.is_file() and ".locks" not in p.parts and p.name != "learned.json"
    )


def test_file_beside_its_catalogue_enters_the_vault_checked(tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    folder.mkdir()
    (folder / "own.pth").write_bytes(BODY)
    vault = vault_of(tmp_path, None)
    info = own(folder)
    assert not vault.have(info)
    seen: list[tuple[int, int | None]] = []
    path = vault.ensure(info, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == BODY
    assert path == tmp_path / "weights" / "own.pth"
    assert vault.have(info)
    assert vault.verified(info) == "full"
    assert seen[-1][0] == len(BODY)
    assert files_in(tmp_path / "weights") == ["own.pth"]


def test_official_download_teaches_the_full_hash_and_enforces_it(
    tmp_path: Path, server: WeightsServer
) -> None:
    server.offers[OFFICIAL_FILE] = Offer(BODY)
    vault, info = vault_of(tmp_path, server), official(server)
    assert vault.verified(info) == "prefix"
    path = vault.ensure(info)
    assert vault.verified(info) == "full"
    assert vault.sha256_of(info) == SHA256
    path.unlink()
    server.offers[OFFICIAL_FILE] = Offer(OTHER_BODY)
    with pytest.raises(WeightsHashMismatch) as raised:
        vault_of(tmp_path, server).ensure(info)
    assert raised.value.expected == SHA256
    assert files_in(tmp_path / "weights") == []


def test_official_file_that_contradicts_its_name_is_not_kept(
    tmp_path: Path, server: WeightsServer
) -> None:
    server.offers[OFFICIAL_FILE] = Offer(OTHER_BODY)
    vault, info = vault_of(tmp_path, server), official(server)
    with pytest.raises(WeightsHashMismatch):
        vault.ensure(info)
    assert files_in(tmp_path / "weights") == []
    assert vault.sha256_of(info) is None


def test_address_off_the_official_host_is_not_asked(tmp_path: Path, server: WeightsServer) -> None:
    server.offers[OFFICIAL_FILE] = Offer(BODY)
    with pytest.raises(WeightsUnavailable, match="is not on https://"):
        vault_of(tmp_path, None).ensure(official(server))
    assert server.requests == []


def test_official_file_from_mirror_or_folder_needs_a_learned_hash(
    tmp_path: Path, server: WeightsServer
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / OFFICIAL_FILE).write_bytes(BODY)
    info = official(server)
    with pytest.raises(WeightsUnverifiable):
        WeightsVault(
            tmp_path / "weights",
            [str(folder), server.url + "mirror"],
            offline=True,
            official_url_prefix=server.url,
        ).ensure(info)
    assert server.requests == []  # nothing that a mirror says without a hash would be believed
    server.offers[OFFICIAL_FILE] = Offer(BODY)
    vault_of(tmp_path, server).ensure(info).unlink()
    asked = len(server.requests)
    vault = vault_of(tmp_path, server, str(folder))
    assert vault.ensure(info).read_bytes() == BODY
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("offer", "reason"),
    [
        (None, "HTTP 404"),
        (Offer(status=500), "HTTP 500"),
        (Offer(b"<html>log in</html>" * 9, content_type="text/html; charset=utf-8"), "web page"),
        (Offer(b"<html>log in</html>" * 9), "no weights file"),
        (Offer(BODY, cuts=[1000] * 9, ranges="ignore"), "of 400004 bytes"),
        (Offer(OTHER_BODY), "its sha256 is"),
        (Offer(status=302, location="http://127.0.0.1:1/own.pth"), "redirects to"),
        (Offer(status=302, location="own.pth"), "redirects"),
    ],
    ids=["404", "500", "web page", "html bytes", "truncated", "bad hash", "elsewhere", "loop"],
)
def test_bad_mirror_is_named_and_the_next_source_is_used(
    offer: Offer | None, reason: str, tmp_path: Path, server: WeightsServer
) -> None:
    if offer is not None:
        server.offers["mirror/own.pth"] = offer
        if offer.location == "own.pth":
            offer.location = f"{server.url}mirror/own.pth"
    mirror, info = server.url + "mirror", own()
    with pytest.raises(WeightsUnavailable) as raised:
        # A dead mirror beside it, so that no kind of failure stands alone.
        vault_of(tmp_path, server, mirror, "http://127.0.0.1:1/dead").ensure(info)
    assert reason in str(raised.value)
    assert "http://127.0.0.1:1/dead" in str(raised.value)
    assert not vault_of(tmp_path, server).have(info)

    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "own.pth").write_bytes(BODY)
    path = vault_of(tmp_path, server, mirror, str(folder)).ensure(info)
    assert path.read_bytes() == BODY
    assert files_in(tmp_path / "weights") == ["own.pth"]


def test_bad_hash_alone_is_its_own_error(tmp_path: Path, server: WeightsServer) -> None:
    server.offers["own.pth"] = Offer(OTHER_BODY)
    vault = vault_of(tmp_path, server, str(tmp_path / "empty"), server.url)
    with pytest.raises(WeightsHashMismatch) as raised:
        vault.ensure(own())
    assert raised.value.expected == SHA256
    assert files_in(tmp_path / "weights") == []


def test_password_in_a_mirror_address_is_not_shown(tmp_path: Path, server: WeightsServer) -> None:
    mirror = server.url.replace("http://", "http://someone:secret@")
    with pytest.raises(WeightsUnavailable) as raised:
        vault_of(tmp_path, server, mirror).ensure(own())
    assert "secret" not in str(raised.value)
    assert "HTTP 404" in str(raised.value)


def test_interrupted_download_goes_on_where_it_ended(tmp_path: Path, server: WeightsServer) -> None:
    server.offers[OFFICIAL_FILE] = Offer(BODY, cuts=[150_000, 100_000])
    path = vault_of(tmp_path, server).ensure(official(server))
    assert path.read_bytes() == BODY
    assert [bool(r.range) for r in server.requests] == [False, True, True]
    assert {r.if_range for r in server.requests[1:]} == {'"one"'}


def leave_partial(tmp_path: Path, server: WeightsServer, info: WeightsInfo) -> None:
    """Let a download end in the middle and stay there."""
    name = info.file
    server.offers[name] = Offer(BODY, cuts=[150_000, 0])
    with pytest.raises(WeightsUnavailable):
        vault_of(tmp_path, server, server.url).ensure(info)
    server.requests.clear()


@pytest.mark.parametrize(
    ("body", "etag", "ranges", "answers"),
    [
        (BODY, '"one"', "honour", 1),
        (OTHER_BODY, '"two"', "honour", 1),
        (OTHER_BODY, "two", "ignore", 1),
        (OTHER_BODY, None, "ignore", 1),
        (OTHER_BODY, '"one"', "refuse", 2),
        (OTHER_BODY, '"one"', "honour", 2),  # the server lies: only the hash finds it
    ],
    ids=["unchanged", "changed", "weak", "no ranges", "416", "changed unsaid"],
)
def test_next_call_resumes_or_starts_again_as_the_server_allows(
    body: bytes, etag: str | None, ranges: str, answers: int, tmp_path: Path, server: WeightsServer
) -> None:
    leave_partial(tmp_path, server, own())
    info = own(body=body)
    server.offers[info.file] = Offer(body, etag=etag, ranges=ranges)
    path = vault_of(tmp_path, server, server.url).ensure(info)
    assert path.read_bytes() == body
    first = server.requests[0]
    assert first.range is not None
    assert first.range > "bytes=0-"
    assert first.if_range == '"one"'
    assert len(server.requests) == answers
    assert files_in(tmp_path / "weights") == ["own.pth"]


def test_download_without_validator_starts_from_zero(tmp_path: Path, server: WeightsServer) -> None:
    server.offers["own.pth"] = Offer(BODY, etag=None, cuts=[150_000])
    path = vault_of(tmp_path, server, server.url).ensure(own())
    assert path.read_bytes() == BODY
    assert [r.range for r in server.requests] == [None, None]


def test_damaged_part_costs_a_second_download_not_an_error(
    tmp_path: Path, server: WeightsServer
) -> None:
    info = own()
    leave_partial(tmp_path, server, info)
    (part,) = [p for p in (tmp_path / "weights" / ".partial").iterdir() if p.suffix != ".json"]
    part.write_bytes(bytes(part.stat().st_size))
    path = vault_of(tmp_path, server, server.url).ensure(info)
    assert path.read_bytes() == BODY
    assert [bool(r.range) for r in server.requests] == [True, False]


def test_official_redirect_stays_on_the_official_host(
    tmp_path: Path, server: WeightsServer
) -> None:
    with weights_server() as elsewhere:
        elsewhere.offers[OFFICIAL_FILE] = Offer(BODY)
        away = Offer(status=302, location=elsewhere.url + OFFICIAL_FILE)
        server.offers[OFFICIAL_FILE] = away
        vault, info = vault_of(tmp_path, server), official(server)
        with pytest.raises(WeightsUnavailable, match="redirects to"):
            vault.ensure(info)
        assert elsewhere.requests == []
    server.offers[OFFICIAL_FILE] = Offer(status=301, location=f"{server.url}moved.pth")
    server.offers["moved.pth"] = Offer(BODY)
    assert vault.ensure(info).read_bytes() == BODY


def test_file_larger_than_the_catalogue_says_is_refused(
    tmp_path: Path, server: WeightsServer
) -> None:
    server.offers[OFFICIAL_FILE] = Offer(BODY + bytes(2 << 20))
    with pytest.raises(WeightsUnavailable, match="at most"):
        vault_of(tmp_path, server).ensure(official(server))
    assert files_in(tmp_path / "weights") == []


def test_full_disk_is_said_and_nothing_is_left(tmp_path: Path, server: WeightsServer) -> None:
    server.offers[OFFICIAL_FILE] = Offer(BODY)
    vault, info = vault_of(tmp_path, server), official(server)
    faults.arm("weights.chunk=enospc", tmp_path / "faults")
    with pytest.raises(InsufficientStorage):
        vault.ensure(info)
    assert files_in(tmp_path / "weights") == []
    assert vault.ensure(info).read_bytes() == BODY


def test_full_disk_while_copying_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "own.pth").write_bytes(BODY)
    vault = vault_of(tmp_path, None, str(folder))
    faults.arm("weights.chunk=enospc", tmp_path / "faults")
    with pytest.raises(InsufficientStorage):
        vault.ensure(own())
    assert files_in(tmp_path / "weights") == []
    assert vault.ensure(own()).read_bytes() == BODY


def test_report_may_end_a_download_which_is_then_resumed(
    tmp_path: Path, server: WeightsServer
) -> None:
    server.offers[OFFICIAL_FILE] = Offer(BODY)
    vault, info = vault_of(tmp_path, server), official(server)

    def cancel(done: int, total: int | None) -> None:
        assert total == len(BODY)
        if done > 200_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vault.ensure(info, cancel)
    assert vault.ensure(info).read_bytes() == BODY
    assert server.requests[1].range is not None


def start_client(tmp_path: Path, server: WeightsServer, fault: str = "") -> subprocess.Popen[bytes]:
    spec = {
        "root": str(tmp_path / "weights"),
        "official": server.url,
        "info": official(server).as_json(),
        "faults": fault,
        "faults_folder": str(tmp_path / "faults"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.vault_client", json.dumps(spec)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "point",
    [
        "weights.record.before_rename",
        "weights.chunk",
        "weights.learned.before_rename",
        "weights.before_rename",
        "weights.after_rename",
    ],
)
def test_process_killed_anywhere_leaves_only_verified_files_and_the_next_one_succeeds(
    point: str, tmp_path: Path, server: WeightsServer
) -> None:
    server.offers[OFFICIAL_FILE] = Offer(BODY)
    killed = start_client(tmp_path, server, f"{point}=kill")
    killed.communicate(timeout=30)
    assert killed.returncode == -signal.SIGKILL
    published = [p.name for p in (tmp_path / "weights").glob("*.pth")]
    assert published == ([OFFICIAL_FILE] if point == "weights.after_rename" else [])
    vault, info = vault_of(tmp_path, server), official(server)
    assert vault.ensure(info).read_bytes() == BODY
    assert vault.verified(info) == "full"
    left = [p for p in files_in(tmp_path / "weights") if not p.endswith(".tmp")]
    assert OFFICIAL_FILE in left


def test_two_processes_share_one_download(tmp_path: Path, server: WeightsServer) -> None:
    release = threading.Event()
    server.offers[OFFICIAL_FILE] = Offer(BODY, hold=release)
    clients = [start_client(tmp_path, server) for _ in range(2)]
    lock = tmp_path / "weights" / ".locks" / f"{OFFICIAL_FILE}.lock"
    deadline = time.monotonic() + 30
    while sum(_has_open(client.pid, lock) for client in clients) < 2 or not server.requests:
        assert time.monotonic() < deadline, "the two processes did not meet"
        time.sleep(0.005)
    release.set()
    for client in clients:
        _, errors = client.communicate(timeout=30)
        assert client.returncode == 0, errors.decode()
    assert len(server.requests) == 1
    assert files_in(tmp_path / "weights") == [OFFICIAL_FILE]


def _has_open(pid: int, path: Path) -> bool:
    try:
        links = [fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return path in links


def test_bit_rot_is_found_before_a_load_and_repaired(tmp_path: Path, server: WeightsServer) -> None:
    server.offers[OFFICIAL_FILE] = Offer(BODY)
    vault, info = vault_of(tmp_path, server), official(server)
    path = vault.ensure(info)
    assert vault.path_if_sha256(info.file, SHA256) == path
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"rot")
    assert vault.path_if_verified(info) is None
    assert vault.path_if_sha256(info.file, SHA256) is None
    assert not vault.have(info)
    assert verify_weights(vault, catalogue_of(info)) == [(info, False)]
    assert vault.ensure(info).read_bytes() == BODY
    assert verify_weights(vault, catalogue_of(info)) == [(info, True)]


def test_offline_opens_no_connection_and_uses_what_is_there(
    tmp_path: Path, server: WeightsServer
) -> None:
    server.offers[OFFICIAL_FILE] = server.offers["own.pth"] = Offer(BODY)
    vault = WeightsVault(
        tmp_path / "weights", [server.url], offline=True, official_url_prefix=server.url
    )
    with pytest.raises(WeightsUnavailable, match="offline"):
        vault.ensure(own())
    with pytest.raises(GraftError):
        vault.ensure(official(server))
    assert server.requests == []
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "own.pth").write_bytes(BODY)
    seeded = WeightsVault(tmp_path / "weights", [str(folder)], offline=True)
    assert seeded.ensure(own()).read_bytes() == BODY
    assert vault.ensure(own()).read_bytes() == BODY


def test_default_falls_to_the_catalogue_entry_and_says_so(
    tmp_path: Path, server: WeightsServer
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "own.pth").write_bytes(BODY)
    default, entry = official(server), own(folder)
    catalogue = catalogue_of(default, entry)
    vault = vault_of(tmp_path, server)
    warnings: list[str] = []
    candidates = catalogue.candidates("tinynet", have=vault.have)
    assert obtain(vault, candidates, lambda _d, _t: None, warnings.append)[0] == entry
    assert len(warnings) == 1
    assert "HTTP 404" in warnings[0]
    server.offers[OFFICIAL_FILE] = Offer(BODY)
    chosen, path = obtain(vault, candidates, lambda _d, _t: None, warnings.append)
    assert (chosen, path.name, len(warnings)) == (default, OFFICIAL_FILE, 1)
    assert catalogue.candidates("tinynet", have=vault.have) == (default,)


def test_unreachable_official_host_costs_no_waiting(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "own.pth").write_bytes(BODY)
    vault = WeightsVault(
        tmp_path / "weights",
        official_url_prefix="http://127.0.0.1:1/",
        egress=LOOPBACK,
        connect_timeout_seconds=0.5,
    )
    with weights_server() as closed:
        default = official(closed)
    candidates = [default, own(folder)]
    started = time.monotonic()
    info, _ = obtain(vault, candidates, lambda _d, _t: None, lambda _message: None)
    assert info.name == "OWN"
    assert time.monotonic() - started < 5


def test_damaged_record_of_learned_hashes_is_an_error_not_an_amnesty(
    tmp_path: Path, server: WeightsServer
) -> None:
    server.offers[OFFICIAL_FILE] = Offer(BODY)
    vault, info = vault_of(tmp_path, server), official(server)
    vault.ensure(info)
    (tmp_path / "weights" / "learned.json").write_bytes(b'{"x": {}}')
    with pytest.raises(CatalogueInvalid, match="damaged"):
        vault.path_if_verified(info)


def test_bundle_carries_verified_weights_to_a_machine_without_network(
    tmp_path: Path, server: WeightsServer
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "own.pth").write_bytes(OTHER_BODY)
    server.offers[OFFICIAL_FILE] = Offer(BODY)
    weights = [official(server), own(folder, OTHER_BODY)]
    catalogue, vault = catalogue_of(*weights), vault_of(tmp_path, server)
    bundle = tmp_path / "bundle.zip"
    with pytest.raises(WeightsUnavailable):
        export_bundle(vault, weights, bundle)
    assert not bundle.exists()
    for info in weights:
        vault.ensure(info)
    export_bundle(vault, weights, bundle)

    far = WeightsVault(tmp_path / "far", offline=True)
    assert import_bundle(far, catalogue, bundle) == weights
    assert [(s.downloaded, s.verified) for s in list_weights(far, catalogue)] == [
        (True, "full"),
        (True, "full"),
    ]
    assert far.ensure(weights[0]).read_bytes() == BODY
    assert files_in(tmp_path / "far") == sorted([OFFICIAL_FILE, "own.pth"])


def _bundle(path: Path, body: bytes, **item: object) -> Path:
    index = {"format": 1, "weights": [item]}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("index.json", json.dumps(index))
        out.writestr(str(item["file"]), body)
    return path


def test_tampered_bundle_is_refused(tmp_path: Path, server: WeightsServer) -> None:
    info = official(server)
    catalogue, vault = catalogue_of(info), WeightsVault(tmp_path / "far", offline=True)
    good = {"file": OFFICIAL_FILE, "sha256": SHA256, "size_bytes": len(BODY)}
    other = hashlib.sha256(OTHER_BODY).hexdigest()
    for number, (body, item, error) in enumerate(
        [
            (OTHER_BODY, good, WeightsHashMismatch),
            (OTHER_BODY, good | {"sha256": other}, WeightsHashMismatch),  # not the official name
            (BODY + bytes(1 << 20), good, WeightsHashMismatch),
            (BODY, good | {"file": "../../evil.pth"}, BundleInvalid),
            (BODY, good | {"file": "unheard.pth"}, BundleInvalid),
            (BODY, good | {"size_bytes": -1}, BundleInvalid),
            (BODY, good | {"sha256": "short"}, BundleInvalid),
        ]
    ):
        bundle = _bundle(tmp_path / f"{number}.zip", body, **item)
        with pytest.raises(error):
            import_bundle(vault, catalogue, bundle)
        assert files_in(tmp_path / "far") == []
        assert vault.sha256_of(info) is None
    (tmp_path / "no.zip").write_bytes(BODY)
    for path in (tmp_path / "no.zip", tmp_path / "absent.zip"):
        with pytest.raises(BundleInvalid):
            import_bundle(vault, catalogue, path)


@pytest.mark.shared
def test_shared_weights_come_in_through_their_catalogue(shared: Path, tmp_path: Path) -> None:
    catalogue = Catalogue.load(extra_files=[shared / "weights" / "catalog.json"])
    vault = WeightsVault(tmp_path / "weights", offline=True)
    for architecture in ("mobilenet_v2", "squeezenet1_1"):
        warnings: list[str] = []
        candidates = catalogue.candidates(architecture, have=vault.have)
        info, path = obtain(vault, candidates, lambda _d, _t: None, warnings.append)
        assert (info.name, info.has_head) == ("IMAGENET1K_PORT", False)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == info.sha256
        assert "offline" in warnings[0]
