"""Columns that define subgroups: the attributes, and the 0/1 targets of a multi-label set."""

from __future__ import annotations

import dataclasses

import numpy as np

from mumoe.data.base import Attribute, ImageData


def made_up(*, multi_label: bool) -> ImageData:
    labels = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.uint8) if multi_label else np.array([0, 1, 0])
    return ImageData(
        name="made-up",
        classes=("round", "studio"),
        multi_label=multi_label,
        labels=labels,
        split=np.zeros(3, dtype=np.int8),
        ids=("a", "b", "c"),
        open_image=lambda index: None,
        fingerprint="0",
        attributes={"studio": Attribute(np.array([0, -1, 0]), ("noto",))},
    )


def test_attributes_and_targets_are_columns_and_an_attribute_comes_before_a_target_of_its_name():
    data = made_up(multi_label=True)
    assert data.column_names == ("studio", "round")
    assert data.column("studio") is data.attributes["studio"]
    column = data.column("round")
    assert (column.codes.tolist(), column.values) == ([1, 0, 1], ("0", "1"))
    assert data.column("nothing") is None
    bare = dataclasses.replace(data, attributes={})
    assert bare.column_names == ("round", "studio")
    assert bare.column("studio").codes.tolist() == [0, 1, 1]


def test_classes_are_no_columns():
    data = made_up(multi_label=False)
    assert data.column_names == ("studio",)
    assert data.column("round") is None
