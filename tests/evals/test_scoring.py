import pytest

from evals.items import Item
from evals.scoring import contains, exact, normalised, scorer


def item(*answers: str) -> Item:
    return Item(id="1", pictures=("a.png",), question="?", answers=answers)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [(" The Red. ", "red"), ("A  red   circle!", "red circle"), ("'top left'", "top left"), ("3.5", "3.5"), ("", "")],
)
def test_normalised(text: str, wanted: str) -> None:
    assert normalised(text) == wanted


def test_exact_takes_any_accepted_answer_and_no_other() -> None:
    assert exact("Yes.", item("yes", "yeah")) == 1
    assert exact("yes it is", item("yes")) == 0
    assert exact("", item("yes")) == 0
    assert exact("12", item("120")) == 0


def test_contains_wants_whole_words() -> None:
    assert contains("The number is 12.", item("12")) == 1
    assert contains("The number is 120.", item("12")) == 0
    assert contains("Bottom-left corner", item("bottom left")) == 1


def test_a_scorer_may_be_anyones_function() -> None:
    assert scorer("evals.scoring:contains") is contains
    for name in ("nothing", "evals.scoring:nothing", "no_such_module:f"):
        with pytest.raises(ValueError, match="scorer"):
            scorer(name)
