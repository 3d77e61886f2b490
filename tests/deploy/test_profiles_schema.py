"""The shipped JSON schema says what the server's models say."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy import profiles_schema
from server.policy import Policy

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_up_to_date() -> None:
    assert profiles_schema.main(["--check"]) == 0


def test_the_example_passes_and_every_field_of_a_policy_is_in_it() -> None:
    schema = profiles_schema.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load((ROOT / "examples" / "profiles.yaml").read_text()), schema)
    assert schema["$defs"]["Policy"]["properties"].keys() == Policy.model_fields.keys()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"profiles": {}},
        {"profiles": {"Not a name": {}}},
        {"profiles": {"a": {"policy": {"taux": 1}}}},
        {"profiles": {"a": {"policy": {"tau": -1}}}},
        {"profiles": {"a": {}}, "keys": {"sk-1": "a"}},
    ],
)
def test_it_refuses_what_the_server_refuses(content: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, profiles_schema.schema())
