"""What a placement reaches, and a bound on the value of every other that reaches as much."""

import numpy as np

from services.optimizer.solvers.columns import Array, Columns, Flags, Ints
from services.optimizer.solvers.levels import LEVEL_ROUNDING, Kind, levels_of
from services.optimizer.solvers.placement import NONE, Placement
from services.optimizer.solvers.prices import Dual, Priced, best_prices


def placed(columns: Columns, chosen: dict[int, int]) -> Placement:
    """The placement of replicas by column."""
    placement = Placement(columns)
    for column, replicas in chosen.items():
        placement.give(column, replicas)
    return placement


def vector(columns: Columns, placement: Placement) -> tuple[float, ...]:
    """What a placement reaches in every level and, negated, its value."""
    some = placement.column != NONE
    at = np.maximum(placement.column, 0)
    part = placement.replicas / np.maximum(columns.replicas[at], 1)
    share = np.where(some, columns.share[at] * np.where(columns.replicas[at] > 0, part, 1.0), 0.0)
    reached = []
    for level in levels_of(columns):
        of = columns.priority == level.priority
        gain = columns.weight * placement.served if level.kind is Kind.SERVED else columns.rate * share
        reached.append(round(float(gain[of].sum()) / level.scale, 6))
    return (*reached, -placement.value)


def better(columns: Columns, one: Placement, other: Placement) -> Placement:
    """Of two placements the one that reaches more, the other where that exceeds a limit or both reach the same."""
    # HiGHS keeps rows but for its tolerance.
    if (one.rest < 0).any():
        return other
    return one if vector(columns, one) > vector(columns, other) else other


class Certificate:
    """A bound on the value of every placement that serves each class, and carries of it, as much as a given one.

    Best effort is linear in its replicas, so of each column the least and all but one are enough, beside what is
    given.
    """

    def __init__(self, columns: Columns, placement: Placement) -> None:
        served = placement.served
        self._whole = {
            int(p)
            for p in np.unique(columns.priority)
            if served[columns.priority == p].all() and not columns.weighed
        }
        self._must: Flags = np.isin(columns.priority, list(self._whole))
        reaches = vector(columns, placement)
        self.columns = columns
        self._levels = [
            (level, reached)
            for level, reached in zip(levels_of(columns), reaches, strict=False)
            if level.priority not in self._whole
        ]
        self.placement = placement
        self.column, self.replicas = self._extended()
        self.whole: Flags = self.replicas == columns.replicas[self.column]
        server = columns.server[self.column]
        self.first: Ints = np.flatnonzero(
            (self.column == placement.column[server]) & (self.replicas == placement.replicas[server])
        )
        self.problem = self._problem()

    def _extended(self) -> tuple[Ints, Ints]:
        columns, given = self.columns, self.placement
        every = np.arange(len(columns.server))
        partial = np.flatnonzero(
            columns.best_effort & ~self._must[columns.server] & (columns.replicas > columns.least)
        )
        mine = np.flatnonzero((given.column != NONE) & (given.replicas > columns.least[given.column]))
        mine = mine[given.replicas[mine] < columns.replicas[given.column[mine]] - 1]
        column = np.concatenate([every, partial, partial, given.column[mine]])
        replicas = np.concatenate(
            [
                columns.replicas,
                columns.least[partial],
                columns.replicas[partial] - 1,
                given.replicas[mine],
            ]
        )
        order = np.lexsort((replicas, column, columns.server[column]))
        return column[order], replicas[order]

    def _problem(self) -> Priced:
        columns, column, replicas = self.columns, self.column, self.replicas
        whole = replicas == columns.replicas[column]
        part = np.where(whole, 1.0, replicas / np.maximum(columns.replicas[column], 1))
        server = columns.server[column]
        full = whole & columns.full[column]
        rows = [columns.units[:, column] * replicas]
        limits = [columns.most]
        for level, reached in self._levels:
            of = (columns.priority == level.priority)[server]
            if level.kind is Kind.SERVED:
                gain = np.where(of & full, columns.weight[server], 0.0)
            else:
                gain = np.where(of, columns.rate[server] * columns.share[column] * part, 0.0)
            rows.append(-gain / level.scale)
            limits.append(np.array([-(reached - LEVEL_ROUNDING)]))
        return Priced(
            cost=columns.value[column] * part,
            rows=np.vstack(rows),
            limit=np.concatenate(limits),
            server=server,
            starts=np.searchsorted(server, np.arange(columns.servers + 1)),
            usable=full | ~self._must[server],
            must=self._must,
        )

    def dual(self, end: float, known: Array | None = None) -> Dual:
        """The best prices and their bound."""
        start = None
        if known is not None:
            # Prices of cards, money and power are worth beginning with whatever the levels are.
            shared = len(self.columns.most)
            start = np.concatenate([known[:shared], np.zeros(len(self.problem.limit) - shared)])
            if len(known) == len(start):
                start = known
        return best_prices(self.problem, end, start)
