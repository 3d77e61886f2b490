"""Less detail while the KV cache is nearly full: a ceiling on tokens that goes down step by step, and up again."""

import asyncio
import math
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from dfmr_kernels.decide import tokens_after
from server.metrics import PRESSURE_LEVEL
from server.policy import Policy
from server.profiles.book import ProfileBook
from server.profiles.format import Pressure, PressureStep

KV_USAGE = "vllm:kv_cache_usage_perc"
"""vLLM's gauge, from 0 to 1; one series per engine."""


LOOK_SECONDS = 1.0


class Level:
    """How far a ceiling has gone down. Pure: it knows usage and time only from its caller.

    Usage at or above ``high`` for ``hold_seconds`` is one step down, and each further such time one more; usage at or
    below ``low`` for ``calm_seconds`` is one step up. Between the two marks nothing changes and both waits start again,
    so that a ceiling which relieves the cache does not lift itself at once.
    """

    def __init__(self, settings: Pressure) -> None:
        self.settings = settings
        self.level = 0
        self._pressed: float | None = None
        self._calm: float | None = None

    def observe(self, usage: float, now: float) -> int:
        """Look at the KV cache.

        Args:
            usage: part of it that is in use, 0 to 1; NaN counts as between the marks.
            now: seconds on a clock that only goes forward.

        Returns:
            the level: 0 is no ceiling, n is the n-th step.
        """
        settings = self.settings
        if usage >= settings.high:
            self._calm = None
            self._pressed = now if self._pressed is None else self._pressed
            if now - self._pressed >= settings.hold_seconds and self.level < len(settings.steps):
                self.level, self._pressed = self.level + 1, now
        elif usage <= settings.low:
            self._pressed = None
            self._calm = now if self._calm is None else self._calm
            if now - self._calm >= settings.calm_seconds and self.level > 0:
                self.level, self._calm = self.level - 1, now
        else:
            self._pressed = self._calm = None
        return self.level

    @property
    def ceiling(self) -> PressureStep | None:
        """The step that is in force."""
        return self.settings.steps[self.level - 1] if self.level else None


class PressureWatch:
    """The level of every profile that has steps, and the gauge that shows it."""

    def __init__(self, model_name: str) -> None:
        self._model = model_name
        self._levels: dict[str, Level] = {}

    def adopt(self, book: ProfileBook) -> None:
        """Watch these profiles; a level stays where the settings are as they were."""
        gone = self._levels
        self._levels = {}
        for name, entry in book.entries.items():
            if entry.pressure is not None:
                old = gone.get(name)
                kept = old is not None and old.settings == entry.pressure
                self._levels[name] = old if kept and old is not None else Level(entry.pressure)
        for name in {*gone, *self._levels}:
            self._show(name)

    async def run(self, usage: Callable[[], float]) -> None:
        """Look at the KV cache every second, for ever; ``usage`` is called in a thread, and only if there are steps."""
        while True:
            if self._levels:
                self.observe(await asyncio.to_thread(usage), time.monotonic())
            await asyncio.sleep(LOOK_SECONDS)

    def observe(self, usage: float, now: float) -> None:
        """Look at the KV cache, for every profile."""
        for name, level in self._levels.items():
            level.observe(usage, now)
            self._show(name)

    def limited(self, profile: str, policy: Policy, grid: tuple[int, int], pictures: int) -> Policy:
        """A request's policy under the ceiling of its profile.

        A ceiling lowers what a request may keep and never refuses it: it is not below what the coarsest pooling that
        the policy allows would keep. Pictures that must keep every token (``detail: high``, ``enabled: false``) do.

        Args:
            profile: name of the one in force.
            policy: the request's, with its own fields in it.
            grid: rows and columns of the encoder's map.
            pictures: number of pictures in the request.
        """
        level = self._levels.get(profile)
        step = level.ceiling if level is not None else None
        if step is None:
            return policy
        fewest = tokens_after(grid, max(policy.factors))
        asked = {
            "max_tokens_per_image": (step.max_tokens_per_image, fewest),
            "max_visual_tokens": (step.max_visual_tokens, fewest * pictures),
        }
        lower = {}
        for field, (ceiling, least) in asked.items():
            if ceiling is None or field not in Policy.model_fields:
                continue
            own = getattr(policy, field)
            lower[field] = max(ceiling, least) if own is None else min(own, max(ceiling, least))
        return policy.model_copy(update=lower)

    def _show(self, profile: str) -> None:
        level = self._levels.get(profile)
        PRESSURE_LEVEL.labels(self._model, profile).set(level.level if level else 0)


def kv_usage(registry: CollectorRegistry, model_name: str) -> float:
    """How full the fullest engine's KV cache is, as vLLM last reported it.

    Args:
        registry: vLLM's, which reads all API processes where there are several.

    Returns:
        a part from 0 to 1; NaN where vLLM keeps no statistics.
    """
    values = [
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == KV_USAGE and sample.labels.get("model_name") == model_name
    ]
    return max(values, default=math.nan)
