"""All 1,024 interventions of a final layer on 10,000 images, against one plain evaluation on cached features.

    python -m benchmarks.interventions [--full]

For each setting the two are measured in turn within one run, and the ratio of the best times is recorded, so that
it does not depend on the machine. Layers are trained for a while on clustered features first: untrained ones have
other margins and supports. `plain` is `intervene(plainly=True)` on a few experts, scaled to all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import measuring
from benchmarks.measuring import Options
from mumoe.analysis.interventions import intervene
from mumoe.layers import MuMoE

IMAGES, EXPERTS, BATCH = 10_000, 1024, 500
SETTINGS = {
    "CP-r256, 1280 -> 84": ("cp", 256, 1280, 84, 4.6, 3.0),
    "CP-r512, 768 -> 1000": ("cp", 512, 768, 1000, 8.0, 0.01),
    "TR-r64, 1280 -> 84": ("tr", 64, 1280, 84, 4.6, 3.0),
}
"""Factorization, rank, width, classes, distance of the classes, weight decay; accuracies come to about 0.7."""


def features(width: int, classes: int, distance: float) -> tuple[Tensor, Tensor]:
    """Clustered features of 2 x IMAGES images."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (2 * IMAGES,), generator=generator)
    noise = torch.randn(2 * IMAGES, width, generator=generator)
    return centres[labels] * (distance / width**0.5) + noise, labels


def train(layer: MuMoE, x: Tensor, labels: Tensor, decay: float, epochs: int) -> MuMoE:
    """AdamW, one cycle."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3, weight_decay=decay)
    steps = epochs * (len(x) // 250)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        chosen = torch.randint(len(x), (250,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(x[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return layer.eval()


def best(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of the fastest of some repeats; other programs on the machine do not count."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def measure(name: str, epochs: int, rounds: int, few: int) -> dict[str, object]:
    """The record of one setting; `few` experts are ablated by the plain method."""
    factorization, rank, width, classes, distance, decay = SETTINGS[name]
    torch.manual_seed(0)
    x, labels = features(width, classes, distance)
    layer = train(MuMoE(width, classes, EXPERTS, factorization, rank), x[:IMAGES], labels[:IMAGES], decay, epochs)
    batches = list(zip(x[IMAGES:].split(BATCH), labels[IMAGES:].split(BATCH), strict=True))

    @torch.no_grad()
    def evaluate() -> int:
        return sum(int((layer(part).argmax(1) == label).sum()) for part, label in batches)

    @torch.no_grad()
    def ablate_few() -> int:
        right = 0
        for expert in range(few):
            with layer.ablate([expert]):
                right += evaluate()
        return right

    found = intervene(layer, batches)
    once = all_of_them = float("inf")
    for _ in range(rounds):  # in turn, so that both see the same machine
        once = min(once, best(evaluate, 1))
        all_of_them = min(all_of_them, best(lambda: intervene(layer, batches), 1))
    plain = best(ablate_few, 2) / few * EXPERTS
    return {
        "layer": layer.spec,
        "in_features": width,
        "out_features": classes,
        "images": IMAGES,
        "accuracy": float(found.answers.right.mean()),
        "experts_per_image": float(found.load.sum() / IMAGES),
        "changed_answers": len(found.changes.image),
        "rechecked_batches": found.rechecked,
        "evaluation_seconds": once,
        "interventions_seconds": all_of_them,
        "interventions_over_evaluation": all_of_them / once,
        "plain_over_interventions": plain / all_of_them,
    }


def main(asked: Options) -> None:
    """Measure every setting, or in the quick mode the first, and write the record."""
    epochs, rounds, few = (4, 5, 4) if asked.full else (2, 2, 1)
    rows = []
    for name in SETTINGS if asked.full else list(SETTINGS)[:1]:
        rows.append(measure(name, epochs, rounds, few))
        said = "{layer}: all interventions {interventions_over_evaluation:.2f}x one evaluation, plain method slower"
        print((said + " by {plain_over_interventions:.0f}x").format(**rows[-1]), flush=True)
    measuring.write("interventions", asked, {"threads": torch.get_num_threads(), "settings": rows})


if __name__ == "__main__":
    main(measuring.options(__doc__ or ""))
