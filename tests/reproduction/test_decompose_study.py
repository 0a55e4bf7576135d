"""The study of decompositions on a tiny random Llama: what is made, what is not made twice, and the page."""

import dataclasses
import json
import shutil

import pytest

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from mumoe.errors import UserError
from reproduction import decompose_study
from reproduction.decompose_study import Cell, Options, cells_of, main, read_study
from tiny_llama import sentences, tiny_llama, tiny_tokenizer

TOML = """
model = "{model}"
text = "folder:{text}"
layers = [1]
k = [2, 4]
tuned_k = 4
widths = [4.0]
seeds = 2
contexts = 8
shown = 3
shown_variant = "cp-linear"

[settings]
tokens = 600
context = 17
lr = [2e-3, 4e-3]
most_dead = 0.9
batch_size = 64
val_contexts = 4
precision = "float32"

[quick]
k = [4]

[analysis]
contexts = 8
least = 2
ablations = 4
ablated_contexts = 8

[variants.cp-linear]
settings = {{ kind = "cp-linear" }}

[variants.skip-transcoder]
settings = {{ kind = "skip-transcoder" }}

[variants.transcoder]
settings = {{ kind = "transcoder" }}

[variants.linear]
settings = {{ kind = "linear" }}
sparse = false
"""


@pytest.fixture
def options(tmp_path, monkeypatch) -> Options:
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path / "cache"))
    model, text = tmp_path / "model", tmp_path / "text"
    tiny_llama().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    text.mkdir()
    for seed in range(40):
        (text / f"{seed:02}.txt").write_text(sentences(seed, 40).text)
    (tmp_path / "study.toml").write_text(TOML.format(model=model, text=text))
    places = {"out": str(tmp_path / "out"), "work": str(tmp_path / "work"), "config": str(tmp_path / "study.toml")}
    return Options(**places, quiet=True)


def test_the_study_writes_a_page_and_trains_nothing_twice(options, tmp_path, monkeypatch, capsys):
    main(options)
    page = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "## Layer 1",
        "K = 2:",
        "K = 4:",
        "Without K:",
        "cp-linear minus transcoder",
        "## Purity",
        "pareto.svg",
    ):
        assert text in page, text
    assert "## 3 experts drawn at random" in page
    assert str(tmp_path) not in page.replace(f"{tmp_path}/model", "")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results) == 3 * 2 * 2 + 2
    one = next(entry for entry in results if entry["cell"]["k"] == 2 and entry["cell"]["variant"] == "transcoder")
    tuned = next(entry for entry in results if entry["cell"]["variant"] == "transcoder" and len(entry["fitted"]) == 2)
    assert tuned["cell"]["k"] == 4
    assert one["fitted"][0]["lr"] == tuned["fitted"][0]["lr"]
    assert (tmp_path / "out" / "pareto.svg").is_file()
    monkeypatch.setattr(decompose_study, "decompose", lambda *_, **__: pytest.fail("trained again"))
    (tmp_path / "out" / "README.md").unlink()
    main(options)
    assert (tmp_path / "out" / "README.md").read_text() == page


def test_quick_is_a_part_of_it(options):
    whole = set(cells_of(read_study(options)))
    quick = cells_of(read_study(Options(**{**vars(options), "quick": True, "seeds": 1})))
    assert set(quick) < whole
    assert {cell.k for cell in quick} == {4}


def test_the_first_seed_at_the_tuned_k_comes_first(options):
    cells = cells_of(read_study(options))
    assert cells[:4] == [Cell(name, 1, 4.0, 4, 0) for name in ("cp-linear", "skip-transcoder", "transcoder", "linear")]


def test_settings_of_the_committed_study(tmp_path):
    study = read_study(Options())
    assert {"cp-linear", "hadamard", "transcoder", "skip-transcoder", "cp", "tucker", "tr", "dense", "linear"} <= set(
        study.variants
    )
    assert {cell.k for cell in cells_of(study) if cell.variant == "hadamard-copy"} == {32}
    assert study.settings["tokens"] >= 500_000
    assert study.contexts >= 128
    with pytest.raises(UserError, match="Did you mean 'cp-linear'"):
        read_study(Options(variants=("cp-liner",)))
    with pytest.raises(UserError, match="expected finished runs"):
        main(Options(work=str(tmp_path), out=str(tmp_path), pages=True))


def test_results_of_earlier_calls_are_kept_and_not_made_again(options, tmp_path, monkeypatch, capsys):
    parts = {"variants": ("cp-linear",), "quick": True}
    main(Options(**{**vars(options), **parts}))
    shutil.rmtree(tmp_path / "work")
    before = (tmp_path / "out" / "README.md").read_text()
    main(Options(**{**vars(options), "variants": ("cp-linear", "linear"), "quick": True}))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(one["cell"]["variant"], one["cell"]["seed"]) for one in results] == [
        ("cp-linear", 0),
        ("linear", 0),
        ("cp-linear", 1),
        ("linear", 1),
    ]
    assert not list((tmp_path / "work").rglob("cp-linear"))
    shown = before[before.index("## 3 experts") : before.index("## Sources")]
    assert shown in (tmp_path / "out" / "README.md").read_text()
    # A K that was not made uses the learning rate of a result whose folder is gone.
    main(Options(**{**vars(options), "variants": ("cp-linear",), "seeds": 1}))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rates = {one["cell"]["k"]: one["fitted"][0]["lr"] for one in results if one["cell"]["variant"] == "cp-linear"}
    assert set(rates) == {2, 4}
    assert len(set(rates.values())) == 1
    # --again makes known ones again, too.
    made = []
    monkeypatch.setattr(decompose_study._Maker, "make", lambda self, cell: made.append(cell in self.known) or True)
    main(Options(**{**vars(options), **parts}))
    main(Options(**{**vars(options), **parts, "again": True}))
    assert made == [True, True, False, False]


def test_experts_on_two_levels_have_a_part_of_the_page(options, tmp_path):
    config = tmp_path / "study.toml"
    pairs = '[variants.cp-linear-pairs]\nsettings = { kind = "cp-linear", experts = [12, 10], k = 2 }\nks = [4]\n'
    config.write_text(config.read_text() + pairs)
    main(dataclasses.replace(options, variants=("cp-linear-pairs",), seeds=1))
    page = (tmp_path / "out" / "README.md").read_text()
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert entry["shape"]["experts"] == [12, 10]
    assert entry["shape"]["k"] == 2  # that of the variant, per level
    found = entry["evaluation"]["combinations"]
    assert "## Experts on two levels" in page
    assert f"{found['occurring']} of 120" in page
    assert "% of 12 + 10" in page
    assert f"; {found['active']:.0f} combinations" in page
