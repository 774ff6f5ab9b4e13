"""What a service is to the chassis."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from schemas.base import Contract
from services.runtime.clock import Clock
from services.runtime.envelope import Emit, Event
from services.runtime.metrics import Metrics

C = TypeVar("C", bound=Contract)
Task = Callable[[], Coroutine[Any, Any, None]]
VerbHandler = Callable[[Any], Awaitable[Contract]]


@dataclass(frozen=True)
class Outcome:
    """What a step came to.

    Facts to publish, then snapshots to save by key, any text (None deletes), then `accept`, which makes the
    step's new state the service's own. A step that cannot be published or saved leaves the state as it was and
    is done again.
    """

    emits: Sequence[Emit] = ()
    snapshots: Mapping[str, bytes | None] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    accept: Callable[[], None] | None = None


class Host(Protocol):
    """What the chassis offers to its service."""

    @property
    def clock(self) -> Clock:
        """Control time."""

    @property
    def metrics(self) -> Metrics:
        """Metrics of the process."""

    @property
    def log(self) -> Any:
        """Structured log, bound to the service."""

    @property
    def active(self) -> bool:
        """Whether this instance may act: it holds its lease and the bus is there."""

    async def transact(self, step: Callable[[], Outcome]) -> None:
        """Take one step on the service's state, publish, save, accept; one at a time.

        Raises Retry, Conflict or Denied; the state is then as before.
        """

    async def publish(self, emits: Sequence[Emit]) -> list[int]:
        """Publish facts that change no state; returns their places in the stream, 0 for one too large to send.

        Raises as `transact` does.
        """

    async def newest(self, payload: type[C], **keys: str) -> list[C]:
        """The newest message of each subject of a topic, of those with these keys; raises Retry."""


class Service:
    """A service's shell: it turns events into calls of a pure core, and the core's outputs into an Outcome."""

    name: ClassVar[str]
    heavy: ClassVar[bool] = False
    """Whether its steps on messages take long enough to run beside the event loop, in a thread."""
    linger_s: ClassVar[float] = 0.0
    """Wall seconds to wait for more messages after the first, where a step per batch is what costs."""
    host: Host

    async def open(self) -> None:
        """Make ready what lies outside the bus."""

    def part(self, partition: str) -> "Service":
        """A service of its own for one partition, that has learned nothing yet, for a service that has them.

        The one that makes parts handles no messages: it opens, sees the newest of what all instances see, and
        answers requests.
        """
        raise NotImplementedError(f"{self.name} has no parts")

    def concerns(self, payload: Contract) -> bool:
        """Whether a part has any use for a message that all instances see."""
        return True

    def restore(self, snapshots: Mapping[str, bytes]) -> None:
        """Take up the state that an earlier instance saved."""

    def hydrate(self, events: Sequence[Event]) -> None:
        """Take in the newest of each subject that this service needs only the newest of, before it starts."""

    def handle(self, events: Sequence[Event]) -> Outcome:
        """Take one step on a batch in the order of its stream."""
        return Outcome()

    def tasks(self) -> Mapping[str, Task]:
        """Named loops that run while the service is active; the first that fails ends the process."""
        return {}

    def verbs(self) -> Mapping[str, VerbHandler]:
        """Handlers of the verbs of the topic table, by name; they may raise ValueError for a bad request."""
        return {}

    def trouble(self) -> Sequence[str]:
        """Why the service is not ready, beyond what the chassis sees."""
        return ()

    async def settle(self) -> None:
        """Finish what its tasks have in hand and let them begin nothing new, before it is ended."""

    async def close(self) -> None:
        """Let go of what `open` made."""
