"""`dfmr-serve` turns its arguments into those of ``vllm serve``, and refuses wrong ones by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from server import cli
from server.policy import Policy, ServerSettings, load_settings
from server.profiles.checkpoint import PROFILE_FILE


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No default model but those that a test makes."""
    monkeypatch.setattr(cli, "EMBEDDED_MODEL", tmp_path / "embedded")
    monkeypatch.setattr(cli, "STANDIN_MODEL", tmp_path / "standin")
    return tmp_path


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def additional_config(arguments: list[str]) -> dict[str, Any]:
    """What vLLM makes of ``--additional-config``, by its own parser."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    parser.add_argument("--additional-config", type=json.loads, default={})
    config: dict[str, Any] = parser.parse_known_args(arguments[2:])[0].additional_config
    return config


class TestModel:
    def test_comes_first_and_the_rest_is_vllms_in_its_order(self) -> None:
        arguments = cli.vllm_arguments(["some/model", "--port", "9000", "--enforce-eager", "-tp", "2"])
        assert arguments[:2] == ["serve", "some/model"]
        assert arguments[2:7] == ["--port", "9000", "--enforce-eager", "-tp", "2"]

    def test_is_stopped_when_running_answers_are_finished_unless_told_otherwise(self) -> None:
        assert cli.vllm_arguments(["m"])[2:4] == ["--shutdown-timeout", "60"]
        assert "60" not in cli.vllm_arguments(["m", "--shutdown-timeout", "5"])
        assert "60" not in cli.vllm_arguments(["m", "--shutdown_timeout=0"])

    def test_that_is_named_keeps_its_name(self) -> None:
        assert "--served-model-name" not in cli.vllm_arguments(["some/model"])

    def test_that_is_not_named_is_the_embedded_one(self, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        embedded = checkpoint(models / "embedded")
        checkpoint(models / "standin")
        assert cli.vllm_arguments(["--port", "9000"])[:2] == ["serve", str(embedded)]
        assert capsys.readouterr().err == ""

    def test_that_is_not_named_and_not_embedded_is_a_stand_in_that_says_so(
        self, models: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        standin = checkpoint(models / "standin")
        assert cli.vllm_arguments([])[:2] == ["serve", str(standin)]
        assert "RANDOM-WEIGHT STAND-IN" in capsys.readouterr().err

    def test_that_does_not_exist_at_all_is_asked_for(self) -> None:
        with pytest.raises(SystemExit, match="name a model, or run `make setup`"):
            cli.vllm_arguments(["--port", "9000"])

    def test_of_ours_is_served_under_its_short_name(self, models: Path) -> None:
        checkpoint(models / "standin")
        arguments = cli.vllm_arguments([])
        assert arguments[arguments.index("--served-model-name") + 1] == "standin"

    @pytest.mark.parametrize("given", [["--served-model-name", "mine"], ["--served-model-name=mine"]])
    def test_of_ours_is_served_under_the_operators_name_for_it(self, models: Path, given: list[str]) -> None:
        checkpoint(models / "standin")
        arguments = cli.vllm_arguments(given)
        assert sum(argument.startswith("--served-model-name") for argument in arguments) == 1


class TestOptions:
    @pytest.mark.parametrize(
        ("given", "settings"),
        [
            ([], {}),
            (["--dfmr-tau", "0.4"], {"tau": 0.4}),
            (["--dfmr-tau=0.4"], {"tau": 0.4}),
            (["--dfmr-tau", '{"2": 0.4}'], {"tau": {"2": 0.4}}),
            (["--dfmr-factors", "1,2,3"], {"factors": [1, 2, 3]}),
            (["--dfmr-factors", "[1, 2]"], {"factors": [1, 2]}),
            (["--dfmr-enabled", "false"], {"enabled": False}),
            (["--dfmr-metric", "cosine"], {"metric": "cosine"}),
            (["--dfmr-aggregate", "mean"], {"aggregate": "mean"}),
            (["--dfmr-max-tokens-per-image", "144"], {"max_tokens_per_image": 144}),
            (["--dfmr-max-visual-tokens", "1200"], {"max_visual_tokens": 1200}),
            (["--dfmr-fit-context", "false"], {"fit_context": False}),
            (["--dfmr-mode", "regions"], {"mode": "regions"}),
            (["--dfmr-max-batch", "4", "--dfmr-cache-bytes", "0"], {"max_batch": 4, "cache_bytes": 0}),
        ],
    )
    def test_become_additional_config(self, given: list[str], settings: dict[str, Any]) -> None:
        assert additional_config(cli.vllm_arguments(["some/model", *given])) == {"dfmr": settings}

    def test_exist_for_every_setting(self) -> None:
        options = {action.dest for action in cli.parser()._actions if action.option_strings[0].startswith("--dfmr-")}
        assert options == (set(Policy.model_fields) | set(ServerSettings.model_fields)) - {"policy"}

    def test_may_name_a_single_factor(self) -> None:
        config = additional_config(cli.vllm_arguments(["some/model", "--dfmr-factors", "2"]))
        assert load_settings(config, "some/model")[0].policy.factors == (2,)

    def test_may_stand_between_vllms(self) -> None:
        arguments = cli.vllm_arguments(["some/model", "--port", "1", "--dfmr-tau", "0.4", "--seed", "2"])
        assert arguments[2:6] == ["--port", "1", "--seed", "2"]

    @pytest.mark.parametrize("given", [["--config", "serve.yaml"], ["--config=serve.yaml"], ["--model", "some/model"]])
    def test_that_would_be_overridden_in_silence_are_refused(
        self, given: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            cli.vllm_arguments(given)
        assert "is not taken" in capsys.readouterr().err

    @pytest.mark.parametrize("given", [["--revision", "v2"], ["--revision=v2"]])
    def test_leave_vllm_the_revision_that_the_profile_is_read_at(self, given: list[str]) -> None:
        arguments = cli.vllm_arguments(["some/model", *given])
        assert arguments[arguments.index("--revision") + 1] == "v2"

    def test_are_explained_with_their_defaults(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.vllm_arguments(["--help"])
        assert caught.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "--dfmr-max-batch VALUE" in text
        assert "default 8" in text

    @pytest.mark.parametrize(
        ("given", "named"),
        [
            (["--dfmr-tau", "-1"], "tau"),
            (["--dfmr-tau", "NaN"], "tau"),
            (["--dfmr-tau", "high"], "tau"),
            (["--dfmr-factors", "1,1"], "factors"),
            (["--dfmr-factors", "one"], "factors"),
            (["--dfmr-max-batch", "0"], "max_batch"),
            (["--dfmr-max-batch", "many"], "max_batch"),
            (["--dfmr-mode", "region"], "mode"),
            (["--dfmr-max-visual-tokens", "0"], "max_visual_tokens"),
            (["--dfmr-metric", "best"], "metric"),
            (["--dfmr-aggregate", "best"], "aggregate"),
            (["--dfmr-profiles", "missing.yaml"], "missing.yaml: No such file"),
            (["--dfmr-profile", "archive"], "no profile 'archive' without a profiles file"),
            (["--dfmr-tau"], "--dfmr-tau"),
            (["--additional-config", '{"dfmr": {"taux": 1}}'], "taux"),
        ],
    )
    def test_of_a_wrong_value_end_the_program_with_their_name(
        self, given: list[str], named: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.vllm_arguments(["some/model", *given])
        assert caught.value.code == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("dfmr-serve: error: ")
        assert named in message

    def test_are_checked_against_the_checkpoints_profile(
        self, models: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = checkpoint(models / "broken")
        (model / PROFILE_FILE).write_text(json.dumps({"policy": {"tau": -1}}))
        with pytest.raises(SystemExit):
            cli.vllm_arguments([str(model)])
        assert "tau" in capsys.readouterr().err


class TestAdditionalConfig:
    GIVEN = json.dumps({"dfmr": {"tau": 0.2, "max_batch": 2}, "another_plugin": {"x": 1}})

    @pytest.mark.parametrize(
        "given",
        [
            ["--additional-config", GIVEN],
            [f"--additional-config={GIVEN}"],
            ["--additional_config", GIVEN],
        ],
        ids=["apart", "equals-sign", "underscore"],
    )
    def test_of_the_operator_is_kept_under_our_options(self, given: list[str]) -> None:
        config = additional_config(cli.vllm_arguments(["some/model", *given, "--dfmr-tau", "0.4"]))
        assert config["dfmr"] == {"tau": 0.4, "max_batch": 2}

    def test_in_vllms_dotted_form_is_kept_or_refused_but_not_lost(self, capsys: pytest.CaptureFixture[str]) -> None:
        dotted = ["--additional-config.dfmr.max_batch", "2", "--additional-config.another_plugin.x", "1"]
        try:
            config = additional_config(cli.vllm_arguments(["some/model", *dotted, "--dfmr-tau", "0.4"]))
        except SystemExit:
            assert "--additional-config." in capsys.readouterr().err
            return
        assert config == {"dfmr": {"tau": 0.4, "max_batch": 2}, "another_plugin": {"x": 1}}

    @pytest.mark.parametrize("given", [["--additional-config", GIVEN], [f"--additional-config={GIVEN}"]])
    def test_of_other_plugins_is_passed_on(self, given: list[str]) -> None:
        assert additional_config(cli.vllm_arguments(["some/model", *given]))["another_plugin"] == {"x": 1}

    @pytest.mark.parametrize(
        "given",
        [["--additional-config", "{"], ["--additional-config"], ["--additional-config", '{"dfmr": 3}']],
        ids=["not-json", "no-value", "not-an-object"],
    )
    def test_that_cannot_be_read_ends_the_program_with_its_name(
        self, given: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.vllm_arguments(["some/model", *given])
        assert caught.value.code == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert "additional-config" in message or "dfmr" in message.removeprefix("dfmr-serve")
