"""Which items to pool further, so that all together keep at most so many tokens and lose the least information.

Each item, a picture or a block of one, has a few options with a number of tokens and a loss. This is the
multiple-choice knapsack problem, solved exactly: a greedy solution along the items' convex hulls gives an upper bound
and a price per token, the price rules out most options (their best possible total exceeds the bound), and dynamic
programming over the tokens saved decides among the rest.

Losses are rounded to integers first, to a few parts in 10^10 of the largest or better, so that sums have no order and
ties are ties.
"""

from functools import reduce
from math import frexp, gcd

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

LARGEST_TABLE = 16_000_000
"""Options times steps of tokens that are tried exactly. Beyond, which takes more than 60 pictures of 36 blocks, the
greedy solution stands: at most one option of one item short of the budget."""

_POLISHES = 16
_SLACK = 1e-9
_NEVER = np.iinfo(np.int64).max // 4


def fewest_tokens(tokens: Ints, allowed: NDArray[np.bool_]) -> int:
    """The least that any choice of allowed options keeps; both are (items, options)."""
    return int(np.where(allowed, tokens, _NEVER).min(1).sum())


def choose(tokens: Ints, losses: NDArray[np.float64], allowed: NDArray[np.bool_], budget: int) -> NDArray[np.intp]:
    """For each item the option whose losses are least in sum, among all choices with at most `budget` tokens.

    Of several such choices it is the one that keeps the most tokens, and then the one in which the first item keeps
    the most, then the second, and so on. So the result depends on nothing else, and a larger budget never keeps fewer
    tokens.

    Args:
        tokens: (items, options) what each option keeps.
        losses: (items, options) what each option loses, finite and not negative, in any one unit.
        allowed: (items, options) whether the option may be chosen; at least one of each item.
        budget: the most tokens that all items may keep.

    Returns:
        (items,) the column of each item's option.

    Raises:
        ValueError: no choice fits; names the fewest possible tokens.
    """
    if not len(tokens):
        return np.empty(0, np.intp)
    fewest = fewest_tokens(tokens, allowed)
    if fewest > budget:
        raise ValueError(f"{budget} tokens are not enough: the fewest possible is {fewest}")
    # Columns by descending tokens, so that the first of equals keeps most; savings relative to an item's largest.
    columns = np.argsort(np.where(allowed, -tokens, _NEVER), axis=1, kind="stable")
    usable = np.take_along_axis(allowed, columns, 1)
    ordered = np.take_along_axis(tokens, columns, 1)
    savings = np.where(usable, ordered[:, :1] - ordered, 0)
    costs = _costs(np.take_along_axis(losses, columns, 1), savings, usable)
    needed = int(ordered[:, 0].sum()) - budget
    picked = _solve(costs, savings, usable, needed)
    return np.asarray(columns[np.arange(len(picked)), picked])


def _costs(losses: NDArray[np.float64], savings: Ints, usable: NDArray[np.bool_]) -> Ints:
    """Loss and savings as one integer: the smaller loss is less, and of equal losses the smaller saving."""
    room = int(savings.max(1).sum()).bit_length()
    bits = 60 - room - len(losses).bit_length()
    _, exponent = frexp(float(np.where(usable, losses, 0).max()))
    whole = np.rint(np.ldexp(np.where(usable, losses, 0), bits - exponent)).astype(np.int64)
    return np.where(usable, (whole << room) + savings, _NEVER)


def _solve(costs: Ints, savings: Ints, usable: NDArray[np.bool_], needed: int) -> NDArray[np.intp]:
    greedy, price = _greedy(costs, savings, usable, needed)
    unit = reduce(gcd, np.unique(savings).tolist()) or 1
    steps = int(savings.max(1).sum()) // unit + 1
    if price == 0 or int(usable.sum()) * steps > LARGEST_TABLE:
        return greedy
    _polished(costs, savings, usable, needed, greedy)
    possible = usable & _worth_trying(costs, savings, usable, needed, greedy, price)
    return _exact(costs, savings, possible, needed)


def _greedy(costs: Ints, savings: Ints, usable: NDArray[np.bool_], needed: int) -> tuple[NDArray[np.intp], float]:
    """Steps along every item's convex hull, cheapest per token first, until enough is saved; and the last price."""
    rows = np.arange(len(costs))
    picked = np.argmin(costs, axis=1)
    short = needed - int(savings[rows, picked].sum())
    if short <= 0:
        return picked, 0.0
    items, targets, prices, saved = [], [], [], []
    at, active = picked.copy(), rows
    for _ in range(costs.shape[1]):
        gain = savings[active] - savings[active, at[active]][:, None]
        rise = costs[active] - costs[active, at[active]][:, None]
        slope = np.where(usable[active] & (gain > 0), rise / np.maximum(gain, 1), np.inf)
        best = slope.shape[1] - 1 - np.argmin(slope[:, ::-1], axis=1)  # of equals the one that saves most
        lowest = slope[np.arange(len(active)), best]
        going = np.isfinite(lowest)
        if not going.any():
            break
        active, best = active[going], best[going]
        items.append(active)
        targets.append(best)
        prices.append(lowest[going])
        saved.append(gain[going, best])
        at[active] = best
    all_prices, all_saved = np.concatenate(prices), np.concatenate(saved)
    order = np.lexsort((-np.concatenate(items), all_prices))
    last = int(np.searchsorted(np.cumsum(all_saved[order]), short))
    taken = order[: last + 1]
    np.maximum.at(picked, np.concatenate(items)[taken], np.concatenate(targets)[taken])
    return picked, float(all_prices[order[last]])


def _polished(costs: Ints, savings: Ints, usable: NDArray[np.bool_], needed: int, picked: NDArray[np.intp]) -> None:
    """Give back, one item at a time and the dearest first, what the greedy steps saved beyond the need."""
    rows = np.arange(len(costs))
    for _ in range(_POLISHES):
        spare = int(savings[rows, picked].sum()) - needed
        cheaper = costs[rows, picked][:, None] - costs
        cheaper[~usable | (savings[rows, picked][:, None] - savings > spare)] = 0
        item, option = divmod(int(cheaper.argmax()), costs.shape[1])
        if cheaper[item, option] <= 0:
            return
        picked[item] = option


def _worth_trying(
    costs: Ints, savings: Ints, usable: NDArray[np.bool_], needed: int, greedy: NDArray[np.intp], price: float
) -> NDArray[np.bool_]:
    """Options that a choice as good as the greedy one can contain: their Lagrangian bound does not exceed its cost."""
    priced = np.where(usable, costs - price * savings, np.inf)
    best = priced.min(1)
    bound = float(best.sum()) + price * needed
    known = float(costs[np.arange(len(costs)), greedy].sum())
    return np.asarray(bound + (priced - best[:, None]) <= known + _SLACK * (abs(known) + float(np.abs(best).sum())))


def _exact(costs: Ints, savings: Ints, possible: NDArray[np.bool_], needed: int) -> NDArray[np.intp]:
    """Dynamic programming: the least cost of the items from each one on, for every amount that they have to save."""
    least = np.where(possible, savings, _NEVER).min(1)
    picked: NDArray[np.intp] = np.argmax(possible, axis=1)
    open_items = np.flatnonzero(possible.sum(1) > 1)
    more = savings - least[:, None]
    unit = reduce(gcd, np.unique(more[possible]).tolist()) or 1
    short = max(0, -(-(needed - int(least.sum())) // unit))
    tables = [np.concatenate([np.zeros(1, np.int64), np.full(short, _NEVER)])]
    for item in open_items[::-1]:
        after, table = tables[-1], np.full(short + 1, _NEVER)
        for option in np.flatnonzero(possible[item]):
            step = min(int(more[item, option]) // unit, short + 1)
            np.minimum(table[step:], after[: short + 1 - step] + costs[item, option], out=table[step:])
            np.minimum(table[:step], after[0] + costs[item, option], out=table[:step])
        tables.append(np.minimum(table, _NEVER))
    for item, table, after in zip(open_items, tables[:0:-1], tables[-2::-1], strict=True):
        for option in np.flatnonzero(possible[item]):
            left = max(0, short - int(more[item, option]) // unit)
            if after[left] + costs[item, option] == table[short]:
                picked[item], short = option, left
                break
    return picked
