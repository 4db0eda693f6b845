"""What users can call or set is documented, and what is documented exists."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from jobs.recipes import RECIPES
from service.app import create_app
from service.settings import Settings
from service.version import VERSION

_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("data")))
    paths = app.openapi()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def test_every_call_is_documented_and_every_documented_call_exists(calls: set[str]) -> None:
    text = (_REPOSITORY / "docs" / "api.md").read_text()
    assert set(re.findall(r"^\| `([A-Z]+ /\S*)` \|", text, re.MULTILINE)) == calls


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_of_a_recipe_is_documented(name: str) -> None:
    text = (_REPOSITORY / "docs" / "recipes.md").read_text()
    section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert section, f"docs/recipes.md has no section {name}"
    for field in dataclasses.fields(RECIPES[name]):
        row = next((r for r in section.splitlines() if r.startswith(f"| `{field.name}` |")), "")
        assert f"| `{field.default}` |" in row, field.name


def test_version_is_the_changelogs_and_the_packages() -> None:
    changelog = (_REPOSITORY / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION
    assert f'version = "{VERSION}"' in (_REPOSITORY / "pyproject.toml").read_text()


def test_links_inside_the_documents_lead_somewhere() -> None:
    for document in (_REPOSITORY / "README.md", *(_REPOSITORY / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
