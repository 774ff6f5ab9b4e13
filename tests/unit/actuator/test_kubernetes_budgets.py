"""Disruption budgets: what several workloads may lose before a budget shows what was taken."""

from typing import Any

from services.actuator.targets.kubernetes_budgets import Budgets
from services.cluster.client import Refused
from services.cluster.workloads import Workload


class Cluster:
    """An API server with budgets by name: their versions and the disruptions that they allow."""

    def __init__(self, **budgets: tuple[str, int]) -> None:
        self.budgets, self.api, self.asked = budgets, "policy/v1", list[str]()

    async def call(self, method: str, path: str) -> Any:
        self.asked.append(path)
        if f"/{self.api}/" not in path:
            raise Refused(f"{method} {path}", 404, "NotFound", "")
        items = [
            {
                "metadata": {"name": name, "resourceVersion": version},
                "spec": {"selector": {"matchLabels": {"app": "chat"}}},
                "status": {"disruptionsAllowed": allowed},
            }
            for name, (version, allowed) in self.budgets.items()
        ]
        return {"items": items}


def workload(name: str, pods: int = 1, app: str = "chat") -> Workload:
    return Workload("Deployment", "n", name, "1", "chat", name, 4, 4, None, None, pods, {"app": app})


async def left(budgets: Budgets, of: Workload, wanted: int) -> tuple[int, str]:
    """What is left of four replicas that serve, and the budget that says so."""
    permit = await budgets.permit(of, 4, 4, wanted)
    return permit.replicas, permit.budget


async def test_workloads_under_one_budget_share_what_it_allows_until_it_says_something_new() -> None:
    cluster = Cluster(keep=("1", 3))
    budgets = Budgets(cluster)  # type: ignore[arg-type]
    assert await left(budgets, workload("a"), 2) == (2, "keep")
    assert await left(budgets, workload("b"), 1) == (3, "keep")
    assert await left(budgets, workload("b"), 1) == (4, "keep")
    assert await left(budgets, workload("c", app="other"), 0) == (0, "")
    cluster.budgets["keep"] = ("2", 1)
    assert await left(budgets, workload("b"), 1) == (3, "keep")


async def test_what_was_not_done_is_given_back_but_not_to_a_budget_that_has_counted_anew() -> None:
    cluster = Cluster(keep=("1", 2))
    budgets = Budgets(cluster)  # type: ignore[arg-type]
    failed = await budgets.permit(workload("a"), 4, 4, 2)
    assert await left(budgets, workload("b"), 2) == (4, "keep")
    budgets.release(failed)
    assert await left(budgets, workload("b"), 2) == (2, "keep")
    late = await budgets.permit(workload("b"), 4, 4, 4)
    cluster.budgets["keep"] = ("2", 1)
    assert await left(budgets, workload("b"), 2) == (3, "keep")
    budgets.release(late)
    budgets.release(failed)
    assert await left(budgets, workload("b"), 2) == (4, "keep")


async def test_the_budget_that_allows_least_decides_and_replicas_of_several_pods_go_whole() -> None:
    budgets = Budgets(Cluster(keep=("1", 7), tight=("1", 3)))  # type: ignore[arg-type]
    assert await left(budgets, workload("a", pods=2), 0) == (3, "tight")


async def test_what_does_not_serve_goes_whatever_a_budget_says() -> None:
    budgets = Budgets(Cluster(keep=("1", 0)))  # type: ignore[arg-type]
    permit = await budgets.permit(workload("a"), 2, 4, 1)
    assert (permit.replicas, permit.pods) == (2, 0)


async def test_an_older_server_is_asked_in_its_own_version_from_then_on() -> None:
    cluster = Cluster(keep=("1", 1))
    cluster.api = "policy/v1beta1"
    budgets = Budgets(cluster)  # type: ignore[arg-type]
    for _ in range(2):
        await left(budgets, workload("a"), 4)
    assert ["v1beta1" in path for path in cluster.asked] == [False, True, True]
