"""Controls are for evaluations: requests get them only where the operator allows it."""

import pytest

from server.policy import DfmrOptions, Policy


@pytest.mark.parametrize("method", ["drop-cls", "drop-random"])
def test_a_control_is_refused_unless_the_operator_allows_it(method: str) -> None:
    options = DfmrOptions.model_validate({"method": method})
    with pytest.raises(ValueError, match=rf"dfmr\.method: {method} is a control.*--dfmr-allow-controls true"):
        Policy().merge(options)
    assert Policy(allow_controls=True).merge(options).method == method


def test_pooling_needs_no_permission() -> None:
    assert Policy().merge(DfmrOptions(method="dfmr")).method == "dfmr"
