"""A manifest that vouches for whatever is in its folder: what somebody who means harm would write."""

import hashlib
import json
from pathlib import Path
from typing import Any


def sealed(path: Path) -> None:
    """Have the manifest vouch for whatever is in the folder."""
    manifest = json.loads((path / "manifest.json").read_text())
    files = {}
    for file in sorted(path.iterdir()):
        if file.name != "manifest.json":
            content = file.read_bytes()
            files[file.name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path / "manifest.json").write_text(json.dumps(manifest | {"files": files, "name": named(manifest, files)}))


def named(manifest: dict[str, Any], files: dict[str, Any]) -> str:
    """What a release of these files is called."""
    hashes = [f"{name}{files[name]['sha256']}" for name in sorted(files) if not name.startswith("index.")]
    return f"{manifest['model']}-{hashlib.sha256(''.join(hashes).encode()).hexdigest()[:10]}"
