"""Text from outside (ids, titles, file names) as it may be shown on a terminal.

Control characters act on a terminal, and bidirectional controls make a line read differently from what it holds
(https://www.unicode.org/reports/tr36/, 2014). Both are shown as escapes. Marks of direction (U+200E, U+200F) are a part
of ordinary titles and stay.
"""

import re
from typing import Final

# Tabs and line breaks stay: tables and messages treat them as blanks.
ACTIVE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    r"""The text with `\x9b` and the like in place of characters that act on a terminal."""
    return ACTIVE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
