"""Writes docs/profiles.schema.json from the models in server/: ``python -m deploy.profiles_schema [--check]``."""

import json
import sys
from typing import Any

from deploy.generated import ROOT, parser, report, write_or_check
from server.policy import Policy
from server.profiles.format import ProfilesFile

SCHEMA = ROOT / "docs" / "profiles.schema.json"


def schema() -> dict[str, Any]:
    """JSON schema of a profiles file, for editors and for checks before a roll-out."""
    whole = ProfilesFile.model_json_schema()
    policy = Policy.model_json_schema()
    definitions = {**whole.pop("$defs"), **policy.pop("$defs", {})}
    for field in policy["properties"].values():
        # What a profile leaves open is the server's policy, so a default would mislead.
        field.pop("default", None)
    policy["description"] = "Fields of the policy that this profile sets; what it leaves open is the server's own."
    for names in ("profiles", "keys"):
        whole["properties"][names]["additionalProperties"] = False
    named = definitions["NamedProfile"]["properties"]
    named["policy"] = {"$ref": "#/$defs/Policy"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **whole,
        "title": "Profiles of dfmr-server",
        "$defs": {**definitions, "Policy": policy},
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the schema, or with ``--check`` say whether it has drifted."""
    options = parser("deploy.profiles_schema", __doc__).parse_args(arguments)
    text = json.dumps(schema(), indent=2) + "\n"
    return report("deploy.profiles_schema", write_or_check({SCHEMA: text}, check=options.check))


if __name__ == "__main__":
    sys.exit(main())
