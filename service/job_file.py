"""Job files: the fields of `POST /v1/jobs` as YAML or JSON, checked before anything is sent.

YAML as its version 1.2 reads plain values (`no` is text, `1e-4` a number), without aliases, tags
and repeated keys: what is not said plainly is refused, with its line.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.errors import RecipeInvalid
from jobs.recipes import RECIPES
from service.batch_schemas import BatchParameters, batch_reference
from service.errors import JobFileInvalid, JsonMalformed, ValidationFailed
from service.evaluate_schemas import EvaluateParameters, evaluate_reference
from service.json_body import MAX_JSON_BYTES, parse_json
from service.race_schemas import RaceParameters, race_parameters
from service.recipe_schemas import check_parameters, parameters_model
from service.schemas import JobRequest

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_DATASET_ID = re.compile(r"ds_[A-Za-z0-9_]{1,45}")
_ANY_DATASET = "ds_0"  # stands in, while fields are checked, for data that is uploaded later


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml is untyped
    """Plain values as in YAML 1.2's core schema and JSON, and nothing else."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_PLAIN: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "null": (r"~|null|", "~n", lambda _text: None),
    "bool": (r"true|false", "tf", lambda text: text == "true"),
    "int": (r"[-+]?\d+", "-+0123456789", int),
    "float": (r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", "-+.0123456789", float),
}
for _name, (_pattern, _starts, _) in _PLAIN.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), [*_starts, ""]
    )


@dataclass(frozen=True)
class JobFile:
    """What was asked for, and where it stands.

    Args:
        name: What errors call it.
        folder: What the path of its data is relative to.
        fields: Of `POST /v1/jobs`; `dataset` may be a path.
        places: By JSON pointer, where a field stands: `line 3`, `--set seed`.
    """

    name: str
    folder: Path
    fields: Mapping[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def data_path(self) -> Path | None:
        """The archive or folder that is to be uploaded; None where `dataset` is an id."""
        dataset = str(self.fields["dataset"])
        path = self.folder / Path(dataset).expanduser()
        return path if path.exists() or not _DATASET_ID.fullmatch(dataset) else None

    def with_field(self, dotted: str, value: object, place: str) -> JobFile:
        """Return a copy with one field set, such as `parameters.epochs`."""
        first, dot, rest = dotted.partition(".")
        inner = self.fields.get(first, {})
        if dot and isinstance(inner, dict):
            value = {**inner, rest: value}
        pointer = f"/{first}/{rest}" if dot else f"/{first}"
        fields, places = {**self.fields, first: value}, {**self.places, pointer: place}
        return JobFile(self.name, self.folder, fields, places)

    def check(self) -> None:
        """Check every field as the service would, and that the data is there.

        Raises:
            JobFileInvalid: With all faults, each with its place and its field.
        """
        faults = [f"{self._place(pointer)}{pointer}: {what}" for pointer, what in self._faults()]
        if faults:
            raise JobFileInvalid(self.name, len(faults), "\n  ".join(faults))

    def _place(self, pointer: str) -> str:
        while pointer and pointer not in self.places:
            pointer = pointer.rpartition("/")[0]
        return f"{self.places[pointer]}: " if pointer else ""

    def _faults(self) -> Iterator[tuple[str, str]]:
        given = dict(self.fields)
        if isinstance(given.get("dataset"), str):
            path = self.data_path
            if path is not None and not path.exists():
                yield "/dataset", f"neither an id of a data set nor there as a file: {path}"
            given["dataset"] = _ANY_DATASET
        try:
            JobRequest.model_validate(given)
        except ValidationError as error:
            invalid = ValidationFailed.of(error.errors(include_url=False, include_input=False))
            yield from _described(invalid, list(JobRequest.model_fields))
        yield from _parameter_faults(given)


def read_job_file(path: Path) -> JobFile:
    """Read a job file; its fields are not checked yet.

    Raises:
        JobFileInvalid: It is too large, not UTF-8, not YAML or JSON, or not one mapping of plain
            values.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise JobFileInvalid(str(path), 1, f"larger than {MAX_JSON_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            # Strict where JSON is meant. A tab, which JSON allows and YAML does not, can only
            # stand between its values: the lines stay the same.
            fields, text = parse_json(text.encode()), text.replace("\t", " ")
        node = yaml.compose(text, Loader=_Loader)
        _refuse_aliases(text)
        found: dict[str, str] = {}
        value = _plain(node, "", found)
        value = fields if path.suffix == ".json" else value
    except (UnicodeDecodeError, RecursionError) as error:
        reason = f"not UTF-8 or too deep ({type(error).__name__})"
        raise JobFileInvalid(str(path), 1, reason) from None
    except (yaml.YAMLError, JsonMalformed, _NotPlain) as error:
        raise JobFileInvalid(str(path), 1, " ".join(str(error).split())) from None
    if not isinstance(value, dict):
        raise JobFileInvalid(str(path), 1, "not a mapping of fields to values")
    return JobFile(str(path), path.parent, value, found)


def value_of(text: str) -> object:
    """Return what a value on the command line means: JSON, or else text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


class _NotPlain(Exception):
    """Something in a YAML file that is not said plainly."""

    def __init__(self, node: yaml.Node, what: str) -> None:
        super().__init__(f"line {node.start_mark.line + 1}: {what}")


def _plain(node: yaml.Node | None, pointer: str, places: dict[str, str]) -> Any:  # noqa: ANN401
    """Return the value of a node and note where its fields stand."""
    if node is None:
        return None
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, f"{pointer}/{i}", places) for i, item in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _plain(key_node, pointer, places)
        if not isinstance(key, str):
            raise _NotPlain(key_node, f"the key {key!r} is not text")
        if key in mapping:
            raise _NotPlain(key_node, f"the key {key!r} stands twice")
        places[f"{pointer}/{key}"] = f"line {key_node.start_mark.line + 1}"
        mapping[key] = _plain(value_node, f"{pointer}/{key}", places)
    return mapping


def _scalar(node: yaml.ScalarNode) -> Any:  # noqa: ANN401 - any plain value
    name = node.tag.removeprefix("tag:yaml.org,2002:")
    if name == "str":
        return node.value
    if name not in _PLAIN:
        raise _NotPlain(node, f"the tag {node.tag} is not accepted")
    try:
        return _PLAIN[name][2](node.value)
    except ValueError:
        raise _NotPlain(node, f"{node.value[:40]!r} is not of type {name}") from None


def _refuse_aliases(text: str) -> None:
    """Refuse what lets a short file mean an endless one."""
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: the alias *{event.anchor} is not accepted")


def _parameter_faults(given: dict[str, Any]) -> Iterator[tuple[str, str]]:
    given_types = (given.get("recipe", ""), str), (given.get("parameters", {}), dict)
    if not all(isinstance(value, kind) for value, kind in given_types):
        return  # told already
    # Without checks: they have been made, and what is wrong elsewhere does not matter here.
    request = JobRequest.model_construct(set(given), **given)
    known = list(RaceParameters.model_fields)
    try:
        if request.type == "race":
            race_parameters(request)
            return
        if request.type == "evaluate":
            known = list(EvaluateParameters.model_fields)
            evaluate_reference(request)
            return
        if request.type == "batch_predict":
            known = list(BatchParameters.model_fields)
            batch_reference(request)
            return
        known = list(parameters_model(request.recipe).model_fields)
        check_parameters(request.recipe, request.parameters)
    except ValidationFailed as error:
        yield from _described(error, known)
    except RecipeInvalid:
        yield "/recipe", f"unknown; there are {', '.join(RECIPES)}"


def _described(error: ValidationFailed, known: list[str]) -> Iterator[tuple[str, str]]:
    for fault in error.faults:
        what = fault["message"]
        if fault["code"] == "extra-forbidden":
            near = difflib.get_close_matches(fault["pointer"].rpartition("/")[2], known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            what = f"unknown; {hint}"
        yield fault["pointer"], what
