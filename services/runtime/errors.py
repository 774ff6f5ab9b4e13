"""What a handler may raise; which one decides whether a message is retried or parked, or the process ends."""


class Retry(Exception):
    """A passing fault: deliver the message again after a delay.

    Parameters: delay_s, seconds until the next delivery.
    """

    def __init__(self, reason: str, delay_s: float = 1.0) -> None:
        super().__init__(reason)
        self.delay_s = delay_s


class Reject(Exception):
    """A message that will never be good: park it with the reason."""


class Fatal(Exception):
    """The service cannot go on; its process ends with a non-zero code."""


class Denied(Retry):
    """The bus refused a publish; the reason is the server's. Once the user has the right, it is done again."""


class TooLarge(Reject):
    """A message above the size that the bus carries."""


class TopologyDrift(Fatal):
    """Streams or consumers on the server differ from the topic table; `stoker bus apply` mends it."""
