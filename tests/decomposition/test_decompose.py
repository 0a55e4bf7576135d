"""A decomposition of a tiny random Llama: what adds up exactly, what resumes, what is undone, and wrong calls."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mumoe
from mumoe.coefficients import SparseCoefficients
from mumoe.data.brown import read_tagged
from mumoe.data.documents import Document, cut
from mumoe.decomposition import activations, fitting, opened
from mumoe.decomposition.activations import capture_rows
from mumoe.decomposition.findings import Evaluation, Measure, paired
from mumoe.decomposition.looking import Labels
from mumoe.decomposition.opened import ABOUT, choose_rate
from mumoe.decomposition.replacements import KINDS, Features, build, shape_for
from mumoe.demo.text_demo import TextDemo, run_text_demo
from mumoe.errors import JobError, UserError
from mumoe.files import write_json
from mumoe.locks import FolderLock
from mumoe.models.language import HubTokenizer, LanguageModel
from soak.mounts import read_only
from tiny_llama import sentences, tiny_tokenizer

ADDITIVE = [name for name, kind in KINDS.items() if kind.additive]
EXPERTS = [name for name in KINDS if name not in ("linear", "dense")]


@pytest.fixture
def make(model_folder, small, tmp_path):
    def made(kind: str = "cp-linear", **others):
        given = {**small, "out": tmp_path / f"out-{kind}", **others}
        if kind in ("cp", "tucker", "tr"):
            given = {**given, "width": 20, "experts": 8}
        return mumoe.decompose(model_folder, kind=kind, **given)

    return made


# Exact ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ADDITIVE)
def test_parts_and_error_add_up_to_the_original(make, kind):
    dec = make(kind)
    parts = dec.parts("the old cat sees")
    assert len(parts) == len("the old cat sees")
    for part in parts:
        assert 1 <= len(part.experts) <= 4
        whole = part.parts.sum(0) + part.rest + part.error
        torch.testing.assert_close(whole, part.original, rtol=0, atol=1e-5)
        assert part.parts.norm() > 0


@pytest.mark.parametrize("kind", EXPERTS)
def test_ablating_an_expert_is_a_coefficient_of_zero(make, kind):
    dec = make(kind)
    x = torch.randn(40, 16)
    with torch.no_grad():
        a = dec.replacement.coefficients(x)
        expert = int(a.to_dense().sum(0).argmax())
        scaled = dec.replacement.contract(x, a.scaled(torch.ones(a.shape[1]).index_fill(0, torch.tensor(expert), 0)))
        torch.testing.assert_close(scaled, dec.replacement.contract(x, a.without([expert])), rtol=0, atol=0)
        assert not torch.equal(scaled, dec.replacement(x))
        if isinstance(dec.replacement.mixture, Features):
            return
        with dec.replacement.mixture.ablate([expert]):
            torch.testing.assert_close(dec.replacement(x), scaled, rtol=1e-4, atol=1e-5)


def test_the_replacement_is_in_the_model_and_undone_to_the_bit(make, model_folder):
    dec = make()
    tokens = torch.tensor([[0, *dec.language.tokenizer.encode(["the red dog"])[0][0]]])
    language, module = dec.language, dec.mlp.module
    with torch.no_grad():
        before = language.model(tokens).logits
        replaced = dec.model(tokens).logits
        assert dec.model is language.model
        assert dec.language.model.get_submodule("model.layers.1.mlp") is not module
        assert not torch.equal(before, replaced)
        with dec.scaled(dict.fromkeys(range(dec.replacement.shape.experts), 0.0)):
            silent = language.model(tokens).logits
        assert not torch.equal(silent, replaced)
        assert torch.equal(language.model(tokens).logits, replaced)
        dec.undo()
        dec.undo()
        assert language.model.get_submodule("model.layers.1.mlp") is module
        assert torch.equal(language.model(tokens).logits, before)
    assert not language.model._forward_pre_hooks
    assert not language.model._forward_hooks


def test_special_tokens_keep_the_original(make):
    dec = make()
    tokens = torch.tensor([[0, 70, 71, 0, 72]])
    seen = []
    model = dec.model
    module = model.get_submodule("model.layers.1.mlp")
    with torch.no_grad():
        handle = module.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
        model(tokens)
        handle.remove()
        (x, y), original = seen[0], dec.mlp.module(seen[0][0])
        torch.testing.assert_close(y[0, [0, 3]], original[0, [0, 3]], rtol=0, atol=0)
        torch.testing.assert_close(y[0, [1, 2, 4]], dec.replacement(x)[0, [1, 2, 4]], rtol=1e-5, atol=1e-6)


def test_generation_is_the_same_with_a_cache_and_without(make):
    dec = make()
    busy = int(dec.replacement.mean_coefficients.argmax())
    for scale in ({}, {busy: 30.0}):
        texts = [dec.generate("the old", 12, scale=scale, use_cache=cache) for cache in (True, False)]
        assert texts[0] == texts[1]
        assert texts[0].startswith("the old")
    assert dec.generate("the old", 12, original=True) == dec.generate("the old", 12, original=True)


def test_a_second_capture_equals_the_first(language, documents, tmp_path, monkeypatch):
    contexts = cut(documents, language.tokenizer, 17, "made up")
    held = {"precision": "float32", "progress": False}
    whole = capture_rows(language, 1, contexts, "train", 40, cache_dir=tmp_path / "a", **held)
    again = capture_rows(language, 1, contexts, "train", 40, cache_dir=tmp_path / "b", **held)
    np.testing.assert_array_equal(whole.x, again.x)
    np.testing.assert_array_equal(whole.y, again.y)
    # One that grows, and one that is stopped, give the same rows.
    capture_rows(language, 1, contexts, "train", 3, cache_dir=tmp_path / "c", **held)
    real, calls = activations._batch, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(activations, "_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        capture_rows(language, 1, contexts, "train", 60, cache_dir=tmp_path / "c", **held)
    monkeypatch.setattr(activations, "_batch", real)
    grown = capture_rows(language, 1, contexts, "train", 40, cache_dir=tmp_path / "c", **held)
    np.testing.assert_array_equal(whole.x, grown.x)
    with torch.no_grad():
        y = language.mlp(1).module(torch.from_numpy(whole.x.astype(np.float32)))
    np.testing.assert_allclose(whole.y, y.numpy(), rtol=2e-3, atol=1e-6)


def test_captured_rows_are_what_the_mlp_reads(language, documents, tmp_path):
    contexts = cut(documents, language.tokenizer, 17, "made up")
    rows = capture_rows(language, 2, contexts, "val", 2, precision="float32", cache_dir=tmp_path, progress=False)
    assert len(rows) == 2 * 16
    seen = []
    handle = language.mlp(2).module.register_forward_hook(lambda _, args, output: seen.append(args[0]))
    with torch.no_grad():
        language.model(torch.from_numpy(contexts.tokens[rows.contexts]))
    handle.remove()
    np.testing.assert_allclose(rows.x, seen[0][:, 1:].flatten(0, 1).numpy(), rtol=2e-3, atol=1e-5)


def test_a_stopped_training_resumes_with_the_same_bits(make, monkeypatch, tmp_path):
    whole = make(out=tmp_path / "whole")
    real = fitting._Loop._step

    def step(loop):
        if loop.step == 11 and not (tmp_path / "stopped").exists():
            loop.save()
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        real(loop)

    monkeypatch.setattr(fitting._Loop, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        make(out=tmp_path / "part")
    assert not (tmp_path / "part" / ABOUT).exists()
    part = make(out=tmp_path / "part")
    first, second = (load_file(dec.path / "replacement.safetensors") for dec in (whole, part))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert not list((tmp_path / "part").rglob("step-*"))


def test_captured_rows_are_read_from_a_cache_that_cannot_be_written(make, small):
    dec = make()
    assert len(dec._train_rows())
    with read_only(small["cache_dir"]):
        assert len(dec._train_rows())
        with pytest.raises(JobError, match="^decompose: expected a folder that can be written, got .* Set MUMOE_CACHE"):
            make(out=small["cache_dir"].with_name("more"), tokens=3000)


def test_a_folder_in_which_only_a_killed_writer_was_is_taken(make, tmp_path):
    (tmp_path / "dec").mkdir()
    (tmp_path / "dec" / ".mumoe-part-000000-4194305-01234567-settings.json").touch()
    assert make(out=tmp_path / "dec").path == tmp_path / "dec"


def test_what_a_kill_left_of_the_checkpoints_goes_with_the_next_call(make, monkeypatch, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opened, "choose_rate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(out=tmp_path / "dec")
    (left,) = (tmp_path / "dec" / "rates").iterdir()
    (left / "checkpoints" / "step-00000007").mkdir(parents=True)
    make(out=tmp_path / "dec")
    assert sorted(path.name for path in left.iterdir()) == ["fit.json", "replacement.safetensors"]


def test_a_second_job_in_a_folder_is_refused(make, tmp_path):
    with (
        FolderLock(tmp_path / "dec", who="test"),
        pytest.raises(JobError, match="expected no other job in this folder"),
    ):
        make(out=tmp_path / "dec")


# Measured ---------------------------------------------------------------------------------------------------


def test_the_table_has_the_controls(make):
    dec = make("cp-linear")
    found = dec.evaluate(8)
    names = ["cp-linear", "constant gate", "shuffled coefficients", "zero ablation", "mean ablation"]
    assert [row["in place of the MLP"] for row in found.rows()] == names
    assert list(found.to_frame()["in place of the MLP"]) == names
    kept, constant, zero = (found.measure(name).increase for name in ("cp-linear", "constant gate", "zero ablation"))
    assert found.expert_share == pytest.approx((constant - kept) / (zero - kept))
    assert found.measures[0].interval[0] <= kept <= found.measures[0].interval[1]
    assert sum(found.measures[0].sums) / sum(found.document_tokens) == pytest.approx(kept)
    assert found.documents == 4
    assert -1 <= found.jacobian_cosine <= 1
    assert found.active == pytest.approx(4, abs=0.5)
    assert Evaluation.load(dec.path / "evaluation.json") == found


def test_the_increase_is_that_of_the_whole_model(make):
    """Against the model with the replacement placed in it, run from the tokens on."""
    dec = make("hadamard")
    bench, found = dec.bench(8), dec.evaluate(8, jacobians=0, twin=False)
    assert bench.tail.cut
    model = dec.model
    with torch.no_grad():
        logits = model(bench.tokens).logits
    losses = torch.nn.functional.cross_entropy(logits[:, 1:-1].transpose(1, 2), bench.tokens[:, 2:])
    assert float(losses) - found.base == pytest.approx(found.increase, abs=1e-5)


def test_the_copy_of_the_original_is_exact_and_its_gate_carries_nothing(language, make):
    """A dense copy of the MLP: error 0, increase 0, Jacobians equal."""
    dec = make("dense")
    mlp, copy = dec.mlp.module, dec.replacement
    with torch.no_grad():
        copy.hidden.first.weight.copy_(mlp.gate_proj.weight * copy.in_scale)
        copy.hidden.first.bias.zero_()
        copy.hidden.second.weight.copy_(mlp.up_proj.weight * copy.in_scale)
        copy.last.weight.copy_(mlp.down_proj.weight / copy.out_scale)
        copy.bias.zero_()
    found = dec.evaluate(8)
    assert found.increase == pytest.approx(0, abs=1e-5)
    assert found.measures[0].error == pytest.approx(0, abs=1e-8)
    assert found.twin_error == pytest.approx(0, abs=1e-8)
    assert found.jacobian_cosine == pytest.approx(1, abs=1e-5)
    assert found.expert_share is None


def test_a_gate_that_never_changes_has_an_expert_share_of_zero(make):
    dec = make("cp-linear")
    router = dec.replacement.gate.routers[0]
    with torch.no_grad():
        router.weight.zero_()
        router.bias.copy_(torch.arange(len(router.bias), 0, -1.0))
        dec.replacement.mean_coefficients.copy_(dec.replacement.coefficients(torch.zeros(1, 16)).to_dense()[0])
    found = dec.evaluate(8, jacobians=0, twin=False)
    assert found.expert_share == pytest.approx(0, abs=1e-4)
    assert "contribute little" in found.headline()
    assert "Collapse" in found.headline()


def test_estimates_agree_with_ablations(make):
    dec = make("hadamard", lr=(2e-3,))
    found = dec.analyze(8, least=2, ablations=6, ablated_contexts=8)
    assert found.ablation_correlation > 0.95
    measured = [one for one in found.found if one.loss is not None]
    assert len(measured) == 6
    best = found.expert(measured[0].expert)
    bench = dec.bench(8)
    before = bench.run(lambda x, _: dec.replacement(x))
    factors = torch.ones(dec.replacement.shape.experts)
    factors[best.expert] = 0
    after = bench.run(lambda x, _: dec.replacement.contract(x, dec.replacement.coefficients(x).scaled(factors)))
    assert best.loss == pytest.approx(1000 * float((after - before).mean()), abs=1e-2)


def test_an_expert_is_described_by_its_tokens(make):
    dec = make("transcoder")
    found = dec.analyze(8, least=2, ablations=0)
    one = max(found.found, key=lambda expert: expert.rate)
    bench = dec.bench(8)
    dense = dec.replacement.coefficients(bench.x).to_dense()[:, one.expert]
    assert one.rate == pytest.approx(float((dense > 0).float().mean()))
    assert one.top[0].coefficient == pytest.approx(float(dense.max()), abs=1e-4)
    place = int(dense.argmax())
    token = int(bench.tokens[:, 1:].reshape(-1)[place])
    assert one.top[0].token == dec.language.tokenizer.decode([token])
    assert 0 < one.tag_share <= 1
    assert one.tag_excess < one.tag_share
    assert len(one.raises) == 6
    assert found.tag_random is not None
    assert list(found.to_frame()["expert"]) == [expert.expert for expert in found.found]


# Files ------------------------------------------------------------------------------------------------------


def test_a_folder_is_opened_again(make, documents, model_folder):
    dec = make()
    opened = mumoe.load(dec.path, data=documents, device="cpu", progress=False)
    x = torch.randn(5, 16)
    with torch.no_grad():
        assert torch.equal(opened.replacement(x), dec.replacement(x))
    assert opened.settings == dec.settings
    assert opened.fitted[0].kind == "cp-linear"
    assert make(out=dec.path).fitted == dec.fitted  # nothing is trained twice


def test_coefficients_become_a_table(make, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    dec = make()
    count = dec.save_coefficients(tmp_path / "a.parquet", 8)
    table = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    assert count == len(table["expert"])
    bench = dec.bench(8)
    dense = dec.replacement.coefficients(bench.x).to_dense().reshape(8, 16, -1)
    order = dec.contexts.order("test")[:8].tolist()
    for row in (0, count // 2, count - 1):
        place = (order.index(table["context"][row]), table["position"][row] - 1, table["expert"][row])
        assert table["coefficient"][row] == pytest.approx(float(dense[place]))
        assert table["tag"][row] in {"", "at", "nn", "vb", "jj", "rb"}
    assert set(table["genre"]) <= {"odd", "even"}


@pytest.mark.parametrize("kind", ["transcoder", "skip-transcoder"])
def test_transcoders_are_written_for_other_programs(make, tmp_path, kind):
    dec = make(kind)
    held = load_file(dec.save_transcoder(tmp_path / "other"))
    x = torch.randn(30, 16)
    values, index = (x @ held["W_enc"].T + held["b_enc"]).topk(4)
    a = torch.zeros(30, len(held["b_enc"])).scatter(1, index, values.relu())
    y = a @ held["W_dec"] + held["b_dec"] + (x @ held["W_skip"].T if "W_skip" in held else 0)
    with torch.no_grad():
        torch.testing.assert_close(y, dec.replacement(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="cannot hold"):
        make("cp-linear").save_transcoder(tmp_path / "none")


# Sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXPERTS)
def test_sizes_meet_the_budget(kind):
    parts = mumoe.models.surgery.parts.read_parts(gated_mlp(64, 96))
    shape, budget = shape_for(kind, parts, width=24, k=8, experts=16 if kind in ("cp", "tucker", "tr") else 0)
    count = build(shape, torch.nn.SiLU()).parameters_count
    step = {"tucker": 0.1}.get(kind, 0.01)
    assert abs(count - budget) <= step * budget
    assert budget == 2 * 64 * 24 * 64 + 24 * 64 + 64


def test_experts_of_cp_linear_may_be_given():
    parts = mumoe.models.surgery.parts.read_parts(gated_mlp(64, 96))
    shape, budget = shape_for("cp-linear", parts, width=24, experts=400)
    assert shape.experts == 400
    assert abs(build(shape, torch.nn.SiLU()).parameters_count - budget) < 0.01 * budget


def gated_mlp(width: int, hidden: int) -> torch.nn.Module:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = pytest.importorskip("transformers").LlamaConfig(hidden_size=width, intermediate_size=hidden)
    return llama.LlamaMLP(config)


def test_the_rate_is_chosen_under_a_bound_on_dead_experts():
    def fitted(error, never):
        return fitting.Fitted("cp-linear", 1.0, 0, 1, 1, 10, error, 4.0, never, 0.5, error, 0.0)

    tried = {1e-3: fitted(0.3, 0.1), 2e-3: fitted(0.2, 0.3), 4e-3: fitted(0.1, 0.8)}
    assert choose_rate(tried, 0.4) == 2e-3
    assert choose_rate(tried, 1.0) == 4e-3
    assert choose_rate(tried, 0.05) == 1e-3


def test_expert_vectors_of_hadamard_keep_their_norm(make):
    norms = make("hadamard").replacement.mixture.factorization.expert_factor_0.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_paired_differences_are_of_the_same_documents():
    tokens = [10.0, 20.0, 10.0]
    one, other = (Measure("a", None, None, None, sums) for sums in ((1.0, 2.0, 3.0), (0.0, 2.0, 2.0)))
    value, (low, high) = paired(one, other, tokens)
    assert value == pytest.approx(2 / 40)
    assert low <= value <= high


# Text -------------------------------------------------------------------------------------------------------


def test_tagged_text_reads_as_in_print():
    text = "``/`` He/pps+bez is/bez (/( not/* )/) here/rb ''/'' ,/, said/vbd I/fw-ppss-tl ./."
    document = read_tagged("x", text, "news")
    assert document.text == '"He is (not) here", said I.'
    tags = {document.text[span.start : span.end]: span.tag for span in document.spans}
    assert tags["He"] == "pps"
    assert tags["not"] == "*"
    assert tags["I"] == "ppss"


def test_tokens_have_the_tag_of_their_word(language, documents):
    contexts = cut(documents, language.tokenizer, 17, "made up")
    row = int(contexts.order("test")[0])
    decode = language.tokenizer.decode
    document = documents[contexts.document[row]]
    first = next(n for n in np.flatnonzero(contexts.document == contexts.document[row]))
    begin = (row - first) * 16
    assert decode(contexts.tokens[row]) == document.text[begin : begin + 16]
    for span in document.spans:
        if begin <= span.start and span.end <= begin + 16:
            tags = {contexts.tags[tag] for tag in contexts.tag[row][1 + span.start - begin : 1 + span.end - begin]}
            assert tags == {span.tag}


def test_the_first_contexts_come_from_many_documents(language, documents):
    contexts = cut(documents, language.tokenizer, 17, "made up")
    order = contexts.order("train")
    count = len({d.name for d in documents if d.split == "train"})
    assert len(set(contexts.document[order[:count]].tolist())) == count
    assert sorted(order.tolist()) == np.flatnonzero(contexts.split == 0).tolist()


def test_tokens_of_mumoe_tokenize(model_folder, small, tmp_path, documents):
    files = tmp_path / "texts"
    files.mkdir()
    for document in documents:
        (files / f"{document.name}.txt").write_text(document.text * 3)
    tokenizer = str(Path(model_folder) / "tokenizer.json")
    from mumoe.data.tokenizing import tokenize

    tokenize([files], tmp_path / "tokens", tokenizer=tokenizer, val=0.2, test=0.2)
    given = {**small, "text": f"tokens:{tmp_path / 'tokens'}"}
    dec = mumoe.decompose(model_folder, out=tmp_path / "out", **given)
    assert dec.evaluate(4, jacobians=0, twin=False).documents >= 1
    by_folder = mumoe.decompose(model_folder, out=tmp_path / "out2", **{**small, "text": f"folder:{files}"})
    assert by_folder.contexts.documents[0] == "d0.txt"
    tokenize([files], tmp_path / "bytes", val=0.2, test=0.2)
    with pytest.raises(UserError, match="expected tokens of the tokenizer"):
        mumoe.decompose(model_folder, out=tmp_path / "out3", **{**small, "text": f"tokens:{tmp_path / 'bytes'}"})


# Wrong calls ------------------------------------------------------------------------------------------------


def test_a_layer_that_is_not_there(make):
    with pytest.raises(UserError, match=r"expected `layer` in 0\.\.2 of .*, got 7\. Use one of these\."):
        make(layer=7)


def test_a_model_whose_mlps_are_unknown():
    with pytest.raises(UserError, match="expected a causal model whose MLPs are known"):
        LanguageModel("odd", torch.nn.Sequential(torch.nn.Linear(2, 2)), None)


def test_too_little_disk_is_said_before_anything_is_computed(make, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(activations.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(activations, "_batch", lambda *_: pytest.fail("computed"))
    with pytest.raises(UserError, match="of free disk in .* for the activations, got 0.00 GB"):
        make()


def test_a_text_shorter_than_a_context(make):
    with pytest.raises(UserError, match="expected a document of at least 16 tokens for a context of 17, got at most 7"):
        make(text=[Document("a", "the cat")])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kind": "cp-liner"}, "Did you mean 'cp-linear'?"),
        ({"width": -1}, "expected `width` above 0"),
        ({"lr": (0.0,)}, "expected `lr` as numbers above 0"),
        ({"learning_rate": 1.0}, "expected a setting"),
        ({"text": "browm"}, "expected `text` out of brown"),
        ({"precision": "half"}, "expected `precision` out of"),
        ({"k": 500}, "Lower `k`"),
        ({"most_dead": 2}, "expected `most_dead` from 0 to 1"),
    ],
)
def test_wrong_settings(make, given, expected):
    with pytest.raises(UserError) as caught:
        make(**given)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_decomposition_is_not_overwritten(make, tmp_path):
    make(out=tmp_path / "one")
    with pytest.raises(UserError, match="expected `out` without another decomposition, got .* with layer=1"):
        make(out=tmp_path / "one", layer=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(UserError, match="expected `out` as a new or empty folder"):
        make(out=tmp_path / "full")


def test_an_expert_that_is_not_there(make):
    dec = make()
    with pytest.raises(UserError, match=r"expected an expert in 0\.\."), dec.scaled({9999: 0.0}):
        pass


def test_the_weights_of_another_model_are_refused(make, documents):
    dec = make()
    about = json.loads((dec.path / ABOUT).read_text())
    write_json(dec.path / ABOUT, {**about, "model_digest": "0" * 64})
    with pytest.raises(UserError, match="that were decomposed, got others"):
        mumoe.load(dec.path, data=documents, device="cpu").language  # noqa: B018


def test_damaged_weights_are_an_error_of_one_line(make, documents):
    dec = make()
    (dec.path / "replacement.safetensors").write_bytes(b"nothing")
    with pytest.raises(JobError, match="expected whole weights"):
        mumoe.load(dec.path, data=documents, device="cpu").replacement  # noqa: B018


def test_scaled_coefficients():
    sparse = SparseCoefficients(
        torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 1]), torch.tensor([0, 2, 3]), 3, torch.float32
    )
    factors = torch.tensor([2.0, 0.0, -1.0])
    torch.testing.assert_close(sparse.scaled(factors).to_dense(), sparse.to_dense() * factors)


# Other architectures ----------------------------------------------------------------------------------------


def test_gpt2_is_decomposed_too(small, documents, tmp_path):
    """Its MLP is not gated, and its positions are added after `inputs_embeds`, so that no layer can be left out."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=260, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=259
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_proj.weight.mul_(20)
    language = LanguageModel("tiny gpt2", model, HubTokenizer(tiny_tokenizer()))
    for kind in ("cp-linear", "hadamard", "dense"):
        dec = mumoe.decompose(language, kind=kind, out=tmp_path / kind, **{**small, "width": 8})
        assert not dec.replacement.shape.gated
        bench, found = dec.bench(6), dec.evaluate(6, jacobians=4)
        assert not bench.tail.cut
        with torch.no_grad():
            logits = dec.model(bench.tokens).logits
        dec.undo()
        losses = torch.nn.functional.cross_entropy(logits[:, 1:-1].transpose(1, 2), bench.tokens[:, 2:])
        assert float(losses) - found.base == pytest.approx(found.increase, abs=1e-5)
    reopened = mumoe.load(tmp_path / "hadamard", backbone=language, data=documents, device="cpu", progress=False)
    assert reopened.replacement.shape.kind == "hadamard"


# The demo ---------------------------------------------------------------------------------------------------


def test_the_text_demo_says_what_it_found(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    for seed in range(60):
        (tmp_path / "text" / f"{seed:02}.txt").write_text(sentences(seed, 40).text)
    others = {"k": 4, "width": 4, "context": 17, "batch_size": 64, "val_contexts": 4, "precision": "float32"}
    settings = TextDemo(
        model_folder, f"folder:{tmp_path / 'text'}", layer=1, tokens=600, contexts=8, shown=2, others=others
    )
    for _ in range(2):  # a second one replaces the first
        lines = list(run_text_demo(tmp_path / "demo", settings=settings, device="cpu", progress=False))
    text = "\n".join(lines)
    for expected in ("constant gate", "cp-linear minus transcoder", "are used by at least", "original:", "decomposed:"):
        assert expected in text
    assert mumoe.load(tmp_path / "demo" / "cp-linear", device="cpu", progress=False).settings.tokens == 600
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UserError, match="expected a new folder, or that of an earlier demo"):
        next(run_text_demo(tmp_path / "other", settings=settings, device="cpu", progress=False))


def test_labels_need_half_of_the_tokens():
    labels = Labels(np.array([0, 1, 1, -1, -1, -1]), ("a", "b"))
    assert labels.purest(np.array([0, 1, 2])) == ("b", pytest.approx(2 / 3), pytest.approx(0))
    assert labels.purest(np.array([1, 3])) == ("b", 1.0, pytest.approx(1 / 3))
    assert labels.purest(np.array([1, 3, 4])) == ("", None, None)
