"""Settings: round trip through TOML, and every kind of mistake in one line."""

import dataclasses

import pytest

from mumoe.errors import UserError
from mumoe.training import PRESETS, TrainConfig, read_config, to_toml
from mumoe.training.config import from_mapping, parse_options


def test_a_written_config_reads_back_equal(tmp_path):
    config = TrainConfig(
        data='folder:/some "odd"\\path/ü\x7f',
        data_options=("split=character", "size=96"),
        lr=1e-7,
        weight_decay=3.0,
        clip=0.1 + 0.2,
        seeds=3,
        against=("linear", "highrank-linear"),
        schedule="cosine",
        zscore=False,
    )
    (tmp_path / "c.toml").write_text(to_toml(config), encoding="utf-8")
    assert read_config(tmp_path / "c.toml") == config


def test_out_is_read_but_not_written(tmp_path):
    assert "\nout =" not in to_toml(TrainConfig(out="somewhere"))
    (tmp_path / "c.toml").write_text('out = "x"\n')
    assert read_config(tmp_path / "c.toml").out == "x"


def test_keys_may_stand_at_the_top_and_ints_stand_for_floats(tmp_path):
    (tmp_path / "c.toml").write_text('lr = 1\n[model]\nhead = "linear"\n')
    config = read_config(tmp_path / "c.toml", {"epochs": 7})
    assert (config.lr, config.head, config.epochs) == (1.0, "linear", 7)
    assert isinstance(config.lr, float)


def test_lists_split_at_commas():
    assert TrainConfig(against=("linear,highrank-linear", "sparse-moe-e4-k2")).check().against == (
        "linear",
        "highrank-linear",
        "sparse-moe-e4-k2",
    )


def test_the_paper_preset_is_the_papers():
    config = from_mapping(PRESETS["paper"])
    assert (config.mode, config.lr, config.weight_decay) == ("finetune", 3e-5, 0.1)
    assert (config.warmup_steps, config.schedule, config.clip) == (500, "cosine", 1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rat = 1.0", "got 'learning_rat'"),
        ("epoch = 3", "Did you mean 'epochs'?"),
        ("[optimisation]\nlr = 1.0", "Did you mean 'optimization'?"),
        ("[model]\nlr = 1.0", "expected lr in [optimization], got it in [model]. Move it there."),
        ('lr = "fast"', "expected lr to be a number, got 'fast'."),
        ("epochs = 1.5", "expected epochs to be a whole number, got 1.5."),
        ("epochs = true", "expected epochs to be a whole number, got True."),
        ("strict = 1", "expected strict to be true or false, got 1."),
        ("data = 3", "expected data to be a string, got 3."),
        ("against = [1]", "expected against to be a list of strings"),
        ('against = "linear"', "expected against to be a list of strings"),
        ('mode = "finetun"', "Did you mean 'finetune'?"),
        ("epochs = 0", "expected epochs >= 1, got 0."),
        ("label_smoothing = 1.5", "expected label_smoothing <= 1, got 1.5."),
        ("lr = nan", "expected lr to be a finite number, got nan."),
        ('track = ["wand"]', "Did you mean 'wandb'?"),
        ('data_options = ["size"]', "expected KEY=VALUE, got 'size'."),
        ("lr = ", "expected a TOML file, got"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, text, said):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(UserError) as error:
        read_config(tmp_path / "c.toml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path):
    (tmp_path / "fast.toml").touch()
    with pytest.raises(UserError, match=r"Did you mean '.*fast\.toml'"):
        read_config(tmp_path / "fas.toml")
    with pytest.raises(UserError, match="Give a TOML file"):
        read_config(tmp_path / "nowhere" / "c.toml")


def test_options_become_numbers_and_words():
    assert parse_options(["size=96", "split=character", "strict=true", "ratio=0.5", "path=/a=b"]) == {
        "size": 96,
        "split": "character",
        "strict": True,
        "ratio": 0.5,
        "path": "/a=b",
    }


def test_every_setting_has_a_place_and_words_of_help():
    from mumoe.training.config import SECTIONS

    for item in dataclasses.fields(TrainConfig):
        assert item.metadata["section"] in SECTIONS
