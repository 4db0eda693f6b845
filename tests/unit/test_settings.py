"""Settings: documented, pinned for children, and no open doors by accident."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from jobs.keys import Limits
from service.settings import Settings, child_environment

_REPOSITORY = Path(__file__).resolve().parents[2]
_READS_ENVIRONMENT = re.compile(r"os\.environ|os\.getenv")
#: The supervisor's and the worker's composition roots hand their environment to children.
_MAY_READ = {
    "service/settings.py",
    "service/cli/processes.py",
    "jobs/datasets/array_hdf5.py",  # sets what the HDF5 library reads; reads nothing
    "models_cache/onnx_network.py",  # sets what ONNX Runtime reads; reads nothing
}


def test_every_setting_is_documented_with_its_default() -> None:
    text = (_REPOSITORY / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert f"`GRAFT_{name.upper()}`" in text, name
        if isinstance(field.default, int | float | str) and not isinstance(field.default, bool):
            row = next(line for line in text.splitlines() if f"`GRAFT_{name.upper()}`" in line)
            assert field.default == "" or f"{field.default}" in row.replace(",", ""), name


def test_requests_are_bounded_where_others_can_reach_the_service() -> None:
    assert Settings().key_limits == Limits()
    assert Settings(host="0.0.0.0").key_limits.requests_per_minute == 6000  # noqa: S104
    assert Settings(requests_per_minute=7).key_limits.requests_per_minute == 7


def test_lists_are_comma_separated_and_paths_absolute(tmp_path: Path) -> None:
    settings = Settings.model_validate({"weights_sources": "a, b,,c", "data_dir": "x"})
    assert settings.weights_sources == ("a", "b", "c")
    assert settings.data_dir.is_absolute()
    assert settings.resolved_database_url.startswith("sqlite:////")


def test_children_get_the_same_folder_whatever_their_own_says(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    environment = child_environment(settings)
    assert environment["GRAFT_DATA_DIR"] == str(tmp_path)
    assert environment["GRAFT_INFERENCE_URL"].startswith(f"unix://{tmp_path}")


def test_password_of_the_database_comes_from_a_file_and_goes_to_nobody(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("p@ss:w/rd%\nsecond line\n")
    url = "postgresql+psycopg://graft@host:5432/name?sslmode=require"
    settings = Settings(database_url=url, database_password_file=secret)
    address = make_url(settings.database_address)
    assert (address.username, address.password) == ("graft", "p@ss:w/rd%")
    assert (address.host, address.port, address.database) == ("host", 5432, "name")
    assert child_environment(settings)["GRAFT_DATABASE_URL"] == url
    assert "p@ss" not in str(settings)
    for wrong in (tmp_path / "absent", tmp_path / "empty"):
        (tmp_path / "empty").touch()
        with pytest.raises(ValidationError, match="cannot be read"):
            Settings(database_url=url, database_password_file=wrong)
    with pytest.raises(ValidationError, match="GRAFT_DATABASE_URL"):
        Settings(database_password_file=secret)


def test_address_of_a_collector_is_one(tmp_path: Path) -> None:
    assert Settings(traces_url="http://collector:4318").traces_url
    with pytest.raises(ValidationError, match="http://"):
        Settings(traces_url="collector:4318")


def test_children_count_gpus_as_the_driver_does_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    settings = Settings(data_dir=tmp_path)
    assert child_environment(settings)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert child_environment(settings)["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_trainings_at_once_are_as_many_as_the_gpus_that_they_use(tmp_path: Path) -> None:
    gpus = ("GPU-a", "GPU-b", "GPU-c")
    for device, usable in (
        ("auto", gpus), ("cpu", ()), ("cuda", gpus[:1]), ("cuda:2", gpus[2:]), ("cuda:7", ())
    ):  # fmt: skip
        settings = Settings(data_dir=tmp_path, device=device)
        machine = settings.machine("0", gpus)
        assert machine.usable_gpus == usable
        assert settings.worker_limits(len(usable)).train_slots == max(1, len(usable))
        given = [machine.gpu_at(place) for place in range(4)]
        assert given == ([usable[i % len(usable)] for i in range(4)] if usable else [None] * 4)


def test_only_the_settings_module_reads_the_environment() -> None:
    readers = {
        str(path.relative_to(_REPOSITORY))
        for package in ("service", "jobs", "models_cache")
        for path in (_REPOSITORY / package).rglob("*.py")
        if _READS_ENVIRONMENT.search(path.read_text())
    }
    assert readers <= _MAY_READ


def test_lost_worker_is_noticed_within_45_seconds(tmp_path: Path) -> None:
    """On its own host its lock says so at the next sweep; elsewhere its lease has to end."""
    limits = Settings(data_dir=tmp_path).worker_limits(gpus=0)
    assert limits.lease_seconds + limits.sweep_seconds <= 45.0
    # Three beats may be lost before a living worker is taken for a dead one.
    assert 3 * limits.heartbeat_seconds < limits.lease_seconds
