"""The bias recipe on made-up features: rows, protocol and the direction of every method's effect."""

from __future__ import annotations

import json

import numpy as np
import pytest

from made_up_emoji import GROUPS, emoji, opened
from mumoe.data.base import Attribute, ImageData
from mumoe.demo.bias_heads import Settings
from mumoe.demo.planted_bias import planted_style
from mumoe.editing import subgroup_fairness as fairness
from mumoe.editing.subgroup_fairness import Bootstrap
from mumoe.errors import UserError
from reproduction.bias import Retraining, run_bias, run_seed
from reproduction.bias_sets import celeba_bias, natural_skin_tone, without_cut

SETTINGS = Settings(epochs=6, batch_size=64, learning_rate=0.02)
QUICK = (Retraining("oversample", (1.0, 0.5)), Retraining("dfr", (1.0,)))


@pytest.fixture(scope="module")
def results():
    return run_bias(
        lambda seed: planted_style(*emoji(seed), support=0.005),
        seeds=(0, 1),
        head="CPMuMoE-r16-e16",
        settings=SETTINGS,
        retraining=QUICK,
        bootstrap=Bootstrap(50),
    )


def test_planted_cut_touches_training_alone():
    data, features = emoji()
    bias = planted_style(data, features, support=0.005)
    rows, inside = bias.training_rows(0), (data.labels == 0) & (bias.sensitive == "openmoji")
    assert inside[rows].sum() == round(0.005 * len(bias.splits.train))
    assert (~inside)[rows].sum() == (~inside)[bias.splits.train].sum()
    assert set(rows) <= set(bias.splits.train)
    assert not np.array_equal(rows, bias.training_rows(1))
    assert np.array_equal(without_cut(bias).training_rows(0), bias.splits.train)
    assert bias.heads[bias.head] == "Animals & Nature"
    assert bias.labels[:, :3].sum(1).tolist() == [1] * len(data)
    assert bias.heads[3:] == ("person", "body", "family")
    assert len(planted_style(data, features, min_per_head=10_000).heads) == 3
    assert np.array_equal(bias.splits.test, data.indices("test"))


def test_natural_set_is_people_with_a_tone():
    data, features = emoji()
    bias = natural_skin_tone(data, features)
    gender, tone = data.attributes["gender"].codes, data.attributes["skin_tone"].codes
    rows = np.flatnonzero((gender >= 0) & (tone >= 0))
    assert np.array_equal(bias.features, features[rows])
    assert np.array_equal(bias.labels[:, 0], gender[rows] == 1)
    assert np.array_equal(bias.sensitive == "dark", tone[rows] >= 3)
    assert np.array_equal(rows[bias.splits.val], np.intersect1d(rows, data.indices("val")))
    assert np.array_equal(bias.training_rows(0), bias.splits.train)


def test_celeba_experiments():
    rng = np.random.default_rng(0)
    data = ImageData(
        name="celeba",
        classes=("Blond_Hair", "Male", "Young"),
        multi_label=True,
        labels=rng.integers(0, 2, (30, 3)).astype(np.uint8),
        split=np.repeat([0, 1, 2], 10).astype(np.int8),
        ids=tuple(map(str, range(30))),
        open_image=opened,
        fingerprint="0",
    )
    features = np.zeros((30, 4), np.float32)
    old = celeba_bias(data, features, "old-females-age")
    assert (old.heads[old.head], old.target) == ("Young", (0, "Male=0"))
    blond = celeba_bias(data, features, "blond-males-hair")
    assert (blond.heads[blond.head], blond.target) == ("Blond_Hair", (1, "Male=1"))
    assert np.array_equal(blond.sensitive == "Male=1", data.labels[:, 1] == 1)
    with pytest.raises(UserError, match=r"got 'blond-male'\. Did you mean 'blond-males-hair'"):
        celeba_bias(data, features, "blond-male")
    with pytest.raises(UserError, match="expected 0/1 attributes, got single labels in emoji"):
        celeba_bias(*emoji(), "blond-males-hair")


def test_table_has_every_method_and_criterion(results):
    methods = list(results.reports)
    assert methods[:3] == ["Linear", "HighRankLinear", "CPMuMoE-r16-e16"]
    for name in ("oversample", "dfr", "blind", "experts"):
        assert {f"+ {name}", f"+ {name} matched", f"+ {name} best worst group"} <= set(methods)
    seed = results.seeds[0]
    assert seed.strengths["+ experts"] == 16
    assert seed.strengths["+ blind"] == 2.5
    assert 3 <= seed.support <= 5  # 0.5% of about 900 training rows
    assert "rewriting_score" not in seed.reports["Linear"].metrics
    assert "rewriting_score" in seed.reports["+ dfr"].metrics
    assert seed.parameters["+ experts"] == seed.parameters["CPMuMoE-r16-e16"]
    assert seed.parameters["HighRankLinear"] == pytest.approx(seed.parameters["+ experts"], rel=0.05)


def test_edits_help_the_target_as_they_should(results):
    head = results.head
    before = results.mean(head, "target_accuracy")[0]
    assert before < results.mean(head, "accuracy")[0] - 0.1
    for method in ("+ experts matched", "+ blind matched", "+ oversample"):
        assert results.mean(method, "target_accuracy")[0] > before
    worst = results.mean("+ experts best worst group", "min_accuracy")[0]
    assert worst > results.mean(head, "min_accuracy")[0]


def test_results_are_json(results):
    plain = json.loads(json.dumps(results.to_dict(), allow_nan=False))
    assert plain["summary"]["Linear"]["accuracy"]["mean"] == results.mean("Linear", "accuracy")[0]
    assert len(plain["seeds"]) == 2
    assert plain["facts"] == ["drawn by"]
    assert plain["settings"]["epochs"] == 6


def test_other_test_labels_choose_the_same():
    data, features = emoji()

    def run(labels):
        changed = ImageData(**{**data.__dict__, "attributes": {**data.attributes, "group": Attribute(labels, GROUPS)}})
        return run_seed(
            planted_style(changed, features, support=0.005),
            seed=0,
            head="CPMuMoE-r8-e8",
            settings=Settings(epochs=2),
            retraining=(Retraining("oversample", (1.0, 0.5)),),
            bootstrap=Bootstrap(0),
        )

    shuffled = data.labels.copy()
    test = data.indices("test")
    shuffled[test] = np.random.default_rng(1).permutation(shuffled[test])
    first, second = run(data.labels), run(shuffled)
    assert first.strengths == second.strengths
    assert first.choices == second.choices
    assert first.reports["+ experts"].metrics != second.reports["+ experts"].metrics


def test_report_is_of_the_edited_predictions():
    data, features = emoji()
    bias = planted_style(data, features, support=0.005)
    result = run_seed(
        bias,
        seed=0,
        head="CPMuMoE-r8-e8",
        settings=Settings(epochs=2),
        retraining=(),
        bootstrap=Bootstrap(0),
    )
    score = result.reports["+ blind"].metrics["rewriting_score"].value
    groups = result.reports["+ blind"].subgroups
    before = [group.before.value for group in groups]
    after = [group.accuracy.value for group in groups]
    change = np.subtract(after, before)
    aim = [group.subgroup == result.reports["+ blind"].target for group in groups].index(True)
    assert score == pytest.approx(change[aim] - np.abs(np.delete(change, aim)).sum())
    assert set(fairness.METRICS) == set(result.reports["+ blind"].metrics)


def test_no_seed_is_refused():
    with pytest.raises(UserError, match="expected at least one seed, got none"):
        run_bias(lambda seed: planted_style(*emoji(seed)), seeds=())
