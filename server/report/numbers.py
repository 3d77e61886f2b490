"""Numbers as people read them."""

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """Three digits and a prefix: ``1.23M``."""
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def shown(value: float | None, unit: str) -> str:
    """A figure with its unit; a dash where there is none."""
    if value is None:
        return "\u2013"
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit in ("tokens", "pictures"):
        return f"{value:,.0f}"
    return f"{value:,.2f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"
