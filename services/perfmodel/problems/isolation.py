"""One call for many, although one that is invalid fails the whole call."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def isolated(
    items: Sequence[T], ask: Callable[[Sequence[T]], list[R]], refused: Callable[[str], R]
) -> list[R]:
    """The answers of `ask`, in the order of the items; `refused` makes one of what a ValueError says.

    Halves are asked until an item that is refused is alone, so that it costs the others a few calls and no answer.
    """
    if not items:
        return []
    try:
        return ask(items)
    except ValueError as error:
        if len(items) == 1:
            return [refused(str(error))]
    middle = len(items) // 2
    return isolated(items[:middle], ask, refused) + isolated(items[middle:], ask, refused)
