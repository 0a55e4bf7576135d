"""Packages made up by a test, and an npm that serves them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mumoe.data.npm import Package


def tarball(path: Path, files: dict[str, Any]) -> Package:
    """Write a package and return its pinned description."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return Package(f"@made-up/{path.name.split('-')[2]}", "1.0.0", f"sha512-{digest}")


def serve(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an npm first on PATH that copies packages out of a folder and notes every call in its file ``calls``."""
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        f"#!{sys.executable}\nimport pathlib, shutil, sys\n"
        f"served = pathlib.Path({str(served)!r})\n"
        "assert sys.argv[1] == 'pack' and '--ignore-scripts' in sys.argv\n"
        "name = sys.argv[-1].lstrip('@').replace('/', '-').replace('@', '-') + '.tgz'\n"
        "(served / 'calls').open('a').write(name + ' ')\n"
        "if not (served / name).exists():\n"
        "    sys.exit('npm error code ENOTFOUND\\nnpm error network no such host')\n"
        "shutil.copy(served / name, '.')\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
