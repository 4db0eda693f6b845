"""Dockerfile and compose files by the tools that judge them, and by what they promise.

No container engine is needed: images are not built here, see `tests/acceptance/test_compose.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker_files import (
    FOLDER,
    REPOSITORY,
    compose,
    compose_services,
    copied,
    is_sent_to_builder,
    stages,
)

IMAGES = ("api", "worker-cpu", "worker-cuda")


@pytest.fixture(scope="module")
def password_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secrets") / "database_password"
    path.write_text("secret\n")
    return path


def test_hadolint_finds_nothing() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_says_what_to_do_when_the_secret_is_missing() -> None:
    done = compose("-f", "compose.yaml", "config", "--quiet")
    assert done.returncode != 0
    assert "GRAFT_DATABASE_PASSWORD_FILE" in done.stderr
    assert "Run it on a server" in done.stderr


def test_every_service_is_confined_checked_and_given_time_to_end(password_file: Path) -> None:
    services = compose_services(password_file, "compose.yaml")
    assert set(services) == {"api", "inference", "worker", "postgres"}
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["healthcheck"]["test"], name
        assert service["stop_grace_period"], name
        assert "privileged" not in service, name
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"api"}
    assert published["api"][0]["host_ip"] == "127.0.0.1"
    for waiting, awaited in (("api", "postgres"), ("worker", "api")):
        assert services[waiting]["depends_on"][awaited]["condition"] == "service_healthy"
    assert services["postgres"]["user"] == "postgres"
    assert "secrets" not in services["inference"]
    text = (FOLDER / "compose.yaml").read_text()
    assert "ALLOW_ANONYMOUS" not in text
    assert "secret\n" not in text


def test_postgres_and_inference_reach_nothing_outside(password_file: Path) -> None:
    services = compose_services(password_file, "compose.yaml")
    for name in ("postgres", "inference"):
        assert list(services[name]["networks"]) == ["inside"], name
    assert "inside: { internal: true }" in (FOLDER / "compose.yaml").read_text()


def test_gpu_file_reserves_devices_for_what_computes(password_file: Path) -> None:
    services = compose_services(password_file, "compose.yaml", "compose.gpu.yaml")
    for name in ("inference", "worker"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert services[name]["build"]["target"] == "worker-cuda"
        assert services[name]["read_only"]
    assert "deploy" not in services["api"]


def test_each_service_builds_a_stage_that_exists(password_file: Path) -> None:
    for files in (("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")):
        services = compose_services(password_file, *files)
        for name in ("api", "inference", "worker"):
            build = services[name]["build"]
            assert Path(build["context"]) == REPOSITORY
            assert (REPOSITORY / build["dockerfile"]).is_file()
            assert build["target"] in IMAGES


@pytest.mark.parametrize("image", IMAGES)
def test_images_run_without_root_from_a_tag(image: str) -> None:
    found = stages()
    (user,) = found[image].all_of("USER")
    assert user.split(":")[0].isdecimal()
    assert int(user.split(":")[0]) > 0
    assert found[image].all_of("HEALTHCHECK")
    assert found[image].base == "runtime"
    assert found["runtime"].base == "${PYTHON_IMAGE}"
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+\.\d+-slim-", _dockerfile(), re.MULTILINE)
    sources = [rest.split()[0] for rest in found[image].all_of("COPY")]
    assert all(source.startswith("--from=") for source in sources), "built elsewhere"
    assert "--from=torch-" not in "".join(sources) or image.startswith("worker-")


def test_all_that_is_installed_is_locked() -> None:
    installs = re.findall(r"pip (?:--python \S+ )?install\s[^\n&]*", _dockerfile())
    locked = [line for line in installs if "--require-hashes -r requirements/" in line]
    own = [line for line in installs if "--no-deps --no-index" in line and "/wheels/" in line]
    (processors,) = [
        line for line in installs if "torch-cpu.txt" in line
    ]  # its index has no hashes
    assert len(locked) == 3
    assert sorted(installs) == sorted([*locked, *own, processors])
    pins = re.compile(r"^(torch(?:vision)?==\S+)", re.MULTILINE)
    requirements = REPOSITORY / "requirements"
    cpu = pins.findall((requirements / "torch-cpu.txt").read_text())
    assert len(cpu) == 2
    for name in ("torch-cuda.in", "torch-cuda.lock"):
        assert pins.findall((requirements / name).read_text()) == cpu


def test_everything_that_is_copied_exists_and_is_sent_to_the_builder() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    tracked = set(listed.stdout.splitlines())
    sources = [name for stage in stages().values() for names, _ in copied(stage) for name in names]
    assert len(sources) > 8
    for source in sources:
        files = {name for name in tracked if name == source or name.startswith(f"{source}/")}
        assert files, source
        assert not [name for name in files if not is_sent_to_builder(name)]


@pytest.mark.parametrize("path", ["docker/secrets/x", ".env", "tests/conftest.py", ".git/HEAD"])
def test_secrets_and_what_no_image_needs_stay_here(path: str) -> None:
    assert not is_sent_to_builder(path)
    assert not is_sent_to_builder("service/__pycache__/app.cpython-312.pyc")


def _dockerfile() -> str:
    return (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
