"""The parameters of a race, and what its job's spec says: wire format and checks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from models_cache.catalogue import DEFAULT, BackboneInfo, Catalogue, WeightsInfo
from models_cache.weights import WeightsVault
from service.errors import ValidationFailed
from service.schemas import JobRequest, Request

#: Fields of a job that a race has no use for.
_FOREIGN = ("backbone", "weights", "recipe", "model", "promote", "block_on")


class RaceParameters(Request):
    """`parameters` of a job of type `race`."""

    backbones: Annotated[
        Literal["downloaded"]
        | list[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}(:[A-Za-z0-9_.-]{1,64})?$")]],
        Field(description="`architecture` or `architecture:WEIGHTS` each; or all on disk."),
    ] = "downloaded"
    folds: int = Field(5, ge=2, le=20, description="Cross-validation folds.")
    rank_by: Literal["auto", "loss", "accuracy_top1", "mean_average_precision"] = Field(
        "auto",
        description="Out-of-fold figure that decides; auto: loss, with several labels per image "
        "mean_average_precision.",
    )
    learning_curve: Literal["best", "all", "none"] = Field(
        "best", description="Whose learning curve is drawn."
    )
    batch_size: int = Field(32, ge=1, le=1024, description="Images per forward pass.")


def race_spec(catalogue: Catalogue, vault: WeightsVault, body: JobRequest) -> dict[str, Any]:
    """Return the spec of a race, its backbones named one by one.

    Raises:
        ValidationFailed: A parameter is unknown or out of bounds, a field belongs to other jobs,
            a backbone is named twice, or none is on disk.
        BackboneUnknown: No such architecture.
        WeightsUnknown, WeightsUnusable: The architecture has no such weights.
    """
    parameters = race_parameters(body)
    names = parameters.backbones
    if names == "downloaded":
        entrants = _downloaded(catalogue, vault)
        pointer, fault = "/parameters/backbones", "no weights are on disk yet: name backbones"
    else:
        entrants = [_entrant(catalogue, vault, name) for name in names]
        pointer, fault = "/parameters/backbones", "name at least one backbone"
    if not entrants:
        raise ValidationFailed.one(pointer, "no-backbone", fault)
    if len({(e["architecture"], e["weights"]) for e in entrants}) < len(entrants):
        raise ValidationFailed.one(pointer, "named-twice", "each backbone can race once")
    spec = body.model_dump(mode="json", exclude={*_FOREIGN, "webhook", "priority"})
    return {**spec, "parameters": parameters.model_dump(mode="json"), "entrants": entrants}


def race_parameters(body: JobRequest) -> RaceParameters:
    """Return the parameters of a race, with what can be said without the catalogue.

    Raises:
        ValidationFailed: A parameter is unknown or out of bounds, or a field belongs to other jobs.
    """
    for name in _FOREIGN:
        if name in body.model_fields_set:
            message = "a race takes `parameters.backbones` and has no use for this field"
            raise ValidationFailed.one(f"/{name}", "not-of-a-race", message)
    try:
        return RaceParameters.model_validate(body.parameters)
    except ValidationError as error:
        faults = [
            {**fault, "loc": ("parameters", *fault["loc"][:1])}
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise ValidationFailed.of(faults) from None


def _downloaded(catalogue: Catalogue, vault: WeightsVault) -> list[dict[str, Any]]:
    """Return every backbone with weights on disk, with the best of these."""
    found = []
    for backbone in catalogue.architectures():
        on_disk = [info for info in backbone.weights if info.usable and vault.have(info)]
        if on_disk:
            chosen = next((i for i in on_disk if i.name == backbone.default), on_disk[0])
            found.append(_described(backbone, chosen.name, chosen))
    return found


def _entrant(catalogue: Catalogue, vault: WeightsVault, name: str) -> dict[str, Any]:
    architecture, _, weights = name.partition(":")
    backbone = catalogue.backbone(architecture)
    info = catalogue.weights(architecture, weights or DEFAULT, have=vault.have)
    return _described(backbone, weights or DEFAULT, info)


def _described(backbone: BackboneInfo, weights: str, info: WeightsInfo) -> dict[str, Any]:
    """Return an entrant; work is known of torchvision's weights, so others of its size borrow."""
    crop_px = info.preprocessing.crop_px
    known = [i.gflops for i in backbone.weights if i.preprocessing.crop_px == crop_px and i.gflops]
    return {
        "architecture": backbone.architecture,
        "weights": weights,
        "parameters": backbone.parameters,
        "gflops": info.gflops or next(iter(known), None),
    }
