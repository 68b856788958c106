"""The operator walkthrough of docs/operate/deploy.md, command by command, as an operator would type it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.sessions.embedded_redis import redis_server_binary
from tests.faults.servers import free_port

MANUAL = Path(__file__).parents[2] / "docs" / "operate" / "deploy.md"


def test_the_operators_walk(releases_dir: Path, tmp_path: Path) -> None:
    if not MANUAL.exists():
        pytest.skip("the documents are not part of the wheel")
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    walk = MANUAL.read_text(encoding="utf-8").partition("\n## Operator walkthrough\n")[2].partition("\n## ")[0]
    steps = re.findall(r"\*\*([\w ]+)\*\*:.*?```bash\n(.*?)```", walk, re.DOTALL)
    assert [name for name, _ in steps] == [
        "Deploy",
        "Check",
        "Swap and roll back",
        "Redis outage",
        "Rotate keys",
        "Erase a session",
        "Stop",
    ]
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "redis-server").symlink_to(redis_server_binary())
    (commands / "segue").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m segue "$@"\n')
    (commands / "segue").chmod(0o755)
    script = "".join(f"echo '# {name}'\n{lines}\n" for name, lines in steps)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SEGUE_")}
    environment |= {
        "PATH": f"{commands}:{environment['PATH']}",
        "PORT": str(free_port()),
        "REDIS_PORT": str(free_port()),
        "no_proxy": "127.0.0.1",
    }
    with subprocess.Popen(
        [
            "bash",
            "-euo",
            "pipefail",
            "-c",
            f"trap 'kill $(jobs -p) $(cat redis/pid) 2>/dev/null || true' EXIT\n{script}",
        ],
        cwd=releases_dir.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.terminate()
            said, _ = process.communicate()
    log = releases_dir.parent / "service.log"
    assert process.returncode == 0, said + (log.read_text() if log.exists() else "")
    assert said.count("# ") >= len(steps)
