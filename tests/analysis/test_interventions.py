"""The one-pass method against the plain one: the same counts for every class and expert, for every kind of layer."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from mumoe.analysis import final_layer
from mumoe.analysis.contributions import parts_of
from mumoe.analysis.interventions import intervene
from mumoe.analysis.outcomes import ROUNDING
from mumoe.analysis.settings import MODES
from mumoe.baselines import HighRankLinear, SparseMoE
from mumoe.errors import UserError
from mumoe.layers import MuMoE, MuMoEBlock

WIDTH, CLASSES = 12, 7
SHAPES = {
    "cp": {"rank": 6},
    "tucker": {"rank": {"out": 5, "in": 6, "experts": 3}},
    "tr": {"rank": 5},
    "tt": {"rank": 5},
    "dense": {},
}


def data(rows=180, classes=CLASSES, seed=0, multi_label=False):
    """Clustered inputs, so that experts and classes have something to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, WIDTH, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    x = centres[labels] + 2 * torch.randn(rows, WIDTH, generator=generator)
    if multi_label:
        return x, (x[:, :classes] > 0).long()
    return x, labels


def batches(x, labels, size=64):
    return list(zip(x.split(size), labels.split(size), strict=True))


def trained(module, x, labels, steps=30, rate=0.06):
    """A few steps of Adam, so that answers, margins and coefficients look like those of a trained run."""
    loss = nn.functional.cross_entropy if labels.ndim == 1 else nn.functional.binary_cross_entropy_with_logits
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in weights]
    for _ in range(steps):
        value = loss(module(x), labels if labels.ndim == 1 else labels.float())
        grads = torch.autograd.grad(value, weights, allow_unused=True)
        with torch.no_grad():
            for weight, grad, (first, second) in zip(weights, grads, moments, strict=True):
                if grad is not None:
                    first.mul_(0.9).add_(grad, alpha=0.1)
                    second.mul_(0.95).addcmul_(grad, grad, value=0.05)
                    weight.sub_(rate * first / (second.sqrt() + 1e-6))
    return module.eval()


def layer(factorization="cp", experts=(16,), seed=0, **options):
    torch.manual_seed(seed)
    shape = dict(SHAPES[factorization])
    if factorization == "tucker" and len(experts) > 1:
        shape = {"rank": {"out": 5, "in": 6, "experts": (3,) * len(experts)}}
    options = {"init": "paper", **options}  # experts that differ enough to change answers
    return MuMoE(WIDTH, CLASSES, experts, factorization, **shape, **options)


def same(found, expected):
    assert np.array_equal(found.answers.right, expected.answers.right)
    assert np.array_equal(found.counts(), expected.counts())
    assert np.array_equal(found.load, expected.load)
    assert np.array_equal(found.occurring, expected.occurring)
    assert found.silent == expected.silent
    order = [np.lexsort(np.stack([c.image, c.unit, c.label])) for c in (found.changes, expected.changes)]
    for name in ("image", "unit", "label", "sign"):
        ours, theirs = getattr(found.changes, name), getattr(expected.changes, name)
        assert np.array_equal(ours[order[0]], theirs[order[1]])


@pytest.mark.parametrize("factorization", SHAPES)
@pytest.mark.parametrize(("experts", "level"), [((16,), None), ((6, 3), 0), ((6, 3), None), ((3, 2, 2), 1)])
def test_one_pass_gives_the_counts_of_the_plain_method(factorization, experts, level):
    x, labels = data()
    trained_layer = trained(layer(factorization, experts), x, labels)
    found = intervene(trained_layer, batches(x, labels), level=level)
    same(found, intervene(trained_layer, batches(x, labels), level=level, plainly=True))
    assert len(found.changes.image) >= 8


@pytest.mark.parametrize("factorization", ["cp", "tucker", "tr"])
@pytest.mark.parametrize("gate", ["entmax15", "softmax"])
def test_rivals_first_gives_the_same_counts(monkeypatch, factorization, gate):
    """The shortcut for many classes, on few: with two rivals of seven classes it settles most pairs."""
    x, labels = data()
    module = trained(layer(factorization, gate=gate), x, labels)
    expected = intervene(module, batches(x, labels))
    monkeypatch.setattr(final_layer, "MANY_CLASSES", 2)
    monkeypatch.setattr(final_layer, "RIVALS", 2)
    settled = []
    left = final_layer._Step._try_rivals

    def counted(step, pairs, reach):
        after = left(step, pairs, reach)
        settled.append((len(pairs), len(after)))
        return after

    monkeypatch.setattr(final_layer._Step, "_try_rivals", counted)
    same(intervene(module, batches(x, labels)), expected)
    tried, remaining = np.sum(settled, axis=0)
    assert remaining < 0.7 * tried


def plain_loop(module, x, labels, level):
    """The method in the user's own words: ablate, evaluate, count."""
    counts = []
    sizes = module.num_experts if level is None else (module.num_experts[level],)
    for index in itertools.product(*map(range, sizes)):
        chosen = index if level is None and len(sizes) > 1 else index[0]
        with torch.no_grad(), module.ablate([chosen], level=level):
            answers = torch.cat([module(part).argmax(1) for part in x.split(64)])
        counts.append(torch.bincount(labels[answers == labels], minlength=CLASSES))
    return torch.stack(counts).numpy()


@pytest.mark.parametrize(("experts", "level"), [((16,), None), ((6, 3), 0), ((6, 3), None)])
def test_counts_are_those_of_ablate_and_evaluate(experts, level):
    x, labels = data()
    module = trained(layer("cp", experts), x, labels)
    assert np.array_equal(
        intervene(module, batches(x, labels), level=level).counts(), plain_loop(module, x, labels, level)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("factorization", "experts", "level"),
    [(name, (16,), None) for name in SHAPES]
    + [(name, (6, 3), level) for name in ("tucker", "dense") for level in (1, None)],
)
def test_every_ablation_mode_equals_its_plain_form(mode, factorization, experts, level):
    x, labels = data(120)
    module = trained(layer(factorization, experts), x, labels)
    found = intervene(module, batches(x, labels), level=level, mode=mode)
    same(found, intervene(module, batches(x, labels), level=level, mode=mode, plainly=True))


@pytest.mark.parametrize("gate", ["softmax", "sparsemax", "topk"])
def test_other_gates(gate):
    x, labels = data()
    module = trained(layer(gate=gate), x, labels)
    same(intervene(module, batches(x, labels)), intervene(module, batches(x, labels), plainly=True))


@pytest.mark.parametrize("factorization", ["cp", "tr", "dense"])
def test_multi_label(factorization):
    x, labels = data(multi_label=True)
    module = trained(layer(factorization), x, labels)
    found = intervene(module, batches(x, labels))
    same(found, intervene(module, batches(x, labels), plainly=True))
    assert found.answers.right.shape == (180, CLASSES)
    assert len(found.changes.image) >= 8


@pytest.mark.parametrize("classes", ["labels", "targets"])
@pytest.mark.parametrize(
    "make", [lambda: SparseMoE(WIDTH, CLASSES, 8, k=2), lambda: HighRankLinear(WIDTH, CLASSES, 10)]
)
def test_baselines(make, classes):
    x, labels = data(multi_label=classes == "targets")
    torch.manual_seed(0)
    module = trained(make(), x, labels)
    found = intervene(module, batches(x, labels))
    same(found, intervene(module, batches(x, labels), plainly=True))
    assert len(found.changes.image) >= 8


def test_penultimate_layer():
    x, labels = data()
    torch.manual_seed(0)
    model = trained(nn.Sequential(MuMoE(WIDTH, 9, 16, "cp", rank=6), nn.GELU(), nn.Linear(9, CLASSES)), x, labels)
    found = intervene(model[0], batches(x, labels), rest=model[1:])
    same(found, intervene(model[0], batches(x, labels), rest=model[1:], plainly=True))
    inside = intervene(model, batches(x, labels))
    assert np.array_equal(inside.counts(), found.counts())
    same(intervene(model, batches(x, labels), rest=model[1:]), found)
    assert np.array_equal(inside.counts(), intervene(model, batches(x, labels), plainly=True).counts())


class Tiny(nn.Module):
    """Tokens, a block with experts between residuals, pooling, a linear head."""

    def __init__(self, experts):
        super().__init__()
        self.block = MuMoEBlock(WIDTH, 10, WIDTH, num_experts=experts, rank=6)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        tokens = torch.stack([x, x.roll(1, dims=-1), -x], dim=1)
        return self.rest(self.block(tokens), tokens)

    def rest(self, y, tokens):
        return self.head((tokens + y).mean(1))


@pytest.mark.parametrize(("experts", "level"), [(8, None), ((6, 3), 0), ((6, 3), 1)])
@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_inside_a_block_over_tokens(experts, level, mode):
    x, labels = data(150)
    torch.manual_seed(0)
    model = trained(Tiny(experts), x, labels)
    found = intervene(model, batches(x, labels), level=level, mode=mode, block=50)
    same(found, intervene(model, batches(x, labels), level=level, mode=mode, plainly=True))
    assert len(found.changes.image) > 10


def test_final_layer_inside_a_model():
    x, labels = data()
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), layer("tr")), x, labels)
    found = intervene(model, batches(x, labels))
    features = [(model[:2](part).detach(), labels) for part, labels in batches(x, labels)]
    same(found, intervene(model[2], features, plainly=True))
    same(found, intervene(model, batches(x, labels), plainly=True))


def by_hand():
    """Two inputs, three classes, three experts; expert n says class n for the input that it gets."""
    module = MuMoE(2, 3, 3, "dense", bias=False, norm="none", gate="sparsemax").eval()
    with torch.no_grad():
        module.factorization.weight.zero_()
        module.factorization.weight[0, 0] = torch.tensor([1.0, 1.0])  # expert 0: class 0
        module.factorization.weight[1, 1] = torch.tensor([1.0, 1.0])  # expert 1: class 1
        module.factorization.weight[2, 1] = torch.tensor([2.0, 2.0])  # expert 2: class 1, and class 2 a little
        module.factorization.weight[2, 2] = torch.tensor([1.5, 1.5])
        module.gate.weights[0].copy_(torch.tensor([[1.0, 0.0], [0.9, 0.5], [0.0, 1.0]]))
    return module


def test_by_hand():
    """Sparsemax of [1, .9, 0] is [.55, .45, 0]; of [0, .5, 1] it is [0, .25, .75].

    Image A = (1, 0): logits .55, .45, 0: class 0. Without expert 0: class 1; without 1: class 0.
    Image B = (0, 1): logits 0, .25 + 1.5, 1.125: class 1. Without 1: 1.5 > 1.125, class 1; without 2: class 1.
    Image C = (0, 2): sparsemax of [0, 1, 2] is [0, 0, 1]: logits 0, 4, 3: class 1. Without 2: all zero.
    """
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 1])  # the second A is labelled 1: wrong before, right without expert 0
    found = intervene(by_hand(), [(x, labels)])
    assert found.answers.right.tolist() == [True, True, True, False]
    assert found.answers.before.tolist() == [1, 2, 0]
    assert found.counts().tolist() == [[0, 3, 0], [1, 2, 0], [1, 1, 0]]
    assert found.load.tolist() == [2, 3, 2]
    assert found.silent == 1
    measured = found.specialization()
    assert measured.with_effect == 2
    assert measured.effects[0].losses == ((0, 1.0), (1, -0.5))
    assert measured.effects[0].polysemanticity == pytest.approx(0.5)  # loses class 0, gains half of class 1
    assert measured.effects[1].losses == ((1, 0.5),)


def test_a_silent_row_answers_with_the_first_class_as_argmax_does():
    module = by_hand()
    x = torch.tensor([[0.0, 2.0]])
    for label, after in ((0, 1), (1, 0)):
        found = intervene(module, [(x, torch.tensor([label]))])
        assert found.silent == 1
        assert found.counts()[2, label] == after
        assert np.array_equal(found.counts(), intervene(module, [(x, torch.tensor([label]))], plainly=True).counts())


def test_exact_ties_fall_as_in_the_plain_method():
    """Classes 2 and 5 have the same weights, so rounding alone would decide between them."""
    x, labels = data(300, seed=3)
    module = trained(layer(seed=3), x, labels)
    with torch.no_grad():
        module.factorization.out_factor[5] = module.factorization.out_factor[2]
    found = intervene(module, batches(x, labels))
    same(found, intervene(module, batches(x, labels), plainly=True))
    assert found.rechecked > 0


def test_rounding_stays_below_the_tolerance():
    """What the fast and the plain method disagree by is at most a quarter of what is allowed for."""
    x, labels = data(300)
    for factorization in SHAPES:
        module = trained(layer(factorization), x, labels)
        with torch.no_grad():
            parts = parts_of(module)
            opened = parts.open(x, 0)
            pairs = torch.arange(len(opened.row))
            fast = opened.logits[opened.row] - parts.project(opened.vectors(pairs))
            plain = torch.stack([parts.plain(x, n, 0) for n in range(16)])[opened.unit, opened.row]
        error = (fast - plain).abs().amax(1) / opened.scale[opened.row]
        assert error.max() < ROUNDING * torch.finfo(torch.float32).eps / 4


def test_pruning_is_what_saves_the_work(monkeypatch):
    x, labels = data(600)
    module = trained(layer(experts=(64,)), x, labels, steps=120)
    computed = []
    parts = type(parts_of(module))
    project = parts.project
    monkeypatch.setattr(parts, "project", lambda self, v: computed.append(len(v)) or project(self, v))
    found = intervene(module, batches(x, labels))
    assert sum(computed) < 0.6 * found.load.sum()


def test_batches_may_have_any_size():
    x, labels = data(97)
    module = trained(layer(), x, labels)
    counts = [intervene(module, batches(x, labels, size)).counts() for size in (1, 10, 97)]
    assert np.array_equal(counts[0], counts[1])
    assert np.array_equal(counts[0], counts[2])


def test_the_model_is_left_as_it_was():
    x, labels = data(50)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(), layer(), nn.Linear(CLASSES, CLASSES))
    model.train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    intervene(model, batches(x, labels))
    assert [module.training for module in model] == [True, False, True, True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not any(isinstance(value, torch.Tensor) for value in vars(module).values())


def test_changes_are_kept_not_logits():
    x, labels = data(64)
    module = trained(layer(), x, labels)
    once = intervene(module, batches(x, labels))
    many = intervene(module, batches(x, labels) * 5)
    assert len(many.changes.image) == 5 * len(once.changes.image)
    assert np.array_equal(many.counts(), 5 * once.counts())


def test_load_control_is_less_specialized():
    x, labels = data(600)
    module = trained(layer(), x, labels, steps=120)
    found = intervene(module, batches(x, labels))
    control = found.load_control()
    assert control.units == 16
    strongest = max(effect.top_loss for effect in found.specialization().effects)
    assert max(effect.top_loss for effect in control.effects) < strongest


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m, b: intervene(m, []), r"intervene: expected at least one image, got none\."),
        (lambda m, b: intervene(m, b, level=1), r"parts_of: expected a level in 0\.\.0, got 1\."),
        (lambda m, b: intervene(m, b, mode="men"), r"got 'men'\. Did you mean 'mean'\?"),
        (
            lambda m, b: intervene(nn.Linear(2, 2), b),
            r"expected a model with a MuMoE layer, got Linear without",
        ),
        (
            lambda m, b: intervene(nn.ModuleDict({"head": m}), b, layer="haed"),
            r"Did you mean 'head'\?",
        ),
        (
            lambda m, b: intervene(nn.Sequential(m, copy.deepcopy(m)), b),
            r"the name of one layer out of 0, 1, got",
        ),
        (lambda m, b: intervene(nn.Sequential(m), []), r"intervene: expected at least one image, got none\."),
        (lambda m, b: intervene(m, [(b[0][0], b[0][1] + 7)]), r"expected labels in 0\.\.6, got 7\.\.13\."),
        (
            lambda m, b: intervene(m, [(b[0][0], torch.zeros(64, 3))]),
            r"expected labels of 7 targets, got 3\.",
        ),
    ],
)
def test_mistakes_are_one_clear_error(call, text):
    with pytest.raises(UserError, match=text):
        call(layer().eval(), batches(*data(64)))
