"""The audit of `mumoe audit` for a page: the first groups by experts and by named attributes."""

from __future__ import annotations

from typing import Any

from mumoe.dashboard.session import Session
from mumoe.editing.auditing import RunAudit, audit_opened
from mumoe.editing.group_audit import Audit
from mumoe.files import to_plain

__all__ = ["audit_split"]

SHOWN = 50
"""Findings of each ranking."""


def audit_split(session: Session, split: str, target: str) -> dict[str, Any]:
    """Rankings of one split, with the settings that `mumoe audit` has by default; computed once.

    Args:
        session: The session.
        split: train, val or test.
        target: The attribute to audit in a multi-label run; empty in a single-label one.

    Raises:
        UserError: As `mumoe.editing.auditing.audit_opened`.
    """
    with session.auditing:  # not the lock: an audit of many experts would delay every other request
        if (split, target) not in session.audits:
            session.audits[split, target] = audit_opened(session.run, target, split=split)
        found: RunAudit = session.audits[split, target]
    return {
        "labels": list(found.labels),
        "images": found.images,
        "pooled": found.pooled,
        "experts": _ranking(found),
        "attributes": None if found.by_attributes is None else _ranking(found.by_attributes),
    }


def _ranking(found: Audit) -> dict[str, Any]:
    rows = [
        {
            **to_plain(finding),
            "group": finding.group_in_words(),
            "merged": [other.group_in_words() for other in finding.merged],
        }
        for finding in found.findings[:SHOWN]
    ]
    headline = Audit.headline(found)
    return {"headline": headline, "alpha": found.alpha, "total": len(found.findings), "findings": rows}
