"""A solution as it is built and improved: the column of every server, and what is left of the limits."""

from dataclasses import dataclass

import numpy as np

from services.optimizer.solvers.columns import Array, Columns, Flags, Ints
from services.optimizer.solvers.highs import left

NONE = -1
# Moves that gain less than this share of the whole value are rounding.
LEAST_GAIN = 1e-12
MOVES_A_PASS = 400
# Moves that are looked at to make room for servers, those that cost least.
MOVES_TRIED = 3000


@dataclass(frozen=True, eq=False)
class Moves:
    """Full columns that servers could be moved to, shape (K,), while nothing else is given or taken.

    loss: what each costs more under prices, shape (K,). change: what it uses more of the limits, shape (R, K).
    """

    column: Ints
    loss: Array
    change: Array


class Placement:
    """Whole columns, or parts of them, given to servers, never more than the limits allow."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.use = columns.use
        self.column: Ints = np.full(columns.servers, NONE, dtype=np.int64)
        self.replicas: Ints = np.zeros(columns.servers, dtype=np.int64)
        self.rest: Array = columns.most.copy()

    def copy(self) -> "Placement":
        """The same, to change on its own."""
        other = Placement.__new__(Placement)
        other.columns, other.use = self.columns, self.use
        other.column, other.replicas = self.column.copy(), self.replicas.copy()
        other.rest = self.rest.copy()
        return other

    @property
    def chosen(self) -> dict[int, int]:
        """Replicas by column."""
        given = np.flatnonzero(self.column != NONE)
        return dict(zip(self.column[given].tolist(), self.replicas[given].tolist(), strict=True))

    @property
    def served(self) -> Flags:
        """Shape (S,), whether a server is served in full."""
        some = self.column != NONE
        at = np.maximum(self.column, 0)
        return np.asarray(some & self.columns.full[at] & (self.replicas == self.columns.replicas[at]))

    @property
    def value(self) -> float:
        """The value of all that is given."""
        given = np.flatnonzero(self.column != NONE)
        at = self.column[given]
        share = self.replicas[given] / np.maximum(self.columns.replicas[at], 1)
        whole = self.replicas[given] == self.columns.replicas[at]
        return float((self.columns.value[at] * np.where(whole, 1.0, share)).sum())

    def give(self, column: int, replicas: int | None = None) -> None:
        """Gives a column to its server in place of what it has; all of its replicas by default."""
        server = self.columns.server[column]
        self.take(server)
        count = int(self.columns.replicas[column]) if replicas is None else replicas
        self.column[server], self.replicas[server] = column, count
        self.rest -= self.columns.units[:, column] * count

    def take(self, server: int) -> None:
        """Takes away what a server has."""
        column = self.column[server]
        if column != NONE:
            self.rest += self.columns.units[:, column] * self.replicas[server]
            self.column[server], self.replicas[server] = NONE, 0

    def serve(self, server: int, priced: Array) -> bool:
        """Gives a server its full column of least priced cost that fits; whether there was one."""
        first, last = self.columns.starts[server], self.columns.starts[server + 1]
        own = slice(first, last)
        fits = self.columns.full[own] & (self.use[:, own] <= self.rest[:, None]).all(axis=0)
        if not fits.any():
            return False
        self.give(int(first + np.argmin(np.where(fits, priced[own], np.inf))))
        return True

    def make_room(self, server: int, priced: Array, moves: Moves, tries: int) -> bool:
        """Serves a server by one move of another, or not at all. tries: columns of the server to try."""
        columns = self.columns
        first, last = columns.starts[server], columns.starts[server + 1]
        own = np.arange(first, last)[columns.full[first:last]]
        for column in own[np.argsort(priced[own], kind="stable")][:tries]:
            rest = self.rest - self.use[:, column]
            fits = (moves.change <= rest[:, None]).all(axis=0)
            if fits.any():
                self.give(int(moves.column[np.argmin(np.where(fits, moves.loss, np.inf))]))
                self.give(int(column))
                return True
        return False

    def moves(self, of: Flags, priced: Array) -> Moves:
        """What servers, of shape (S,), that are served can be moved to, the moves that lose least."""
        column = self.movable(of)
        now = self.column[self.columns.server[column]]
        loss = priced[column] - priced[now]
        if column.size > MOVES_TRIED:
            some = np.argpartition(loss, MOVES_TRIED)[:MOVES_TRIED]
            column, now, loss = column[some], now[some], loss[some]
        return Moves(column, loss, self.use[:, column] - self.use[:, now])

    def movable(self, of: Flags) -> Ints:
        """The full columns of servers, of shape (S,), that are served."""
        return np.flatnonzero((of & self.served)[self.columns.server] & self.columns.full)

    def fill(self, server: int, priced: Array) -> None:
        """Gives a server the most that fits of any column of its: the largest share of its rate."""
        first, last = self.columns.starts[server], self.columns.starts[server + 1]
        units = self.columns.units[:, first:last]
        room = np.divide(self.rest[:, None], units, out=np.full(units.shape, np.inf), where=units > 0)
        count = np.minimum(np.floor(room).min(axis=0, initial=np.inf), self.columns.replicas[first:last])
        share = self.columns.share[first:last] * count / np.maximum(self.columns.replicas[first:last], 1)
        part = count < self.columns.replicas[first:last]
        share = np.where((count > 0) & ~(part & (count < self.columns.least[first:last])), share, 0.0)
        if not share.any():
            return
        best = np.lexsort((priced[first:last], -share))[0]
        self.give(int(first + best), int(count[best]))

    def improve(self, end: float) -> None:
        """Moves served servers to cheaper full columns while that fits."""
        everyone = np.ones(self.columns.servers, dtype=bool)
        while left(end) > 0 and self._pass(self.movable(everyone)):
            pass

    def _pass(self, movable: Ints) -> bool:
        """One round of single moves, the most valuable first; whether any was made."""
        now = self.column[self.columns.server[movable]]
        gain = self.columns.value[now] - self.columns.value[movable]
        fits = ((self.use[:, movable] - self.use[:, now]) <= self.rest[:, None]).all(axis=0)
        good = np.flatnonzero(fits & (gain > self._least_gain))
        moved, done = False, set[int]()
        for i in good[np.argsort(-gain[good], kind="stable")][:MOVES_A_PASS]:
            column = int(movable[i])
            server = int(self.columns.server[column])
            if server in done:
                continue
            if (self.use[:, column] - self.use[:, self.column[server]] <= self.rest).all():
                self.give(column)
                done.add(server)
                moved = True
        return moved

    @property
    def _least_gain(self) -> float:
        return LEAST_GAIN * max(1.0, abs(self.value))
