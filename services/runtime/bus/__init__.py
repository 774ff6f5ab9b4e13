"""NATS JetStream: the only package that imports nats.

What is particular here was measured on nats-py: fetch lingers for its whole timeout unless the batch is full,
so a pull keeps its own requests open and hands over what is there; drain waits out its timeout after an empty
pull unless the pull is ended first; a denied publish looks like a time-out and its reason arrives only on the
error callback; reconnects are limited unless told otherwise; a published message may be stored although the
acknowledgement is lost, so ids are deterministic and publishing repeats them.
"""

from services.runtime.bus.bucket import Bucket, Conflict
from services.runtime.bus.connection import Bus, Stored
from services.runtime.bus.pull import Pull

__all__ = ["Bucket", "Bus", "Conflict", "Pull", "Stored"]
