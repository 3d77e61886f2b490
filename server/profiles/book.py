"""Which policy is in force for a request: a profiles file as it was read, whole, and the order in which it is asked."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from server.policy import DfmrOptions, Policy, ServerSettings
from server.profiles.format import (
    DEFAULT_PROFILE,
    Calibration,
    Drift,
    Fingerprint,
    NamedProfile,
    Pressure,
    Profile,
    details,
    read_profile,
    read_profiles,
)

MEASURED = tuple(name for name in ("metric", "aggregate") if name not in DfmrOptions.model_fields)
"""Fields of the server's policy that no profile may change: pictures are measured, and scores kept, once for all."""


class Entry(NamedTuple):
    """One policy that can be in force."""

    policy: Policy
    note: str = ""
    calibration: Calibration | None = None
    drift: Drift = Drift()
    pressure: Pressure | None = None

    @property
    def factors(self) -> set[int]:
        """Pooling factors that have to be measured for it."""
        return {*self.policy.candidates, *([self.calibration.factor] if self.calibration else [])}


class Chosen(NamedTuple):
    """The policy of one request, and the name that it is counted under."""

    name: str
    policy: Policy


class ProfileBook(NamedTuple):
    """A profiles file and the server's own policy, all of it valid.

    Attributes:
        entries: by name; `DEFAULT_PROFILE` is the server's own policy.
        server: name of the profile that applies where neither request nor API key names one.
        keys: SHA-256 of an API key to a name.
        files: what it was read from.
    """

    entries: Mapping[str, Entry]
    server: str = DEFAULT_PROFILE
    keys: Mapping[str, str] = {}
    files: tuple[Path, ...] = ()

    @property
    def candidates(self) -> tuple[int, ...]:
        """Every pooling factor that has to be measured for some profile."""
        return tuple(sorted({s for entry in self.entries.values() for s in entry.factors}))

    def choose(self, options: DfmrOptions | None = None, key: str | None = None) -> Chosen:
        """A request's policy: its own fields over the profile that it names, else its key's, else the server's.

        Args:
            options: the request's ``dfmr`` object.
            key: SHA-256 of its API key, from `key_digest`.

        Raises:
            ValueError: the request names a profile or a factor that there is not; lists those that there are.
        """
        named = options.profile if options is not None else None
        name = named or self.keys.get(key or "") or self.server
        if name not in self.entries:
            raise ValueError(
                f"dfmr.profile: this server has no profile {name!r}; there are {', '.join(sorted(self.entries))}"
            )
        return Chosen(name, self.entries[name].policy.merge(options))

    def check(self, measured: Sequence[int], config: str, encoder: Fingerprint | None) -> None:
        """Refuse what the running server cannot do.

        Args:
            measured: the pooling factors that it measures since it was started.
            config: digest of its encoder's configuration.
            encoder: the whole fingerprint; None where nothing has been encoded yet.

        Raises:
            ValueError: a profile wants another factor, or was calibrated for another encoder.
        """
        for name, entry in self.entries.items():
            if unknown := sorted(entry.factors - set(measured)):
                raise ValueError(
                    f"profile {name}: pooling factor {', '.join(map(str, unknown))} is not measured; this server "
                    f"measures {', '.join(map(str, measured))} since it was started, and has to be restarted for others"
                )
            if entry.calibration is None:
                continue
            theirs = entry.calibration.encoder
            if difference := theirs.difference(encoder or Fingerprint(config=config, features=theirs.features)):
                raise ValueError(
                    f"profile {name} was calibrated for another encoder than the one that is served: {difference}. "
                    "Thresholds do not carry over: calibrate it again with dfmr-calibrate"
                )


def key_digest(authorization: str | None) -> str | None:
    """SHA-256 in hexadecimal of the bearer token in an ``Authorization`` header, read as vLLM's own check reads it."""
    scheme, _, token = (authorization or "").partition(" ")
    return hashlib.sha256(token.encode()).hexdigest() if scheme.lower() == "bearer" else None


def load_book(settings: ServerSettings, own: Profile | None = None) -> ProfileBook:
    """The operator's profiles file over the server's own policy.

    Args:
        settings: the server's; its policy is what profiles leave open.
        own: the checkpoint's profile, whose calibration applies to the server's own policy.

    Raises:
        ValueError: the file or a profile in it is wrong; says which and why.
    """
    unchanged = own is not None and settings.policy == _policy(Policy(), own.policy, "the checkpoint's profile")
    calibration = own.calibration if own is not None and unchanged else None
    entries = {DEFAULT_PROFILE: Entry(settings.policy, calibration=calibration)}
    keys: Mapping[str, str] = {}
    files: list[Path] = []
    if settings.profiles is not None:
        path = Path(settings.profiles)
        content = read_profiles(path)
        files = [path, *(path.parent / p.calibrated for p in content.profiles.values() if p.calibrated)]
        entries |= {name: _entry(name, p, settings.policy, path.parent) for name, p in content.profiles.items()}
        keys = content.keys
    server = settings.profile or DEFAULT_PROFILE
    if server not in entries:
        where = f"in {settings.profiles}" if settings.profiles else "without a profiles file (--dfmr-profiles)"
        raise ValueError(f"dfmr settings: there is no profile {server!r} {where}; there are {', '.join(entries)}")
    for name, entry in entries.items():
        _check_calibration(name, entry)
    return ProfileBook(entries, server, keys, tuple(files))


def _entry(name: str, profile: NamedProfile, own: Policy, folder: Path) -> Entry:
    measured = read_profile(folder / profile.calibrated) if profile.calibrated else None
    if measured is not None and measured.calibration is None:
        raise ValueError(f"profile {name}: {profile.calibrated} has no calibration; write it with dfmr-calibrate")
    asked = {**(measured.policy if measured else {}), **profile.policy}
    if fixed := sorted(key for key in MEASURED if key in asked and asked[key] != getattr(own, key)):
        raise ValueError(
            f"profile {name}: {', '.join(fixed)} is the same for all profiles of a server; "
            f"set it with --dfmr-{fixed[0]}"
        )
    policy = _policy(own, asked, f"profile {name}")
    return Entry(policy, profile.note, measured.calibration if measured else None, profile.drift, profile.pressure)


def _policy(own: Policy, asked: Mapping[str, Any], whose: str) -> Policy:
    try:
        return Policy.model_validate({**own.model_dump(), **asked})
    except ValidationError as error:
        raise ValueError(f"{whose}: {details(error)}") from error


def _check_calibration(name: str, entry: Entry) -> None:
    if entry.calibration is None:
        return
    for field in ("metric", "aggregate"):
        served, calibrated = getattr(entry.policy, field), getattr(entry.calibration, field)
        if served != calibrated:
            raise ValueError(
                f"profile {name} was calibrated with the {field} {calibrated!r}, and the server measures {served!r}; "
                "calibrate it again"
            )
