"""`python -m segue` is the command `segue`."""

import os
import sys
from pathlib import Path

# `python -m` puts the current folder first on the path. A folder or file there that is named `training`, `service` or
# `index` would be imported instead of Segue's package.
_IMPORTED_FROM = str(Path(__file__).parents[1])
if not sys.flags.safe_path and sys.path and sys.path[0] in {"", os.getcwd()} and os.getcwd() != _IMPORTED_FROM:  # noqa: PTH109 (the string on the path)
    del sys.path[0]

from segue.cli import main  # noqa: E402 (after the path is set)

sys.exit(main())
