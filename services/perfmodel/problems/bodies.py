"""Answers as they are written: metrics in our form, or with the reference's keys, in ms and requests per second.

A figure that a model has no finite value for is left out, as is a percentile outside its capabilities.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from services.perfmodel.problems.forms import MS, Form
from services.perfmodel.queueing import Binding, Distribution, Metrics, QueueingModel, Saturation
from services.perfmodel.queueing_models.birth_death_compat import BirthDeathCompatModel
from services.perfmodel.queueing_models.compat_chain import HIGHEST_SHARE

Body = dict[str, Any]


def metrics_body(form: Form, model: QueueingModel, metrics: Metrics, at: tuple[int, ...]) -> Body:
    """One element of metrics, in a form."""
    body = _own(metrics, at) if form is Form.OWN else _reference(model, metrics, at)
    return finite(body)


def finite(body: Mapping[str, Any]) -> Body:
    """The body without what is absent or not finite."""
    return {
        key: value
        for key, value in body.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def binding_name(code: int) -> str:
    """What stops a rate, in lower case."""
    return Binding(code).name.lower()


def _own(metrics: Metrics, at: tuple[int, ...]) -> Body:
    body: Body = {}
    for field in fields(metrics):
        value = getattr(metrics, field.name)
        if isinstance(value, Distribution):
            parts = {part.name: getattr(value, part.name) for part in fields(value)}
            body[field.name] = finite(
                {name: None if part is None else float(part[at]) for name, part in parts.items()}
            )
        else:
            body[field.name] = value[at].item()
    return {**body, "saturation": Saturation(body["saturation"]).name.lower()}


def _reference(model: QueueingModel, metrics: Metrics, at: tuple[int, ...]) -> Body:
    # The reference stops short of the capacity, and calls where it stops the largest rate.
    largest = float(HIGHEST_SHARE) if isinstance(model, BirthDeathCompatModel) else 1.0
    return {
        "offeredRPS": float(metrics.offered_rps[at]),
        "throughput": float(metrics.throughput_rps[at]),
        "avgRespTime": float(metrics.end_to_end_s.mean[at]) / MS,
        "avgWaitTime": float(metrics.wait_s.mean[at]) / MS,
        "avgNumInServ": float(metrics.occupancy[at]),
        "avgTTFT": float(metrics.ttft_s.mean[at]) / MS,
        "avgITL": float(metrics.itl_s.mean[at]) / MS,
        "maxRPS": largest * float(metrics.capacity_rps[at]),
    }
