"""A broadcast of servers cut into blocks whose tables over the batch fit the cache and the memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from services.perfmodel.queueing import ServerModel
from services.perfmodel.root_finding import Rows

# Table entries per block: ten tables of doubles are then 20 MB.
BLOCK_ENTRIES = 1 << 18


@dataclass(frozen=True, eq=False)
class Block:
    """Some elements of a broadcast shape.

    elements: positions in the flattened shape.
    servers: the different servers among them, along one axis.
    rows: for each element, which of `servers` it is.
    """

    elements: Rows
    servers: ServerModel
    rows: Rows


def blocks(server: ServerModel, shape: tuple[int, ...]) -> Iterator[Block]:
    """All elements of a shape the servers broadcast to, like batch limits together, as tables are padded."""
    servers = server.rows()
    count = int(np.prod(server.shape, dtype=np.int64))
    rows = np.broadcast_to(np.arange(count).reshape(server.shape), shape).ravel()
    width = np.asarray(servers.limits.max_batch)[rows].astype(np.intp)
    order = np.argsort(width, kind="stable")
    start = 0
    while start < order.size:
        most = order[start : start + max(1, BLOCK_ENTRIES // int(width[order[start]]))]
        # Widths ascend, so the last element of a block is what all of it is padded to.
        fitting = np.count_nonzero(width[most] * np.arange(1, most.size + 1) <= BLOCK_ENTRIES)
        elements = most[: max(1, int(fitting))]
        different, inverse = np.unique(rows[elements], return_inverse=True)
        yield Block(elements, servers.take(different), inverse)
        start += elements.size
