"""What servers are asked to have, as series for a scraper: there exactly while a server is declared."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from schemas.actuation import VariantScale

NAME = "stoker_desired_replicas"
_HELP = "Replicas that a server is asked to have."


class DesiredReplicas(Collector):
    """Series of every decided server by accelerator, under our name and others that autoscalers look for.

    Parameters: aliases, further metric names, whose labels are `variant_name`, `namespace` and
    `accelerator_type`; variant_name, a template of the first with `{server}` and `{accelerator}`; namespace,
    the second.
    """

    def __init__(
        self, aliases: Sequence[str] = (), variant_name: str = "{server}", namespace: str = ""
    ) -> None:
        self._aliases = tuple(aliases)
        self._variant_name = variant_name
        self._namespace = namespace
        self._replicas: dict[str, dict[str, int]] = {}
        self._declared: frozenset[str] = frozenset()

    def keep(self, declared: Collection[str]) -> None:
        """Say which servers there are; the others are forgotten."""
        self._declared = frozenset(declared)
        self._replicas = {name: held for name, held in self._replicas.items() if name in declared}

    def show(self, server: str, scales: Iterable[VariantScale]) -> bool:
        """Take in what a server is asked to have, and say whether that is news.

        An accelerator that it has left stays at 0, for an autoscaler that finds no series does nothing.
        """
        before = self._replicas.get(server, {})
        after = dict.fromkeys(before, 0) | {scale.accelerator: scale.replicas for scale in scales}
        self._replicas[server] = after
        return after != before

    def knows(self, server: str) -> bool:
        """Whether a server is declared."""
        return server in self._declared

    def of(self, server: str) -> Mapping[str, int]:
        """Replicas of a server by accelerator."""
        return self._replicas.get(server, {})

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The series, in the order of servers and accelerators."""
        shown = [
            (server, accelerator, replicas)
            for server, held in sorted(self._replicas.items())
            for accelerator, replicas in sorted(held.items())
        ]
        own = GaugeMetricFamily(NAME, _HELP, labels=("server", "accelerator"))
        for server, accelerator, replicas in shown:
            own.add_metric((server, accelerator), replicas)
        yield own
        for alias in self._aliases:
            family = GaugeMetricFamily(alias, _HELP, labels=("variant_name", "namespace", "accelerator_type"))
            for server, accelerator, replicas in shown:
                variant = self._variant_name.format(server=server, accelerator=accelerator)
                family.add_metric((variant, self._namespace, accelerator), replicas)
            yield family
