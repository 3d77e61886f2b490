"""The image: what the Dockerfile promises, and how its entry point starts the server. Building it is another test's."""

import re
import subprocess
from pathlib import Path

import pytest
from deploy_tools import DEPLOY, ROOT, passes

DOCKERFILE = (ROOT / "Dockerfile").read_text()
ENTRYPOINT = DEPLOY / "entrypoint.sh"


def stage(name: str) -> str:
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def started(tmp_path: Path, *arguments: str, **environment: str) -> list[str]:
    """Arguments that the entry point gives to ``dfmr-serve``."""
    stub = tmp_path / "dfmr-serve"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DEFAULT_MODEL": "/opt/models/tiny", **environment}
    return subprocess.run([ENTRYPOINT, *arguments], env=env, capture_output=True, text=True, check=True).stdout.split()


def test_hadolint_has_nothing_to_say() -> None:
    passes("hadolint", "--failure-threshold", "style", ROOT / "Dockerfile")


def test_the_base_image_can_be_chosen_and_is_pinned() -> None:
    default = re.search(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert default is not None
    assert re.search(r":\d+\.\d+", default[1])
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)[0] == "${BASE_IMAGE}"


@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_both_targets_run_as_a_user_with_a_health_check_and_a_cache_volume(target: str) -> None:
    assert "USER 1000" in stage(target)
    assert re.search(rf"^FROM base AS {target}$", DOCKERFILE, re.MULTILINE)
    assert "HEALTHCHECK" in stage("base")
    assert "/health" in stage("base")
    assert "VOLUME /cache" in stage("base")


def test_only_the_cpu_target_holds_weights() -> None:
    assert "COPY models/" in stage("cpu")
    others = DOCKERFILE.replace(stage("cpu"), "")
    assert "models/" not in others
    assert DOCKERFILE.rstrip().endswith(stage("gpu").rstrip()), "gpu is the default target"


def test_old_builders_can_read_it() -> None:
    assert "<<" not in DOCKERFILE
    assert not re.search(r"^ARG \S+ \S+", DOCKERFILE, re.MULTILINE)
    assert not re.search(r"^(COPY|ADD) --(chmod|link)", DOCKERFILE, re.MULTILINE)


def test_everything_that_is_copied_is_in_the_build_context() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert any(source == name or source.startswith(f"{name}/") for name in kept), source


def test_without_arguments_the_images_own_model_is_served_under_its_short_name(tmp_path: Path) -> None:
    expected = ["/opt/models/tiny", "--served-model-name", "tiny", "--shutdown-timeout", "60"]
    assert started(tmp_path) == expected
    assert started(tmp_path, "--port", "9") == [*expected[:3], "--port", "9", *expected[3:]]


def test_a_named_model_is_passed_on(tmp_path: Path) -> None:
    assert started(tmp_path, "org/model", "--dfmr-tau", "0.3") == [
        *("org/model", "--dfmr-tau", "0.3", "--shutdown-timeout", "60")
    ]


@pytest.mark.parametrize("given", [["--shutdown-timeout", "5"], ["--shutdown-timeout=5"]])
def test_the_time_to_finish_answers_can_be_set_by_option_or_variable(tmp_path: Path, given: list[str]) -> None:
    assert started(tmp_path, "m", *given) == ["m", *given]
    assert started(tmp_path, "m", SHUTDOWN_TIMEOUT="7") == ["m", "--shutdown-timeout", "7"]
