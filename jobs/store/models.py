"""Statements about models, their versions and their aliases."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from jobs.errors import AliasConflict, AliasReserved, ModelNotFound, VersionInUse, VersionNotFound
from jobs.store.database import utc_now
from jobs.store.tables import model_aliases, model_changes, model_versions, models

DEFAULT_ALIAS = "default"
LATEST_ALIAS = "latest"  # read-only: always the highest version


@dataclass(frozen=True, kw_only=True)
class Version:
    """One immutable version of a model; see `tables.model_versions` for the columns."""

    project: str
    name: str
    version: int
    artifact_digest: str
    files: dict[str, Any]
    task: str
    architecture: str
    classes: list[str]
    metrics: dict[str, float]
    evaluation_sha256: str | None
    job_id: str | None
    dataset_id: str | None
    created_at: datetime

    @property
    def owner(self) -> tuple[str, str]:
        """Who shares room with whom while predicting: names are a project's own."""
        return self.project, self.name


@dataclass(frozen=True, kw_only=True)
class NewVersion:
    """What publication needs to know."""

    name: str
    artifact_digest: str
    files: dict[str, Any]
    task: str
    architecture: str
    classes: list[str]
    metrics: dict[str, float]
    evaluation_sha256: str | None = None
    job_id: str | None = None
    dataset_id: str | None = None
    project: str


@dataclass(frozen=True)
class Model:
    """A name with its versions and aliases (without `latest`, which follows from them)."""

    name: str
    created_at: datetime
    versions: list[int]
    aliases: dict[str, int]


def _version(row: Row[Any]) -> Version:
    return Version(**row._mapping)


def publish(connection: Connection, new: NewVersion, *, promote: bool) -> Version:
    """Insert the next version of a name; move alias `default` to it if asked or if it has none.

    The first version of a name always becomes `default`, so that a bare name serves something.
    """
    number = _next_number(connection, new)
    row = connection.execute(
        insert(model_versions)
        .values(version=number, created_at=utc_now(), **vars(new))
        .returning(*model_versions.c)
    ).one()
    _count_change(connection)
    aliases = aliases_of(connection, new.name, new.project)
    if promote or DEFAULT_ALIAS not in aliases:
        _point(connection, new.name, DEFAULT_ALIAS, number, new.project)
    return _version(row)


def _next_number(connection: Connection, new: NewVersion) -> int:
    key = (models.c.project == new.project, models.c.name == new.name)
    number = connection.execute(
        update(models)
        .where(*key)
        .values(last_version=models.c.last_version + 1, deleted=False)
        .returning(models.c.last_version)
    ).scalar_one_or_none()
    if number is not None:
        return int(number)
    connection.execute(
        insert(models).values(
            project=new.project,
            name=new.name,
            last_version=1,
            deleted=False,
            created_at=utc_now(),
        )
    )
    return 1


def get(connection: Connection, name: str, project: str) -> Model:
    """Return a model.

    Raises:
        ModelNotFound: There is none of that name, or it was deleted.
    """
    row = connection.execute(
        select(models).where(
            models.c.project == project, models.c.name == name, models.c.deleted.is_(False)
        )
    ).one_or_none()
    if row is None:
        raise ModelNotFound(name)
    return _with_versions(connection, [row], project)[0]


def page(connection: Connection, limit: int, after: str | None, project: str) -> list[Model]:
    """Return up to `limit` models by name, behind the name `after`."""
    statement = select(models).where(models.c.project == project, models.c.deleted.is_(False))
    if after is not None:
        statement = statement.where(models.c.name > after)
    rows = connection.execute(statement.order_by(models.c.name).limit(limit)).all()
    return _with_versions(connection, rows, project)


def _with_versions(connection: Connection, rows: Sequence[Row[Any]], project: str) -> list[Model]:
    """Return the models of rows; two statements, however many they are."""
    found = {row.name: Model(row.name, row.created_at, [], {}) for row in rows}
    numbers = select(model_versions.c.name, model_versions.c.version).where(
        model_versions.c.project == project, model_versions.c.name.in_(found)
    )
    for row in connection.execute(numbers.order_by(model_versions.c.version)):
        found[row.name].versions.append(row.version)
    aliases = select(model_aliases).where(
        model_aliases.c.project == project, model_aliases.c.name.in_(found)
    )
    for row in connection.execute(aliases.order_by(model_aliases.c.alias)):
        found[row.name].aliases[row.alias] = row.version
    return list(found.values())


def defaults(connection: Connection, names: Collection[str], project: str) -> dict[str, Version]:
    """Return what bare names serve, by name; those without alias `default` are missing."""
    rows = connection.execute(
        select(model_versions)
        .join(
            model_aliases,
            and_(
                model_aliases.c.project == model_versions.c.project,
                model_aliases.c.name == model_versions.c.name,
                model_aliases.c.version == model_versions.c.version,
            ),
        )
        .where(
            model_aliases.c.project == project,
            model_aliases.c.alias == DEFAULT_ALIAS,
            model_aliases.c.name.in_(names),
        )
    )
    return {row.name: _version(row) for row in rows}


def version(connection: Connection, name: str, number: int, project: str) -> Version:
    """Return one version.

    Raises:
        ModelNotFound: There is no such model.
        VersionNotFound: It has no such version.
    """
    row = connection.execute(
        select(model_versions).where(
            model_versions.c.project == project,
            model_versions.c.name == name,
            model_versions.c.version == number,
        )
    ).one_or_none()
    if row is None:
        get(connection, name, project)
        raise VersionNotFound(name, str(number))
    return _version(row)


def versions(connection: Connection, name: str, project: str) -> list[Version]:
    """Return every version of a model, oldest first."""
    rows = connection.execute(
        select(model_versions)
        .where(model_versions.c.project == project, model_versions.c.name == name)
        .order_by(model_versions.c.version)
    )
    return [_version(row) for row in rows]


def artifact_digests(connection: Connection) -> list[tuple[str, str]]:
    """Return the artifacts of all versions, each with its project."""
    found = select(model_versions.c.artifact_digest, model_versions.c.project).distinct()
    return [(row.artifact_digest, row.project) for row in connection.execute(found)]


def of_job(connection: Connection, job_id: str, project: str) -> list[Version]:
    """Return the versions that a job published, in the order of their publication."""
    rows = connection.execute(
        select(model_versions)
        .where(model_versions.c.project == project, model_versions.c.job_id == job_id)
        .order_by(model_versions.c.version)
    )
    return [_version(row) for row in rows]


def resolve(connection: Connection, name: str, reference: str | None, project: str) -> Version:
    """Return the version that `name`, `name@alias` or `name@number` means.

    Raises:
        ModelNotFound: There is no such model.
        VersionNotFound: It has no such alias or version.
    """
    if reference is not None and reference.isdecimal() and len(reference) <= 9:
        return version(connection, name, int(reference), project)
    alias = reference or DEFAULT_ALIAS
    if alias == LATEST_ALIAS:
        number = connection.scalar(
            select(func.max(model_versions.c.version)).where(
                model_versions.c.project == project, model_versions.c.name == name
            )
        )
    else:
        number = aliases_of(connection, name, project).get(alias)
    if number is None:
        get(connection, name, project)
        raise VersionNotFound(name, alias)
    return version(connection, name, number, project)


def aliases_of(connection: Connection, name: str, project: str) -> dict[str, int]:
    """Return the stored aliases of a name."""
    rows = connection.execute(
        select(model_aliases.c.alias, model_aliases.c.version)
        .where(model_aliases.c.project == project, model_aliases.c.name == name)
        .order_by(model_aliases.c.alias)
    )
    return {row.alias: row.version for row in rows}


def set_alias(
    connection: Connection,
    name: str,
    alias: str,
    number: int,
    *,
    if_current: int | None = None,
    project: str,
) -> None:
    """Point an alias to a version: promotion and rollback are the same call.

    Raises:
        AliasReserved: The alias is `latest`.
        ModelNotFound: There is no such model.
        VersionNotFound: It has no such version.
        AliasConflict: `if_current` was given and the alias points elsewhere.
    """
    if alias == LATEST_ALIAS:
        raise AliasReserved(alias)
    version(connection, name, number, project)
    current = aliases_of(connection, name, project).get(alias)
    if if_current is not None and current != if_current:
        actual = "nothing" if current is None else f"version {current}"
        raise AliasConflict(name, alias, f"version {if_current}", actual)
    _point(connection, name, alias, number, project)


def remove_alias(connection: Connection, name: str, alias: str, project: str) -> None:
    """Remove an alias; what it pointed to stays.

    Raises:
        AliasReserved: The alias is `latest` or `default`, which every model has.
        ModelNotFound: There is no such model.
        VersionNotFound: It has no such alias.
    """
    if alias in (LATEST_ALIAS, DEFAULT_ALIAS):
        raise AliasReserved(alias)
    if alias not in get(connection, name, project).aliases:
        raise VersionNotFound(name, alias)
    connection.execute(
        delete(model_aliases).where(
            model_aliases.c.project == project,
            model_aliases.c.name == name,
            model_aliases.c.alias == alias,
        )
    )
    _count_change(connection)


def remove_version(connection: Connection, name: str, number: int, project: str) -> None:
    """Delete a version that no alias points to; its number is not used again.

    Raises:
        VersionInUse: An alias points to it.
    """
    version(connection, name, number, project)
    pointing = [a for a, n in aliases_of(connection, name, project).items() if n == number]
    if pointing:
        raise VersionInUse(name, number, ", ".join(pointing))
    connection.execute(
        delete(model_versions).where(
            model_versions.c.project == project,
            model_versions.c.name == name,
            model_versions.c.version == number,
        )
    )
    _count_change(connection)


def remove(connection: Connection, name: str, project: str) -> None:
    """Delete a model with its versions and aliases; the name keeps counting where it was."""
    get(connection, name, project)
    for table in (model_aliases, model_versions):
        connection.execute(delete(table).where(table.c.project == project, table.c.name == name))
    connection.execute(
        update(models)
        .where(models.c.project == project, models.c.name == name)
        .values(deleted=True)
    )
    _count_change(connection)


def _point(connection: Connection, name: str, alias: str, number: int, project: str) -> None:
    key = {"project": project, "name": name, "alias": alias}
    connection.execute(
        delete(model_aliases).where(*(model_aliases.c[k] == v for k, v in key.items()))
    )
    connection.execute(insert(model_aliases).values(version=number, updated_at=utc_now(), **key))
    _count_change(connection)


def changes(connection: Connection) -> int:
    """Return a number that is another one after any change of a version or an alias."""
    return connection.scalar(select(model_changes.c.number)) or 0


def _count_change(connection: Connection) -> None:
    counted = update(model_changes).values(number=model_changes.c.number + 1)
    if connection.execute(counted).rowcount == 0:  # writers take turns: nobody else inserts it
        connection.execute(insert(model_changes).values(id=1, number=1))
