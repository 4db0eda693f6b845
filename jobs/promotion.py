"""Which of two candidates of one job a bare model name serves: recipe `auto`.

The child has judged; here its judgement becomes rows. Alias `default` moves only from the head to
the network that was compared with it: whoever moved it elsewhere meanwhile, meant it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from jobs.store import jobs, models
from jobs.store.jobs import Job
from jobs.store.models import DEFAULT_ALIAS, NewVersion


def first_result(published: dict[str, Any]) -> dict[str, Any]:
    """Return the `result` of a job whose head is published and which goes on.

    Args:
        published: Name and version of the head: `model`, `version`.
    """
    head = {"recipe": "head", "version": published["version"]}
    reason = "the head is served; the network is still to be compared with it"
    return {**published, "candidates": [head], "promoted": False, "reason": reason}


def conclude(
    connection: Connection, job: Job, network: NewVersion | None, judged: dict[str, Any]
) -> dict[str, Any]:
    """Publish the network and return the job's last `result`.

    Args:
        connection: In a writing transaction.
        job: The job, whose head has been published.
        network: The second candidate, if there is one.
        judged: `better` and `reason`, and what they follow from.
    """
    result = jobs.get(connection, job.id, job.project).result
    assert result is not None, "the head is offered before the result"
    head = int(result["candidates"][0]["version"])
    served = models.aliases_of(connection, result["model"], job.project).get(DEFAULT_ALIAS)
    wanted = bool(judged["better"]) and bool(job.spec["promote"])
    in_place = served is None or served == head  # None: the model was deleted meanwhile
    reason = judged["reason"]
    if judged["better"] and not job.spec["promote"]:
        reason += f"; `promote` is off, so alias {DEFAULT_ALIAS} stays where it is"
    elif wanted and not in_place:
        reason += f"; alias {DEFAULT_ALIAS} was moved from version {head} meanwhile and stays there"
    facts: dict[str, Any] = {key: judged[key] for key in ("split", "comparison") if key in judged}
    result = {**result, "promoted": False, "reason": reason, **facts}
    if network is None:
        return result
    version = models.publish(connection, network, promote=wanted and in_place).version
    candidates = [*result["candidates"], {"recipe": "finetune", "version": version}]
    served = models.aliases_of(connection, result["model"], job.project)[DEFAULT_ALIAS]
    best = version if judged["better"] else head
    return {**result, "version": best, "candidates": candidates, "promoted": served == version}
