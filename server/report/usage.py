"""What was counted over a time range, from whichever source: the one input of the report."""

from dataclasses import dataclass, field


@dataclass
class Pairs:
    """Requests that were run twice, with compression and without.

    Attributes:
        count: pairs.
        ttft: seconds from scheduling to the first token with compression, summed over the pairs.
        baseline_ttft: the same without.
        compared: pairs at temperature 0, whose answers were compared.
        exact: those of them whose answers had the same tokens.
        overlap: token overlap of the compared answers, summed.
    """

    count: float = 0.0
    ttft: float = 0.0
    baseline_ttft: float = 0.0
    compared: float = 0.0
    exact: float = 0.0
    overlap: float = 0.0

    @property
    def saved(self) -> float:
        """Mean seconds saved in prefill of a request; 0 without pairs."""
        return (self.baseline_ttft - self.ttft) / self.count if self.count else 0.0


@dataclass
class Group:
    """One model under one profile.

    Attributes:
        pictures: accepted ones.
        original: visual tokens that the encoder made of them.
        kept: visual tokens that the language model was given.
        kv_bytes_saved: bytes of KV cache that the difference would have taken.
        compressed_requests: requests in which there was a difference.
    """

    model: str
    profile: str
    pictures: float = 0.0
    original: float = 0.0
    kept: float = 0.0
    kv_bytes_saved: float = 0.0
    compressed_requests: float = 0.0
    pairs: Pairs = field(default_factory=Pairs)

    @property
    def saved(self) -> float:
        return self.original - self.kept


@dataclass(frozen=True)
class Point:
    """Visual tokens in the time before ``time`` (seconds since 1970), of all models."""

    time: float
    original: float
    kept: float


@dataclass
class Usage:
    """Everything that was counted.

    Attributes:
        source: where it comes from, in words.
        start: of the time range, in seconds since 1970.
        end: of the time range.
        groups: by model and profile.
        residency: by model, mean seconds that a request held KV cache; None where it is not known.
        residency_source: how that was found, in words.
        instance_hours: by model, hours that instances ran; None where it was not counted.
        timeline: visual tokens over time.
    """

    source: str
    start: float
    end: float
    groups: list[Group]
    residency: dict[str, float]
    residency_source: str
    instance_hours: dict[str, float] | None
    timeline: list[Point]

    @property
    def hours(self) -> float:
        return (self.end - self.start) / 3600
