"""How a cluster's objects are read as servers and variants: the marks on them, and the cards that they ask for. Pure.

A mark is a label or an annotation of the workload itself; an annotation wins, since it may hold any text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

SERVER = "stoker.dev/server"
ACCELERATOR = "stoker.dev/accelerator"
PAUSED = "stoker.dev/paused"
MARKED = "stoker.dev/marked"
"""The marks that the operator gave a workload which a Server names, and takes away again."""
MAX_BATCH = "stoker.dev/max-batch"
MAX_BATCH_BY = "stoker.dev/max-batch-by"
"""How a batch limit is set: `annotation`, `argument:--NAME` or `configmap:NAME/KEY`; without it Stoker leaves it."""
ENGINE_ARGUMENT = "--max-num-seqs"
"""The argument that says the batch limit where nothing else does, as vLLM spells it."""
_TIMES = {"": 1, "k": 10**3, "M": 10**6, "Ki": 2**10, "Mi": 2**20}
_AMOUNT = re.compile(rf"([0-9]{{1,9}})({'|'.join(_TIMES)})")
"""A whole amount of something, as the platform writes it: a thousand cards are 1k."""
_LIMIT = re.compile(r"0{0,9}[1-9][0-9]{0,5}|1000000")
"""A batch limit as contracts allow it; what else people write where one is looked for is none."""


class AcceleratorNames(BaseModel):
    """How nodes and pods say which accelerators they have and want."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    resources: tuple[str, ...] = ("nvidia.com/gpu", "amd.com/gpu", "habana.ai/gaudi")
    """Resources that count cards."""
    type_labels: tuple[str, ...] = (
        "stoker.dev/accelerator-type",
        "nvidia.com/gpu.product",
        "cloud.google.com/gke-accelerator",
        "amd.com/gpu.product-name",
    )
    """Node labels that name the type of card, the first that is there counts."""
    type_names: dict[str, str] = {}
    """Declared name of a type by its label's value; other values are taken as they are."""

    def type_of(self, labels: Mapping[str, str]) -> str | None:
        """The type of card that some labels name."""
        for key in self.type_labels:
            if (value := labels.get(key)) is not None:
                return self.type_names.get(value, value)
        return None

    def cards(self, resources: Mapping[str, str]) -> int:
        """Cards in a node's allocatable resources or a container's requests."""
        found = (_AMOUNT.fullmatch(str(resources.get(name, ""))) for name in self.resources)
        return sum(int(amount[1]) * _TIMES[amount[2]] for amount in found if amount is not None)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of workload by its resource; all of them have a scale subresource."""

    api: str
    plural: str

    @property
    def path(self) -> str:
        """The list over all namespaces."""
        return self.path_within(None)

    def path_within(self, namespace: str | None) -> str:
        """The list in one namespace, or over all of them."""
        within = f"/namespaces/{namespace}" if namespace else ""
        return f"/apis/{self.api}{within}/{self.plural}"

    def object_path(self, namespace: str, name: str) -> str:
        return f"{self.path_within(namespace)}/{name}"


def kind_of(text: str) -> Kind:
    """A kind written as group/version/plural; raises ValueError."""
    api, slash, plural = text.rpartition("/")
    if not slash or api.count("/") != 1 or not plural:
        raise ValueError(f"workload {text!r}: expected group/version/plural, such as apps/v1/deployments")
    return Kind(api, plural)


def _checked(text: str) -> str:
    kind_of(text)
    return text


Resource = Annotated[str, AfterValidator(_checked)]
"""A kind of workload as settings write it."""
WORKLOADS = ("apps/v1/deployments", "leaderworkerset.x-k8s.io/v1/leaderworkersets")


@dataclass(frozen=True, slots=True)
class Workload:
    """One variant of a server: an object with a scale subresource.

    `pods` is how many make a replica; `ready` is nothing where the object's status does not say it; `trouble` why
    pods cannot be made and since when, as the platform writes times.
    """

    kind: str
    namespace: str
    name: str
    resource_version: str
    server: str
    accelerator: str
    desired: int
    ready: int | None
    max_batch: int | None
    max_batch_by: str | None
    pods: int
    pod_labels: Mapping[str, str]
    paused: bool = False
    trouble: tuple[str, str] | None = None


def read_workload(item: Mapping[str, Any], names: AcceleratorNames) -> Workload | None:
    """A workload as a server's variant; nothing when it is not marked as one, or its accelerator is not known."""
    server, accelerator = identity_of(item, names)
    if server is None or accelerator is None:
        return None
    meta, spec = item["metadata"], item.get("spec", {})
    marks, templates = _marks(meta), _templates(spec)
    status = item.get("status") or {}
    return Workload(
        kind=str(item["kind"]),
        namespace=meta["namespace"],
        name=meta["name"],
        resource_version=meta["resourceVersion"],
        server=server,
        accelerator=accelerator,
        desired=int(spec.get("replicas", 1)),
        # A status leaves out what is zero.
        ready=int(status.get("readyReplicas", 0)) if "replicas" in status or "conditions" in status else None,
        max_batch=_max_batch(marks, templates),
        max_batch_by=marks.get(MAX_BATCH_BY),
        pods=sum(count for _, count in templates),
        pod_labels=_pod_labels(spec),
        paused=marks.get(PAUSED) == "true",
        trouble=_trouble(status),
    )


def identity_of(item: Mapping[str, Any], names: AcceleratorNames) -> tuple[str | None, str | None]:
    """The server and the accelerator that a workload says it is of; nothing for what it does not say."""
    marks = _marks(item["metadata"])
    accelerator = (
        marks.get(ACCELERATOR)
        or marks.get("inferno.server.allocation.accelerator")
        or _accelerator(_templates(item.get("spec", {})), names)
    )
    return _server(marks, item["metadata"]["name"]), accelerator


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches some labels."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for one in selector.get("matchExpressions") or ():
        value, values = labels.get(one["key"]), one.get("values") or ()
        match one["operator"]:
            case "In":
                good = value in values
            case "NotIn":
                good = value not in values
            case "Exists":
                good = value is not None
            case _:
                good = value is None
        if not good:
            return False
    return True


def argument_of(containers: Iterable[Mapping[str, Any]], name: str) -> str | None:
    """The value of a command line argument, written as one word or two."""
    for container in containers:
        words: list[str] = [*(container.get("command") or ()), *(container.get("args") or ())]
        for index, word in enumerate(words):
            if word == name:
                return words[index + 1] if index + 1 < len(words) else None
            if word.startswith(f"{name}="):
                return word[len(name) + 1 :]
    return None


def cards_of(spec: Mapping[str, Any], names: AcceleratorNames) -> int:
    """Cards that a pod's containers ask for."""
    total = 0
    for container in spec.get("containers") or ():
        resources = container.get("resources") or {}
        total += names.cards({**(resources.get("limits") or {}), **(resources.get("requests") or {})})
    return total


def _marks(meta: Mapping[str, Any]) -> dict[str, str]:
    return {**(meta.get("labels") or {}), **(meta.get("annotations") or {})}


def _server(marks: Mapping[str, str], name: str) -> str | None:
    if SERVER in marks:
        return marks[SERVER]
    if marks.get("inferno.server.managed") == "true":
        return marks.get("inferno.server.name", name)
    if marks.get("llm-d.ai/managed") == "true":
        return marks.get("llm-d.ai/model-id")
    return None


def _templates(spec: Mapping[str, Any]) -> Sequence[tuple[Mapping[str, Any], int]]:
    """Pod specs of one replica, each with how many pods of it there are."""
    group = spec.get("leaderWorkerTemplate")
    if group is None:
        return [((spec.get("template") or {}).get("spec") or {}, 1)]
    worker = (group.get("workerTemplate") or {}).get("spec") or {}
    leader = (group.get("leaderTemplate") or {}).get("spec") or worker
    return [(leader, 1), (worker, int(group.get("size", 1)) - 1)]


def _pod_labels(spec: Mapping[str, Any]) -> Mapping[str, str]:
    template = spec.get("template") or (spec.get("leaderWorkerTemplate") or {}).get("workerTemplate") or {}
    labels: Mapping[str, str] = (template.get("metadata") or {}).get("labels") or {}
    return labels


def _accelerator(templates: Sequence[tuple[Mapping[str, Any], int]], names: AcceleratorNames) -> str | None:
    """The name that a replica's cards give it: the type, with their number before it when there are several."""
    kind = names.type_of(templates[0][0].get("nodeSelector") or {})
    cards = sum(cards_of(spec, names) * count for spec, count in templates)
    if kind is None or not cards:
        return None
    return kind if cards == 1 else f"{cards}x{kind}"


def _max_batch(marks: Mapping[str, str], templates: Sequence[tuple[Mapping[str, Any], int]]) -> int | None:
    by = marks.get(MAX_BATCH_BY, "")
    containers = [c for spec, _ in templates for c in spec.get("containers") or ()]
    if by.startswith("argument:"):
        text = argument_of(containers, by.removeprefix("argument:"))
    else:
        text = (
            marks.get(MAX_BATCH)
            or marks.get("inferno.server.allocation.maxbatchsize")
            or argument_of(containers, ENGINE_ARGUMENT)
        )
    return int(text) if text and _LIMIT.fullmatch(text) else None


def _trouble(status: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why the workload's controller cannot make pods, such as an exceeded quota, and since when."""
    for condition in status.get("conditions") or ():
        since = condition.get("lastTransitionTime")
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True" and since:
            return f"{condition.get('reason')}: {condition.get('message')}", since
    return None
