"""Releases are swapped while requests run: none fails, none mixes two releases, sessions go on.

Two catalogues that share no track id, so that an answer's items tell by which release they were named.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from segue.release import MANIFEST, Release, open_release
from tests_support import other_catalogue

StartService = Callable[..., Any]
