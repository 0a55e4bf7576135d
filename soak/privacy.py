"""What leaves the machine, and what is read from files of others: paths, decompression bombs, files elsewhere."""

from __future__ import annotations

import base64
import csv
import functools
import gzip
import io
import os
import platform
import random
import re
import string
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from mumoe.dashboard.app import static_files
from mumoe.data import load_data
from mumoe.data.archives import MOST_BYTES
from mumoe.data.npm import read_members
from mumoe.data.packed import read_idx
from mumoe.data.tokenizing import documents_of, open_tokenizer
from mumoe.errors import JobError, UserError, require
from mumoe.models.feature_files import load_feature_data
from soak.part import Found, Given, Part

pyarrow: Any = require("pyarrow", "data", "soak")
parquet: Any = require("pyarrow.parquet", "data", "soak")

ROOT = Path(__file__).parent.parent

NEEDED = {"config.toml", "run.json", "summary.json", "settings.json", "decomposition.json"}
"""Files of runs, jobs and decompositions that say where data, weights and model are: they resume from there."""

MOST_SECONDS = 60.0
"""Within which a bomb must be refused, on a busy machine."""


# Paths in what is sent ------------------------------------------------------------------------------------


def leaks(given: Given, found: Found) -> None:
    """Make everything in a folder with a telltale name, for a user with one, and look for it in all that was made."""
    telltale = "".join(random.Random(given.seed).choices(string.ascii_lowercase, k=12))
    here = given.work / f"{telltale}-place"
    for name in ("home", "tmp"):
        (here / name).mkdir(parents=True)
    told = {"HOME": here / "home", "TMPDIR": here / "tmp", "USER": telltale, "LOGNAME": telltale, "USERNAME": telltale}
    python = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, **{name: str(value) for name, value in told.items()}, "PYTHONPATH": python}
    command = [sys.executable, "-m", "soak.exporting", *(["--quick"] if given.quick else [])]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        found.faults.append(f"making what is sent failed: {done.stderr.strip().splitlines()[-1][:300]}")
        return
    words = [telltale.encode()]
    if len(platform.node()) >= 6:
        words.append(platform.node().encode())
    else:
        found.skipped.append("the name of this machine: it is too short to be searched for")
    known = 0
    for path in sorted((here / "sent").rglob("*")):
        if not path.is_file():
            continue
        found.count("files that are sent")
        found.count("bytes of them", path.stat().st_size)
        if hits := holding(path, words):
            if path.name in NEEDED:
                known += 1
            else:
                found.faults.append(f"{path.relative_to(here / 'sent')}: {hits[0]}")
    found.count("of them run folders' own files, which know where their data are", known)
    _check_search(given.work / "search", words[0], found)
    asked = here / "mine" / "asked"
    if asked.is_dir() and not any(holding(path, words) for path in asked.rglob("*.html")):
        found.faults.append("a report with local_paths=True has no path")
    external(here / "sent", found)


def holding(path: Path, words: list[bytes]) -> list[str]:
    """Where a file holds one of the words: also in archives, tables, pictures and compressed text."""
    found = []
    for label, content in contents(path.name, path.read_bytes()):
        small = content.lower()
        for word in words:
            for kind, form in (("", word), (" in UTF-16", word.decode().encode("utf-16-le"))):
                if (place := small.find(form.lower())) >= 0:
                    around = content[max(place - 60, 0) : place + 60]
                    found.append(f"{label}{kind}: ...{around.decode('utf-8', 'replace')!r}...")
    return found


def contents(name: str, data: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """The bytes of a file, and of everything that is packed into it, by a label."""
    yield name, data
    if depth > 3:
        return
    for inner, content in _unpacked(data):
        yield from contents(f"{name}/{inner}", content, depth + 1)


def _unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    if data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                yield "name of a member", entry.filename.encode()
                yield entry.filename, archive.read(entry)
    elif data.startswith(b"\x1f\x8b"):
        yield "unpacked", gzip.decompress(data)
    elif data.startswith(b"PAR1"):
        table = parquet.read_table(io.BytesIO(data))
        yield "metadata", repr(table.schema.metadata).encode()
        for column in table.column_names:
            yield column, "\n".join(map(str, table.column(column).unique().to_pylist())).encode()
    elif data.startswith(b"%PDF"):
        for number, part in enumerate(re.findall(rb"stream\r?\n(.*?)endstream", data, re.DOTALL)):
            try:
                yield f"stream {number}", zlib.decompress(part)
            except zlib.error:
                continue
    elif data.startswith((b"\x89PNG", b"\xff\xd8\xff")) or data[8:12] == b"WEBP":
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            texts = [f"{key}={value!r}" for key, value in image.info.items()]
            yield "metadata", "\n".join([*texts, repr(dict(image.getexif()))]).encode()
    elif b";base64," in data:
        for number, part in enumerate(re.findall(rb";base64,([A-Za-z0-9+/=]+)", data)):
            yield f"inline file {number}", base64.b64decode(part + b"==")


def _check_search(folder: Path, word: bytes, found: Found) -> None:
    """Hide the word in each kind of file, to see that it is found there."""
    folder.mkdir()
    text = word.decode()
    note = PngImagePlugin.PngInfo()
    note.add_text("made in", f"/home/{text}", zip=True)
    Image.new("RGB", (4, 4)).save(folder / "a.png", pnginfo=note)
    (folder / "a.gz").write_bytes(gzip.compress(word))
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(word))
    parquet.write_table(pyarrow.table({"a": [text] * 10}), folder / "a.parquet", compression="zstd")
    (folder / "a.html").write_bytes(b"<img src='data:image/png;base64," + base64.b64encode(word) + b"'>")
    for path in sorted(folder.iterdir()):
        found.count("hidden words that the search must find")
        if not holding(path, [word]):
            found.faults.append(f"the search does not find a word in {path.suffix}")


FETCHED = re.compile(
    r"""<(?:script|img|link|iframe|source|video|audio|object|embed)\b[^>]*?\b(?:src|href|data)\s*=\s*["']?\s*(?:https?:)?//"""
    r"""|url\(\s*["']?(?:https?:)?//|@import\s+["'](?:https?:)?//|\b(?:fetch|import)\(\s*["'`](?:https?:)?//"""
    r"""|\bfrom\s+["'](?:https?:)?//|XMLHttpRequest|WebSocket\(|EventSource\(|sendBeacon\(""",
    re.IGNORECASE,
)
"""What makes a browser ask another machine, without a click."""


def external(folder: Path, found: Found) -> None:
    """No page of a report, of the demo or of the dashboard makes the browser fetch from elsewhere."""
    static = ROOT / "src" / "mumoe" / "dashboard" / "static"
    pages = [path for place in (folder, static) for path in place.rglob("*") if path.suffix in (".html", ".css", ".js")]
    for path in pages:
        found.count("pages, styles and scripts that fetch nothing from elsewhere")
        if hit := FETCHED.search(path.read_text("utf-8")):
            found.faults.append(f"{path.name}: fetches from elsewhere: {hit[0][:100]!r}")
    for name in static_files().values():
        if not (static / name).resolve().is_relative_to(static.resolve()):
            found.faults.append(f"the dashboard serves {name}, which is elsewhere")


# Bombs ----------------------------------------------------------------------------------------------------


def packed_zeros(size: int) -> bytes:
    """A gzip file that expands to zeros, as one part that is repeated."""
    part = 1 << 26
    return gzip.compress(bytes(part), 9) * -(-size // part)


def bombs(given: Given, found: Found) -> None:
    """Small files that expand to more than the limit are refused by every reader of compressed files, in one line."""
    folder = given.work / "bombs"
    folder.mkdir()
    zeros = packed_zeros(2 * MOST_BYTES)
    (folder / "train-images.gz").write_bytes(zeros)
    _refused(found, "gzip of images", lambda: read_idx(folder / "train-images", dimensions=3), "expands to at most")
    with tarfile.open(folder / "small.tgz", "w:gz"):
        pass
    header = tarfile.TarInfo("package/icons.json")
    header.size = 2 * MOST_BYTES
    (folder / "bomb.tgz").write_bytes(gzip.compress(header.tobuf()) + zeros)
    member = ["package/icons.json"]
    _refused(found, "tarball", lambda: read_members(folder / "bomb.tgz", member, "icons"), "expands to at most")
    for size, label in ((60_000, "an image that declares too many pixels"), (16_000, "an image of zeros")):
        images = folder / f"images-{size}"
        for name in ("a", "b"):
            (images / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (len(name), 9, 9)).save(images / name / "good.png")
        (images / "a" / "bomb.png").write_bytes(png_of_zeros(size))
        _refused(found, label, functools.partial(_load, f"folder:{images}", strict=True), "pixels")
    if not given.quick:
        tables(folder, found)
        sets(folder, zeros, found)


def png_of_zeros(side: int) -> bytes:
    """A PNG of few bytes that decodes to side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    packer = zlib.compressobj(9)
    rows = packer.compress(bytes(1 << 20)) + packer.flush()
    head = side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tables(folder: Path, found: Found) -> None:
    """Parquet files that repeat one value."""
    many = MOST_BYTES // 4 + 1_000_000
    rows = pyarrow.ListArray.from_arrays(np.arange(0, many, 1_000_000, dtype=np.int32), np.zeros(many, np.float32))
    table = pyarrow.table({"features": rows, "labels": np.zeros(len(rows), np.int64)})
    parquet.write_table(table, folder / "features.parquet")
    _refused(found, "parquet of features", lambda: load_feature_data(folder / "features.parquet"), "expands to at most")
    text = pyarrow.table({"text": ["a" * (1 << 20)] * (2 * MOST_BYTES >> 20)})
    parquet.write_table(text, folder / "text.parquet")
    texts = folder / "text.parquet"
    _refused(found, "parquet of texts", lambda: sum(map(len, documents_of(texts))), "expands to at most")


def sets(folder: Path, zeros: bytes, found: Found) -> None:
    """Folders that `datasets` would unpack."""
    places = {name: folder / f"hf-{name}" for name in ("zip", "jsonl.gz", "tar.gz", "parquet")}
    for place in places.values():
        place.mkdir()
    with zipfile.ZipFile(places["zip"] / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(2 * MOST_BYTES >> 20):
            archive.writestr(f"a/{number}.png", bytes(1 << 20))
    (places["jsonl.gz"] / "train.jsonl.gz").write_bytes(zeros)
    (places["tar.gz"] / "train.tar.gz").write_bytes(zeros)
    (folder / "features.parquet").rename(places["parquet"] / "train.parquet")
    for name, place in places.items():
        _refused(found, f"set with a {name}", functools.partial(_load, f"hf:{place}"), "expands to at most")


def _load(name: str, **options: Any) -> Any:
    return load_data(name, progress=False, **options)


def _refused(found: Found, label: str, work: Callable[[], Any], words: str) -> None:
    """Count a try that has to end in one line with these words."""
    found.count("files that expand to too much")
    begun = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except (UserError, JobError) as error:
        text = str(error)
        if words not in text or "\n" in text:
            found.faults.append(f"{label}: refused with {text[:200]!r}")
    except Exception as error:
        found.faults.append(f"{label}: {type(error).__name__}: {error}"[:300])
    else:
        found.faults.append(f"{label}: was read")
    if time.monotonic() - begun > MOST_SECONDS:
        found.faults.append(f"{label}: refused after {time.monotonic() - begun:.0f} s")


# Files elsewhere ------------------------------------------------------------------------------------------


def outside(given: Given, found: Found) -> None:
    """Tables, folders and sets that name files elsewhere are refused, unless that is allowed."""
    place, private = given.work / "outside", given.work / "private"
    for folder in (place / "set" / "pictures", private / "cat"):
        folder.mkdir(parents=True)
    for n in range(12):
        Image.new("RGB", (6, 6), (20 * n, 5, 9)).save(place / "set" / "pictures" / f"{n}.png")
        Image.new("RGB", (6, 6), (20 * n, 90, 9)).save(private / "cat" / f"{n}.png")
    inside = [f"pictures/{n}.png" for n in range(12)]
    (place / "set" / "link.png").symlink_to(private / "cat" / "3.png")
    (place / "set" / "linked").symlink_to(private / "cat")
    (place / "set" / "own.png").symlink_to(place / "set" / "pictures" / "0.png")
    rows = {
        "an absolute path": str(private / "cat" / "1.png"),
        "a path with ..": "../../private/cat/1.png",
        "a path with .. in the middle": "pictures/../../../private/cat/1.png",
        "a link to a file": "link.png",
        "a file in a linked folder": "linked/2.png",
    }
    for label, path in rows.items():
        table = _table(place / "set" / "table.csv", [*inside, path])
        _elsewhere(found, f"CSV with {label}", f"csv:{table}", 13)
    own = _table(place / "set" / "table.csv", [*inside[1:], str(place / "set" / inside[0])])
    _accepted(found, "CSV with an absolute path inside", f"csv:{own}", 12)
    own = _table(place / "set" / "table.csv", [*inside[1:], "own.png"])
    _accepted(found, "CSV with a link inside", f"csv:{own}", 12)
    _folders(given.work / "folders", private, found)
    _names(given.work / "names", found)
    if not given.quick:
        _hub(given.work, private, found)


def _table(path: Path, images: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        writer.writerows([image, ("cat", "dog")[n % 2]] for n, image in enumerate(images))
    return path


def _elsewhere(found: Found, label: str, name: str, count: int) -> None:
    found.count("sets that name files elsewhere")
    try:
        load_data(name, progress=False)
    except UserError as error:
        if "allow_outside=true" not in str(error) or "\n" in str(error):
            found.faults.append(f"{label}: refused with {str(error)[:200]!r}")
    else:
        found.faults.append(f"{label}: was read")
    _accepted(found, f"{label}, allowed", name, count, allow_outside=True)


def _accepted(found: Found, label: str, name: str, count: int, **options: Any) -> None:
    found.count("sets that name files inside, or that are allowed")
    try:
        data = load_data(name, progress=False, **options)
    except (UserError, JobError) as error:
        found.faults.append(f"{label}: {error}"[:300])
        return
    if len(data) != count:
        found.faults.append(f"{label}: {len(data)} images instead of {count}: {data.problems[:2]}")


def _folders(place: Path, private: Path, found: Found) -> None:
    """Folders of images with links."""
    for name in ("cat", "dog"):
        (place / "file" / name).mkdir(parents=True)
        for n in range(6):
            Image.new("RGB", (6, 6), (9, 20 * n, len(name))).save(place / "file" / name / f"{n}.png")
    (place / "file" / "cat" / "link.png").symlink_to(private / "cat" / "5.png")
    _elsewhere(found, "folder with a link to a file", f"folder:{place / 'file'}", 13)
    (place / "file" / "cat" / "link.png").unlink()
    (place / "file" / "owl").symlink_to(private / "cat")
    _elsewhere(found, "folder with a linked class", f"folder:{place / 'file'}", 24)
    (place / "file" / "owl").unlink()
    (place / "link").symlink_to(place / "file")
    _accepted(found, "folder that is a link itself", f"folder:{place / 'link'}", 12)


def _names(place: Path, found: Found) -> None:
    """Files that name other files: tokens and their tokenizer."""
    place.mkdir()
    for name in ("../secret.json", "/etc/passwd", "..", "a/b", "..\\secret.json"):
        found.count("names of files in files")
        try:
            open_tokenizer(name, place)
        except UserError:
            continue
        found.faults.append(f"a folder of tokens names {name}, which was read")


def _hub(work: Path, private: Path, found: Found) -> None:
    """Sets of `datasets`: paths in cells, and members of archives that would be written elsewhere."""
    datasets: Any = require("datasets", "data", "soak")
    place = work / "hf"
    features = datasets.Features(
        {"image": datasets.Features({"bytes": datasets.Value("binary"), "path": datasets.Value("string")})}
        | {"label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    content = (private / "cat" / "0.png").read_bytes()
    cells: list[dict[str, Any]] = [{"bytes": content + bytes([n]), "path": None} for n in range(12)]
    cells.append({"bytes": None, "path": str(private / "cat" / "7.png")})
    table = datasets.Dataset.from_dict({"image": cells, "label": [n % 2 for n in range(13)]}, features=features)
    table.cast_column("image", datasets.Image(decode=False)).save_to_disk(str(place))
    _elsewhere(found, "set with a path elsewhere in a cell", f"hf:{place}", 13)
    archived = work / "archived"
    archived.mkdir()
    with zipfile.ZipFile(archived / "train.zip", "w") as archive:
        for n in range(12):
            picture = io.BytesIO()
            Image.new("RGB", (6, 6), (20 * n, 7, 7)).save(picture, "PNG")
            archive.writestr(f"{('cat', 'dog')[n % 2]}/{n}.png", picture.getvalue())
        archive.writestr("../../../../escaped-from-the-archive.png", content)
    found.count("sets that name files elsewhere")
    try:
        load_data(f"hf:{archived}", progress=False, cache_dir=work / "cache")
    except (UserError, JobError):
        found.count("archives with a member elsewhere that were refused")
    if escaped := [path for path in work.parent.rglob("escaped-from-the-archive.png") if "extracted" not in path.parts]:
        found.faults.append(f"an archive wrote {escaped[0]}")


# All of it ------------------------------------------------------------------------------------------------


def run(given: Given) -> Found:
    """Make what is sent and search it; then read what others could send."""
    found = Found()
    os.environ["MUMOE_CACHE"] = str(given.work / "cache")
    try:
        leaks(given, found)
        bombs(given, found)
        outside(given, found)
    finally:
        del os.environ["MUMOE_CACHE"]
    return found


PART = Part(
    "What people send carries no path of this machine; compressed files have a limit; sets name no file elsewhere.",
    run,
)
