"""An edited model leaves the building as an ordinary one: ONNX, torch.export and compile after folding."""

from __future__ import annotations

import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import mumoe
from mumoe.editing.expert_edits import Ablate, Correct, Scale, SetOutput, Swap
from mumoe.editing.rewriting import mean_coefficients, rewriting
from mumoe.editing.stack import EditStack

CASES = [("cp", (4, 3)), ("tucker", (6,)), ("tr", (6,))]


def edited(kind, experts):
    torch.manual_seed(0)
    rank = None if kind == "dense" else 3
    layer = mumoe.MuMoE(8, 5, experts, kind, rank, sigma=(1.0,) * len(experts))
    layer(torch.randn(64, 8))
    layer.eval()
    expert = tuple(size - 1 for size in experts)
    stack = EditStack(layer)
    stack.add(rewriting(layer, 1, mean_coefficients(layer, torch.randn(9, 8))))
    for edit in (Correct.of(2, {expert: 1.5}), SetOutput(expert, 0, -2.0), Scale(1, 2.0), Swap(0, 2), Ablate(3)):
        stack.add(edit)
    return stack


class Side(nn.Module):
    """Layers side by side, so that one export serves all."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


@pytest.mark.slow
def test_folded_layers_agree_in_onnxruntime():
    stacks = [edited(*case) for case in CASES]
    side = Side([stack.fold() for stack in stacks]).eval()
    dynamic = {"x": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(side, (torch.randn(3, 8),), dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = torch.randn(9, 8)
    results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for case, stack, y in zip(CASES, stacks, results, strict=True):
        before, after = stack.preview(x)
        np.testing.assert_allclose(y, after.numpy(), atol=1e-4, err_msg=str(case))
        assert float((before - after).abs().max()) > 0.1


def test_applied_edits_export_too():
    stack = edited("cp", (4, 3))
    x = torch.randn(5, 8)
    with stack:
        program = torch.export.export(stack.layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
        expected = stack.layer(x)
        torch.testing.assert_close(program.module()(x), expected)
