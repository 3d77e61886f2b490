"""What starts a server, and what is read of its metrics."""

from pathlib import Path

from loadtests.servers import ROOT, Samples, command


def test_the_baseline_gets_the_same_options_but_ours() -> None:
    options = {"max-model-len": 4096, "enforce-eager": True, "dfmr-factors": "1,2"}
    ours, _ = command("dfmr", Path("m"), options)
    line, environment = command("one-phase", Path("m"), options)
    assert ours[1:] == ["m", "--max-model-len", "4096", "--enforce-eager", "--dfmr-factors", "1,2"]
    assert line[1:] == ["serve", "m", "--max-model-len", "4096", "--enforce-eager"]
    assert environment["VLLM_PLUGINS"] == "one_phase"
    assert environment["PYTHONPATH"].startswith(str(ROOT / "loadtests" / "one_phase"))


def test_the_baseline_is_found_by_its_entry_point() -> None:
    from importlib.metadata import distributions

    (found,) = distributions(name="one-phase", path=[str(ROOT / "loadtests" / "one_phase")])
    (point,) = found.entry_points
    assert (point.group, point.name, point.value) == ("vllm.general_plugins", "one_phase", "one_phase:register")


def test_samples_are_summed_over_the_labels_that_are_left_open() -> None:
    text = '# HELP x\nx{a="1",b="2"} 3.0\nx{a="1",b="3"} 4\ny 5e-1\n'
    samples = Samples.parse(text)
    assert samples.total("x", a="1") == 7
    assert samples.total("x", b="3") == 4
    assert samples.total("y") == 0.5
    assert samples.total("z") == 0
