"""What is run: scenarios and policies, as `scenarios.yaml` states them."""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from loadtests.pictures import Kind as PictureKind
from loadtests.servers import Kind
from server.policy import Detail

FILE = Path(__file__).with_name("scenarios.yaml")
Size = Literal["short", "full"]
Sized = tuple[int, int]
"""A number for the short run and one for the full run."""


def of(sized: Sized, size: Size) -> int:
    """The number that is meant."""
    return sized[size == "full"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Policy(_Strict):
    """A way to have the same questions answered.

    Attributes:
        server: which of the two servers is asked.
        dfmr: the ``dfmr`` object of every request.
        details: a row for each request in turn, one detail for each picture in turn.
        downscale: share of width and height that the client keeps.
        like: send as much text as this policy keeps tokens, instead of pictures.
    """

    server: Kind
    dfmr: dict[str, Any] = {}
    details: list[list[Detail]] = []
    downscale: float = 1.0
    like: str | None = None
    note: str = ""

    @property
    def body(self) -> dict[str, Any]:
        """What a request says beside its messages."""
        return {"dfmr": self.dfmr} if self.dfmr else {}

    def details_of(self, request: int, count: int) -> list[Detail]:
        """Details of a request's pictures."""
        row = self.details[request % len(self.details)] if self.details else ["auto"]
        return [row[index % len(row)] for index in range(count)]  # type: ignore[misc]

    def factor(self, detail: Detail) -> int:
        """The pooling factor that a picture of that detail gets: policies here leave nothing to scores."""
        if detail == "high" or self.dfmr.get("enabled") is False or self.server == "one-phase":
            return 1
        factors = self.dfmr["factors"]
        return int(max(factors) if detail == "low" else min(factors))


class Beside(_Strict):
    """A second stream of requests that a scenario's own run beside.

    Attributes:
        load: arrivals a second, as a share of what was served of them under the scenario's first policy.
    """

    pictures: int
    output: int
    load: float
    requests: Sized


class Application(_Strict):
    """Locust users that behave like an application."""

    users: int
    seconds: Sized


class Scenario(_Strict):
    """One row of the matrix.

    Attributes:
        model: ``bench`` has honest proportions; ``tiny`` costs nothing, which leaves the server's own cost.
        text: characters, that is tokens, of the question.
        repeats: how often each set of pictures is asked about, one after the other.
        rates: arrivals a second in a Poisson process, as shares of what was served under the first policy.
        alone: also run without `beside`.
        short_policies: those of the short run, if they are fewer.
    """

    name: str
    model: Literal["bench", "tiny"]
    policies: list[str]
    short_policies: list[str] = []
    pictures: int = 1
    kinds: tuple[PictureKind, ...] = ("photograph", "document", "chart")
    text: int = 32
    output: int = 4
    repeats: int = 1
    concurrency: int | None = None
    rates: list[float] = []
    requests: Sized = (1, 1)
    rounds: Sized = (1, 1)
    dataset: Literal["custom_image", "random-mm"] = "custom_image"
    beside: Beside | None = None
    alone: bool = False
    application: Application | None = None

    @model_validator(mode="after")
    def _one_kind_of_load(self) -> Self:
        if sum((self.concurrency is not None, bool(self.rates), self.application is not None)) != 1:
            raise ValueError(f"{self.name}: needs exactly one of concurrency, rates and application")
        return self


class Matrix(_Strict):
    """Everything that is run."""

    policies: dict[str, Policy]
    scenarios: list[Scenario] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Self:
        for scenario in self.scenarios:
            named = [*scenario.policies, *scenario.short_policies]
            if unknown := [name for name in named if name not in self.policies]:
                raise ValueError(f"{scenario.name}: there is no policy {', '.join(unknown)}")
        for name, policy in self.policies.items():
            if policy.like is not None and policy.like not in self.policies:
                raise ValueError(f"{name}: there is no policy {policy.like}")
        return self

    def chosen(
        self, size: Size, only: list[str], most_rounds: int | None = None, policies: list[str] | None = None
    ) -> list[Scenario]:
        """The scenarios of a run.

        Args:
            only: their names; all if there are none.
            most_rounds: bound of the rounds of each.
            policies: that take turns in each instead of its own.

        Raises:
            ValueError: `only` or `policies` names one that there is not.
        """
        names = [scenario.name for scenario in self.scenarios]
        if unknown := [name for name in only if name not in names]:
            raise ValueError(f"no scenario {', '.join(unknown)}; there are: {', '.join(names)}")
        if unknown := [name for name in policies or () if name not in self.policies]:
            raise ValueError(f"no policy {', '.join(unknown)}; there are: {', '.join(self.policies)}")
        found = [s for s in self.scenarios if of(s.requests, size) and (not only or s.name in only)]
        if size == "short":
            found = [s.model_copy(update={"policies": s.short_policies or s.policies}) for s in found]
        if policies:
            found = [s.model_copy(update={"policies": policies}) for s in found]
        if most_rounds is None:
            return found
        return [s.model_copy(update={"rounds": tuple(min(n, most_rounds) for n in s.rounds)}) for s in found]


def load(path: Path = FILE) -> Matrix:
    """Read a matrix.

    Raises:
        ValueError: it is not one; says where.
    """
    return Matrix.model_validate(yaml.safe_load(path.read_text()))
