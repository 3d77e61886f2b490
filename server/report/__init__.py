"""``dfmr-report``: what was saved and what it is worth, with the formula and the assumptions beside every figure."""
