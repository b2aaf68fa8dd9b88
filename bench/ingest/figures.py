"""The figures: what each path cost, the ratios between them, the table and the last line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

PEERS = ("collector", "rotel")
BARS: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    ("cpu_ratio_to_collector", "at least 5", lambda found: found >= 5),
    ("cpu_ratio_to_rotel", "at least 2.5", lambda found: found >= 2.5),
    ("ratio_to_floor", "at most 2.0", lambda found: found <= 2.0),
    ("ingest_rss_mb", "at most 300", lambda found: found <= 300),
    ("ingest_rss_mb_10x", "at most 300", lambda found: found <= 300),
    ("ingest_rss_mb_10x / ingest_rss_mb", "at most 1.1", lambda found: found <= 1.1),
)


@dataclass(frozen=True)
class Cost:
    """One path over `records` records. CPU in seconds, user and system, of all its processes
    from after start-up until the warehouse has settled; senders and producers are not in it.

    `warehouse_cpu_s` is a part of `cpu_s`, and `settle_cpu_s` (merges after the last row) is a
    part of that. `parts` splits `cpu_s` by process. `startup_cpu_s` is in none of them.
    """

    records: int
    seconds: float
    cpu_s: float
    warehouse_cpu_s: float
    settle_cpu_s: float
    startup_cpu_s: float
    warehouse_rss_mb: float
    parts: Mapping[str, float]
    rows: int
    notes: Mapping[str, object] = field(default_factory=dict)

    @property
    def records_per_s(self) -> float:
        """Over the wall time from the first byte to the last visible row."""
        return self.records / self.seconds

    @property
    def us_a_record(self) -> float:
        """CPU in microseconds a record."""
        return self.cpu_s / self.records * 1e6

    def as_json(self) -> dict[str, object]:
        figures = asdict(self)
        notes = figures.pop("notes")
        parts = {f"{name}_cpu_s": cpu for name, cpu in figures.pop("parts").items()}
        figures |= {"records_per_s": self.records_per_s, "cpu_us_per_record": self.us_a_record}
        return _rounded(figures | parts | notes)


@dataclass(frozen=True)
class Trial:
    """A batch size of a peer, tried on a sample."""

    batch_size: int
    cost: Cost


def fastest(trials: Sequence[Trial]) -> Trial:
    """The trial with the most records a second; of those that lost rows only if all did."""
    whole = [trial for trial in trials if trial.cost.rows == trial.cost.records]
    return max(whole or trials, key=lambda trial: trial.cost.records_per_s)


def ratio(numerator: Cost, denominator: Cost) -> float:
    """CPU a record of the one over CPU a record of the other."""
    return numerator.us_a_record / denominator.us_a_record


def summary(
    costs: Mapping[str, Cost], tenth_rss_mb: float, full_rss_mb: float
) -> dict[str, object]:
    """The named figures of the last line; those of a peer that did not run are missing."""
    file = costs["file"]
    ratios = {"ratio_to_floor": ratio(file, costs["floor"])} | {
        f"cpu_ratio_to_{peer}": ratio(costs[peer], file) for peer in PEERS if peer in costs
    }
    return _rounded(ratios | {"ingest_rss_mb": tenth_rss_mb, "ingest_rss_mb_10x": full_rss_mb})


def bars(figures: Mapping[str, object]) -> list[str]:
    """Each bar beside what was measured, one a line."""
    growth = _number(figures["ingest_rss_mb_10x"]) / _number(figures["ingest_rss_mb"])
    measured = {name: _number(value) for name, value in figures.items()} | {
        "ingest_rss_mb_10x / ingest_rss_mb": growth
    }
    return [
        f"{'met   ' if holds(measured[name]) else 'MISSED'} {name} {measured[name]:.3g} ({wanted})"
        for name, wanted, holds in BARS
        if name in measured
    ]


def table(costs: Mapping[str, Cost], titles: Mapping[str, str]) -> str:
    """One line a path, for people."""
    head = ("", "records", "records/s", "CPU s", "us/record", "warehouse", "merges", "start-up")
    rows = [
        (
            titles[name],
            f"{cost.records:,}",
            f"{cost.records_per_s:,.0f}",
            f"{cost.cpu_s:.2f}",
            f"{cost.us_a_record:.2f}",
            f"{cost.warehouse_cpu_s:.2f}",
            f"{cost.settle_cpu_s:.2f}",
            f"{cost.startup_cpu_s:.2f}",
        )
        for name, cost in costs.items()
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    )


def _rounded(figures: Mapping[str, object]) -> dict[str, object]:
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in figures.items()
    }


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
