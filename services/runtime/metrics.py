"""What every service counts about its own work."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics of one process; services in it are told apart by a label."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.messages = Counter(
            "stoker_messages",
            "Messages received, by what became of them.",
            ("service", "topic", "outcome"),
            registry=self.registry,
        )
        self.published = Counter(
            "stoker_published",
            "Messages published, by whether they were new.",
            ("service", "topic", "outcome"),
            registry=self.registry,
        )
        self.requests = Counter(
            "stoker_requests",
            "Requests answered.",
            ("service", "verb", "outcome"),
            registry=self.registry,
        )
        self.event_age = Histogram(
            "stoker_event_age_seconds",
            "Age of an event when it is acted upon, in control time.",
            ("service", "topic"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.handle = Histogram(
            "stoker_handle_seconds",
            "Wall time to handle one batch of messages, publishing and saving included.",
            ("service",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage = Histogram(
            "stoker_stage_seconds",
            "Wall time of one named piece of a service's work.",
            ("service", "stage"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.skipped = Counter(
            "stoker_skipped",
            "Inputs that a core left out, by reason.",
            ("service", "reason"),
            registry=self.registry,
        )
        self.actuations = Counter(
            "stoker_actuations",
            "Decisions handed to a target, by what came of them.",
            ("target", "outcome"),
            registry=self.registry,
        )
        self.active = Gauge(
            "stoker_active",
            "1 while this instance holds the lease of its service, or of a part of it.",
            ("service",),
            registry=self.registry,
        )
        self.partitions = Gauge(
            "stoker_partitions",
            "Partitions that this instance holds, of a service that has them.",
            ("service",),
            registry=self.registry,
        )
        self.ready = Gauge(
            "stoker_ready",
            "1 while the service is ready.",
            ("service",),
            registry=self.registry,
        )
        self.decisions = Counter(
            "stoker_decisions",
            "Decisions by verdict and rule.",
            ("verdict", "rule"),
            registry=self.registry,
        )
