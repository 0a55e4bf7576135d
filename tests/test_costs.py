"""Parameter counts of the paper's tables to the last digit, FLOPs against PyTorch's counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mumoe
from mumoe.costs import count_flops, count_parameters, rank_for_budget
from mumoe.errors import UserError
from tests_support import KINDS, LEVELS, rank_of

CLASSES = {
    "CIFAR100": 100,
    "Caltech256": 257,
    "Caltech101": 102,
    "Food101": 101,
    "Pets": 37,
    "CelebA": 40,
    "IN1k": 1000,
}

# Tables 6 (CLIP ViT-B/32, 768 features; Table 3 is its CP-r512 row) and 7 (DINO ViT-S/16, 384 features), as printed.
PRINTED = {
    (768, "linear", None): (76900, 197633, 78438, 77669, 28453, 30760, 769000),
    (768, "highrank-linear", 1024): (888932, 1049857, 890982, 889957, 824357, 827432, 1811432),
    (768, "cp", 256): (353536, 393728, 354048, 353792, 337408, 338176, 583936),
    (768, "cp", 512): (608768, 689152, 609792, 609280, 576512, 578048, 1069568),
    (768, "tucker", 128): (2421376, 2441472, 2421632, 2421504, 2413312, 2315392, 2536576),
    (768, "tucker", 64): (424256, 532608, 522688, 522624, 518528, 420416, 580160),
    (768, "tr", 512): (1880064, 2201600, 1884160, 1882112, 1751040, 1757184, 3723264),
    (768, "tr", 256): (990208, 1150976, 992256, 991232, 925696, 928768, 1911808),
    (384, "linear", None): (38500, 98945, 39270, 38885, 14245, 15400, 385000),
    (384, "highrank-linear", 512): (444516, 525057, 445542, 445029, 412197, 413736, 906216),
    (384, "cp", 256): (206080, 246272, 206592, 206336, 189952, 190720, 436480),
    (384, "cp", 512): (363008, 443392, 364032, 363520, 330752, 332288, 823808),
    (384, "tucker", 128): (2273920, 2294016, 2274176, 2274048, 2265856, 2266240, 2389120),
    (384, "tucker", 64): (399680, 409728, 399808, 399744, 395648, 395840, 457280),
    (384, "tr", 512): (1044480, 1366016, 1048576, 1046528, 915456, 921600, 2887680),
    (384, "tr", 256): (547840, 708608, 549888, 548864, 483328, 486400, 1469440),
}
# Printed Tucker counts that hold; all others count the gate's 128 D parameters twice (paper page of the docs).
TUCKER_RIGHT = {(768, 128, "CelebA"), (768, 64, "CelebA"), (768, 64, "CIFAR100")}

# Table 4: levels -> parameters; the last column's 1-level counts follow from the total number of experts.
HIERARCHIES = {
    "cp": {(128,): 1069568, (128, 2): 1072128, (128, 2, 2): 1074688, (128, 2, 2, 2): 1077248, (128, 4): 1074688,
           (128, 4, 4): 1079808, (128, 4, 4, 4): 1084928, (256,): 1233408, (512,): 1561088, (1024,): 2216448,
           (2048,): 3527168, (8192,): 11391488},
    "tr": {(128,): 3723264, (128, 2): 3724832, (128, 2, 2): 3726400, (128, 2, 2, 2): 3727968, (128, 4): 3726400,
           (128, 4, 4): 3729536, (128, 4, 4, 4): 3732672, (256,): 3823616, (512,): 4024320, (1024,): 4425728,
           (2048,): 5228544, (8192,): 10045440},
    "tucker": {(128,): 481856, (128, 2): 745540, (128, 2, 2): 1271368, (128, 2, 2, 2): 2321484, (128, 4): 1271376,
               (128, 4, 4): 4420192, (128, 4, 4, 4): 17006192, (256,): 588352, (512,): 801344, (1024,): 1227328,
               (2048,): 2079296, (8192,): 7191104},
}  # fmt: skip
# Table 8 (CelebA, 768 features): TuckerMuMoE-r64 is printed with the gate counted twice.
TABLE_8 = {("cp", 512): 578048, ("tr", 512): 1757184, ("tucker", 64): 518720}


def cases():
    for (features, kind, rank), counts in PRINTED.items():
        for (name, classes), printed in zip(CLASSES.items(), counts, strict=True):
            twice = kind == "tucker" and (features, rank, name) not in TUCKER_RIGHT
            yield pytest.param(
                features, classes, kind, rank, printed - twice * 128 * features, id=f"{features}-{name}-{kind}-{rank}"
            )


@pytest.mark.parametrize(("features", "classes", "kind", "rank", "expected"), [*cases()])
def test_tables_3_6_and_7(features, classes, kind, rank, expected):
    if kind == "highrank-linear" and features == 384:
        features = 768  # Table 7's own: CLIP's width in place of DINO's (paper page of the docs)
    assert count_parameters(kind, features, classes, 128, rank) == expected
    if kind in KINDS:
        layer = mumoe.MuMoE(features, classes, 128, kind, rank, device="meta")
        assert sum(parameter.numel() for parameter in layer.parameters()) == expected


@pytest.mark.parametrize("kind", list(HIERARCHIES))
def test_table_4(kind):
    rank = 64 if kind == "tucker" else 512
    for levels, expected in HIERARCHIES[kind].items():
        assert count_parameters(kind, 768, 1000, levels, rank) == expected, levels
        layer = mumoe.MuMoE(768, 1000, levels, kind, rank, device="meta")
        assert sum(parameter.numel() for parameter in layer.parameters()) == expected, levels


def test_table_4_regular_moe():
    for levels, expected in {(128,): 98_432_000, (128, 2, 2): 393_728_000, (128, 4, 4, 4): 6_299_648_000}.items():
        assert count_parameters("dense", 768, 1000, levels, gate=False) == expected


def test_table_8():
    for (kind, rank), printed in TABLE_8.items():
        twice = 128 * 768 if kind == "tucker" else 0
        assert count_parameters(kind, 768, 40, 128, rank) == printed - twice


def test_table_1_flops():
    sizes = {"in_features": 768, "out_features": 1000, "num_experts": 512, "bias": False}
    assert count_flops("dense", **sizes) == 393_216_000
    assert count_flops("cp", rank=512, **sizes) == 1_167_360
    assert count_flops("tucker", rank=128, **sizes) == 2_405_376
    printed = {"out-in": 4, "in-expert": 512, "expert-out": 4}  # where Table 1 has the large bond
    assert count_flops("tr", rank=printed, **sizes) == 2_645_632
    assert count_flops("tr", rank=512, **sizes) == 3_637_248  # where Tables 3 to 8 have it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_formulas_equal_the_counters(kind, depth, bias):
    sizes = (7, 6, LEVELS[depth])
    layer = mumoe.MuMoE(*sizes, kind, rank_of(kind), bias=bias).eval()
    assert count_parameters(kind, *sizes, rank_of(kind), bias=bias) == sum(p.numel() for p in layer.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.randn(11, 7))
    assert 2 * 11 * count_flops(kind, *sizes, rank_of(kind), bias=bias, gate=True) == counter.get_total_flops()


@pytest.mark.parametrize("bias", [True, False])
def test_baselines_equal_the_counters(bias):
    linear, high = torch.nn.Linear(7, 6, bias=bias), mumoe.HighRankLinear(7, 6, 4, bias=bias)
    sparse = mumoe.SparseMoE(7, 6, 5, 2, bias=bias).eval()
    for name, module, options in (
        ("linear", linear, {}),
        ("highrank-linear", high, {"rank": 4}),
        ("sparse-moe", sparse, {"num_experts": 5}),
    ):
        count = count_parameters(name, 7, 6, bias=bias, **options)
        assert count == sum(p.numel() for p in module.parameters()), name
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.randn(11, 7))
        gate = name == "sparse-moe"
        assert 2 * 11 * count_flops(name, 7, 6, bias=bias, gate=gate, **options) == counter.get_total_flops(), name


@pytest.mark.parametrize("kind", ["cp", "tucker", "tt", "tr", "highrank-linear"])
@pytest.mark.parametrize("budget", [150_000, 1_000_000, 3_333_333])
def test_rank_for_budget_is_the_closest(kind, budget):
    sizes = {"in_features": 768, "out_features": 100}
    rank = rank_for_budget(parameters=budget, num_experts=(64, 2), factorization=kind, **sizes)
    off = [abs(count_parameters(kind, 768, 100, (64, 2), r) - budget) for r in (rank - 1, rank, rank + 1) if r]
    assert min(off) == abs(count_parameters(kind, 768, 100, (64, 2), rank) - budget)


def test_a_budget_too_small():
    with pytest.raises(UserError, match=r"at least 99,301 parameters \(rank 1\), got 5. Raise it or lower num_experts"):
        rank_for_budget(parameters=5, in_features=768, out_features=100, num_experts=128)
    with pytest.raises(UserError, match="expected a layer with a rank, got 'dense'"):
        rank_for_budget(parameters=5, in_features=768, out_features=100, factorization="dense")
    with pytest.raises(UserError, match="Did you mean 'tucker'"):
        count_parameters("tuker", 7, 6, 5, 3)
