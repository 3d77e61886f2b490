"""What a run takes of the matrix."""

from loadtests.scenarios import load


def test_a_run_takes_the_scenarios_of_its_size_and_no_more_rounds_than_wanted() -> None:
    matrix = load()
    assert "one picture" not in [s.name for s in matrix.chosen("short", [])]
    (chosen,) = matrix.chosen("full", ["four pictures"], most_rounds=2)
    assert (chosen.name, chosen.rounds) == ("four pictures", (2, 2))
    assert matrix.chosen("full", ["four pictures"])[0].rounds == (3, 5)
