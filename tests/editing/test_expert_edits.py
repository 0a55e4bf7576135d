"""Edits against a dense oracle; undo and strength 0 bit for bit; folding exact for every factorization."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import mumoe
from mumoe.editing.expert_edits import (
    EDITS,
    Ablate,
    Correct,
    Rewrite,
    Scale,
    SetOutput,
    Swap,
    with_strength,
)
from mumoe.editing.fold import fold_factorization
from mumoe.editing.operations import CoefficientMap, EditedFactorization, separate
from mumoe.editing.rewriting import mean_coefficients, rewriting
from mumoe.editing.stack import EditStack, find_layer, fingerprint
from mumoe.errors import UserError
from mumoe.factorizations import CP
from tests_support import KINDS, rank_of

FACTORIZATIONS = KINDS
LEVELS = ((5,), (4, 3), (3, 2, 2))


def make(factorization="cp", experts=(5,), *, bias=True, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    rank = rank_of(factorization)
    layer = mumoe.MuMoE(6, 4, experts, factorization, rank, bias=bias, norm="layer", dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():  # experts of later levels start as copies: make them differ
            parameter.copy_(torch.randn_like(parameter))
    return layer.eval()


def rows(count=7, dtype=torch.float64, seed=1):
    return torch.randn(count, 6, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense_forward(weight, x, levels):
    """Definition of the layer: every combination of experts separately."""
    if weight.shape[1] == x.shape[1] + 1:
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    y = x.new_zeros(len(x), weight.shape[0])
    for index in itertools.product(*(range(size) for size in weight.shape[2:])):
        share = torch.stack([a[:, n] for a, n in zip(levels, index, strict=True)]).prod(0)
        y = y + share[:, None] * (x @ weight[(slice(None), slice(None), *index)].T)
    return y


def edit_dense(weight, edit, *, experts):
    """The oracle: what each edit means for the weight tensor, written out."""
    weight = weight.clone()
    if isinstance(edit, Rewrite):
        weight[edit.head, -1] += edit.strength * edit.mean
    elif isinstance(edit, Correct):
        for index, value in edit.terms:
            weight[(edit.head, -1, *index)] += edit.strength * value
    elif isinstance(edit, SetOutput):
        old = weight[(edit.head, slice(None), *edit.expert)].clone()
        new = torch.zeros_like(old)
        new[-1] = edit.value
        weight[(edit.head, slice(None), *edit.expert)] = (1 - edit.strength) * old + edit.strength * new
    elif isinstance(edit, Swap):
        mode = 2 + edit.level
        order = list(range(experts[edit.level]))
        order[edit.first], order[edit.second] = edit.second, edit.first
        swapped = weight.index_select(mode, torch.tensor(order))
        weight = (1 - edit.strength) * weight + edit.strength * swapped
    else:
        factor = 0.0 if isinstance(edit, Ablate) else edit.factor
        chosen = [slice(None)] * weight.ndim
        chosen[2 + edit.level] = edit.expert
        weight[tuple(chosen)] *= 1 + edit.strength * (factor - 1)
    return weight


def some_edits(layer):
    """One of every kind, on the last level where there are several, in an order where order matters."""
    last = len(layer.num_experts) - 1
    expert = tuple(size - 1 for size in layer.num_experts)
    group = rows(9, seed=5, dtype=layer.gate.weights[0].dtype)
    first = tuple(0 for _ in layer.num_experts)
    return [
        rewriting(layer, 1, mean_coefficients(layer, group), direction="lower", strength=3.0),
        Scale(1, -1.5, level=last),
        Correct.of(2, {first: 0.5, expert: -2.0}),
        Swap(0, 1, level=0),
        SetOutput(expert, 1, 0.75),
        Ablate(0, level=0, strength=0.4),
        SetOutput(first, 3, -1.0, strength=0.5),
    ]


@pytest.mark.parametrize("experts", LEVELS)
@pytest.mark.parametrize("factorization", FACTORIZATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_stack_equals_the_oracle_applied_and_folded(factorization, experts, bias):
    layer, x = make(factorization, experts, bias=bias), rows()
    stack, weight = EditStack(layer), layer.to_dense()
    if not bias:
        weight = torch.cat([weight, torch.zeros_like(weight[:, :1])], dim=1)
    for edit in some_edits(layer):
        stack.add(edit)
        weight = edit_dense(weight, edit, experts=experts)
        levels = layer.coefficients(x)
        expected = dense_forward(weight, x, levels)
        with stack:
            torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
        folded = stack.fold()
        torch.testing.assert_close(folded(x), expected, rtol=1e-10, atol=1e-10)
    with stack:
        torch.testing.assert_close(layer.to_dense(), weight, rtol=1e-10, atol=1e-10)
        index = tuple(size - 1 for size in experts)
        torch.testing.assert_close(layer.expert_weight(index), weight[(slice(None), slice(6), *index)])
        torch.testing.assert_close(layer.expert_bias(index), weight[(slice(None), 6, *index)])
    torch.testing.assert_close(folded.to_dense(), weight, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("experts", LEVELS)
@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_any_coefficient_map(factorization, experts):
    """Matrices of the edits are symmetric; one that is not tells rows from columns."""
    layer, x = make(factorization, experts), rows()
    matrix = torch.randn(experts[-1], experts[-1], dtype=torch.float64)
    last = len(experts) - 1
    edited = EditedFactorization(layer.factorization, [CoefficientMap(last, matrix)])
    a = layer.coefficients(x)
    y = edited(x, a)
    expected = dense_forward(layer.to_dense(), x, [*a[:-1], a[-1] @ matrix.T])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(dense_forward(edited.to_dense(), x, a), expected)
    folded = fold_factorization(layer.factorization, edited.operations)
    torch.testing.assert_close(folded(x, a), expected)
    index = tuple(0 for _ in experts)
    torch.testing.assert_close(edited.expert(index), folded.expert(index))


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_folded_layer_is_an_ordinary_layer(factorization):
    layer = make(factorization, dtype=torch.float32)
    stack = EditStack(layer)
    for edit in some_edits(layer):
        stack.add(edit)
    folded = stack.fold()
    assert type(folded.factorization) is (CP if factorization == "hadamard" else type(layer.factorization))
    again = mumoe.MuMoE.from_spec(folded.spec, 6, 4, norm="layer").eval()
    again.load_state_dict(folded.state_dict())
    x = rows(dtype=torch.float32)
    assert torch.equal(again(x), folded(x))
    assert all(parameter.requires_grad for parameter in folded.parameters())
    before = copy.deepcopy(layer.state_dict())
    nn.init.zeros_(next(folded.factorization.parameters()))
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_a_rewriting_adds_one_to_the_ranks():
    expected = {
        "cp": "CPMuMoE-r4-e5",
        "tucker": "TuckerMuMoE-r4-e5",
        "tt": "TTMuMoE-r4x5x1-e5",
        "tr": "TRMuMoE-r4x5x5-e5",
        "dense": "DenseMuMoE-e5",
        "hadamard": "CPMuMoE-r5-e5",
    }
    assert expected.keys() == set(FACTORIZATIONS)
    for name, spec in expected.items():
        layer = make(name)
        stack = EditStack(layer)
        stack.add(rewriting(layer, 0, mean_coefficients(layer, rows())))
        assert stack.fold().spec == spec
    layer = make("cp", (4, 3))
    for reading, rank in (("joint", 3 + 3), ("levels", 3 + 3)):
        stack = EditStack(layer)
        stack.add(rewriting(layer, 0, mean_coefficients(layer, rows(), reading=reading)))
        assert stack.fold().factorization.out_factor.shape[1] == rank


def test_rewriting_is_equation_6():
    layer, x, group = make(), rows(), rows(20, seed=9)
    coefficients = layer.coefficients(group)[0]
    mean = mean_coefficients(layer, group)
    torch.testing.assert_close(mean, coefficients.mean(0))
    edit = rewriting(layer, 2, mean)
    assert edit.strength == 5
    assert rewriting(layer, 2, mean, direction="lower").strength == -5
    stack = EditStack(layer)
    stack.add(edit)
    before, after = stack.preview(x)
    expected = before.clone()
    expected[:, 2] += 5 * layer.coefficients(x)[0] @ coefficients.mean(0)
    torch.testing.assert_close(after, expected)


def test_readings_of_a_hierarchy():
    layer, group = make("cp", (4, 3)), rows(20, seed=9)
    a, b = layer.coefficients(group)
    joint = mean_coefficients(layer, group)
    torch.testing.assert_close(joint, torch.einsum("zn,zm->nm", a, b) / 20)
    levels = mean_coefficients(layer, group, reading="levels")
    torch.testing.assert_close(levels, torch.outer(a.mean(0), b.mean(0)))
    assert not torch.allclose(joint, levels)
    batches = [group[:7], group[7:9].reshape(1, 2, 6), group[9:]]
    torch.testing.assert_close(mean_coefficients(layer, batches), joint)
    torch.testing.assert_close(mean_coefficients(layer, batches, reading="levels"), levels)
    assert rewriting(layer, 0, joint).strength == 12


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 5), (3, 2, 4)])
def test_separation_is_exact_and_short(shape):
    joint = torch.randn(shape, dtype=torch.float64)
    factors = separate(joint)
    letters = "abc"[: len(shape)]
    rebuilt = torch.einsum(",".join(f"{letter}k" for letter in letters) + "->" + letters, *factors)
    assert torch.equal(rebuilt, joint)
    assert factors[0].shape[1] == joint.numel() // max(shape)
    sparse = torch.zeros(shape, dtype=torch.float64)
    sparse[(1,) * len(shape)] = 2.0
    assert separate(sparse)[0].shape[1] == 1
    assert [factor.shape[1] for factor in separate(torch.zeros(shape))] == [1] * len(shape)


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_undo_changes_no_bit(factorization, dtype):
    layer, x = make(factorization, (4, 3), dtype=dtype), rows(50, dtype=dtype)
    before, state, part = layer(x), copy.deepcopy(layer.state_dict()), layer.factorization
    stack = EditStack(layer)
    for edit in some_edits(layer):
        stack.add(edit)
    stack.apply()
    stack.apply()
    assert not torch.equal(layer(x), before)
    stack.undo()
    stack.undo()
    assert torch.equal(layer(x), before)
    assert layer.factorization is part
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())
    with pytest.raises(RuntimeError, match="stop"), stack:
        raise RuntimeError("stop")
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_strength_zero_changes_no_bit(factorization):
    layer, x = make(factorization, (4, 3), dtype=torch.float32), rows(50, dtype=torch.float32)
    x[0] = 0
    before = layer(x)
    for edit in some_edits(layer):
        stack = EditStack(layer)
        stack.add(with_strength(edit, 0.0))
        with stack:
            assert torch.equal(layer(x), before)
            assert torch.equal(torch.signbit(layer(x)), torch.signbit(before))
        folded = stack.fold()
        assert folded.spec == layer.spec
        assert torch.equal(folded(x), before)


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_other_heads_keep_every_bit(factorization):
    layer, x = make(factorization, (4, 3), dtype=torch.float32), rows(300, dtype=torch.float32)
    before = layer(x)
    stack = EditStack(layer)
    stack.add(rewriting(layer, 1, mean_coefficients(layer, rows(9, dtype=torch.float32, seed=5))))
    stack.add(Correct.of(1, {(0, 0): 3.0}))
    stack.add(SetOutput((1, 2), 1, 9.0))
    with stack:
        after = layer(x)
    assert torch.equal(after[:, [0, 2, 3]], before[:, [0, 2, 3]])
    assert not torch.equal(after[:, 1], before[:, 1])


def test_ablation_edit_is_the_layers_own():
    layer, x = make("tr", (4, 3)), rows()
    stack = EditStack(layer)
    stack.add(Ablate(2, level=1))
    with layer.ablate([2], level=1):
        expected = layer(x)
    with stack:
        torch.testing.assert_close(layer(x), expected)


def test_ablating_takes_the_correction_of_the_expert_with_it():
    layer, x = make(), rows()
    stack = EditStack(layer)
    stack.add(rewriting(layer, 1, mean_coefficients(layer, rows(9, seed=5))))
    stack.add(SetOutput((2,), 0, 4.0))
    folded = stack.fold()
    with stack, layer.ablate([1, 2]):
        edited = layer(x)
    with folded.ablate([1, 2]):
        torch.testing.assert_close(edited, folded(x))
    deep = make("cp", (4, 3))
    stack = EditStack(deep)
    stack.add(rewriting(deep, 1, mean_coefficients(deep, rows(9, seed=5))))
    folded = stack.fold()
    with stack, deep.ablate([(1, 2), (0, 0)]):
        edited = deep(x)
    with folded.ablate([(1, 2), (0, 0)]):
        torch.testing.assert_close(edited, folded(x))


def test_stack_lists_names_scales_and_removes():
    layer, x = make(), rows()
    stack = EditStack(layer)
    assert stack.add(Ablate(1)) == "ablate-1"
    assert stack.add(Ablate(2)) == "ablate-2"
    assert stack.add(Swap(0, 3), "exchange") == "exchange"
    assert stack.describe() == [
        "ablate-1: ablate expert 1 of level 0",
        "ablate-2: ablate expert 2 of level 0",
        "exchange: swap experts 0 and 3 of level 0",
    ]
    stack.apply()
    all_three = layer(x)
    stack.scale("ablate-2", 0.0)
    assert stack["ablate-2"].strength == 0
    two = layer(x)
    stack.remove("ablate-2")
    assert torch.equal(layer(x), two)
    assert not torch.equal(two, all_three)
    stack.add(Ablate(2))
    assert list(stack.edits) == ["ablate-1", "exchange", "ablate-2"]
    assert stack.applied
    assert len(stack) == 3
    stack.undo()
    assert not stack.applied


def test_order_matters_and_is_kept():
    layer, x = make(), rows()

    def output(*edits):
        stack = EditStack(layer)
        for edit in edits:
            stack.add(edit)
        return stack.preview(x)[1]

    assert not torch.allclose(output(Swap(0, 1), Ablate(0)), output(Ablate(0), Swap(0, 1)))
    torch.testing.assert_close(output(Swap(0, 1), Ablate(0)), output(Ablate(1), Swap(0, 1)))


def test_preview_leaves_everything_alone():
    layer = make().train()
    stack = EditStack(layer)
    stack.add(Ablate(1))
    before, after = stack.preview(rows())
    assert layer.training
    assert not stack.applied
    assert not before.requires_grad
    stack.apply()
    again = stack.preview(rows())
    assert stack.applied
    assert torch.equal(again[0], before)
    assert torch.equal(again[1], after)


def test_two_stacks_undo_in_order():
    layer, x = make(), rows()
    plain = layer(x)
    below, above = EditStack(layer), EditStack(layer)
    below.add(Ablate(0))
    below.apply()
    above.add(SetOutput((0,), 1, 2.0))  # found on the ablated expert: 0 + 2
    above.apply()
    with pytest.raises(UserError, match=r"got others on top\. Undo those first"):
        below.undo()
    with pytest.raises(UserError, match="got others on top"):
        below.scale("ablate-1", 0.5)
    expected = layer(x)
    torch.testing.assert_close(above.fold()(x), expected)
    above.undo()
    below.undo()
    assert torch.equal(layer(x), plain)


def test_leading_dimensions_gradients_and_autocast():
    layer = make("cp", (4, 3), dtype=torch.float32)
    stack = EditStack(layer)
    for edit in some_edits(layer):
        stack.add(edit)
    x = torch.randn(2, 3, 6, requires_grad=True)
    with stack:
        y, a = layer(x, return_coefficients=True)
        y.sum().backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = layer(x)
    assert y.shape == (2, 3, 4)
    assert [level.shape for level in a] == [(2, 3, 4), (2, 3, 3)]
    assert all(parameter.grad is not None for parameter in layer.factorization.parameters())
    torch.testing.assert_close(rough.float(), y, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_layer_describes_itself_while_edited(factorization):
    layer = make(factorization, (4, 3))
    stack = EditStack(layer)
    stack.add(Ablate(0))
    with stack:
        assert layer.spec in repr(layer)
        ranks = mumoe.MuMoE.from_spec(layer.spec, 6, 4).factorization.ranks
        assert ranks == layer.factorization.ranks


def test_layer_is_found():
    layer = make()
    model = nn.Sequential(nn.Linear(6, 6), layer)
    assert find_layer(model) is layer
    assert find_layer(layer) is layer
    both = nn.ModuleDict({"first": make(), "second": layer})
    assert find_layer(both, "second") is layer
    with pytest.raises(UserError, match=r"expected one MuMoE layer, got first, second\. Name one"):
        find_layer(both)
    with pytest.raises(UserError, match=r"got 'secnd'\. Did you mean 'second'"):
        find_layer(both, "secnd")
    with pytest.raises(UserError, match="expected a model with a MuMoE layer, got a Linear without"):
        find_layer(nn.Linear(2, 2))


def test_fingerprint_sees_weights_not_edits():
    layer = make()
    before = fingerprint(layer)
    assert fingerprint(copy.deepcopy(layer)) == before
    assert fingerprint(make(seed=1)) != before
    stack = EditStack(layer)
    stack.add(Ablate(0))
    with stack:
        assert fingerprint(layer) == before
    with torch.no_grad():
        layer.gate.weights[0][0, 0] += 1e-12
    assert fingerprint(layer) != before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Ablate(5), "Ablate: expected an expert in 0..4, got 5. There are 5 experts."),
        (Ablate(0, level=1), "Ablate: expected level in 0..0, got 1. The layer has 1 level."),
        (Scale(5, 0.5), "Scale: expected an expert in 0..4, got 5."),
        (Swap(0, 9), "Swap: expected an expert in 0..4, got 9."),
        (SetOutput((1, 2), 0, 1.0), "SetOutput: expected"),
        (SetOutput((1,), 4, 1.0), "SetOutput: expected an output in 0..3, got 4. The layer has 4."),
        (Correct.of(0, {7: 1.0}), "Correct: expected an expert in 0..4, got 7."),
        (Correct.of(0, {}), "Correct: expected a number for at least one expert, got none."),
        (Rewrite.of(0, torch.ones(4), 1.0), "Rewrite: expected mean coefficients of experts (5,), got (4,)."),
        (Rewrite.of(-1, torch.ones(5), 1.0), "Rewrite: expected an output in 0..3, got -1."),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit, message):
    layer = make()
    stack = EditStack(layer)
    with pytest.raises(UserError) as error:
        stack.add(edit)
    assert str(error.value).startswith(message)
    assert not stack.edits
    with pytest.raises(UserError) as earlier:
        edit.check(layer.num_experts, layer.out_features)
    assert str(earlier.value) == str(error.value)


def test_bad_calls():
    layer = make()
    stack = EditStack(layer)
    stack.add(Ablate(1), "mine")
    with pytest.raises(UserError, match=r"got 'mime'\. Did you mean 'mine'"):
        stack.remove("mime")
    with pytest.raises(UserError, match="expected a new name, got 'mine', which is taken"):
        stack.add(Ablate(2), "mine")
    with pytest.raises(UserError, match="expected a finite strength, got inf"):
        stack.scale("mine", float("inf"))
    with pytest.raises(UserError, match="expected rows of the subpopulation, got none"):
        mean_coefficients(layer, rows(0))
    with pytest.raises(UserError, match=r"got 'rise'\. Did you mean 'raise'"):
        rewriting(layer, 0, torch.ones(5), direction="rise")
    with pytest.raises(UserError, match=r"got 'level'\. Did you mean 'levels'"):
        mean_coefficients(layer, rows(), reading="level")
    assert set(EDITS) == {"ablate", "correct", "rewrite", "scale", "set-output", "swap"}


def test_the_expert_of_a_layer_with_one_level_may_be_a_number():
    assert SetOutput(3, 0, 2.0) == SetOutput((3,), 0, 2.0)
