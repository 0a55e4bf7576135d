"""GPT-2 with mixtures: causal, the same with a cache, saved and loaded to the same bits, sizes by formula."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel
from transformers.utils import logging

from mumoe.analysis import expert_layers
from mumoe.errors import UserError
from mumoe.models.block_specs import BlockSpec
from mumoe.models.gpt2 import GPT2MuMoEConfig, GPT2Shape, create_gpt2

SMALL = GPT2Shape(depth=2, heads=2, width=32, context=32, vocabulary=50)
SPECS = ["mlp", "CPMuMoE-e8", "TRMuMoE-e4x2"]


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable_progress_bar()


@pytest.fixture(params=SPECS)
def model(request):
    torch.manual_seed(0)
    return create_gpt2(request.param, shape=SMALL)


@pytest.mark.parametrize("training", [True, False])
def test_a_later_token_never_changes_an_earlier_logit(model, training):
    """In training as well: the gate's normalization sees one position at a time. Every place, bit for bit."""
    model.train(training)
    tokens = torch.randint(0, 50, (2, 12))
    with torch.no_grad():
        before = model(tokens).logits
        for place in range(12):
            changed = tokens.clone()
            changed[:, place] = (changed[:, place] + 1 + torch.randint(0, 48, (2,))) % 50
            after = model(changed).logits
            assert torch.equal(after[:, :place], before[:, :place])
            assert not torch.allclose(after[:, place], before[:, place])


def test_other_rows_of_the_batch_do_not_matter(model):
    tokens = torch.randint(0, 50, (3, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits[:1], model(tokens[:1]).logits)


def test_a_gate_normalized_over_the_batch_would_leak_and_is_refused():
    with pytest.raises(UserError, match=r"gpt2: expected a gate norm over each position alone .*got 'batch'"):
        create_gpt2("CPMuMoE-e8", shape=SMALL, norm="batch")
    with pytest.raises(UserError, match="Use norm='layer'"):
        GPT2MuMoEConfig(mumoe_norm="batch")


def test_why_it_is_refused():
    """The test of causality finds the leak when the gates are put in by hand."""
    from mumoe.gating import BatchNorm

    torch.manual_seed(0)
    model = create_gpt2("CPMuMoE-e8", shape=SMALL)
    for layer in expert_layers(model).values():
        layer.gate.norms[0] = BatchNorm(8)
    tokens = torch.randint(0, 50, (2, 12))
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 50
    with torch.no_grad():
        assert not torch.equal(model(changed).logits[:, :-1], model(tokens).logits[:, :-1])


def test_generation_is_the_same_with_and_without_the_cache(model):
    model.eval()
    prompt = torch.randint(0, 50, (2, 5))
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    cached, plain = (model.generate(prompt, use_cache=use, **options) for use in (True, False))
    assert cached.shape == (2, 25)
    assert torch.equal(cached, plain)


def test_saved_and_loaded_gives_the_same_logits_without_remote_code(model, tmp_path):
    tokens = torch.randint(0, 50, (2, 9))
    model.eval().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert loaded.config.mumoe == model.config.mumoe


def size(mlp, **options):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_gpt2(mlp, **options).parameters())


@pytest.mark.parametrize("mlp", SPECS)
def test_parameters_by_formula(mlp):
    block, plain = BlockSpec.parse(mlp).parameters, BlockSpec.parse("mlp").parameters
    width, hidden = SMALL.width, SMALL.hidden or 4 * SMALL.width
    counted = block(width, hidden, width, bias=mlp == "mlp") - plain(width, hidden, width)
    assert size(mlp, shape=SMALL) - size("mlp", shape=SMALL) == SMALL.depth * counted
    assert len(expert_layers(create_gpt2(mlp, shape=SMALL))) == (0 if mlp == "mlp" else 2)


def test_the_pairs_at_124_million_parameters():
    assert size("mlp") == 124_439_808  # Hugging Face's gpt2
    for mlp, parameters in (("CPMuMoE-e256", 124_393_728), ("TRMuMoE-e256", 124_418_304)):
        assert size(mlp) == parameters


def test_ordinary_mlps_are_hugging_faces_own():
    torch.manual_seed(3)
    ours = create_gpt2("mlp", shape=SMALL)
    theirs = GPT2LMHeadModel(ours.config)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(0, 50, (2, 9))
    assert torch.equal(ours.eval()(tokens).logits, theirs.eval()(tokens).logits)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": "gtp2"}, "Did you mean 'gpt2'?"),
        ({"shape": GPT2Shape(width=30, heads=4)}, "multiple of heads=4, got 30"),
        ({"shape": GPT2Shape(context=0)}, "expected context as a whole number >= 1, got 0"),
        ({"mlp": "mlpp"}, "Or use 'mlp'"),
    ],
)
def test_wrong_calls_say_what_was_wrong(options, words):
    with pytest.raises(UserError, match=words):
        create_gpt2(**options)
