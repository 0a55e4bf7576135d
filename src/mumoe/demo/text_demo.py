"""A small decomposition of a real language model: experts beside a transcoder and their controls, some of them shown.

Model and corpus come from package registries alone. Everything is measured on each run; sentences state the results.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mumoe.decomposition.findings import Evaluation, paired
from mumoe.decomposition.opened import Decomposition, decompose
from mumoe.decomposition.showing import expert_lines
from mumoe.devices import AUTO
from mumoe.errors import UserError
from mumoe.files import holds_files, remove_folder

__all__ = ["TextDemo", "run_text_demo"]

MARK = "text-demo"
PROMPT = "The committee met on Monday to"


@dataclass(frozen=True)
class TextDemo:
    """What the demo computes.

    Attributes:
        model: The language model by name.
        text: The text by name.
        kinds: What takes the MLP's place.
        layer: Whose MLP.
        tokens: Tokens trained on.
        lr: Learning rates of every kind, one of which is chosen on validation.
        contexts: Held-out contexts.
        shown: Experts printed.
        steered: Factor of the expert that is steered.
        others: Further settings of `decompose`.
    """

    model: str = "smollm2"
    text: str = "brown"
    kinds: tuple[str, ...] = ("cp-linear", "transcoder")
    layer: int = 10
    tokens: int = 65_536
    lr: tuple[float, ...] = (2e-3, 4e-3, 8e-3)
    contexts: int = 32
    shown: int = 5
    steered: float = 20.0
    others: Mapping[str, Any] = field(default_factory=dict)


def run_text_demo(
    out: str | Path, *, settings: TextDemo | None = None, device: str = AUTO, progress: bool = True
) -> Iterator[str]:
    """Run the demo; yields its results, line by line, as soon as they are known.

    Args:
        out: Folder; that of an earlier demo is replaced.
        settings: What to compute.
        device: Where.
        progress: Whether to show progress.

    Raises:
        UserError: If `out` holds something else than an earlier demo.
    """
    folder, one, begun = Path(out), settings or TextDemo(), time.monotonic()
    if holds_files(folder):
        if not (folder / MARK).is_file():
            raise UserError(
                f"mumoe demo: expected a new folder, or that of an earlier demo, got {out!r}. Give another."
            )
        remove_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    measured: dict[str, Evaluation] = {}
    first: Decomposition | None = None
    for kind in one.kinds:
        dec = decompose(
            one.model,
            one.layer,
            kind,
            text=one.text,
            **one.others,
            tokens=one.tokens,
            lr=one.lr,
            out=folder / kind,
            device=device,
            progress=progress,
        )
        first = first or dec
        measured[kind] = dec.evaluate(one.contexts, jacobians=0, twin=False)
        yield repr(measured[kind])
        yield ""
    assert first is not None
    yield from _compared(measured)
    found = first.analyze(one.contexts, least=10, ablations=4, ablated_contexts=16)
    yield found.headline()
    yield from expert_lines(found, one.shown)
    yield from _steered(first, one)
    yield from first.language.credits
    yield from first.contexts.credits
    yield f"{time.monotonic() - begun:.0f} s. Written to {folder}; open it: mumoe.load({str(folder / one.kinds[0])!r})"


def _compared(measured: dict[str, Evaluation]) -> Iterator[str]:
    (name, one), *others = measured.items()
    for other, result in others:
        value, (low, high) = paired(one.measures[0], result.measures[0], one.document_tokens)
        yield (
            f"{name} minus {other}: {value:+.4f} nats a token, 95 % interval {low:+.4f} to {high:+.4f} over "
            f"{one.documents} documents, one seed each."
        )


def _steered(dec: Decomposition, settings: TextDemo) -> Iterator[str]:
    """The same prompt with the original MLP, with the replacement, and with one expert made stronger.

    The expert is the one whose part of the output is largest at the prompt's last token.
    """
    last = dec.parts(PROMPT)[-1]
    expert = int(last.experts[last.parts.norm(dim=1).argmax()])
    yield f"original: {_line(dec.generate(PROMPT, 16, original=True))}"
    yield f"decomposed: {_line(dec.generate(PROMPT, 16))}"
    yield f"expert {expert} x {settings.steered:g}: {_line(dec.generate(PROMPT, 16, scale={expert: settings.steered}))}"


def _line(text: str) -> str:
    return " ".join(text.split())
