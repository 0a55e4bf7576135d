"""Items that need no training: our counts against the printed ones, and what the paper contradicts."""

import itertools

import pytest
import torch

from mumoe.costs import count_flops, count_parameters
from mumoe.models.mixer import create_mixer
from reproduction import drawings, exact
from reproduction.recipe import load_recipe, printed


def test_table_3_is_a_part_of_table_6():
    rows = printed("table-6")["rows"]
    for head, row in printed("table-3")["rows"].items():
        assert (row["accuracy"], row["parameters"]) == (rows[head]["accuracy"], rows[head]["parameters"])


@pytest.mark.parametrize(("place", "wrong"), [("table-3", 0), ("table-6", 11), ("table-7", 21)])
def test_parameter_columns(place, wrong):
    rows, counts = exact.parameter_columns(place)
    off = [count for count in counts if count["ours"] != count["printed"]]
    assert len(off) == wrong
    for count in off:  # the gate counted twice, or CLIP's width in place of DINO's
        width = printed(place)["features"]
        extra = {"tucker": 128 * width, "highrank": 512 * (768 - width)}
        assert count["printed"] - count["ours"] == extra["tucker" if "Tucker" in count["head"] else "highrank"]
    assert len(rows) == len(printed(place)["rows"])
    marks = [cell for row in rows for cell in row[1:]]
    assert sum("≠" in cell for cell in marks) == wrong
    assert sum(cell.endswith("=") for cell in marks) == len(marks) - wrong


def test_table_4_has_one_doubled_count():
    counts = [entry for kind in printed("table-4")["parts"] for entry in exact.hierarchy_columns(kind)[1]]
    off = [entry for entry in counts if entry["ours"] != entry["printed"]]
    assert len(counts) == 63
    assert [(entry["levels"], entry["count"], entry["printed"] / entry["ours"]) for entry in off] == [
        ("128x2x2x2", "one_level", 2.0)
    ]


def test_table_8_counts_tuckers_gate_twice():
    off = {entry["head"]: entry["printed"] - entry["ours"] for entry in exact.fairness_columns()[1]}
    assert off == {"CPMuMoE-r512-e128": 0, "TRMuMoE-r512-e128": 0, "TuckerMuMoE-r64-e128": 128 * 768}


def test_table_1_is_counted_while_it_runs():
    sheet = exact.table_1(load_recipe("table-1"))
    found = {entry["head"]: entry for entry in sheet.numbers["layers"]}
    assert found["DenseMuMoE-e512"]["forward"] == 768 * 1000 * 512
    assert found["CPMuMoE-r512-e512"]["forward"] == 512 * (768 + 1000 + 512)
    assert all(entry["forward"] == entry["formula"] for entry in found.values())
    page = sheet.render()
    assert "1,167,360 =" in page
    assert "2,645,632 =" in page
    assert "3,637,248 **≠ 2.6M**" in page


def test_section_4_1_1_mixes_two_output_sizes():
    """1.2B fits 768 outputs alone, 1.9M 1,000 outputs alone."""
    dense = {outputs: count_flops("dense", 768, outputs, 2048, bias=False) for outputs in (768, 1000)}
    cp = {outputs: count_flops("cp", 768, outputs, 2048, 512, bias=False) for outputs in (768, 1000)}
    assert {outputs: f"{n / 1e9:.1f}B" for outputs, n in dense.items()} == {768: "1.2B", 1000: "1.6B"}
    assert {outputs: f"{n // 10**5 / 10}M" for outputs, n in cp.items()} == {768: "1.8M", 1000: "1.9M"}


def test_table_5_has_one_cp_layer_in_place_of_an_mlp():
    counts = exact.mixer_parameters()
    assert counts["mlp"] == 18_528_264
    assert counts["cp"] == 19_652_880
    assert (counts["mlp"] // 10**6, counts["cp"] // 10**6) == (18, 19)
    assert counts["cp, two layers"] // 10**6 == 79
    assert counts["mlp"] == sum(p.numel() for p in create_mixer("mlp", device="meta").parameters())


def test_the_same_model_is_printed_with_two_accuracies():
    """Table 4b's first row and Table 6's TR on ImageNet; and two Tucker ranks with the same accuracy to the digit."""
    six = printed("table-6")["rows"]
    assert printed("table-4")["parts"]["TRMuMoE-r512"][0]["accuracy"] == [74.66, 0.09]
    assert six["TRMuMoE-r512-e128"]["accuracy"][-1] == [74.68, 0.03]
    assert six["TuckerMuMoE-r128-e128"]["accuracy"][-1] == six["TuckerMuMoE-r64-e128"]["accuracy"][-1] == [71.9, 0.05]
    others = [row["accuracy"][5][0] for head, row in six.items() if head != "TuckerMuMoE-r128-e128"]
    assert max(others) == 92.24
    assert six["TuckerMuMoE-r128-e128"]["accuracy"][5][0] == 93.76


def test_tables_2_and_8_print_the_same_scores_rounded():
    eight = printed("table-8")["experiments"]
    for name, rows in printed("table-2")["experiments"].items():
        for method in ("+ blind", "+ experts"):
            full = eight[name]["CPMuMoE-r512-e128"][method]
            assert rows[method]["rewriting_score"] == pytest.approx(full["rewriting_score"], abs=0.005)
            assert rows[method]["target_accuracy"] == full["target_accuracy"]


@pytest.mark.parametrize("spec", ["CPMuMoE-r5-e6", "TuckerMuMoE-r4-e6", "TTMuMoE-r5-e3x4", "TRMuMoE-r5-e3x4"])
def test_forwards_are_counted_for_every_factorization(spec):
    found = exact.measure_forward(spec, 9, 7)
    assert found.forward == found.formula
    assert found.dense == 9 * 7 * (6 if "x" not in spec else 12)
    assert found.forming > found.forward


def test_crossings_are_where_counts_cross():
    sizes = load_recipe("figure-10").sizes
    for other in ("TuckerMuMoE-r128", "TTMuMoE-r512", "TRMuMoE-r512"):
        n = exact.crossing("CPMuMoE-r512", other, sizes)
        ours, theirs = (
            [exact.head_parameters(f"{head}-e{m}", 768, 1000) for m in (n - 1, n)] for head in ("CPMuMoE-r512", other)
        )
        assert ours[0] <= theirs[0]
        assert ours[1] > theirs[1]


def test_parameter_curves_are_the_layers():
    curves = exact.parameter_curves(load_recipe("figure-10"))
    assert dict(curves["CPMuMoE-r512"])[128] == 1_069_568
    assert dict(curves["DenseMuMoE"])[512] == count_parameters("dense", 768, 1000, 512)


@pytest.mark.parametrize("item", ["figure-1", "figure-4"])
def test_drawings_are_of_the_definition(item):
    sizes = load_recipe(item).sizes
    steps = drawings.contraction_steps(sizes)
    y = torch.zeros(sizes.out_features)
    for index in itertools.product(*map(range, sizes.experts)):
        share = torch.stack([a[n] for a, n in zip(steps.coefficients, index, strict=True)]).prod()
        y += share * steps.weight[(slice(None), slice(None), *index)] @ steps.x
    torch.testing.assert_close(steps.y, y)
    assert all(abs(float(a.sum()) - 1) < 1e-6 and (a == 0).any() for a in steps.coefficients)
    figure = drawings.contraction_figure(steps, "drawn")
    cells = len(figure.axes[0].patches)
    experts, levels = steps.weight[0, 0].numel(), steps.coefficients
    columns = sum(part[0].numel() for part in steps.partial) * sizes.out_features
    assert cells == experts * 20 + columns + sum(map(len, levels)) + sizes.in_features + sizes.out_features
