"""Decompositions for other programs: coefficients as a table, and transcoders in the file layout of circuit-tracer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mumoe.coefficients import Coefficients
from mumoe.data.documents import Contexts
from mumoe.decomposition.bench import Bench
from mumoe.decomposition.looking import as_entries
from mumoe.decomposition.replacements import Features, Replacement
from mumoe.errors import UserError, require
from mumoe.files import new_file, write_json, write_tensors

__all__ = ["transcoder_tensors", "write_coefficients", "write_transcoder"]

ROWS = 4096


def write_coefficients(
    replacement: Replacement, bench: Bench, contexts: Contexts, path: Path, split: str = "test"
) -> int:
    """Write the coefficients above 0 as parquet, one row each, and return the number of rows.

    Columns: context, position, token, text, document, genre, tag, expert, coefficient; of experts on several levels
    also level, before expert, which is then the number within the level.

    Raises:
        UserError: If pyarrow is not installed, or the replacement has no experts.
        JobError: If the file cannot be written.
    """
    arrow = require("pyarrow", "data", "Decomposition.save_coefficients")
    parquet = require("pyarrow.parquet", "data", "Decomposition.save_coefficients")
    _require_experts(replacement, "Decomposition.save_coefficients")
    order, per = contexts.order(split)[: len(bench.tokens)], contexts.length - 1
    pieces = bench.language.tokenizer.pieces
    total = 0
    with new_file(path, who="Decomposition.save_coefficients") as part:
        writer: Any = None
        for start in range(0, len(bench.x), ROWS):
            with torch.no_grad():
                rows = bench.x[start : start + ROWS].to(replacement.bias.device)
                found = as_entries(_coefficients(replacement, rows))
            row = found.row.cpu().numpy() + start
            which, position = row // per, row % per + 1
            tokens = bench.tokens[which, position].numpy()
            context = order[which]
            text = dict(zip((known := np.unique(tokens)).tolist(), pieces(known.tolist()), strict=True))
            columns = {
                "context": context,
                "position": position.astype(np.int32),
                "token": tokens,
                "text": [text[token] for token in tokens.tolist()],
                "document": _named(contexts.document[context], contexts.documents),
                "genre": _named(contexts.genre[context], contexts.genres),
                "tag": _named(contexts.tag[context, position], contexts.tags),
                **_places(replacement, found.expert.cpu().numpy()),
                "coefficient": found.value.float().cpu().numpy(),
            }
            table = arrow.table(columns)
            writer = writer or parquet.ParquetWriter(part, table.schema)
            writer.write_table(table)
            total += len(row)
        writer.close()
    return total


def _places(replacement: Replacement, column: Any) -> dict[str, Any]:
    """Number of each expert, and its level if there are several."""
    sizes = replacement.shape.levels
    if len(sizes) == 1:
        return {"expert": column.astype(np.int32)}
    starts = np.cumsum([0, *sizes[:-1]])
    level = np.searchsorted(starts, column, side="right") - 1
    return {"level": level.astype(np.int32), "expert": (column - starts[level]).astype(np.int32)}


def _named(numbers: Any, names: tuple[str, ...]) -> list[str]:
    return [names[number] if number >= 0 else "" for number in numbers.tolist()]


def _coefficients(replacement: Replacement, x: Tensor) -> Coefficients:
    a = replacement.coefficients(x)
    assert a is not None
    return a


def _require_experts(replacement: Replacement, who: str) -> None:
    if replacement.mixture is None:
        raise UserError(f"{who}: expected a kind with experts, got {replacement.shape.kind!r}. Choose another kind.")


# Transcoders ------------------------------------------------------------------------------------------------


def transcoder_tensors(replacement: Replacement) -> dict[str, Tensor]:
    """W_enc (features, in), b_enc, W_dec (features, out), b_dec and, with a linear path, W_skip (out, in).

    Scales are folded in: y = topk(relu(W_enc x + b_enc)) W_dec + W_skip x + b_dec in the units of the MLP.

    Raises:
        UserError: If the kind is no transcoder.
    """
    mixture = replacement.mixture
    if not isinstance(mixture, Features):
        raise UserError(
            f"Decomposition.save_transcoder: expected kind transcoder or skip-transcoder, got "
            f"{replacement.shape.kind!r}, whose experts are matrices, which that layout cannot hold. "
            "Use save_coefficients."
        )
    router: Any = mixture.gate.routers[0]
    into, out = replacement.in_scale, replacement.out_scale
    tensors = {
        "W_enc": router.weight / into,
        "b_enc": router.bias,
        "W_dec": mixture.vectors * out,
        "b_dec": replacement.bias * out,
    }
    if replacement.skip is not None:
        tensors["W_skip"] = replacement.skip.weight * out / into
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def write_transcoder(replacement: Replacement, folder: Path, layer: int, model: str) -> Path:
    """Write ``layer_N.safetensors`` as circuit-tracer's ``load_transcoder`` reads it, and ``transcoder.json`` about it.

    Its top-k activation keeps the k largest values of any sign, ours keeps only those above 0: both agree if a row
    has k positive values.

    Raises:
        UserError: If the kind is no transcoder.
        JobError: If the folder cannot be written.
    """
    path = folder / f"layer_{layer}.safetensors"
    metadata = {"k": json.dumps(replacement.shape.k), "activation": "topk", "layer": json.dumps(layer)}
    write_tensors(path, transcoder_tensors(replacement), metadata, who="Decomposition.save_transcoder")
    about = {
        "model": model,
        "layer": layer,
        "activation": "topk",
        "k": replacement.shape.k,
        "input": "MLP input, normalized",
    }
    write_json(folder / "transcoder.json", about, who="Decomposition.save_transcoder")
    return path
