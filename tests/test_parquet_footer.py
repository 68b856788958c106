"""A footer that asks for more than it holds is refused before Polars takes memory for it."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from segue.safe_files import DamagedFile, check_footer


def with_footer(path: Path, footer: bytes) -> Path:
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return path


# Field 1 (version) is an i32 of 1; field 2 (schema) is a list of structs.
VERSION, SCHEMA_OF = b"\x15\x02", b"\x19\xfc"


@pytest.mark.parametrize("rows", [0, 1, 1000])
@pytest.mark.parametrize("groups", [1, 100])
def test_what_polars_writes_is_let_through(tmp_path: Path, rows: int, groups: int) -> None:
    frame = pl.DataFrame(
        {
            "text": [None if row % 3 else f"é{row}" for row in range(rows)],
            "flag": [row % 2 == 0 for row in range(rows)],
            "lists": [[float(row)] * (row % 4) for row in range(rows)],
        },
        schema={"text": pl.String, "flag": pl.Boolean, "lists": pl.List(pl.Float64)},
    ).with_columns(inner=pl.struct("text", "flag"), at=pl.lit(None, dtype=pl.Datetime("ms", "UTC")))
    frame.write_parquet(tmp_path / "f.parquet", row_group_size=max(1, rows // groups), statistics="full")
    check_footer(tmp_path / "f.parquet")


@pytest.mark.parametrize(
    ("footer", "message"),
    [
        (VERSION + SCHEMA_OF + b"\xff\xff\xff\xff\x0f", "4,294,967,295 elements in 0 bytes"),
        (VERSION + SCHEMA_OF + b"\x05" + b"\0" * 4, "5 elements in 4 bytes"),
        (VERSION + b"\x1b\xff\x01\x55", "255 elements"),  # a map
        (VERSION + b"\x18\x7f", "ends within a value"),  # a text
        (VERSION + b"\x16" + b"\xff" * 11, "does not end"),
        (VERSION, "ends within a value"),
        (b"\x1d", "unknown type 13"),
        (b"\x1c" * 100, "nested too deeply"),
    ],
)
def test_a_footer_that_leads_out_of_itself_is_refused(tmp_path: Path, footer: bytes, message: str) -> None:
    with pytest.raises(DamagedFile, match=message):
        check_footer(with_footer(tmp_path / "f.parquet", footer))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 2, b"nonsense that is longer", b"\xff" * 4 + b"PAR1"])
def test_what_is_no_parquet_is_left_to_polars(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.parquet").write_bytes(content)
    check_footer(tmp_path / "f.parquet")


def test_polars_itself_would_end_the_process(tmp_path: Path) -> None:
    """Why all this is done. Once it raises instead, segue.safe_files has had its day."""
    path = with_footer(tmp_path / "f.parquet", VERSION + SCHEMA_OF + b"\xff\xff\xff\xff\x07")
    program = (
        "import polars as pl, resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32));"
        "pl.scan_parquet(sys.argv[1]).collect_schema()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=False)
    assert done.returncode < 0, done.stderr
