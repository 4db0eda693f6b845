"""Job files are read strictly: what is wrong is told with its line, before anything is sent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.recipes import RECIPES
from service.errors import JobFileInvalid
from service.job_file import JobFile, read_job_file, value_of
from service.schemas import JobRequest

_RECIPES_PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
_JOB_FILES = re.findall(r"```yaml\n(.*?)```", _RECIPES_PAGE.read_text(), re.DOTALL)


def written(folder: Path, text: str, name: str = "job.yaml") -> JobFile:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_job_file(path)


def refused(folder: Path, text: str, name: str = "job.yaml") -> str:
    with pytest.raises(JobFileInvalid) as caught:
        written(folder, text, name).check()
    return str(caught.value)


def test_every_field_of_the_call_is_a_field_of_the_file(tmp_path: Path) -> None:
    job = written(
        tmp_path,
        """
        # A comment.
        dataset: ds_0192
        backbone: resnet18
        weights: IMAGENET1K_V1
        recipe: finetune
        parameters: {epochs: 3, lr_head: 1e-4, tune: auto}
        model: ants-or-bees
        promote: false
        priority: 5
        time_limit_seconds: 60.5
        seed: 7
        block_on: error
        type: fine_tune
        metadata:
          owner: "no"
          plain: no
        webhook: null
        """,
    )
    job.check()
    assert job.data_path is None
    assert set(job.fields) == set(JobRequest.model_fields)
    assert job.fields["parameters"] == {"epochs": 3, "lr_head": 1e-4, "tune": "auto"}
    assert job.fields["metadata"] == {"owner": "no", "plain": "no"}
    assert job.fields["promote"] is False


def test_json_is_read_as_well_with_its_lines(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"dataset": "ds_1", "parameters": {"folds": 3}, "model": "bees"}
    fields["metadata"] = {"owner": "ä🐝"}
    text = json.dumps(fields, indent="\t")
    assert written(tmp_path, text, "job.json").fields == fields
    text = text.replace("folds", "fold")
    assert "line 4: /parameters/fold: unknown; did you mean folds?" in refused(
        tmp_path, text, "job.json"
    )
    assert "NaN is not a JSON number" in refused(tmp_path, '{"seed": NaN}', "job.json")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dataset: ds_1\nrecipee: head", "line 2: /recipee: unknown; did you mean recipe?"),
        ("dataset: ds_1\nzzz: head", "line 2: /zzz: unknown; there are type, dataset,"),
        ("recipe: head", "/dataset: Field required"),
        (
            "dataset: ds_1\nrecipe: finetune\nparameters:\n  epochs: 3\n  epoch: 3",
            "line 5: /parameters/epoch: unknown; did you mean epochs?",
        ),
        ("dataset: ds_1\nparameters: {folds: 1}", "line 2: /parameters/folds: Input should be"),
        ("dataset: ds_1\nrecipe: heads", "line 2: /recipe: unknown; there are head, finetune"),
        ("dataset: ds_1\nseed: '7'", "line 2: /seed: Input should be a valid integer"),
        ("dataset: ds_1\nseed: 7\nseed: 8", "line 3: the key 'seed' stands twice"),
        ("dataset: ds_1\n1: 8", "line 2: the key 1 is not text"),
        ("dataset: ds_1\nseed: !!python/name:os.system x", "tag:yaml.org,2002:python/name"),
        ("dataset: ds_1\nmodel: &a x\nmetadata: {a: *a}", "line 3: the alias *a is not accepted"),
        ("dataset: ds_1\nseed: !!int x", "line 2: 'x' is not of type int"),
        (
            "dataset: ds_1\ntype: race\nparameters: {fold: 3}",
            "line 3: /parameters/fold: unknown; did you mean folds?",
        ),
        ("dataset: ds_1\ntype: race\nrecipe: head", "line 3: /recipe: a race takes"),
        (
            "dataset: ds_1\ntype: evaluate\nmodel: m\nparameters: {splits: val}",
            "line 4: /parameters/splits: unknown; did you mean split?",
        ),
        ("dataset: ds_1\ntype: evaluate", "/model: name the model"),
        ("- ds_1", "not a mapping of fields to values"),
        ("", "not a mapping of fields to values"),
        ("dataset: [", "line"),
        ("dataset: " + "[" * 5000, "too deep"),
        ("dataset: photos.zip", "line 1: /dataset: neither an id of a data set nor there"),
        ("x: " + "y" * (1 << 20), "larger than 1048576 bytes"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(tmp_path, text)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    told = refused(tmp_path, "dataset: ds_1\nsead: 1\nseed: x\nparameters: {folds: 0}")
    assert "(3 fault(s))" in told
    places = {line.split(":")[0].strip() for line in told.splitlines()[1:]}
    assert places == {"line 2", "line 3", "line 4"}


def test_aliases_cannot_make_a_short_file_endless(tmp_path: Path) -> None:
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
    assert "is not accepted" in refused(tmp_path, f"a0: &a0 x\n{levels}")


def test_data_is_looked_for_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    job = written(tmp_path, "dataset: photos")
    job.check()
    assert job.data_path == tmp_path / "photos"


def test_options_set_fields_and_are_named_in_faults(tmp_path: Path) -> None:
    job = written(tmp_path, "dataset: ds_1\nrecipe: finetune\nparameters: {epochs: 3, tune: 1}")
    changed = job.with_field("parameters.epochs", value_of("5"), "--set parameters.epochs=5")
    changed = changed.with_field("model", value_of("bees"), "--model")
    changed.check()
    assert changed.fields["parameters"] == {"epochs": 5, "tune": 1}
    assert changed.fields["model"] == "bees"
    assert job.fields["parameters"] == {"epochs": 3, "tune": 1}
    wrong = job.with_field("parameters.epochs", value_of("many"), "--set parameters.epochs=many")
    with pytest.raises(JobFileInvalid, match=r"--set parameters\.epochs=many: /parameters/epochs"):
        wrong.check()


@pytest.mark.parametrize("text", _JOB_FILES)
def test_job_file_of_the_documents_is_one_that_the_service_takes(tmp_path: Path, text: str) -> None:
    job = written(tmp_path, text)
    if not str(job.fields["dataset"]).startswith("ds_"):
        (tmp_path / str(job.fields["dataset"])).write_bytes(b"")
    job.check()


def test_every_recipe_has_a_job_file_in_the_documents(tmp_path: Path) -> None:
    named = {written(tmp_path, text).fields.get("recipe") for text in _JOB_FILES}
    assert named >= set(RECIPES)
