"""The figures for Prometheus: requests, extends by phase and result, seconds of each phase."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Figures:
    """The figures of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "voldrivers_requests",
            "Requests answered, by method, route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "voldrivers_request_seconds",
            "Seconds until a request was answered",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.extends = Counter(
            "voldrivers_extends",
            "Extends that ended, by the last phase they were in and their result",
            ["phase", "result"],
            registry=self.registry,
        )
        self.phase_seconds = Histogram(
            "voldrivers_extend_phase_seconds",
            "Seconds that an extend was in a phase",
            ["phase"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.at_work = Gauge(
            "voldrivers_operations_at_work",
            "Operations that have begun and not ended",
            registry=self.registry,
        )

    def page(self) -> bytes:
        """Give them as Prometheus reads them."""
        return generate_latest(self.registry)
