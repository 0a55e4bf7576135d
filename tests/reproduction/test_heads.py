"""The comparison of heads: same effort for each, chosen on validation, test read by the chosen setting alone."""

import json

import pytest

from mumoe.results import EvalResult, RunResult
from reproduction import head_study as heads
from reproduction.head_study import Options, compare_heads, table

ACCURACY = {(1e-3, 0.01): 0.5, (1e-3, 1.0): 0.7, (3e-3, 0.01): 0.6, (3e-3, 1.0): 0.4}


class Features:
    shape = (10, 32)
    x = None


Features.x = Features()


class Data:
    classes = tuple("abcdefgh")

    def __len__(self):
        return 10


@pytest.fixture
def trained(monkeypatch):
    """Records what is trained; validation accuracy depends on the setting, test accuracy on the seed."""
    calls = []

    def train(options, head, lr, decay, seed, data, features):
        calls.append((head, lr, decay, seed))
        val = EvalResult("", "val", 1, 10, 0.0, ACCURACY[lr, decay])
        test = EvalResult("", "test", 1, 10, 0.0, 0.5 + 0.01 * seed - 0.1 * (head == "linear"))
        return RunResult("", head, seed, 100, 1, 0.1, {"val": val, "test": test})

    monkeypatch.setattr(heads, "_train", train)
    monkeypatch.setattr(heads, "load_data", lambda *a, **k: Data())
    monkeypatch.setattr(heads, "create_backbone", lambda *a, **k: None)
    monkeypatch.setattr(heads, "extract_features", lambda *a, **k: Features())
    return calls


def test_every_head_gets_the_same_effort_and_its_best_setting(trained):
    options = Options(head="CPMuMoE-r16-e8", lr=(1e-3, 3e-3), weight_decay=(0.01, 1.0), seeds=3)
    results = compare_heads(options, progress=False)
    assert list(results["heads"])[:2] == ["CPMuMoE-r16-e8", "linear"]
    assert len(results["heads"]) == 6
    for head, entry in results["heads"].items():
        assert [call[1:] for call in trained if call[0] == head] == [
            (1e-3, 0.01, 0),
            (1e-3, 1.0, 0),
            (3e-3, 0.01, 0),
            (3e-3, 1.0, 0),
            (1e-3, 1.0, 1),
            (1e-3, 1.0, 2),
        ]
        assert (entry["lr"], entry["weight_decay"]) == (1e-3, 1.0)
    json.dumps(results)


def test_the_table_pairs_differences_by_seed(trained):
    options = Options(head="CPMuMoE-r16-e8", lr=(1e-3,), weight_decay=(0.01,), seeds=2)
    lines = table(compare_heads(options, progress=False)).splitlines()
    assert lines[2] == "| CPMuMoE-r16-e8 | 100 | 0.001 | 0.01 | 0.505 ± 0.007 | +0.100 ± 0.000 |"
    assert lines[3] == "| linear | 100 | 0.001 | 0.01 | 0.405 ± 0.007 |  |"
