"""Analysis of each expert of a decomposition: the tokens that use it, their tags and genres, and the loss without it.

Lost. To ablate an expert is to set its coefficient to 0 at every token. That costs a run of the later layers for
each expert, so it is measured for a few and estimated for all. With p_t the expert's part of the MLP's output at token
t and g_t the gradient of the loss by that output, the change of the loss is to first order minus the sum of g_t . p_t.
In a trained replacement that is small, since the fit leaves little slope along its own experts; the curvature decides.
So the estimate adds half the sum of p_t' F_t p_t, where F_t is the Fisher information: the mean of g g' over targets
that are drawn from the model's own predictions. The result reports how well estimates agree with measurements. Both
are computed in float32.

Of experts on several levels, an expert's part is that of all its combinations: what the output loses with the expert.
So each level's parts add up to the whole mixture. Combinations are described by `combining`.

Purity. Of an expert's top tokens, the share with the most frequent tag (or genre), beside its base rate and beside the
same number of random tokens, which have a most frequent tag, too.

Logits. The mean of an expert's part of the output over its top tokens, through the last norm's scale and the output
embedding: its direct effect, without the effect through later layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe.calling import check_argument
from mumoe.coefficients import Coefficients, DenseCoefficients, SparseCoefficients, segment_rows
from mumoe.data.documents import Contexts
from mumoe.decomposition.bench import Bench, Change, swapped
from mumoe.decomposition.combining import CombinationSource, combination_findings
from mumoe.decomposition.findings import Analysis, Combinations, ExpertFinding, TokenInContext
from mumoe.decomposition.levels import occurring, one_hot, split
from mumoe.decomposition.replacements import Replacement
from mumoe.errors import UserError
from mumoe.models.language import cross_entropies
from mumoe.modes import evaluating
from mumoe.progress import Progress

__all__ = [
    "Expert",
    "LookSettings",
    "analyze_replacement",
    "changed",
    "check_combination",
    "coefficient_entries",
    "combination_parts",
    "expert_parts",
    "scaled_by",
]

WHO = "Decomposition.analyze"
ROWS = 2048
BATCH = 8
"""Contexts of a backward pass."""
PER_MILLE = 1000.0
DRAWS = 2
"""Targets drawn for each token, of which each costs a backward pass."""

Ints = npt.NDArray[np.int64]
Expert = int | tuple[int, int]
"""An expert by its number, or by level and number."""


@dataclass(frozen=True)
class LookSettings:
    """What is looked at.

    Attributes:
        top: Tokens shown for each expert.
        pure: Top tokens over which purity and the mean part are taken.
        least: Tokens that an expert needs to count as live.
        ablations: Experts that are ablated one by one: half of them those with the largest estimates, half at random.
        ablated_contexts: Contexts on which they are.
        before, after: Tokens quoted on either side.
        seed: Of the random choice.
    """

    top: int = 8
    pure: int = 50
    least: int = 20
    ablations: int = 16
    ablated_contexts: int = 32
    before: int = 10
    after: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), int(field.name in ("pure", "least", "ablated_contexts"))
            check_argument("Decomposition.analyze", field.name, value, int)
            if value < least:
                raise UserError(f"Decomposition.analyze: expected `{field.name}` >= {least}, got {value}.")


@dataclass(frozen=True)
class Entries:
    """All coefficients above 0 of some rows.

    Attributes:
        row, expert: (entries,) int64, ascending by row and expert; the number of an expert is its column, see `Shape`.
        value: (entries,) float32.
    """

    row: Tensor
    expert: Tensor
    value: Tensor

    def arrays(self) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
        """The same on the CPU, for numpy."""
        return self.row.cpu().numpy(), self.expert.cpu().numpy(), self.value.cpu().double().numpy()


def analyze_replacement(
    replacement: Replacement, bench: Bench, contexts: Contexts, settings: LookSettings, *, progress: bool = True
) -> Analysis:
    """Analyze the experts of a replacement.

    Args:
        replacement: With experts.
        bench: Held-out contexts.
        contexts: The text that the bench is from, with labels.
        settings: What to look at.
        progress: Whether to show progress.

    Raises:
        UserError: If the replacement has no experts.
    """
    if replacement.mixture is None:
        raise UserError(f"{WHO}: expected a kind with experts, got {replacement.shape.kind!r}. Choose another kind.")
    bench = dataclasses.replace(bench, precision="float32")  # rounding in bfloat16 is as large as one ablation
    batches = -(-len(bench.tokens) // BATCH)
    with evaluating(replacement), Progress("Looking at experts", batches + settings.ablations, enabled=progress) as bar:
        entries = coefficient_entries(replacement, bench.x)
        estimates, partial = _estimates(replacement, bench, settings, bar)
        look = _Look(replacement, bench, contexts, settings, entries, estimates)
        losses = look.ablate(partial, bar)
        found, purity = look.experts(losses)
        combinations = look.combinations()
    order = sorted(found, key=lambda one: (-(one.estimate or 0.0), one.expert))
    return Analysis(
        kind=replacement.shape.kind,
        model=bench.language.name,
        layer=bench.mlp.layer,
        tokens=len(bench.x),
        split="test",
        experts=replacement.shape.total,
        live=len(found),
        least=settings.least,
        **purity,
        ablation_correlation=_correlation(losses, partial),
        found=tuple(order),
        credits=(*bench.language.credits, *contexts.credits),
        levels=replacement.shape.levels if combinations else (),
        combinations=combinations,
    )


def _correlation(losses: dict[int, float], partial: Tensor) -> float | None:
    if len(losses) < 3:
        return None
    measured = np.array(list(losses.values()))
    estimated = partial[list(losses)].numpy()
    found = float(np.corrcoef(measured, estimated)[0, 1])
    return found if np.isfinite(found) else None


def as_entries(a: Coefficients) -> Entries:
    """The coefficients above 0 of a matrix."""
    if isinstance(a, SparseCoefficients):
        inside = a.values > 0
        return Entries(segment_rows(a.offsets)[inside], a.indices[inside], a.values[inside])
    dense = a.to_dense()
    row, expert = (dense > 0).nonzero(as_tuple=True)
    return Entries(row, expert, dense[row, expert])


def coefficient_entries(replacement: Replacement, x: Tensor) -> Entries:
    """All coefficients above 0 of the rows x (rows, in), on the CPU."""
    parts = []
    for start in range(0, len(x), ROWS):
        found = as_entries(_gate(replacement, x[start : start + ROWS].to(replacement.bias.device)))
        parts.append((found.row.cpu() + start, found.expert.cpu(), found.value.float().cpu()))
    row, expert, value = (torch.cat(column) for column in zip(*parts, strict=True))
    return Entries(row, expert, value)


def _gate(replacement: Replacement, x: Tensor) -> Coefficients:
    a = replacement.coefficients(x)
    assert a is not None
    return a


def scaled_by(replacement: Replacement, experts: Mapping[Expert, float]) -> Tensor:
    """(experts,) factor of each expert's coefficient: 1 but for those named, by number or (level, number).

    Raises:
        UserError: If there is no such expert.
    """
    check_argument("Decomposition", "experts", experts, Mapping[Any, float])
    factors = torch.ones(replacement.shape.total, device=replacement.bias.device)
    for expert, factor in experts.items():
        factors[replacement.shape.column(expert)] = factor
    return factors


# Estimates --------------------------------------------------------------------------------------------------


def _estimates(replacement: Replacement, bench: Bench, settings: LookSettings, bar: Progress) -> tuple[Tensor, Tensor]:
    """(experts,) estimated change of the loss for each ablation, nats a thousand tokens: on all contexts, and on those
    that ablations are measured on."""
    whole = torch.zeros(replacement.shape.total, dtype=torch.float64)
    partial = whole.clone()
    counted, draw = bench.losses["base"].shape[1], torch.Generator().manual_seed(settings.seed)
    for part in torch.arange(len(bench.tokens)).split(BATCH):
        found = _estimate(replacement, *_gradients(replacement, bench, part, draw))
        whole += found
        if int(part[-1]) < settings.ablated_contexts:
            partial += found
        bar.advance(note="estimates")
    few = min(settings.ablated_contexts, len(bench.tokens)) * counted
    return whole / (len(bench.tokens) * counted) * PER_MILLE, partial / few * PER_MILLE


def _gradients(
    replacement: Replacement, bench: Bench, part: Tensor, draw: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """What the MLP reads, and gradients by its output with the replacement in place: of the summed loss, and of the
    same for targets drawn from the predictions."""
    seen: list[Tensor] = []

    def change(x: Tensor, y: Tensor) -> Tensor:
        leaf = replacement(x).detach().requires_grad_()
        seen.extend((x.detach(), leaf))
        return leaf

    gradients: list[Tensor] = []
    with torch.enable_grad(), swapped(bench.mlp.module, change):
        logits, targets = bench.predictions(part)
        for number in range(1 + DRAWS):
            chosen = _drawn(logits.detach(), draw) if number else targets
            loss = cross_entropies(logits, chosen).sum()
            gradients += torch.autograd.grad(loss, seen[1], retain_graph=number < DRAWS)
    return seen[0], gradients


def _drawn(logits: Tensor, draw: torch.Generator) -> Tensor:
    """(B, T) a token for each row of logits, drawn from their softmax."""
    rows = [torch.multinomial(one.float().softmax(-1).cpu(), 1, generator=draw)[:, 0] for one in logits]
    return torch.stack(rows).to(logits.device)


def _estimate(replacement: Replacement, x: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """(experts,) estimated change of the summed loss if each is ablated."""
    a = _gate(replacement, x)
    with torch.enable_grad():
        if isinstance(a, SparseCoefficients):
            values = a.values.detach().requires_grad_()
            held: Coefficients = SparseCoefficients(values, a.indices, a.offsets, a.num_experts, a.dtype)
            index = a.indices
        else:
            values = a.to_dense().detach().requires_grad_()
            held = DenseCoefficients(values)
            index = torch.arange(values.shape[1], device=values.device).expand_as(values).reshape(-1)
        y = replacement.contract(x, held)
        slopes = [torch.autograd.grad((y * one).sum(), values, retain_graph=True)[0] for one in gradients]
    first, *others = [(slope * values.detach()).double().reshape(-1).cpu() for slope in slopes]
    change = torch.stack([one.square() for one in others]).mean(0) / 2 - first
    return torch.zeros(replacement.shape.total, dtype=torch.float64).index_add_(0, index.cpu(), change)


# Experts ----------------------------------------------------------------------------------------------------


@dataclass
class _Look:
    """Everything gathered for the descriptions of experts."""

    replacement: Replacement
    bench: Bench
    contexts: Contexts
    settings: LookSettings
    entries: Entries
    estimates: Tensor

    def __post_init__(self) -> None:
        # Entries by expert, the largest coefficients first.
        key = np.lexsort((-self.entries.value.numpy(), self.entries.expert.numpy()))
        self.row = self.entries.row.numpy()[key]
        self.value = self.entries.value.numpy()[key]
        self.counts = np.bincount(self.entries.expert.numpy(), minlength=self.replacement.shape.total)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.live = np.flatnonzero(self.counts >= self.settings.least)
        order = self.contexts.order("test")[: len(self.bench.tokens)]
        per = self.contexts.length - 1
        self.tag = self.contexts.tag[order][:, 1:].reshape(-1)
        self.genre = np.repeat(self.contexts.genre[order], per)
        self.document = np.repeat(self.contexts.document[order], per)
        self.token = self.bench.tokens[:, 1:].reshape(-1).numpy()

    def rows_of(self, expert: int, count: int) -> Ints:
        """Rows with the expert's largest coefficients."""
        start = self.starts[expert]
        return self.row[start : start + min(count, self.counts[expert])]

    def ablate(self, partial: Tensor, bar: Progress) -> dict[int, float]:
        """Expert -> measured change of the loss, nats a thousand tokens."""
        settings = self.settings
        if not settings.ablations or not len(self.live):
            return {}
        largest = self.live[np.argsort(-partial[self.live].numpy(), kind="stable")][: (settings.ablations + 1) // 2]
        others = np.setdiff1d(self.live, largest)
        drawn = np.random.default_rng(settings.seed).permutation(others)[: settings.ablations - len(largest)]
        where = torch.arange(min(settings.ablated_contexts, len(self.bench.tokens)))
        before = self.bench.run(lambda x, _: self.replacement(x), contexts=where)
        found = {}
        for expert in (*largest.tolist(), *drawn.tolist()):
            factors = torch.ones(self.replacement.shape.total, device=self.replacement.bias.device)
            factors[expert] = 0.0
            after = self.bench.run(self._without(factors), contexts=where)
            found[expert] = float((after - before).double().mean()) * PER_MILLE
            bar.advance(note="ablations")
        return found

    def _without(self, factors: Tensor) -> Change:
        """The replacement with its coefficients multiplied by factors (experts,)."""
        return lambda x, _: self.replacement.contract(x, _gate(self.replacement, x).scaled(factors))

    def experts(self, losses: dict[int, float]) -> tuple[list[ExpertFinding], dict[str, float | None]]:
        """One record for each live expert, and the mean purities."""
        random = np.random.default_rng(self.settings.seed).permutation(len(self.token))
        tags = Labels(self.tag, self.contexts.tags)
        genres = Labels(self.genre, self.contexts.genres)
        shares: dict[str, list[float]] = {name: [] for name in PURITIES}
        effects = self._effects()
        found = []
        for expert in self.live.tolist():
            rows = self.rows_of(expert, self.settings.pure)
            tag, genre = tags.purest(rows), genres.purest(rows)
            values = (tag[1], genre[1], tags.purest(random[rows])[1], genres.purest(random[rows])[1])
            for name, value in zip(PURITIES, values, strict=True):
                if value is not None:
                    shares[name].append(value)
            same = np.unique(self.token[rows], return_counts=True)[1].max() / len(rows)
            start, count = self.starts[expert], int(self.counts[expert])
            raises, lowers = effects.get(expert, ((), ()))
            level, number = self.replacement.shape.place(expert)
            found.append(
                ExpertFinding(
                    expert=number,
                    level=level,
                    rate=count / len(self.token),
                    mean=float(self.value[start : start + count].mean()),
                    estimate=float(self.estimates[expert]),
                    loss=losses.get(expert),
                    tag=tag[0],
                    tag_share=tag[1],
                    tag_excess=tag[2],
                    genre=genre[0],
                    genre_share=genre[1],
                    genre_excess=genre[2],
                    token_share=float(same),
                    raises=raises,
                    lowers=lowers,
                    top=self._quotes(expert),
                )
            )
        return found, {name: float(np.mean(values)) if values else None for name, values in shares.items()}

    def combinations(self) -> Combinations | None:
        """Combinations of the experts of several levels; None for one level."""
        shape, settings = self.replacement.shape, self.settings
        if len(shape.levels) < 2:
            return None
        source = CombinationSource(
            occurring=occurring(*self.entries.arrays(), len(self.token), shape.levels),
            of_expert=lambda place: self.rows_of(shape.column(place), len(self.token)),
            purest=Labels(self.tag, self.contexts.tags).purest,
            quotes=self._quoted,
            pure=settings.pure,
            least=settings.least,
            seed=settings.seed,
        )
        return combination_findings(source, self._combination_loss())

    def _combination_loss(self) -> Callable[[tuple[int, ...]], float | None]:
        """What measures the change of the loss, nats a thousand tokens, without a combination: the first ones asked
        for, as many as experts are ablated."""
        where = torch.arange(min(self.settings.ablated_contexts, len(self.bench.tokens)))
        left = [self.settings.ablations]
        held: list[Tensor] = []

        def measured(experts: tuple[int, ...]) -> float | None:
            if not left[0]:
                return None
            left[0] -= 1
            if not held:
                held.append(self.bench.run(lambda x, _: self.replacement(x), contexts=where))
            after = self.bench.run(self._removed(experts), contexts=where)
            return float((after - held[0]).double().mean()) * PER_MILLE

        return measured

    def _removed(self, experts: tuple[int, ...]) -> Change:
        """The replacement with the weight of one combination at 0."""
        return lambda x, _: changed(self.replacement, x, _gate(self.replacement, x), None, [experts])

    def _quotes(self, expert: int) -> tuple[TokenInContext, ...]:
        start = self.starts[expert]
        rows = self.rows_of(expert, self.settings.top)
        return self._quoted(rows, self.value[start : start + len(rows)])

    def _quoted(self, rows: Ints, values: npt.NDArray[Any]) -> tuple[TokenInContext, ...]:
        """The first of some rows in context, each with its value."""
        per = self.contexts.length - 1
        quotes = []
        for value, row in zip(values.tolist(), rows[: self.settings.top].tolist(), strict=False):
            tokens = self.bench.tokens[row // per].tolist()
            at = row % per + 1
            decode = self.bench.language.tokenizer.decode
            first = max(1, at - self.settings.before)
            tag = self.contexts.tags[self.tag[row]] if self.tag[row] >= 0 else ""
            quotes.append(
                TokenInContext(
                    before=decode(tokens[first:at]),
                    token=decode(tokens[at : at + 1]),
                    after=decode(tokens[at + 1 : at + 1 + self.settings.after]),
                    coefficient=round(float(value), 5),
                    document=self.contexts.documents[self.document[row]],
                    tag=tag,
                )
            )
        return tuple(quotes)

    # Logits -----------------------------------------------------------------------------------------------------

    def _effects(self, shown: int = 6) -> dict[int, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Expert -> tokens that its mean part raises and lowers most."""
        model: Any = self.bench.language.model
        embedding = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if not self.replacement.kind.additive or embedding is None or not len(self.live):
            return {}
        weight = embedding.weight.detach().float().cpu()
        scale = self.bench.language.last_scale()
        found = {}
        for part in np.array_split(self.live, max(len(self.live) // 128, 1)):
            vectors = self._mean_parts(part)
            logits = (vectors if scale is None else vectors * scale) @ weight.mT
            raised, lowered = logits.topk(shown).indices.tolist(), (-logits).topk(shown).indices.tolist()
            for expert, up, down in zip(part.tolist(), raised, lowered, strict=True):
                found[expert] = (self._names(up), self._names(down))
        return found

    def _names(self, tokens: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.bench.language.tokenizer.pieces(tokens))

    def _mean_parts(self, experts: Ints) -> Tensor:
        """(experts, out) mean of each expert's part of the output over its top tokens."""
        rows = [self.rows_of(int(expert), self.settings.pure) for expert in experts]
        sizes = torch.tensor([len(one) for one in rows])
        index = torch.from_numpy(np.concatenate(rows))
        owner = torch.repeat_interleave(torch.from_numpy(experts), sizes)
        values = np.concatenate(
            [self.value[self.starts[e] : self.starts[e] + len(r)] for e, r in zip(experts, rows, strict=True)]
        )
        parts = expert_parts(self.replacement, self.bench.x[index], owner, torch.from_numpy(values))
        place = torch.repeat_interleave(torch.arange(len(experts)), sizes)
        sums = torch.zeros(len(experts), parts.shape[1]).index_add_(0, place, parts)
        return sums / sizes[:, None]


@torch.no_grad()
def expert_parts(replacement: Replacement, x: Tensor, expert: Tensor, value: Tensor) -> Tensor:
    """(rows, out) the part of the output that one expert has in each row, of an additive kind.

    Args:
        replacement: Of an additive kind.
        x: (rows, in).
        expert: (rows,) which, by its column.
        value: (rows,) its coefficient; on several levels those of the others are the gates'.
    """
    device, shape = replacement.bias.device, replacement.shape
    x, expert, value = x.to(device), expert.to(device), value.float().to(device)
    if len(shape.levels) == 1:
        return (replacement.contract(x, one_hot(expert, value, shape.total)) - replacement.rest(x)).cpu()
    parts = x.new_zeros(len(x), shape.out_features)
    start = 0
    for level, size in enumerate(shape.levels):
        mine = ((expert >= start) & (expert < start + size)).nonzero()[:, 0]
        for rows in mine.split(ROWS):
            levels = split(_gate(replacement, x[rows]), shape.levels)
            levels[level] = one_hot(expert[rows] - start, value[rows], size)
            parts[rows] = replacement.contract_levels(x[rows], levels) - replacement.rest(x[rows])
        start += size
    return parts.cpu()


@torch.no_grad()
def combination_parts(replacement: Replacement, x: Tensor, experts: Tensor, value: Tensor) -> Tensor:
    """(rows, out) the part of the output that one combination of experts has in each row.

    Args:
        replacement: With experts that add up, on any number of levels.
        x: (rows, in).
        experts: (rows, levels) the expert of each level.
        value: (rows,) product of their coefficients.
    """
    device, parts = replacement.bias.device, []
    for rows in torch.arange(len(x)).split(ROWS):
        part, who, product = (one[rows].to(device) for one in (x, experts, value.float()))
        weights = [product, *[torch.ones_like(product)] * (who.shape[1] - 1)]
        levels: list[Coefficients] = [
            one_hot(who[:, level], weights[level], size) for level, size in enumerate(replacement.shape.levels)
        ]
        parts.append((replacement.contract_levels(part, levels) - replacement.rest(part)).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, replacement.shape.out_features)


def check_combination(replacement: Replacement, experts: Sequence[int]) -> tuple[int, ...]:
    """A combination of one expert per level.

    Raises:
        UserError: If there is none, or the kind's experts do not add up.
    """
    shape = replacement.shape
    if not replacement.kind.additive:
        raise UserError(
            f"decompose: expected a kind whose experts add up, got {shape.kind!r}. Use cp-linear, hadamard or a "
            "transcoder."
        )
    if len(experts) != len(shape.levels):
        raise UserError(
            f"decompose: expected a combination of one expert for each of {len(shape.levels)} levels, got "
            f"{tuple(experts)}. Give one number for each."
        )
    for place in enumerate(experts):
        shape.column(place)
    return tuple(experts)


def changed(
    replacement: Replacement,
    x: Tensor,
    a: Coefficients | None,
    factors: Tensor | None = None,
    removed: Sequence[Sequence[int]] = (),
) -> Tensor:
    """(rows, out) the output with coefficients scaled, and the weights of combinations W_(n_1, .., n_E) set to 0.

    Args:
        replacement: The replacement.
        x: (rows, in).
        a: (rows, experts) its coefficients.
        factors: (experts,) of the coefficients; None for all 1.
        removed: Combinations of one expert per level, each once, as `check_combination` returns them.
    """
    if a is None or (factors is None and not removed):
        return replacement.contract(x, a)
    a = a if factors is None else a.scaled(factors)
    y = replacement.contract(x, a)
    if not removed:
        return y
    levels, rest = split(a, replacement.shape.levels), replacement.rest(x)
    for experts in removed:
        only = [level.only(number) for level, number in zip(levels, experts, strict=True)]
        y = y - (replacement.contract_levels(x, only) - rest)
    return y


PURITIES = ("tag_purity", "genre_purity", "tag_random", "genre_random")


class Labels:
    """Labels of rows, with their base rates."""

    def __init__(self, label: Ints, names: Sequence[str]) -> None:
        self.label, self.names = label, names
        known = label[label >= 0]
        self.base = np.bincount(known, minlength=len(names)) / max(len(known), 1)

    def purest(self, rows: Ints) -> tuple[str, float | None, float | None]:
        """The most frequent label of some rows, its share of those with one, and that above the base rate.

        Empty if fewer than half of the rows have a label.
        """
        known = self.label[rows]
        known = known[known >= 0]
        if not len(known) or 2 * len(known) < len(rows):
            return "", None, None
        counts = np.bincount(known, minlength=len(self.names))
        best = int(counts.argmax())
        share = float(counts[best] / len(known))
        return self.names[best], share, share - float(self.base[best])
