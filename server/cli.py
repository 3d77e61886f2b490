"""``dfmr-serve``: vLLM's own ``vllm serve`` with our plugin switched on and ``--dfmr-*`` options for the policy."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.policy import Policy, ServerSettings, load_settings
from server.profiles.book import load_book

PLUGIN = "dfmr"
_ROOT = Path(__file__).resolve().parent.parent
EMBEDDED_MODEL = _ROOT / "models" / "tiny-llava-dfmr"
STANDIN_MODEL = _ROOT / "models" / "standin"
SHUTDOWN_SECONDS = 60
"""That running answers have on SIGTERM, where ``--shutdown-timeout`` does not say; vLLM's own default cuts them off."""
_SKIPPED = ("policy",)


def option_fields() -> dict[str, Any]:
    """Every field of the settings that is an option, by name: ``max_batch`` is ``--dfmr-max-batch``."""
    fields = {**Policy.model_fields, **ServerSettings.model_fields}
    return {name: field for name, field in fields.items() if name not in _SKIPPED}


def parser() -> argparse.ArgumentParser:
    """Our own options; everything else is vLLM's."""
    own = argparse.ArgumentParser(
        prog="dfmr-serve",
        usage="dfmr-serve [MODEL] [--dfmr-... VALUE] [any option of vllm serve]",
        description=f"{__doc__} MODEL is a LLaVA checkpoint, a folder or a hub name; default: the embedded model.",
        epilog="Every option of `vllm serve` is taken too: see `vllm serve --help`.",
        allow_abbrev=False,
    )
    for name, field in option_fields().items():
        default = field.get_default(call_default_factory=True)
        text = f"{field.description}; default {default}" if field.description else f"default {default}"
        own.add_argument(f"--dfmr-{name.replace('_', '-')}", dest=name, metavar="VALUE", help=text.replace("%", "%%"))
    own.add_argument(
        "--additional-config", "--additional_config", type=_json_object, default={}, help=argparse.SUPPRESS
    )
    own.add_argument("--revision", help=argparse.SUPPRESS)
    return own


def default_model() -> Path:
    """The checkpoint that is served when none is named.

    Raises:
        SystemExit: there is none.
    """
    if (EMBEDDED_MODEL / "config.json").is_file():
        return EMBEDDED_MODEL
    if (STANDIN_MODEL / "config.json").is_file():
        print(
            "\n*** No model was named: serving a RANDOM-WEIGHT STAND-IN. Its answers are noise; the compression, the "
            "API and the metrics are real. ***\n",
            file=sys.stderr,
        )
        return STANDIN_MODEL
    raise SystemExit("dfmr-serve: name a model, or run `make setup` to have a default one")


def vllm_arguments(arguments: Sequence[str]) -> list[str]:
    """``dfmr-serve``'s arguments as those of ``vllm serve``.

    Raises:
        SystemExit: an option of ours is wrong; the message says which.
    """
    own = parser()
    named = bool(arguments) and not arguments[0].startswith("-")
    known, rest = own.parse_known_args(arguments[1:] if named else arguments)
    for option, instead in (("--config", "give its options here"), ("--model", "give the model first")):
        if any(a.partition("=")[0] == option for a in rest):
            own.error(f"{option} is not taken: {instead}, or run VLLM_PLUGINS={PLUGIN} vllm serve")
    model = arguments[0] if named else str(default_model())
    settings = {name: _value(text) for name in option_fields() if (text := getattr(known, name)) is not None}
    if isinstance(settings.get("factors"), int):
        settings["factors"] = [settings["factors"]]
    if dotted := [a for a in rest if a.replace("_", "-").startswith("--additional-config.")]:
        own.error(f"{dotted[0]}: give --additional-config as one JSON object")
    additional: dict[str, Any] = known.additional_config
    operators = additional.get(PLUGIN, {})
    if not isinstance(operators, dict):
        own.error(f"--additional-config: {PLUGIN!r} must be an object, not {operators!r}")
    additional = {**additional, PLUGIN: {**operators, **settings}}
    try:
        load_book(*load_settings(additional, model, known.revision))
    except ValueError as error:
        own.error(str(error))
    if known.revision is not None:
        rest += ["--revision", known.revision]
    given = {a.partition("=")[0].replace("_", "-") for a in rest}
    if not named and "--served-model-name" not in given:
        rest += ["--served-model-name", Path(model).name]
    if "--shutdown-timeout" not in given:
        rest += ["--shutdown-timeout", str(SHUTDOWN_SECONDS)]
    return ["serve", model, *rest, "--additional-config", json.dumps(additional)]


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, not {text}")
    return value


def _value(text: str) -> Any:
    """An option's text as JSON where it is JSON, and comma-separated numbers as a list: ``1,2,3``."""
    for candidate in (text, f"[{text}]"):
        try:
            return json.loads(candidate)
        except json.JSONDecodeError:
            continue
    return text


def serve() -> None:
    """Entry point of ``dfmr-serve``."""
    arguments = vllm_arguments(sys.argv[1:])
    plugins = [name for name in os.environ.get("VLLM_PLUGINS", "").split(",") if name]
    os.environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*plugins, PLUGIN]))
    from vllm.entrypoints.cli.main import main

    sys.argv = ["vllm", *arguments]
    main()
