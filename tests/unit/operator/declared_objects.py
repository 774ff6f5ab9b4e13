"""Custom resources as the API server would hand them over, by hand and at random."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from services.operator.resources import Resource

NOW_S = 1_700_000_000.0
ACCELERATORS, MODELS, CLASSES, SERVERS = (
    ("A100", "H100"),
    ("granite", "llama"),
    ("Gold", "Free"),
    ("s1", "s2"),
)


def resource(
    kind: str,
    name: str,
    spec: Mapping[str, Any],
    *,
    status: Mapping[str, Any] | None = None,
    created: str = "2026-11-24T00:00:00Z",
    generation: int = 1,
    deleting: bool = False,
    namespace: str = "n",
) -> Resource:
    """One object; its unique id is made of what names it."""
    uid = f"{kind}/{namespace}/{name}"
    found = {} if status is None else status
    return Resource(kind, namespace, name, uid, generation, "1", created, deleting, (), spec, found)


def accelerator(name: str = "H100", **spec: Any) -> Resource:
    return resource("Accelerator", name.lower(), {"name": name, "type": name, "cost": 400, **spec})


def model(name: str = "granite", **spec: Any) -> Resource:
    row = {
        "acc": "H100",
        "accCount": 1,
        "perfParms": {"alpha": 8.0, "beta": 0.016, "gamma": 0.0005},
        "maxBatchSize": 64,
        "atTokens": 256,
    }
    return resource("Model", name, {"name": name, "data": [row], **spec})


def service_class(name: str = "Gold", **spec: Any) -> Resource:
    rows = [{"model": "granite", "slo-itl": 60, "slo-ttft": 1000}]
    return resource("ServiceClass", name.lower(), {"name": name, "priority": 1, "data": rows, **spec})


def server(name: str = "chat", *, about: Mapping[str, Any] | None = None, **spec: Any) -> Resource:
    load = {"arrivalRate": 240, "avgInTokens": 512, "avgOutTokens": 256}
    held = {"accelerator": "H100", "numReplicas": 1, "load": load}
    whole = {"name": name, "class": "Gold", "model": "granite", "currentAlloc": held, **spec}
    return resource("Server", name, whole, **(about or {}))


def optimizer(*, about: Mapping[str, Any] | None = None, **spec: Any) -> Resource:
    return resource("Optimizer", "optimizer", {"optimize": True, **spec}, **(about or {}))


def fleet(*more: Resource) -> list[Resource]:
    """One object of each kind that a server needs, and others."""
    return [accelerator(), model(), service_class(), *more]


# At random: whatever the definitions of the kinds let through, sensible for the most part.


def _dict(required: Mapping[str, Any], optional: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(dict(required), optional=dict(optional))


def _specs(odd: tuple[str, ...] = (), wild: bool = False) -> dict[str, st.SearchStrategy[dict[str, Any]]]:
    """Specs of each kind, with odd names beside the usual ones, or with numbers that few would write."""
    number: st.SearchStrategy[Any] = st.one_of(st.floats(0, 1000), st.integers(0, 1000))
    count, positive = st.integers(0, 64), st.integers(1, 64)
    if wild:
        # Seldom, so that a single one often is all that is wrong with an object.
        number = st.one_of(*[number] * 3, st.sampled_from([1e-320, 1e9, 1e13, 1e300]))
        count = positive = st.one_of(positive, st.sampled_from([1_000_001, 10**18]))
    accelerators, models, classes = (st.sampled_from(pool + odd) for pool in (ACCELERATORS, MODELS, CLASSES))
    lengths = dict.fromkeys(("avgLength", "avgInTokens", "avgOutTokens", "arrivalCOV"), number)
    load = _dict({"arrivalRate": number}, lengths)
    held = _dict(
        {"accelerator": accelerators, "numReplicas": count}, {"maxBatch": count, "cost": number, "load": load}
    )
    parameters = {"alpha": number, "beta": number, "gamma": number}
    row = {"acc": accelerators, "accCount": positive, "maxBatchSize": positive, "atTokens": count}
    rows = st.one_of(_dict(row | parameters, {}), _dict({**row, "perfParms": _dict(parameters, {})}, {}))
    objectives = st.one_of(
        _dict({"model": models}, {"slo-itl": number, "slo-ttft": number, "slo-tps": number}),
        _dict({"model": models, "slo-ttw": number}, {}),
    )
    power = _dict({"idle": number, "full": number, "midPower": number, "midUtil": st.floats(0, 1)}, {})
    flags = {key: st.booleans() for key in ("unlimited", "heterogeneous", "milpSolver", "useCplex")}
    policy = st.sampled_from(["None", "PriorityExhaustive", "RoundRobin"])
    options = _dict({"optimizer": _dict(flags, {"saturationPolicy": policy})}, {})
    return {
        "Accelerator": _dict(
            {"name": accelerators, "type": accelerators, "cost": number},
            {"multiplicity": positive, "memSize": number, "memBW": number, "power": power},
        ),
        "Model": _dict({"name": models}, {"data": st.lists(rows, max_size=3)}),
        "ServiceClass": _dict(
            {"name": classes},
            {"priority": st.integers(1, 100), "data": st.lists(objectives, max_size=3)},
        ),
        "Server": _dict(
            {
                "name": st.sampled_from(SERVERS + odd),
                "class": classes,
                "model": models,
                "currentAlloc": held,
                "maxReplicas": positive,
            },
            {
                "minReplicas": st.integers(0, 3),
                "keepAccelerator": st.booleans(),
                "maxBatchSize": count,
                "maxQueueSize": count,
            },
        ),
        "Capacity": _dict(
            {"count": st.lists(_dict({"type": accelerators, "count": count}, {}), max_size=3)}, {}
        ),
        "Optimizer": _dict(
            {"optimize": st.booleans()}, {"periodSeconds": st.integers(1, 10**9), "data": options}
        ),
    }


KINDS = (_specs(), _specs(), _specs(wild=True), _specs(odd=("a/b.c", "* >", "\n", "x" * 253)))
"""Specs by kind: sensible ones twice, so that most are."""


@st.composite
def resources(draw: st.DrawFn) -> list[Resource]:
    """Some objects of each kind, of some ages in two namespaces, no two of a kind in one place.

    Most often what a server needs is among them.
    """
    young = {"created": "2026-11-25T00:00:00Z"}
    usual = fleet(accelerator("A100"), *(server(name, about=young) for name in SERVERS))
    found = [one for one in usual if draw(st.integers(0, 9)) < 9]
    for kind in KINDS[0]:
        places = st.tuples(st.sampled_from("nm"), st.sampled_from("abc"))
        for namespace, name in draw(st.lists(places, unique=True, max_size=3)):
            deleting = draw(st.integers(0, 9)) == 9
            spec = draw(draw(st.sampled_from(KINDS))[kind])
            created = f"2026-11-24T00:00:0{draw(st.integers(0, 3))}Z"
            found.append(resource(kind, name, spec, namespace=namespace, created=created, deleting=deleting))
    return found
