"""What every registered factorization and gate must do: one suite over the registries."""

import copy
import warnings

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch

import mumoe
from mumoe.factorizations import FACTORIZATIONS
from mumoe.gating import GATES as REGISTERED
from mumoe.gating import NORMS
from tests_support import GATES, rank_of

CASES = [  # every factorization, every gate and every normalization, not every triple of them
    *((kind, "entmax15", "batch") for kind in FACTORIZATIONS),
    *(("cp", gate, "batch") for gate in REGISTERED if gate != "entmax15" and not gate.endswith("-frozen")),
    *(("cp", "entmax15", norm) for norm in NORMS if norm != "batch"),
]
every_case = pytest.mark.parametrize(("kind", "gate", "norm"), CASES)


def make(kind: str, gate: str, norm: str, num_experts=(6, 3), **options) -> mumoe.MuMoE:
    options = {"gate": gate, "norm": norm, "gate_options": GATES.get(gate), **options}
    layer = mumoe.MuMoE(8, 5, num_experts, kind, rank_of(kind), **options)
    if options.get("device") != "meta":
        layer(torch.randn(32, 8, dtype=options.get("dtype", torch.float32)))
    return layer


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_first_and_second_derivatives(kind, gate, norm, training):
    layer = make(kind, gate, norm, num_experts=(3, 2), dtype=torch.float64).train(training)
    names = [name for name, _ in layer.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *values), fast_mode=True)


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_compile_without_a_graph_break(kind, gate, norm, training):
    torch.compiler.reset()
    layer = make(kind, gate, norm).train(training)
    same = copy.deepcopy(layer)
    x = torch.randn(7, 4, 8, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    y, expected = torch.compile(layer, fullgraph=True, backend="aot_eager")(x), same(other)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    close = {"rtol": 1e-4, "atol": 5e-5}  # eager finds the threshold in another way: rounding differs
    torch.testing.assert_close(x.grad, other.grad, **close)
    for one, two in zip(layer.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, **close)


@pytest.mark.slow
def test_compile_to_native_code():
    torch.compiler.reset()
    layer = make("cp", "entmax15", "batch").eval()
    x = torch.randn(7, 8)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))


@every_case
def test_export_with_a_dynamic_batch(kind, gate, norm):
    layer = make(kind, gate, norm).eval()
    dynamic = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(layer, (torch.randn(3, 8),), dynamic_shapes=dynamic)
    for rows in (2, 9):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(program.module()(x), layer(x))


class Side(torch.nn.Module):
    """All layers side by side, so that the exporter's fixed cost is paid once."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


@pytest.mark.slow
def test_onnx_agrees():
    side = Side([make(*case, num_experts=(6,)) for case in CASES]).eval()
    dynamic = {"x": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(side, (torch.randn(3, 8),), dynamic_shapes=dynamic, verbose=False)
    model = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = torch.randn(9, 8)
    results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for case, y, expected in zip(CASES, results, side(x), strict=True):
        np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-4, err_msg=str(case))


@every_case
def test_deepcopy_after_a_forward(kind, gate, norm):
    layer = make(kind, gate, norm)
    x = torch.randn(5, 8)
    layer(x, return_coefficients=True)
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    assert not [name for name, value in vars(layer).items() if isinstance(value, torch.Tensor)]


@every_case
def test_state_dict_round_trip_through_safetensors(kind, gate, norm):
    layer, other = make(kind, gate, norm), make(kind, gate, norm)
    data = safetensors.torch.save({name: value.contiguous() for name, value in layer.state_dict().items()})
    other.load_state_dict(safetensors.torch.load(data))
    x = torch.randn(5, 8)
    torch.testing.assert_close(other.eval()(x), layer.eval()(x), rtol=0, atol=0)


@every_case
def test_meta_device(kind, gate, norm):
    layer = make(kind, gate, norm, device="meta")
    assert all(parameter.is_meta for parameter in layer.parameters())
    assert layer.eval()(torch.empty(4, 8, device="meta")).shape == (4, 5)
    with torch.device("meta"):
        assert make_here(kind, gate, norm).factorization.to_dense().is_meta
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(torch.randn(4, 8)).isfinite().all()


def make_here(kind, gate, norm):
    return mumoe.MuMoE(8, 5, 4, kind, rank_of(kind), gate=gate, norm=norm, gate_options=GATES.get(gate))


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(kind, gate, norm, training):
    layer = make(kind, gate, norm).train(training)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for shape in [(0, 8), (2, 0, 8)]:
        y, a = layer(torch.randn(shape), return_coefficients=True)
        assert y.shape == (*shape[:-1], 5)
        assert a[1].shape == (*shape[:-1], 3)
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@every_case
def test_batch_of_one(kind, gate, norm):
    layer = make(kind, gate, norm)
    x = torch.randn(1, 8)
    torch.testing.assert_close(layer.eval()(x), layer(x.repeat(3, 1))[:1])
    if norm != "batch":
        assert layer.train()(x).shape == (1, 5)


@every_case
def test_vmap(kind, gate, norm):
    layer = make(kind, gate, norm).eval()
    x = torch.randn(6, 4, 8)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    torch.testing.assert_close(torch.func.vmap(layer)(x[0]), layer(x[0]))
    grads = torch.func.vmap(torch.func.grad(lambda row: layer(row).sum()))(x[0])
    rows = x[0].clone().requires_grad_()
    layer(rows).sum().backward()
    torch.testing.assert_close(grads, rows.grad)


@every_case
def test_autocast_keeps_the_gate_in_float32(kind, gate, norm):
    layer = make(kind, gate, norm).eval()
    x = torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, a = layer(x, return_coefficients=True)
    for one, other in zip(a, layer.coefficients(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert y.dtype == torch.bfloat16
