"""Placements as they are built under prices: who is served first, who gets what is left."""

import numpy as np

from services.optimizer.solvers.certificate import better, placed
from services.optimizer.solvers.columns import Array, Columns, Flags
from services.optimizer.solvers.highs import left
from services.optimizer.solvers.placement import NONE, Placement

COLUMNS_TRIED = 4
ROOM_FAILURES = 40


def take_cheapest(placement: Placement, priced: Array, of: Flags) -> None:
    """Gives some servers their full column of least price as far as they fit, for whom it matters most first."""
    columns = placement.columns
    full = np.where(columns.full & of[columns.server], priced, np.inf)
    least = np.minimum.reduceat(full, columns.starts[:-1])
    hits = np.flatnonzero((full == least[columns.server]) & np.isfinite(full))
    first = hits[np.unique(columns.server[hits], return_index=True)[1]]
    full[first] = np.inf
    margin = (
        np.minimum.reduceat(full, columns.starts[:-1])[columns.server[first]] - least[columns.server[first]]
    )
    for column in first[np.argsort(-margin, kind="stable")].tolist():
        if (placement.use[:, column] <= placement.rest).all():
            placement.give(column)


def extended(columns: Columns, best: Placement, priced: Array, priority: int, end: float) -> Placement:
    """The placement that is, without what is less important or best effort, and then all that fits."""
    placement = best.copy()
    for server in np.flatnonzero((columns.priority > priority) | ~best.served).tolist():
        placement.take(server)
    return completed(columns, placement, priced, end)


def filled(columns: Columns, chosen: dict[int, int], end: float) -> dict[int, int]:
    """A choice, and in what it leaves whoever else can be served, class after class."""
    placement = placed(columns, chosen)
    return better(columns, completed(columns, placement.copy(), columns.value, end), placement).chosen


def completed(columns: Columns, placement: Placement, priced: Array, end: float) -> Placement:
    """All that can still be served, class after class, with best effort where the options want it."""
    priorities = np.unique(columns.priority).tolist()
    for priority in priorities:
        of = columns.priority == priority
        place_class(columns, placement, of, priced, end)
        if columns.best_effort and not columns.delayed:
            _fill(columns, placement, of, priced)
    for priority in priorities:
        if columns.best_effort and columns.delayed:
            _fill(columns, placement, columns.priority == priority, priced)
    if not columns.best_effort:
        # Servers that no number of replicas allowed can serve get what they may have.
        limited = np.zeros(columns.servers, dtype=bool)
        limited[columns.server[~columns.full]] = True
        _fill(columns, placement, limited, priced, whole=True)
    return placement


def place_class(columns: Columns, placement: Placement, of: Flags, priced: Array, end: float) -> None:
    """Serves in full those of some servers that have nothing, where it takes least first, and makes room for them."""
    full = np.where(columns.full, priced, np.inf)
    least = np.minimum.reduceat(full, columns.starts[:-1]) / columns.weight
    free = of & (placement.column == NONE) & np.isfinite(least)
    waiting = [int(s) for s in np.argsort(least, kind="stable") if free[s]]
    unserved = [s for s in waiting if not placement.serve(s, priced)]
    if not unserved:
        return
    before = columns.priority <= int(columns.priority[of].max())
    moves, failed = placement.moves(before, priced), 0
    for server in unserved:
        if left(end) <= 0 or failed >= ROOM_FAILURES:
            return
        if placement.serve(server, priced) or placement.make_room(server, priced, moves, COLUMNS_TRIED):
            moves = placement.moves(before, priced)
        else:
            failed += 1


def _fill(columns: Columns, placement: Placement, of: Flags, priced: Array, whole: bool = False) -> None:
    """Best effort for servers that have nothing; with `whole` only columns that are given whole count."""
    for server in np.flatnonzero(of & (placement.column == NONE)).tolist():
        placement.fill(server, priced)
        given = placement.column[server]
        partial = given != NONE and placement.replicas[server] < columns.replicas[given]
        if whole and (partial or (given != NONE and columns.full[given])):
            placement.take(server)
