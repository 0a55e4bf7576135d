"""Audit by named attributes: which values of the data's columns, and which pairs of values, does the model get wrong?

Every value of every column and every combination of the values of two columns with enough rows is compared with the
other rows of the same label, ranked and corrected for many comparisons exactly as groups by experts are
(`group_audit`). It finds only what the data name; `expert_audit` needs no names, but sees only what experts separate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from mumoe.data.base import Attribute
from mumoe.editing.group_audit import MIN_ROWS, Audit, Groups, Name, Rules, rank_groups
from mumoe.errors import UserError, require

__all__ = ["audit_attributes", "matching"]


def audit_attributes(
    columns: Mapping[str, Attribute],
    right: Tensor,
    labels: Tensor,
    *,
    pairs: bool = True,
    **rules: Unpack[Rules],
) -> Audit:
    """Rank values of named columns, and pairs of them, by their excess of errors over the rest.

    A column that is the label, or that determines it, leaves nothing with the same label to compare with, so that it is
    not tested. Neither is a pair that has the same rows of a label as one of its values.

    Args:
        columns: Name to values of the same rows; unknown ones (-1) are in no group, and in the rest of every group.
        right: (rows,) whether the prediction is right.
        labels: (rows,) true labels; each is audited separately.
        pairs: Test combinations of the values of two columns too.
        **rules: ``min_rows``, ``alpha``, ``correction``, ``merge`` and ``most``, as for `group_audit.rank_groups`.

    Returns:
        The ranking; without findings if no group has two rows to be tested.

    Raises:
        UserError: If sizes disagree, or a setting is out of range.
    """
    sizes = [len(column.codes) for column in columns.values()] + [len(right), len(labels)]
    if len(set(sizes)) > 1:
        raise UserError(f"audit_attributes: expected columns, right and labels of the same rows, got {sizes} rows.")
    candidates = _candidates(columns, pairs, rules.get("min_rows", MIN_ROWS))
    return rank_groups(candidates, right, labels, named=lambda name: {"attributes": name}, **rules)


def matching(columns: Mapping[str, Attribute], attributes: Sequence[tuple[str, str]]) -> Tensor:
    """(rows,) whether a row has all these values."""
    inside = [columns[name].codes == columns[name].values.index(value) for name, value in attributes]
    return torch.from_numpy(np.logical_and.reduce(inside))


def _candidates(columns: Mapping[str, Attribute], pairs: bool, least: int) -> list[Groups]:
    """Every value that has enough rows (or as many as any has), and pairs of these."""
    counts = {name: np.bincount(c.codes[c.codes >= 0], minlength=len(c.values)) for name, c in columns.items()}
    floor = max(1, min(least, max((int(found.max(initial=0)) for found in counts.values()), default=0)))
    names = [(name, int(code)) for name, found in counts.items() for code in np.flatnonzero(found >= floor)]
    if not names:
        return []
    sparse = require("scipy.sparse", "vision", "audit_attributes")
    rows = [np.flatnonzero(columns[name].codes == code) for name, code in names]
    starts = np.concatenate([[0], np.cumsum([len(part) for part in rows])])
    shape = (len(next(iter(columns.values())).codes), len(names))
    inside = sparse.csc_array((np.ones(starts[-1]), np.concatenate(rows), starts), shape=shape)
    words: list[Name] = [((name, columns[name].values[code]),) for name, code in names]
    found = [Groups(words, inside)]
    if pairs and len(words) > 1:
        found.append(Groups(words, inside, crossed=True))
    return found
