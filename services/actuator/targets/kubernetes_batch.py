"""The batch limit of a workload, set by the mechanism that its owner named."""

import asyncio
from typing import Any

from schemas.actuation import FailureReason
from services.actuator.target import Failed
from services.cluster.client import JSON_PATCH, MERGE_PATCH, RETRY_S, Cluster, Refused
from services.cluster.workloads import MAX_BATCH, MAX_BATCH_BY, Kind, Workload


async def set_batch(cluster: Cluster, kind: Kind, workload: Workload, max_batch: int | None) -> bool | Failed:
    """Set the limit; whether anything was written, which nothing is where no mechanism is named.

    `annotation`: on the workload, for a proxy or an operator that reads it. `argument:--NAME`: of the first container
    that has it, which restarts the pods one after another. `configmap:NAME/KEY`: a proxy's limit.
    """
    how, _, what = (workload.max_batch_by or "").partition(":")
    path = kind.object_path(workload.namespace, workload.name)
    marked = {"metadata": {"annotations": {MAX_BATCH: str(max_batch)}}}
    match how:
        case "":
            return False
        case "annotation":
            await cluster.call("PATCH", path, None, marked, MERGE_PATCH)
            return True
        case "configmap" if "/" in what:
            name, key = what.split("/", 1)
            data = {"data": {key: str(max_batch)}}
            config = f"/api/v1/namespaces/{workload.namespace}/configmaps/{name}"
            await cluster.call("PATCH", config, None, data, MERGE_PATCH)
            await cluster.call("PATCH", path, None, marked, MERGE_PATCH)
            return True
        case "argument" if what:
            return await _set_argument(cluster, path, what, str(max_batch))
    expected = "expected annotation, argument:--NAME or configmap:NAME/KEY"
    return Failed(FailureReason.REFUSED, f"{path}: {MAX_BATCH_BY} is {workload.max_batch_by!r}: {expected}")


async def _set_argument(cluster: Cluster, path: str, name: str, value: str) -> bool | Failed:
    for pause_s in (*RETRY_S, None):
        changes = _argument(await cluster.call("GET", path), name, value)
        if not changes:
            message = f"{path}: no container of it has the argument {name}, which {MAX_BATCH_BY} names"
            return Failed(FailureReason.REFUSED, message)
        try:
            await cluster.call("PATCH", path, None, changes, JSON_PATCH)
            return True
        except Refused as refusal:
            if refusal.status != 409 or pause_s is None:
                raise
            await asyncio.sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


def _argument(item: dict[str, Any], name: str, value: str) -> list[dict[str, Any]]:
    """The patch that changes every occurrence of an argument, a conflict when the object changed since."""
    spec, base = item["spec"], "/spec"
    templates = (
        [("template",)]
        if "template" in spec
        else [("leaderWorkerTemplate", part) for part in ("leaderTemplate", "workerTemplate")]
    )
    changes: list[dict[str, Any]] = []
    for keys in templates:
        template = spec
        for key in keys:
            template = template.get(key) or {}
        for number, container in enumerate((template.get("spec") or {}).get("containers") or ()):
            for field in ("command", "args"):
                words = container.get(field) or ()
                where = f"{base}/{'/'.join(keys)}/spec/containers/{number}/{field}"
                for index, word in enumerate(words):
                    if word == name and index + 1 < len(words):
                        changes.append({"op": "replace", "path": f"{where}/{index + 1}", "value": value})
                    elif word.startswith(f"{name}="):
                        changes.append(
                            {"op": "replace", "path": f"{where}/{index}", "value": f"{name}={value}"}
                        )
    if not changes:
        return []
    version = item["metadata"]["resourceVersion"]
    return [{"op": "replace", "path": "/metadata/resourceVersion", "value": version}, *changes]
