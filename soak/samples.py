"""Small valid samples of every kind of file that mumoe reads, each with what reads and checks it.

Run folders and results are those that the tests keep (`tests/fixtures`); everything else is made here.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save as packed_arrays
from torch import Tensor

from mumoe.analysis.coefficient_store import CoefficientStore, CoefficientWriter
from mumoe.analysis.expert_notes import ExpertNotes
from mumoe.analysis.shifting import Shift
from mumoe.analysis.stability import Stability
from mumoe.analysis.study import Study
from mumoe.analysis.sweeping import _Job as _SweepJob
from mumoe.analysis.sweeping import sweep
from mumoe.api import load, train
from mumoe.data.cache import sealed_folder
from mumoe.data.decode import MAX_PIXELS, read_image
from mumoe.data.documents import Document
from mumoe.data.named import load_data
from mumoe.data.packed import read_cifar, read_idx
from mumoe.data.text import open_text
from mumoe.data.tokenizing import documents_of, tokenize
from mumoe.decomposition.activations import _Store
from mumoe.decomposition.opened import decompose, open_decomposition
from mumoe.editing.auditing import RunAudit
from mumoe.editing.edit_files import load_edits, read_edit_file, save_edits
from mumoe.editing.edit_reports import FairnessComparison, RewritingReport
from mumoe.editing.edit_texts import parse_edit
from mumoe.editing.group_audit import Audit
from mumoe.editing.stack import EditStack
from mumoe.editing.subgroup_fairness import FairnessReport
from mumoe.errors import require
from mumoe.files import read_json, write_json
from mumoe.gating import Gate
from mumoe.layers import MuMoE
from mumoe.models.backbones import _read_weights
from mumoe.models.feature_files import load_feature_data
from mumoe.models.language import HubTokenizer, LanguageModel
from mumoe.records import Record
from mumoe.reports.gathering import gather
from mumoe.training import StoredRun
from mumoe.training.checkpoint import read as read_checkpoint
from mumoe.training.config import PLAIN, TrainConfig, read_config
from mumoe.training.run import SCHEMA

__all__ = ["FIXTURES", "Kind", "job_kinds", "make_kinds", "of_today"]

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "fixtures"

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Kind:
    """A kind of sample.

    Attributes:
        name: What it is counted as.
        files: Relative name -> content.
        read: Reads a folder with these files, and asserts of what it found what every reader may rely on.
        weight: Its share of the trials, relative to the others'.
        targets: Files that are damaged; empty: all.
        seal: Writes digests anew, so that damage to a file is found by what it says; None if there are none.
        writes: Whether reading changes the folder.
    """

    name: str
    files: Files
    read: Callable[[Path], object]
    weight: int = 10
    targets: tuple[str, ...] = ()
    seal: Callable[[dict[str, bytes]], None] | None = None
    writes: bool = False


def make_kinds(work: Path) -> list[Kind]:
    """Every kind; `work` is an empty folder."""
    torch.manual_seed(0)
    return [
        *_runs(),
        *_checkpoints(),
        *_results(),
        *_edits(work),
        *_coefficients(work),
        *_features(),
        *_images(),
        *_image_sets(),
        *_texts(work),
        *_official(),
        *_caches(work),
        *_models(),
    ]


def tree(folder: Path, skip: Sequence[str] = ()) -> dict[str, bytes]:
    """The files below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in skip)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: of_today(content) if name.endswith("run.json") else content for name, content in found.items()}


def of_today(facts: bytes) -> bytes:
    """A run.json of the present schema, which opens without a warning."""
    return json.dumps({**json.loads(facts), "schema": SCHEMA}, indent=1).encode()


# Runs -------------------------------------------------------------------------------------------------------


def _runs() -> list[Kind]:
    runs = FIXTURES / "runs"
    skip = ("expected.json",)
    kinds = [
        Kind(f"run folder ({name})", tree(runs / name, skip), _read_run, weight, seal=_seal_checkpoint)
        for name, weight in (("attributes", 12), ("sparse", 4), ("trmumoe", 4), ("mixer", 3), ("text", 3))
    ]
    job = {name: content for name, content in tree(runs / "job", skip).items() if "checkpoints/" not in name}
    return [
        *kinds,
        Kind("job folder", job, _read_job, 6),
        Kind("config.toml", {"config.toml": (runs / "attributes" / "config.toml").read_bytes()}, _read_config, 60),
    ]


def _read_run(folder: Path) -> None:
    run = load(folder, device="cpu", progress=False)
    _ = run.classes, run.multi_label, run.step, repr(run)
    stored: StoredRun = run._stored
    if stored.trains_whole:
        assert isinstance(stored.model, torch.nn.Module)
        return
    x = torch.zeros(2, int(run.facts["num_features"]))
    assert stored.head(x).shape == (2, len(run.classes))


def _read_job(folder: Path) -> None:
    job = load(folder, device="cpu", progress=False)
    _ = [run.classes for run in job.runs], job.best, job.result.to_dict(), job.result.headline(), repr(job)


def _read_config(folder: Path) -> None:
    path = folder / "config.toml"
    read_config(path, PLAIN, unknown=lambda names: None).absolute()
    read_config(path)


def _checkpoints() -> list[Kind]:
    kinds = []
    for name in ("attributes", "finetuned"):
        run = FIXTURES / "runs" / name
        found = {key.partition("/")[2]: content for key, content in tree(run).items() if key.startswith("checkpoints/")}
        kinds.append(Kind(f"checkpoint ({name})", found, _checkpoint_reader(found), 50, seal=_seal_checkpoint))
    return kinds


def _checkpoint_reader(files: Files) -> Callable[[Path], None]:
    """Reads a checkpoint; it has the tensors of the sample unless its digests were written anew."""
    step = next(iter(files)).partition("/")[0]
    manifest = f"{step}/manifest.json"
    whole: dict[str, Any] = {}

    def check(found: Any, numbers: Any) -> None:
        """Parts and names of any network."""
        if "model" not in found:
            raise ValueError("no model")

    def read(folder: Path) -> None:
        snapshot = read_checkpoint(folder / step, check)
        if not whole:
            whole.update(snapshot.tensors)
        if (folder / manifest).read_bytes() == files[manifest]:
            for part, tensors in snapshot.tensors.items():
                for name, tensor in tensors.items():
                    assert _same_bits(tensor, whole[part][name]), f"{part} {name} is another tensor"

    return read


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.numpy().tobytes() == second.numpy().tobytes()


def _seal_checkpoint(files: dict[str, bytes]) -> None:
    """Write every manifest anew."""
    for name in [name for name in files if name.endswith("/manifest.json")]:
        try:
            manifest = json.loads(files[name])
            folder = name.rpartition("/")[0]
            for file, facts in manifest["files"].items():
                content = files[f"{folder}/{file}"]
                key = "size" if "size" in facts else "bytes"
                facts.update({key: len(content), "sha256": hashlib.sha256(content).hexdigest()})
            files[name] = json.dumps(manifest).encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue


# Results ----------------------------------------------------------------------------------------------------


def _results() -> list[Kind]:
    landed = FIXTURES / "landed"
    analyzed = tree(landed / "analyzed", ("summary.json",))
    whole = {**analyzed, "fairness.json": (landed / "fairness.json").read_bytes()}
    whole["edits/edits.json"] = (landed / "edits.json").read_bytes()
    whole["audit/bee/audit.json"] = (landed / "audit.json").read_bytes()
    whole["expert-notes.json"] = _notes()
    study = {name: content for name, content in analyzed.items() if not name.startswith("checkpoints/")}
    fairness = next(iter(json.loads((landed / "fairness.json").read_bytes()).values()))
    pages = tuple(name for name in whole if not name.startswith("checkpoints"))
    return [
        Kind("analysis", study, _read_study, 30),
        Kind("audit", {"audit.json": (landed / "audit.json").read_bytes()}, _read_audit, 40),
        Kind("fairness", {"fairness.json": json.dumps(fairness).encode()}, _read_fairness, 20),
        Kind("notes", {"expert-notes.json": _notes()}, _read_notes, 40),
        Kind("what a report reads", whole, _read_pages, 3, targets=pages),
    ]


def _notes() -> bytes:
    notes = ExpertNotes().with_note(1, 0, name="cats", note="a few foxes").with_note(3, "h.0.mlp", name="verbs")
    return notes.to_json().encode()


def _read_study(folder: Path) -> None:
    study = Study.load(folder)
    _ = study.rows(), study.to_dict(), study.headline(), repr(study)


def _read_audit(folder: Path) -> None:
    found = Audit.load(folder / "audit.json")
    _ = found.rows(), found.to_dict(), found.headline()


def _read_fairness(folder: Path) -> None:
    path = folder / "fairness.json"
    found = FairnessReport.from_dict(read_json(path, "fairness"))
    _ = found.to_dict()


def _read_notes(folder: Path) -> None:
    found = ExpertNotes.of_run(folder)
    _ = found.rows(), found.name(1), found.with_note(2, 0, name="dogs")


def _read_pages(folder: Path) -> None:
    views = gather([StoredRun(folder, device="cpu", progress=False)], name="run", path=folder)
    assert len(views) == 1


# Edits ------------------------------------------------------------------------------------------------------


def _layer() -> MuMoE:
    torch.manual_seed(0)
    return MuMoE(6, 3, num_experts=5, factorization="cp", rank=4).eval()


def _edits(work: Path) -> list[Kind]:
    stack = EditStack(_layer())
    for text in ("ablate:1", "scale:2=0.5", "swap:0=3", "set-output:0:cat=1.5", "correct:2:bee=0.3"):
        stack.add(parse_edit(text, ("ant", "bee", "cat")))
    save_edits(work / "edits.json", stack, {"split": "test", "lambda": 0.5})
    layer = _layer()

    def read(folder: Path) -> None:
        path = folder / "edits.json"
        assert read_edit_file(path).edits is not None
        stack = load_edits(path, layer)
        with torch.no_grad(), stack.being(applied=True):
            assert layer(torch.zeros(2, 6)).shape == (2, 3)
        _ = stack.describe()

    landed = {"edits.json": (FIXTURES / "landed" / "edits.json").read_bytes()}
    return [
        Kind("edits", {"edits.json": (work / "edits.json").read_bytes()}, read, 40),
        Kind("edits of a rewriting", landed, lambda folder: read_edit_file(folder / "edits.json").edits, 20),
    ]


# Coefficients -----------------------------------------------------------------------------------------------


def _coefficients(work: Path) -> list[Kind]:
    gate = Gate(6, (8, 4)).eval()
    with CoefficientWriter(work / "store", {"head": (8, 4)}, images=np.arange(20)) as writer, torch.no_grad():
        writer.append("head", [level.to_dense().numpy() for level in gate(torch.randn(20, 6))])
    return [Kind("coefficients", tree(work / "store"), _read_coefficients, 25)]


def _read_coefficients(folder: Path) -> None:
    store = CoefficientStore(folder)
    for name in store.layers:
        for place in range(store.num_levels(name)):
            level = store.level(name, place)
            usage = level.usage()
            assert len(usage.load) == level.num_experts
            for block in level.blocks(16):
                assert not block.expert.size or 0 <= block.expert.min() <= block.expert.max() < level.num_experts
            assert level.dense(0, min(level.rows, 5)).shape[1] == level.num_experts


# Features ---------------------------------------------------------------------------------------------------


def _features() -> list[Kind]:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "features": rng.normal(size=(24, 5)).astype(np.float32),
        "labels": np.arange(24) % 3,
        "split": np.arange(24) // 3 % 3,
        "group_kind": np.arange(24) % 2,
    }
    names = {"classes": json.dumps(["ant", "bee", "cat"]), "group_kind": json.dumps(["left", "right"])}
    separate = {f"{name}.npy": _saved(column) for name, column in columns.items()}
    halves = {
        **columns,
        "features": columns["features"].astype(np.float16),
        "labels": np.eye(3, dtype=np.uint8)[np.arange(24) % 3],
    }
    return [
        Kind("features (npy)", separate, _features_reader("features.npy"), 40),
        Kind(
            "features (safetensors)",
            {"f.safetensors": packed_arrays(columns, names)},
            _features_reader("f.safetensors"),
            60,
        ),
        Kind(
            "attributes (safetensors)",
            {"f.safetensors": packed_arrays(halves, names)},
            _features_reader("f.safetensors"),
            30,
        ),
        Kind("features (parquet)", {"f.parquet": _parquet(columns, names)}, _features_reader("f.parquet"), 20),
    ]


def _saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _parquet(columns: Mapping[str, Any], names: Mapping[str, str]) -> bytes:
    pyarrow, parquet = require("pyarrow", "data", "soak"), require("pyarrow.parquet", "data", "soak")
    table = pyarrow.table({name: column.tolist() for name, column in columns.items()}).replace_schema_metadata(names)
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def _features_reader(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        data, features = load_feature_data(folder / name)
        count = len(features.x)
        assert len(data) == count == len(data.labels) == len(data.split) == len(set(data.ids))
        assert features.x.dtype.kind == "f"
        assert bool(np.isfinite(features.x).all())
        assert set(np.unique(data.split)) <= {0, 1, 2}
        if not data.multi_label:
            assert count == 0 or 0 <= data.labels.min() <= data.labels.max() < len(data.classes)
        for attribute in data.attributes.values():
            assert count == 0 or attribute.codes.max() < len(attribute.values)

    return read


# Images -----------------------------------------------------------------------------------------------------


def _picture(size: int = 24) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)).resize((size, size))


def _images() -> list[Kind]:
    rgb = _picture()
    tags = Image.Exif()
    tags[0x0112] = 6
    deep = Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24))
    real = Image.fromarray(np.linspace(0, 1, 576, dtype=np.float32).reshape(24, 24))
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "png": (rgb, {}),
        "rgba.png": (rgb.convert("RGBA"), {}),
        "deep.png": (deep, {}),
        "palette.png": (rgb.convert("P"), {"transparency": 3}),
        "jpg": (rgb, {"exif": tags}),
        "webp": (rgb, {}),
        "gif": (rgb.convert("P"), {"save_all": True, "append_images": [rgb.convert("P")]}),
        "bmp": (rgb, {}),
        "tif": (real, {}),
        "packed.tif": (rgb, {"compression": "tiff_lzw"}),
        "ppm": (rgb, {}),
        "jp2": (rgb, {}),
        "avif": (rgb, {}),
    }
    kinds = []
    for name, (picture, how) in made.items():
        file = io.BytesIO()
        try:
            picture.save(file, Image.registered_extensions()["." + name.rpartition(".")[2]], **how)
        except (KeyError, OSError):  # a format that this Pillow was built without
            continue
        kinds.append(Kind(f"image ({name})", {f"x.{name}": file.getvalue()}, _image_reader(f"x.{name}"), 20))
    return kinds


def _image_reader(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        image = read_image(folder / name)
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= MAX_PIXELS

    return read


def _image_sets() -> list[Kind]:
    file = io.BytesIO()
    _picture(8).save(file, "PNG")
    pictures = {f"images/{name}/{n}.png": file.getvalue() for name in ("ant", "bee") for n in range(3)}
    text = io.StringIO()
    rows = [[name, name.split("/")[1], "ab"[n % 2], ("train", "val", "test")[n % 3]] for n, name in enumerate(pictures)]
    csv.writer(text).writerows([["image", "label", "studio", "split"], *rows])
    table = {**pictures, "table.csv": text.getvalue().encode()}
    return [
        Kind("images (folder)", pictures, _set_reader("folder:", "images"), 3, writes=True),
        Kind("images (csv)", table, _set_reader("csv:", "table.csv"), 6, targets=("table.csv",), writes=True),
    ]


def _set_reader(kind: str, name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        data = load_data(f"{kind}{folder / name}", cache_dir=folder / "cache", progress=False)
        assert len(data) == len(data.labels) == len(data.split) == len(data.ids)
        assert data.open_image(0).mode == "RGB"

    return read


# Texts ------------------------------------------------------------------------------------------------------


def _texts(work: Path) -> list[Kind]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {
        "<|endoftext|>": 0,
        **{letter: n + 1 for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
    }
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(work / "tokenizer.json"))
    (work / "source").mkdir()
    for number in range(30):
        (work / "source" / f"{number}.txt").write_text(f"{number} the cat sees a red dog, and hears it\n" * 2)
    tokenize([work / "source"], work / "tokens", tokenizer=str(work / "tokenizer.json"), val=0.2, test=0.2)
    tokenize([work / "source"], work / "bytes", val=0.2, test=0.2)
    lines = "".join(json.dumps({"text": f"text {n}", "other": n}) + "\n" for n in range(5))
    table = _parquet({"text": np.array([f"text {n}" for n in range(5)])}, {})
    return [
        Kind("tokens (bytes)", tree(work / "bytes"), _read_tokens, 30),
        Kind("tokens (tokenizer)", tree(work / "tokens"), _read_tokens, 4),
        Kind(
            "documents (jsonl)", {"x.jsonl": lines.encode()}, lambda folder: list(documents_of(folder / "x.jsonl")), 30
        ),
        Kind("documents (parquet)", {"x.parquet": table}, lambda folder: list(documents_of(folder / "x.parquet")), 10),
    ]


def _read_tokens(folder: Path) -> None:
    text = open_text(folder, context=8)
    for row in (0, len(text) - 1):
        window = text.window(row)
        assert 2 <= len(window) <= 9
        assert 0 <= window.min() <= window.max() < text.tokenizer.vocabulary
    _ = text.describe(), text.bits_per_byte(1.0, "val"), text.tokenizer.decode(text.window(0).tolist())


# Official files ---------------------------------------------------------------------------------------------


def _official() -> list[Kind]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (3, 4, 4)).astype(np.uint8)
    idx = bytes((0, 0, 8, 3)) + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes()
    content = {"data": rng.integers(0, 255, (2, 3072)).astype(np.uint8), "fine_labels": [0, 1], "names": ["a", "b"]}
    pickled = pickle.dumps(content, protocol=2)
    harmful = pickle.dumps(_Harmful(), protocol=2)
    return [
        Kind(
            "idx", {"images-idx3-ubyte": idx}, lambda folder: read_idx(folder / "images-idx3-ubyte", dimensions=3), 20
        ),
        Kind(
            "cifar",
            {"train": pickled, "harmful": harmful},
            lambda folder: read_cifar(folder / "train"),
            40,
            targets=("train",),
        ),
    ]


class _Harmful:
    """What the reader of CIFAR's pickles must refuse: a call that makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch executed",)


# Caches -----------------------------------------------------------------------------------------------------


def _caches(work: Path) -> list[Kind]:
    content = b"the content" * 20

    def write(folder: Path) -> None:
        (folder / "x.bin").write_bytes(content)

    sealed_folder(work / "sealed" / "key", write, who="soak")

    def read(folder: Path) -> None:
        found, _ = sealed_folder(folder / "key", write, who="soak")
        if (folder / "key" / "manifest.json").read_bytes() == manifest:
            assert (found / "x.bin").read_bytes() == content

    manifest = (work / "sealed" / "key" / "manifest.json").read_bytes()
    (work / "rows").mkdir()
    rows = np.arange(60, dtype=np.float16)
    (work / "rows" / "x.bin").write_bytes(rows.tobytes())
    (work / "rows" / "y.bin").write_bytes(rows.tobytes())
    write_json(work / "rows" / "capture.json", {"format": 1, "contexts": 5})

    def read_rows(folder: Path) -> None:
        store = _Store(folder, 3, 3, 4)
        if done := store.done():
            found = store.open(np.arange(done))
            assert found.rows(np.arange(len(found)))[0].shape == (4 * done, 3)

    return [
        Kind("sealed folder", tree(work / "sealed", (".lock",)), read, 8, writes=True),
        Kind("captured activations", tree(work / "rows"), read_rows, 40),
    ]


# Models -----------------------------------------------------------------------------------------------------


def _models() -> list[Kind]:
    landed = FIXTURES / "landed"
    weights = packed_arrays({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)})
    return [
        Kind("saved model", tree(landed / "saved", ("logits.json",)), _read_model, 1),
        Kind("converted model", tree(landed / "converted", ("logits.json",)), _read_model, 1),
        Kind(
            "weights of a backbone",
            {"w.safetensors": weights},
            lambda folder: _read_weights(folder / "w.safetensors"),
            30,
        ),
    ]


def _read_model(folder: Path) -> None:
    model, _ = load(folder, device="cpu")
    assert isinstance(model, torch.nn.Module)


# What longer jobs write -------------------------------------------------------------------------------------


def job_kinds(work: Path) -> list[Kind]:
    """Samples that take jobs of some seconds: audits, comparisons, a sweep, a decomposition; for a full run."""
    made: dict[str, Any] = {"batch_size": 16, "epochs": 2, "progress": False}
    attributes = f"features:{FIXTURES / 'runs' / 'attributes.safetensors'}"
    classes = f"features:{FIXTURES / 'runs' / 'classes.safetensors'}"
    job = train(classes, "CPMuMoE-r4-e4", seeds=2, out=str(work / "job"), **made)
    run = train(attributes, "CPMuMoE-r4-e4", out=str(work / "run"), **made).runs[0]
    job.stability().save(work / "stability.json")
    job.runs[0].shift("val").save(work / "shift.json")
    run.audit("bee").save(work / "audit.json")
    run.fairness("bee", "cat", resamples=20).save(work / "fairness.json")
    run.rewrite("bee", "cat", 1, resamples=20).report.save(work / "rewriting.json")
    records: tuple[tuple[str, type[Record]], ...] = (
        ("stability", Stability),
        ("shift", Shift),
        ("audit", RunAudit),
        ("fairness", FairnessComparison),
        ("rewriting", RewritingReport),
    )
    found = [
        Kind(f"record ({name})", {"x.json": (work / f"{name}.json").read_bytes()}, _record_reader(kind), 10)
        for name, kind in records
    ]
    sizes: dict[str, Any] = {"heads": ["CPMuMoE-r2"], "experts": (2, 4), "gates": ["entmax15"], "seeds": 1}
    sweep(data=classes, out=work / "sweep", progress=False, epochs=1, batch_size=16, **sizes)
    cells = {name: content for name, content in tree(work / "sweep").items() if name.endswith("cell.json")}
    return [*found, Kind("cells of a sweep", cells, _read_cells, 10), *_decomposition(work)]


def _record_reader(kind: type[Record]) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        found = kind.load(folder / "x.json")
        _ = found.rows(), found.to_dict(), found.headline(), repr(found)

    return read


def _read_cells(folder: Path) -> None:
    job = _SweepJob(folder, TrainConfig(), "test", 1, False, {})
    for cell in job.finished():
        _ = job.point(cell)


def _decomposition(work: Path) -> list[Kind]:
    language = _language()
    words = "the cat sees a red dog and hears an old one "
    documents = [Document(f"d{n}", words * 6 + str(n), "x", (), ("train", "val", "test")[n % 3]) for n in range(30)]
    sizes: dict[str, Any] = {"experts": 8, "rank": 4, "k": 2, "tokens": 640, "context": 32, "val_contexts": 8}
    given: dict[str, Any] = {"cache_dir": work / "cache", "progress": False}
    made = decompose(language, 1, "cp-linear", text=documents, lr=(1e-3,), out=work / "dec", **sizes, **given)
    made.evaluate(8, jacobians=0, twin=False)
    made.analyze(8)
    made.undo()
    files = {name: content for name, content in tree(work / "dec").items() if not name.startswith("rates/")}

    def read(folder: Path) -> None:
        found = open_decomposition(folder, language=language, device="cpu", **given)
        _ = found.settings, found.fitted, found.replacement, found.study().rows(), repr(found)

    return [Kind("decomposition", files, read, 4)]


def _language() -> LanguageModel:
    """A tiny Llama with a tokenizer of bytes."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<s>": 0, **{letter: place + 1 for place, letter in enumerate(letters)}}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer: Any = transformers.PreTrainedTokenizerFast
    fast = tokenizer(tokenizer_object=made, bos_token="<s>", eos_token="<s>")
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    config = transformers.LlamaConfig(vocab_size=260, num_key_value_heads=1, max_position_embeddings=128, **sizes)
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(config)
    return LanguageModel("tiny", model.eval(), HubTokenizer(fast))
