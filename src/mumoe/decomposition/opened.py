"""`decompose` and what it returns: a decomposition as an object, new or opened from its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mumoe.analysis.expert_notes import ExpertNotes
from mumoe.analysis.findings import TextStudy
from mumoe.analysis.text_pages import text_page, write_study
from mumoe.calling import check_argument, checked, checked_methods
from mumoe.data.documents import Contexts
from mumoe.decomposition.activations import Activations, capture_rows, resolve_precision
from mumoe.decomposition.bench import Bench, make_bench
from mumoe.decomposition.findings import Analysis, Evaluation
from mumoe.decomposition.fitting import (
    RESULT,
    WEIGHTS,
    FitSettings,
    Fitted,
    Twin,
    clear_checkpoints,
    fit_replacement,
)
from mumoe.decomposition.interchange import write_coefficients, write_transcoder
from mumoe.decomposition.levels import MOST_ENTRIES, occurring
from mumoe.decomposition.looking import (
    Entries,
    Expert,
    LookSettings,
    analyze_replacement,
    as_entries,
    combination_parts,
    expert_parts,
)
from mumoe.decomposition.measuring import JACOBIAN_ROWS, evaluate_replacement
from mumoe.decomposition.placing import Placed
from mumoe.decomposition.reading import remarks, text_study
from mumoe.decomposition.replacements import Replacement, Shape, build, check_experts, shape_for
from mumoe.decomposition.starting import INITS, fresh, rank_at_weights, resolve_init, start_at_weights
from mumoe.decomposition.texts import Text, open_contexts
from mumoe.devices import AUTO, resolve
from mumoe.errors import JobError, UserError, check_size, reason_of, require, unknown_name
from mumoe.files import holds_files, new_entries, read_json, write_bytes, write_json, write_tensors
from mumoe.local_paths import without_paths
from mumoe.locks import FolderLock
from mumoe.models.language import LanguageModel, Mlp, open_language
from mumoe.records import read_typed
from mumoe.training.distributed import from_main, is_main, join, lost_process, main_first

__all__ = ["DecomposeSettings", "Decomposition", "Part", "decompose", "is_decomposition", "open_decomposition"]

WHO = "decompose"
FORMAT = 1
ABOUT, EVALUATION, ANALYSIS, RATES = "decomposition.json", "evaluation.json", "analysis.json", "rates"
STUDY = "analysis"
"""Folder of the experts with their tokens, as that of an analyzed run."""
OWN = "(given as an object)"
"""What stands for the name of a text that was given as documents."""


@dataclass(frozen=True)
class DecomposeSettings:
    """How an MLP is decomposed.

    Attributes:
        model: The language model by name.
        layer: Whose MLP, from 0.
        kind: A name in `replacements.KINDS`.
        width: Budget: parameters of a transcoder with so many features for each input of the MLP.
        experts: Number of experts, or of each level, as in (1024, 1024) (``cp-linear`` only); 0: what meets the budget.
        rank: Rank of the mixture; 0: what meets the budget.
        k: Experts that a sparse gate keeps, of each level.
        init: ``random``, ``weights`` (those of the MLP, see `mumoe.decomposition.starting`), or auto: weights for
            ``cp-linear`` of a gated MLP, random for all others.
        text: The text by name.
        tokens: Tokens trained on; of a shorter text several passes.
        context: Tokens of a context.
        lr: Learning rates; of several, the one with the lowest validation error under `most_dead` is kept.
        most_dead: Largest share of experts that no validation token uses, in the choice of the learning rate.
        batch_size: Rows of a step.
        val_contexts: Contexts of validation.
        seed: Of the weights and the order of the rows.
        precision: auto, float32 or bfloat16: matrix products of the language model and in training.
        twin: Train on the Gaussian twin of the activations instead (a control).
    """

    model: str = "smollm2"
    layer: int = 10
    kind: str = "cp-linear"
    width: float = 8.0
    experts: int | tuple[int, ...] = 0
    rank: int = 0
    k: int = 32
    init: str = "auto"
    text: str = "brown"
    tokens: int = 500_000
    context: int = 128
    lr: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    most_dead: float = 0.4
    batch_size: int = 1024
    val_contexts: int = 64
    seed: int = 0
    precision: str = "auto"
    twin: bool = False

    def __post_init__(self) -> None:
        check_argument(WHO, "most_dead", self.most_dead, float)
        for name in ("tokens", "batch_size", "val_contexts", "context"):
            check_size(getattr(self, name), name, WHO)
        if not self.lr or not all(rate > 0 and math.isfinite(rate) for rate in self.lr):
            raise UserError(f"{WHO}: expected `lr` as numbers above 0, got {self.lr}. 0.002 is usual.")
        if self.init not in INITS:
            raise unknown_name(WHO, "init", self.init, INITS)
        if not 0 <= self.most_dead <= 1:
            raise UserError(f"{WHO}: expected `most_dead` from 0 to 1, got {self.most_dead}. 0.4 is usual.")


@dataclass(frozen=True)
class Part:
    """The output of the MLP at one token, taken apart: parts + rest + error is the original output.

    Attributes:
        experts: (used,) numbers of the experts that are used; of several levels (used, levels), the combinations.
        coefficients: (used,) their coefficients; of a combination the product.
        parts: (used, out) what each adds.
        rest: (out,) linear path and bias.
        error: (out,) what the decomposition leaves.
        original: (out,) output of the original MLP.
    """

    experts: Tensor
    coefficients: Tensor
    parts: Tensor
    rest: Tensor
    error: Tensor
    original: Tensor


@checked_methods
class Decomposition:
    """One MLP of a language model as experts.

    Made by `decompose` and `mumoe.load`.

    Attributes:
        path: Its folder.
        settings: How it was made.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        language: str | LanguageModel | None = None,
        text: Text | None = None,
        device: str | torch.device = AUTO,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.path = Path(path)
        about = _about(self.path)
        self.settings = _settings_of(about, self.path)
        self._shape = read_typed(Shape, about["shape"], str(self.path / ABOUT))
        self._facts, self.progress = about, progress
        self.device = resolve(device, who="mumoe.load")
        self._given, self._text = language, text
        self._cache = None if cache_dir is None else str(cache_dir)
        self._placed: Placed | None = None

    def __repr__(self) -> str:
        one = self.settings
        return f"Decomposition({str(self.path)!r}, {one.kind} of layer {one.layer} of {one.model}, k={one.k})"

    # What it is made of -----------------------------------------------------------------------------------------

    @functools.cached_property
    def language(self) -> LanguageModel:
        """The language model, loaded on first use.

        Raises:
            UserError: If it is not there, or is another one than that which was decomposed.
        """
        name = self._given if self._given is not None else self.settings.model
        found = open_language(name, device=self.device, cache_dir=self._cache)
        if found.digest != self._facts["model_digest"]:
            raise UserError(
                f"{self.path}: expected the weights of {self.settings.model} that were decomposed, got others. "
                "Give the same model: mumoe.load(path, backbone=...)."
            )
        return found

    @functools.cached_property
    def mlp(self) -> Mlp:
        """The MLP that is decomposed."""
        return self.language.mlp(self.settings.layer)

    @functools.cached_property
    def contexts(self) -> Contexts:
        """The text, cut into contexts."""
        text = self._text if self._text is not None else self.settings.text
        if text == OWN:
            raise UserError(
                f"{self.path}: expected the text, which was given as an object. Give it again: "
                "mumoe.load(path, data=...)."
            )
        return open_contexts(text, self.language, self.settings.context, cache_dir=self._cache, progress=self.progress)

    @functools.cached_property
    def replacement(self) -> Replacement:
        """The trained replacement, in evaluation mode.

        Raises:
            JobError: If its file is damaged.
        """
        path, act = self.path / WEIGHTS, self.mlp.parts.act
        try:
            tensors = load_file(path)
            with torch.device("meta"):  # sizes that do not fit are found before they take memory
                sketch = build(self._shape, act).state_dict()
            if {name: one.shape for name, one in sketch.items()} != {name: one.shape for name, one in tensors.items()}:
                raise RuntimeError(f"tensors of other sizes than those of {self._shape}")
            found = build(self._shape, act)
            found.load_state_dict(tensors)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise JobError(f"{path}: expected whole weights, got: {reason_of(error, 160)}. Train again.") from None
        return found.to(self.device).eval().requires_grad_(False)

    @property
    def fitted(self) -> tuple[Fitted, ...]:
        """Every learning rate that was tried, the chosen one first."""
        return tuple(Fitted.from_dict(values, str(self.path / ABOUT)) for values in self._facts["fitted"])

    @functools.cached_property
    def precision(self) -> str:
        return resolve_precision(self.settings.precision, self.device)

    # Jobs -------------------------------------------------------------------------------------------------------

    def bench(self, contexts: int = 128) -> Bench:
        """Held-out contexts, prepared once and kept in the cache."""
        check_size(contexts, "contexts", "Decomposition.evaluate")
        with self._original():
            mean = torch.tensor(self._facts["mean_output"], dtype=torch.float32)
            held: dict[str, Any] = {"precision": self.precision, "cache_dir": self._cache, "progress": self.progress}
            return make_bench(self.language, self.settings.layer, self.contexts, contexts, mean, **held)

    def evaluate(self, contexts: int = 128, *, jacobians: int = JACOBIAN_ROWS, twin: bool = True) -> Evaluation:
        """Measure it on held-out documents, beside its controls, and write evaluation.json.

        Args:
            contexts: Contexts of the test split, from as many documents as possible.
            jacobians: Rows on which Jacobians are compared; 0 for none.
            twin: Whether the error on the Gaussian twin is measured.

        Raises:
            UserError: If the model or the text is not there.

        >>> dec.evaluate().to_frame()
        """
        bench = self.bench(contexts)
        with self._original():
            gaussian = Twin.of(self._train_rows(), self.mlp.module) if twin else None
            found = evaluate_replacement(
                self.replacement, bench, twin=gaussian, jacobians=jacobians, progress=self.progress
            )
        found = without_paths(found, self._places)
        found.save(self.path / EVALUATION)
        return found

    def analyze(self, contexts: int = 128, **settings: Any) -> Analysis:
        """Look at its experts on held-out documents; settings as in `LookSettings`.

        Writes analysis.json, and analysis/experts.json, which `report` and `dashboard` show.

        >>> dec.analyze().to_frame()

        Raises:
            UserError: If it has no experts, or as `evaluate`.
        """
        how = LookSettings(**settings)
        bench = self.bench(contexts)
        with self._original():
            found = analyze_replacement(self.replacement, bench, self.contexts, how, progress=self.progress)
            study = text_study(self.replacement, bench, self.contexts, found, how, run=str(self.path))
        found = without_paths(found, self._places)
        with new_entries(self.path, (STUDY, ANALYSIS), who=WHO) as part:
            write_study(without_paths(study, self._places), part / STUDY)
            found.save(part / ANALYSIS)
        return found

    @property
    def _places(self) -> tuple[str, ...]:
        """Paths of this machine that settings.json and decomposition.json have, and nothing else should."""
        one = self.settings
        return (str(self.path), *(name for name in (one.model, one.text.partition(":")[2]) if os.path.exists(name)))

    def study(self) -> TextStudy:
        """What `analyze` found, with the text around the tokens of each expert.

        Raises:
            UserError: If it was not analyzed, or a file is damaged.
        """
        if not all((self.path / name).is_file() for name in (ANALYSIS, f"{STUDY}/experts.json")):
            raise UserError(
                f"{self.path}: expected a decomposition that was analyzed, got none. "
                f"Run: mumoe.load({str(self.path)!r}).analyze()"
            )
        found = Analysis.load(self.path / ANALYSIS)
        measured = Evaluation.load(self.path / EVALUATION) if (self.path / EVALUATION).is_file() else None
        return dataclasses.replace(TextStudy.load(self.path / STUDY), remarks=remarks(found, measured))

    def report(self, out: str | Path) -> Path:
        """Write a page about its experts, which opens from disk; returns OUT/index.html.

        It shows faithfulness beside controls, experts by what their ablation costs, their tokens in context, purity
        beside base rates, names and notes.

        Raises:
            UserError: As `study`.
            JobError: If the folder cannot be written.
        """
        page = Path(out) / "index.html"
        notes, credits = ExpertNotes.of_run(self.path), self._facts["credits"]
        write_bytes(page, text_page(self.study(), credits, notes).encode("utf-8"))
        return page

    def dashboard(self, *, port: int = 0, browser: bool = True) -> None:
        """Serve the dashboard until interrupted: experts with their tokens, names and notes, and texts that the model
        writes with an expert scaled.

        Args:
            port: Port on 127.0.0.1; 0 uses a free one.
            browser: Whether to open the page; its address is printed in any case.

        Raises:
            UserError: If it was not analyzed, or the port is taken.
        """
        server = require("mumoe.dashboard.server", "dashboard", "Decomposition.dashboard")
        server.show_decomposition(self, port=port, browser=browser)

    def _train_rows(self) -> Activations:
        """Some rows of training, from the cache or captured again."""
        return capture_rows(
            self.language,
            self.settings.layer,
            self.contexts,
            "train",
            int(self._facts["twin_contexts"]),
            precision=self.precision,
            cache_dir=self._cache,
            progress=self.progress,
        )

    # In the model -----------------------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The language model with the replacement in the MLP's place, until `undo`."""
        return self._place().language.model

    def _place(self) -> Placed:
        if self._placed is None or not self._placed.active:
            self._placed = Placed(self.language, self.mlp, self.replacement)
        return self._placed

    def undo(self) -> None:
        """Put the original MLP back into the model, to the bit; a second call changes nothing."""
        if self._placed is not None:
            self._placed.undo()

    @contextlib.contextmanager
    def scaled(self, experts: Mapping[Expert, float]) -> Iterator[nn.Module]:
        """Within the context, the model with these experts' coefficients multiplied; 0 ablates one.

        Of several levels, an expert is a pair (level, number), and all its combinations are scaled.

        >>> with dec.scaled({17: 4.0}) as model:
        ...     model.generate(...)

        Raises:
            UserError: If there is no such expert.
        """
        with self._place().scaled(experts) as model:
            yield model

    @contextlib.contextmanager
    def without(self, *combinations: tuple[int, ...]) -> Iterator[nn.Module]:
        """Within the context, the model with the weights of combinations set to 0: W_(n_1, .., n_E) := 0.

        Their experts stay in all other combinations.

        >>> with dec.without((17, 4)) as model:
        ...     model.generate(...)

        Raises:
            UserError: If there is no such combination, or the kind's experts do not add up.
        """
        with self._place().without(combinations) as model:
            yield model

    @contextlib.contextmanager
    def _original(self) -> Iterator[None]:
        if self._placed is None or not self._placed.active:
            yield
            return
        with self._placed.suspended():
            yield

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        tokens: int = 40,
        *,
        scale: Mapping[Expert, float] | None = None,
        original: bool = False,
        temperature: float = 0.0,
        seed: int = 0,
        **options: Any,
    ) -> str:
        """The prompt and what the model writes after it.

        Args:
            prompt: How the text begins.
            tokens: Tokens to write.
            scale: Expert -> factor of its coefficient; of several levels (level, number) -> factor.
            original: Use the original MLP.
            temperature: Of the sampling; 0 always picks the likeliest token.
            seed: Of the sampling.
            options: Further ones of transformers' ``generate``.

        Raises:
            UserError: If there is no such expert, or a number is out of range.
        """
        check_size(tokens, "tokens", "Decomposition.generate")
        if temperature < 0:
            raise UserError(f"Decomposition.generate: expected `temperature` >= 0, got {temperature}. Use 0 or 0.8.")
        tokenizer = self.language.tokenizer
        ids = torch.tensor([[tokenizer.start, *tokenizer.encode([prompt])[0][0]]], device=self.device)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        given: dict[str, Any] = {"max_new_tokens": tokens, **sampling, **options}
        given |= {"attention_mask": torch.ones_like(ids), "pad_token_id": tokenizer.start}
        with torch.random.fork_rng(devices=[]), contextlib.ExitStack() as stack:
            torch.manual_seed(seed)
            if original:
                stack.enter_context(self._original())
            else:
                stack.enter_context(self.scaled(scale or {}))
            model: Any = self.language.model
            try:
                found = model.generate(ids, **given)
            except (TypeError, ValueError) as error:  # of an option that it does not have
                raise UserError(f"Decomposition.generate: transformers refused, {reason_of(error, 200)}") from error
        return str(tokenizer.decode(found[0, 1:].tolist()))

    @torch.no_grad()
    def parts(self, text: str) -> list[Part]:
        """The MLP's output at each token of a text, taken apart by expert; the start token comes before it.

        With experts on several levels it is taken apart by combination, k^levels of them for each token.

        Raises:
            UserError: If the kind's experts do not add up (`cp`, `tucker`, `tr`), or it has none.
        """
        if not self.replacement.kind.additive:
            raise UserError(
                f"Decomposition.parts: expected a kind whose experts add up, got {self.settings.kind!r}. "
                "Use cp-linear, hadamard or a transcoder."
            )
        tokenizer = self.language.tokenizer
        ids = torch.tensor([[tokenizer.start, *tokenizer.encode([text])[0][0]]])
        with self._original():
            x = self.language.mlp_input(ids, self.settings.layer)[0, 1:].float()
            original = self.mlp.module(x).float().cpu()
        a = self.replacement.coefficients(x)
        assert a is not None
        rest = self.replacement.rest(x).cpu()
        found = []
        for row, (experts, values, parts) in enumerate(self._parts(as_entries(a.to("cpu")), x.cpu())):
            error = original[row] - rest[row] - parts.sum(0)
            found.append(Part(experts, values, parts, rest[row], error, original[row]))
        return found

    def _parts(self, entries: Entries, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each row of x the experts that are used, or their combinations, with coefficients and parts."""
        sizes = self.replacement.shape.levels
        if len(sizes) == 1:
            parts = expert_parts(self.replacement, x[entries.row], entries.expert, entries.value)
            for row in range(len(x)):
                mine = entries.row == row
                yield entries.expert[mine], entries.value[mine], parts[mine]
            return
        for row in range(len(x)):
            inside = entries.row == row
            one = Entries(torch.zeros_like(entries.row[inside]), entries.expert[inside], entries.value[inside])
            used = occurring(*one.arrays(), 1, sizes)
            if not used.rows:
                raise UserError(
                    f"Decomposition.parts: expected tokens with fewer combinations, got one of more than "
                    f"{MOST_ENTRIES:,}. Use a smaller `k` or fewer levels."
                )
            experts = torch.tensor(np.stack(np.unravel_index(used.key, sizes), axis=1))
            values = torch.tensor(used.value, dtype=torch.float32)
            yield experts, values, combination_parts(self.replacement, x[row].expand(len(experts), -1), experts, values)

    # For other programs -----------------------------------------------------------------------------------------

    def save_coefficients(self, path: str | Path, contexts: int = 128) -> int:
        """Write the coefficients on held-out contexts as parquet, one row for each; returns the number of rows.

        Raises:
            UserError: If pyarrow is not installed, or there are no experts.
        """
        return write_coefficients(self.replacement, self.bench(contexts), self.contexts, Path(path))

    def save_transcoder(self, folder: str | Path) -> Path:
        """Write a transcoder in the file layout of circuit-tracer; returns the file.

        Raises:
            UserError: If the kind is no transcoder.
        """
        model = without_paths(self.settings.model, self._places)
        return write_transcoder(self.replacement, Path(folder), self.settings.layer, model)


# Making one -------------------------------------------------------------------------------------------------


@checked
def decompose(
    model: str | LanguageModel = DecomposeSettings.model,
    layer: int = DecomposeSettings.layer,
    kind: str = DecomposeSettings.kind,
    *,
    text: Text = DecomposeSettings.text,
    out: str | Path = "runs/decompose",
    device: str | torch.device = AUTO,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    announce: Callable[[str], None] | None = None,
    **settings: Any,
) -> Decomposition:
    """Replace one MLP of a trained language model by sparse experts, fitted to what the MLP computes.

    The same call again resumes what was stopped, with the bits of a job that was not. Started by torchrun, several
    processes share each batch, and the first of them writes.

    Args:
        model: ``smollm2`` (comes with a package), ``hf:NAME``, a folder of transformers, or a `LanguageModel`.
        layer: Whose MLP, from 0.
        kind: ``cp-linear``, ``hadamard``, ``cp``, ``tucker``, ``tr``, ``transcoder``, ``skip-transcoder``, ``linear``,
            ``dense``.
        text: ``brown``, ``stdlib``, ``folder:PATH``, ``tokens:FOLDER``, documents, or contexts.
        out: Folder of the result.
        device: Where everything runs.
        cache_dir: Where model, text and activations are kept; None: the usual cache.
        progress: Whether to show progress on stderr.
        announce: Called with a line on the text, on sizes, and on each learning rate.
        settings: Further fields of `DecomposeSettings`: width, experts, rank, k, init, tokens, context, lr,
            most_dead, batch_size, val_contexts, seed, precision, twin.

    Raises:
        UserError: If a setting is wrong, the model is unknown, the disk too small, or `out` holds something else.
        JobError: If the training fails; what was finished is kept.
        Interrupted: After Ctrl-C, with a checkpoint written.

    >>> dec = mumoe.decompose("smollm2", layer=10, kind="cp-linear", k=32, text="brown", tokens=1_000_000)
    >>> dec.evaluate().to_frame()
    """
    chosen = _settings(model, layer, kind, text, settings)
    folder, where = Path(out), join(device, who=WHO)
    say = announce if announce is not None and is_main() else (lambda _: None)
    if (folder / ABOUT).is_file() and _same(folder, chosen):
        return Decomposition(
            folder,
            language=_object(model),
            text=_object_text(text),
            device=where,
            cache_dir=cache_dir,
            progress=progress,
        )
    cache = None if cache_dir is None else str(cache_dir)
    with lost_process(WHO, "The same call resumes."):
        language, contexts = _run(chosen, folder, model, text, where, cache, progress, say)
    return Decomposition(folder, language=language, text=contexts, device=where, cache_dir=cache_dir, progress=progress)


def _run(
    chosen: DecomposeSettings,
    folder: Path,
    model: str | LanguageModel,
    text: Text,
    where: torch.device,
    cache: str | None,
    progress: bool,
    say: Callable[[str], None],
) -> tuple[LanguageModel, Contexts]:
    """Make a decomposition in its folder; returns what it was made of."""
    language = main_first(lambda: open_language(model, device=where, cache_dir=cache))
    mlp = language.mlp(chosen.layer)
    levels = len(chosen.experts) if isinstance(chosen.experts, tuple) else 1
    init = resolve_init(chosen.init, chosen.kind, mlp.parts, levels)
    rank = chosen.rank
    if init == "weights" and not rank and not chosen.experts:
        rank = rank_at_weights(chosen.kind, mlp.parts.widths[1])
    shape, _ = shape_for(chosen.kind, mlp.parts, width=chosen.width, experts=chosen.experts, rank=rank, k=chosen.k)
    progress = progress and is_main()
    contexts = main_first(lambda: open_contexts(text, language, chosen.context, cache_dir=cache, progress=progress))
    say(contexts.describe())
    job = _Job(chosen, folder, language, mlp, shape, init, contexts, cache, progress, say)
    with contextlib.ExitStack() as stack:

        def finished() -> bool:
            stack.enter_context(FolderLock(folder, who=WHO))
            return is_decomposition(folder) and _same(folder, chosen)  # another job may have finished it meanwhile

        if not from_main(finished):
            job.run()
    return language, contexts


def _settings(
    model: str | LanguageModel, layer: int, kind: str, text: Text, others: Mapping[str, Any]
) -> DecomposeSettings:
    known = {field.name for field in dataclasses.fields(DecomposeSettings)}
    for name in others:
        if name not in known:
            raise unknown_name(WHO, "setting", name, known)
    values = dict(others)
    if "lr" in values:
        rates = values["lr"]
        check_argument(WHO, "lr", rates, float | Sequence[float])
        values["lr"] = (float(rates),) if isinstance(rates, int | float) else tuple(map(float, rates))
    if "experts" in values:
        values["experts"] = check_experts(values["experts"], kind)
    named: dict[str, Any] = {
        "model": model if isinstance(model, str) else model.name,
        "text": text if isinstance(text, str) else OWN,
        "layer": layer,
        "kind": kind,
    }
    return DecomposeSettings(**named, **values)


def _object(model: str | LanguageModel) -> LanguageModel | None:
    return None if isinstance(model, str) else model


def _object_text(text: Text) -> Text | None:
    return None if isinstance(text, str) else text


def _same(folder: Path, settings: DecomposeSettings) -> bool:
    """Whether a folder holds the finished decomposition of these settings.

    Raises:
        UserError: If it holds another one.
    """
    found = _settings_of(_about(folder), folder)
    if found == settings:
        return True
    names = [field.name for field in dataclasses.fields(settings)]
    other = [name for name in names if getattr(found, name) != getattr(settings, name)]
    shown = ", ".join(f"{name}={getattr(found, name)!r}" for name in other[:4])
    raise UserError(
        f"{WHO}: expected `out` without another decomposition, got {str(folder)!r} with {shown}. Give another `out`."
    )


@dataclass(frozen=True)
class _Job:
    """Capture, fit at each learning rate, choose."""

    settings: DecomposeSettings
    folder: Path
    language: LanguageModel
    mlp: Mlp
    shape: Shape
    init: str
    contexts: Contexts
    cache: str | None
    progress: bool
    say: Callable[[str], None]

    def run(self) -> None:
        one = self.settings
        from_main(self._check_folder)
        precision = resolve_precision(one.precision, self.language.device)
        held: dict[str, Any] = {"precision": precision, "cache_dir": self.cache, "progress": self.progress}
        wanted = -(-one.tokens // (self.contexts.length - 1))
        of = (self.language, one.layer, self.contexts)
        train = main_first(lambda: capture_rows(*of, "train", wanted, **held))
        val = main_first(lambda: capture_rows(*of, "val", one.val_contexts, **held))
        twin = Twin.of(train, self.mlp.module) if one.twin else None
        tried: dict[float, Fitted] = {}
        for rate in one.lr:
            tried[rate] = self._fit(rate, train, val, twin, precision)
            self.say(tried[rate].headline())
        best = choose_rate(tried, one.most_dead)
        from_main(lambda: self._write(tried, best, train))

    def _check_folder(self) -> None:
        """Refuse a folder with other files, or an unfinished decomposition of other settings."""
        known = self.folder / "settings.json"
        if known.is_file():
            if read_json(known, WHO) == _as_json(self.settings):
                return
            raise UserError(
                f"{WHO}: expected `out` without another decomposition, got {str(self.folder)!r}, where one of other "
                "settings was begun. Give another `out`, or delete it."
            )
        if holds_files(self.folder):
            raise UserError(
                f"{WHO}: expected `out` as a new or empty folder, got {str(self.folder)!r} with files. "
                "Give another `out`."
            )
        write_json(known, _as_json(self.settings), who=WHO)

    def _fit(self, rate: float, train: Activations, val: Activations, twin: Twin | None, precision: str) -> Fitted:
        folder = self.folder / RATES / f"{rate:g}"
        done = from_main(lambda: _finished(folder))
        if done is not None:
            return done
        one = self.settings
        settings = FitSettings(rate, one.tokens, one.batch_size, one.seed, precision)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(one.seed)
            replacement = build(self.shape, self.mlp.parts.act)
            replacement = fresh(replacement.to(self.language.device), train)
            if self.init == "weights":
                start_at_weights(replacement, self.mlp.parts, train)
        self.say(f"{one.kind}: {self.shape.shown} experts, {replacement.parameters_count:,} parameters, lr {rate:g}")
        return fit_replacement(replacement, train, val, settings, folder, twin=twin, progress=self.progress)

    def _write(self, tried: Mapping[float, Fitted], best: float, train: Activations) -> None:
        tensors = load_file(self.folder / RATES / f"{best:g}" / WEIGHTS)
        write_tensors(self.folder / WEIGHTS, tensors, who=WHO)
        order = [best, *(rate for rate in tried if rate != best)]
        mean = train.first(50_000)[1].double().mean(0).float()
        about = {
            "format": FORMAT,
            "settings": _as_json(self.settings),
            "shape": asdict(self.shape),
            "init": self.init,
            "model_digest": self.language.digest,
            "text_digest": self.contexts.fingerprint,
            "precision": resolve_precision(self.settings.precision, self.language.device),
            "mean_output": [float(value) for value in mean],
            "twin_contexts": min(len(train.contexts), 400),
            "fitted": [tried[rate].to_dict() for rate in order],
            "credits": [*self.language.credits, *self.contexts.credits],
        }
        write_json(self.folder / ABOUT, about, who=WHO)


def _finished(folder: Path) -> Fitted | None:
    """What an earlier call found at a learning rate; None if there is none."""
    if not (folder / RESULT).is_file():
        return None
    clear_checkpoints(folder)
    return Fitted.load(folder / RESULT)


def choose_rate(tried: Mapping[float, Fitted], most_dead: float) -> float:
    """The learning rate of the lowest validation error among those with few dead experts; else that of the fewest.

    A higher rate lowers the error and kills experts, so that the error alone would choose dead ones.
    """
    alive = {rate: one for rate, one in tried.items() if one.never is None or one.never <= most_dead}
    if alive:
        return min(alive, key=lambda rate: alive[rate].error)
    return min(tried, key=lambda rate: tried[rate].never or 0.0)


# Opening one ------------------------------------------------------------------------------------------------


def is_decomposition(folder: str | Path) -> bool:
    """Whether a folder holds a finished decomposition."""
    return (Path(folder) / ABOUT).is_file()


def open_decomposition(path: str | Path, **given: Any) -> Decomposition:
    """The decomposition in a folder; arguments as for `Decomposition`.

    Raises:
        UserError: If there is none, or it was written by a later version.
    """
    return Decomposition(path, **given)


def _about(folder: Path) -> dict[str, Any]:
    if not is_decomposition(folder):
        raise UserError(f"{folder}: expected the folder of a decomposition, got none. Make one with mumoe decompose.")
    about = read_json(folder / ABOUT, "mumoe.load")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(
            f"{folder / ABOUT}: expected a decomposition of format {FORMAT}, got another. "
            "Open it with the version of mumoe that wrote it."
        )
    read_typed(_Facts, about, str(folder / ABOUT))
    return about


@dataclass(frozen=True)
class _Facts:
    """The types of what decomposition.json holds."""

    settings: Mapping[str, Any]
    shape: Mapping[str, Any]
    model_digest: str
    mean_output: tuple[float, ...]
    twin_contexts: int
    fitted: tuple[Mapping[str, Any], ...]
    credits: tuple[str, ...]


def _as_json(settings: DecomposeSettings) -> dict[str, Any]:
    experts = list(settings.experts) if isinstance(settings.experts, tuple) else settings.experts
    return {**asdict(settings), "lr": list(settings.lr), "experts": experts}


def _settings_of(about: Mapping[str, Any], folder: Path) -> DecomposeSettings:
    earlier = {"init": "random"}  # of decompositions that were made before there was a choice
    return read_typed(DecomposeSettings, {**earlier, **about["settings"]}, str(folder / ABOUT))
