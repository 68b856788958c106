"""Files as tables: separators, headers, quotes and line breaks, JSON in all its forms, Parquet, and damaged lines."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import BadLog
from training.prepare import delimited, json_objects
from training.prepare.content import Content, PlainFile
from training.prepare.tables import LogTable, unreadable

Open = Callable[..., LogTable]
NAMES = ("user", "time", "artist", "title")


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def open_it(data: str | bytes, content: Content = "text", **options: Any) -> LogTable:
        file = tmp_path / "log"
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
        return LogTable.open(PlainFile(file, content, "the log"), **options)

    return open_it


def rows(table: LogTable) -> list[tuple[Any, ...] | None]:
    """The rows of the named columns, None for lines that cannot be divided into them."""
    complete = pl.lit(value=True) if table.complete is None else table.complete
    frame = table.frame.select(*table.schema, complete.alias("\x00c")).collect(engine="streaming")
    assert frame["\x00c"].null_count() == 0
    return [row[:-1] if row[-1] else None for row in frame.iter_rows()]


class TestSeparators:
    @pytest.mark.parametrize("separator", ["\t", ",", ";", "|"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_are_told_from_the_data(self, opened: Open, separator: str, end: str) -> None:
        lines = ["User_ID,track_id , Title", "u1,a,x", 'u2,b,"y"', "u3,c,"]
        table = opened(end.join(lines).replace(",", separator))
        assert list(table.schema) == ["user_id", "track_id", "title"]
        assert rows(table) == [("u1", "a", "x"), ("u2", "b", "y"), ("u3", "c", "")]

    def test_are_not_those_inside_fields(self, opened: Open) -> None:
        table = opened('id;"title, with | many"\n1;"a, b, c | d"\n2;x, y\n3;"e;f"\n')
        assert rows(table) == [("1", "a, b, c | d"), ("2", "x, y"), ("3", "e;f")]

    def test_are_named_by_spreadsheets(self, opened: Open) -> None:
        assert rows(opened("sep=;\na,x;b,y\n1;2\n")) == [("1", "2")]

    @pytest.mark.parametrize(
        ("text", "names", "expected"),
        [
            (",a,b\n0,x,y\n1,z,w\n", ["a", "b"], [("x", "y"), ("z", "w")]),  # pandas
            ('"a","b"\n"1","x","y"\n"2","z","w"\n', ["a", "b"], [("x", "y"), ("z", "w")]),  # R
            ("a,b,\nx,y,\nz,w,\n", ["a", "b"], [("x", "y"), ("z", "w")]),
            ("a,b\nx,y,\nz,w,\n", ["a", "b"], [("x", "y"), ("z", "w")]),
            ("a,b,\nx,y\nz,w\n", ["a", "b"], [("x", "y"), ("z", "w")]),
            ("a,,b,\nx,1,y,2\n", ["a", "b"], [("x", "y")]),
            (
                "user_id:token\ttime:float\ttags:token_seq\nu\t1.0\tx y\n",
                ["user_id", "time", "tags"],
                [("u", "1.0", "x y")],
            ),
            ("\n\na,b\n\nx,y\n\n", ["a", "b"], [("x", "y")]),
            ("only\nx\ny\n", ["only"], [("x",), ("y",)]),
        ],
    )
    def test_columns_without_a_name_are_ignored(
        self, opened: Open, text: str, names: list[str], expected: list[tuple[str, ...]]
    ) -> None:
        table = opened(text)
        assert list(table.schema) == names
        assert rows(table) == expected


class TestHeaders:
    DATA = "u1\t2009-05-04T23:08:57Z\tA\tx\nu2\t2009-05-04T23:02:00Z\tB\ty\n"

    @pytest.mark.parametrize("header", ["", "userid\ttimestamp\tartist-name\ttrack-name\n"])
    def test_may_be_absent_where_columns_are_known(self, opened: Open, header: str) -> None:
        table = opened(header + self.DATA, quoted=False, names=NAMES)
        assert list(table.schema) == list(NAMES)
        assert rows(table) == [tuple(line.split("\t")) for line in self.DATA.splitlines()]

    def test_are_not_lines_of_data_that_are_cut_short(self, opened: Open) -> None:
        assert rows(opened("cut short\n" + self.DATA, quoted=False, names=NAMES))[0] is None

    @pytest.mark.parametrize(
        "first", ["u1,a,1709287200", "u1,a,2024-03-01T10:00:00Z", "1.5,a,b", "u,03/01/2024 10:00,b"]
    )
    def test_that_are_data_are_refused(self, opened: Open, first: str) -> None:
        with pytest.raises(
            BadLog, match=r"^the log has no header: the first line has the value '.*', expected names of"
        ):
            opened(f"{first}\nu1,b,1709287300\n")

    def test_that_are_data_of_lfm_1b_are_told(self, opened: Open) -> None:
        with pytest.raises(BadLog, match="has no header and looks like LFM-1b"):
            opened("1\t7\t8\t1\t1709287200\n1\t7\t8\t2\t1709287400\n", quoted=False)

    def test_may_be_damaged(self, opened: Open) -> None:
        assert list(opened('%\rtrack_id":9,x\n').schema) == ['%\rtrack_id":9', "x"]

    def test_name_every_column_once(self, opened: Open) -> None:
        with pytest.raises(BadLog, match="the log has two columns named 'id', expected a header that names each once"):
            opened("ID,id\n1,2\n")


class TestQuotes:
    def test_hold_separators_quotes_and_line_breaks(self, opened: Open) -> None:
        text = 'id,title,n\n1,"a, ""b"" c",x\n2,"two\r\n\r\nlines, and",y\n3,plain,z\n"4","x\ny","z\nw"\n'
        table = opened(text)
        assert rows(table) == [
            ("1", 'a, "b" c', "x"),
            ("2", "two\n\nlines, and", "y"),
            ("3", "plain", "z"),
            ("4", "x\ny", "z\nw"),
        ]
        assert table.line_of([0, 1, 2, 3]) == [2, 3, 6, 7]

    def test_inside_a_field_are_text(self, opened: Open) -> None:
        assert rows(opened('id,title\n1,12" mix\n2,"12"" mix"\n3,7" and 12"\n')) == [
            ("1", '12" mix'),
            ("2", '12" mix'),
            ("3", '7" and 12"'),
        ]

    @pytest.mark.parametrize("title", ['"Heroes', '"Heroes" live', '"', '"a"b"', '"x""'])
    def test_that_do_not_end_make_one_malformed_line(self, opened: Open, title: str) -> None:
        lines = ["id,title,n", *(f"{number},t,x" for number in range(200))]
        lines[50] = f"50,{title},x"
        lines[150] = f"150,{title},x"
        found = rows(opened("\n".join(lines)))
        assert [place for place, row in enumerate(found) if row is None] == [49, 149]
        assert len(found) == 200

    def test_never_take_more_than_a_record_can_hold(self, opened: Open) -> None:
        start = '1,"' + "\n".join(["no separator"] * 100) + '",x\n2,b,y\n'
        found = rows(opened("id,title,n\n" + start))
        assert found == [None] * 100 + [("2", "b", "y")]
        found = rows(opened("id,title,n\n" + '1,"' + ("x" * 40_000 + "\n") * 3 + '",x\n2,b,y\n'))
        assert found[-1] == ("2", "b", "y")
        assert found[:-1] == [None] * 4

    def test_may_begin_records_at_the_end_of_a_block(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = [(str(number), f'a "{number}"\nb,\nc' if number % 3 else "plain") for number in range(60)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("id", "title"), *expected])
        for size in (1, 7, 40, 100, 1000):
            monkeypatch.setattr(delimited, "_BLOCK_BYTES", size)
            table = opened(text.getvalue())
            assert rows(table) == expected
            assert table.frame.select("id").head(7).collect().to_series().to_list() == [str(n) for n in range(7)]

    def test_do_not_matter_where_a_format_has_none(self, opened: Open) -> None:
        assert rows(opened('id\ttitle\n1\t"a\n2\tb"\n', quoted=False)) == [("1", '"a'), ("2", 'b"')]


def test_lines_with_another_number_of_fields_are_malformed(opened: Open) -> None:
    table = opened('id,title\n1,a\n2\n\n3,b,c\n4,"d\ne"\n5,f,\n')
    assert rows(table) == [("1", "a"), None, None, ("4", "d\ne"), None]
    assert table.line_of([1, 2, 4]) == [3, 5, 8]
    assert table.unit == "line"
    table = opened("id,title\n\n1,a\n2\n\n3,b,c\n")
    assert rows(table) == [("1", "a"), None, None]
    assert table.line_of([0, 1, 2]) == [3, 4, 6]


def _records(characters: st.SearchStrategy[str]) -> st.SearchStrategy[list[tuple[str, ...]]]:
    return st.lists(st.tuples(*[st.text(characters, max_size=12)] * 3), min_size=1)


@given(
    # Not both at once: a line inside quotes may then look like a record of its own.
    _records(st.characters(codec="utf-8", exclude_characters="\r\n"))
    | _records(st.characters(codec="utf-8", exclude_characters="\r,;|\t")),
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@settings(max_examples=60, deadline=None)
def test_what_a_csv_writer_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, ...]], separator: str, quoting: Any
) -> None:
    file = tmp_path_factory.mktemp("csv") / "log"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=separator, quoting=quoting, lineterminator="\n")
        writer.writerows([("a", "b", "c", "d"), *(("x", *record) for record in records)])
    assert rows(LogTable.open(PlainFile(file, "text", "log"))) == [("x", *record) for record in records]


class TestJsonLines:
    def test_have_mixed_types_nested_fields_and_missing_keys(self, opened: Open) -> None:
        lines = [
            {"trackId": 1, "meta": {"name": "x", "more": {"tags": ["a", {"b": 1}]}}, "ok": True},
            {"trackId": "b", "meta": None, "ok": None},
            {"trackId": 2.0, "meta": {"name": 3}, "late": "z"},
            {"trackId": 12345678901234567890, "meta": 7},
            {},
        ]
        table = opened("\n".join(map(json.dumps, lines)), "json_lines")
        assert list(table.schema) == ["trackid", "meta.name", "meta.more.tags", "ok", "late"]
        assert rows(table) == [
            ("1", "x", '["a", {"b": 1}]', "true", None),
            ("b", None, None, None, None),
            ("2", "3", None, None, "z"),
            ("12345678901234567890", None, None, None, None),
            (None,) * 5,
        ]

    def test_that_are_broken_are_malformed_alone(self, opened: Open) -> None:
        lines = ['{"a": 1}', "", "{broken", "[1]", "3", '  {"a": 2}', '{"a": 1e999}', '{"a": 3} {"a": 4}', '{"a": 5}']
        table = opened("\r\n".join(lines) + '\n{"a": "cut', "json_lines")
        assert rows(table) == [("1",), None, None, None, ("2",), None, None, ("5",), None]
        assert table.line_of([1, 4, 8]) == [3, 6, 10]
        assert table.unit == "line"

    def test_may_write_missing_numbers_as_nan(self, opened: Open) -> None:
        assert rows(opened('{"a": NaN, "b": 1}\n{"a": 2, "b": -Infinity}\n', "json_lines")) == [
            (None, "1"),
            ("2", None),
        ]

    @pytest.mark.parametrize("size", [1, 20, 64])
    def test_are_read_in_blocks(self, opened: Open, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        monkeypatch.setattr(json_objects, "_BLOCK_BYTES", size)
        text = "\n".join("{oops" if number % 10 == 5 else f'{{"n": {number}}}' for number in range(50))
        expected = [None if number % 10 == 5 else (str(number),) for number in range(50)]
        table = opened(text, "json_lines")
        assert rows(table) == expected
        assert table.frame.select("n").head(3).collect().to_series().to_list() == ["0", "1", "2"]
        assert table.frame.filter(pl.col("n") == "49").select("n").collect().height == 1

    def test_have_the_fields_of_all_parts_of_a_large_file(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(json_objects, "_SAMPLE_BYTES", 100)
        lines = ['{"a": 1}'] * 2000 + ['{"a": 1, "late": 2}'] * 2000
        assert list(opened("\n".join(lines), "json_lines").schema) == ["a", "late"]

    def test_have_no_two_names_that_differ_in_capitals(self, opened: Open) -> None:
        with pytest.raises(BadLog, match="the log has fields whose names differ in capitals alone"):
            opened('{"userId": 1}\n{"userid": 2}', "json_lines")

    @pytest.mark.parametrize("values", ["true", "[1]", '{"x": []}'])
    def test_have_no_ids_that_are_none(self, opened: Open, values: str) -> None:
        table = opened(f'{{"id": {values}}}\n{{"id": null}}', "json_lines")
        name = next(iter(table.schema))
        with pytest.raises(BadLog, match=f"^the log: field {name} holds no ids, expected text or whole numbers"):
            table.id(name)

    def test_have_ids_in_floating_point_numbers_that_are_exact(self, opened: Open) -> None:
        ids = ["1.0", "2", '"a"', '"007"', "null", "1.5", "9007199254740993.0", '"NULL"']
        table = opened("\n".join(f'{{"id": {value}}}' for value in ids), "json_lines")
        value, (fault,) = table.id("id")
        found = table.frame.select(id=value, wrong=fault.where).collect()
        assert found["id"].to_list() == ["1", "2", "a", "007", None, None, None, None]
        assert found["wrong"].to_list() == [False] * 5 + [True, True, False]

    def test_without_an_object_are_refused(self, opened: Open) -> None:
        for text in ("[1]\n[2]", "x\ny", "\n"):
            with pytest.raises(BadLog, match="the log holds no JSON object, expected one for each play"):
                opened(text, "json_lines")

    def test_are_known_by_a_first_line_that_is_an_object(self, opened: Open) -> None:
        assert rows(opened('{"a": 1}\n{broken\n{"a": 2}\n', "json")) == [("1",), None, ("2",)]


class TestJson:
    @pytest.mark.parametrize(
        "text",
        [
            '[{"a": 1, "b": {"c": "x"}}, {"a": null}]',
            '[\n  {\n    "a": 1,\n    "b": {"c": "x"}\n  },\r\n  {"a": null}\n]\n',
            '{"user": "me", "n": [1], "none": [], "plays": [{"a": 1, "b": {"c": "x"}}, {"a": NaN}], "more": {"x": 1}}',
            '{"a": 1,\n "b": {"c": "x"}}\n{"a":\n null}',
            '[{"a": 1, "b": {"c": "x"}}] [{"a": null}]',
        ],
    )
    def test_is_an_array_an_object_with_a_list_or_a_sequence(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        for size in (4, 40, 4 << 20):
            monkeypatch.setattr(json_objects, "_BLOCK_BYTES", size)
            table = opened(text, "json")
            assert list(table.schema) == ["a", "b.c"]
            assert rows(table) == [("1", "x"), (None, None)]
            assert (table.unit, table.line_of([0, 1])) == ("row", [1, 2])

    def test_may_be_one_object(self, opened: Open) -> None:
        assert rows(opened('{"a": 1, "b": [1, "x"], "c": []}', "json")) == [("1", '[1, "x"]', "[]")]

    def test_has_elements_that_are_no_objects(self, opened: Open) -> None:
        assert rows(opened('[{"a": 1}, 3, "x", [2], null]', "json")) == [("1",), None, None, None, None]

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ('[{"a": 1},\n{"a": 2', 2),
            ('[{"a": 1}\n\n{"a": 2}]', 3),
            ('[{"a": 1}]\nx', 2),
            ('[{"a": 1}, {a}]', 1),
            ("[" * 100000, 1),
            ('{"a": [{"b": 1}', 1),
            ('{"a": 1', 1),
            ('{"a" 1}', 1),
        ],
    )
    def test_that_is_broken_is_refused_with_its_line(self, opened: Open, text: str, line: int) -> None:
        with pytest.raises(BadLog, match=f"^the log is no complete JSON: it cannot be read from line {line} on$"):
            opened(text, "json")

    def test_with_two_lists_of_objects_is_refused(self, opened: Open) -> None:
        with pytest.raises(BadLog, match='the log has several lists of objects, "a", "b"; expected one'):
            opened('{"a": [{"x": 1}], "b": [{"y": 1}]}', "json")


values = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=8)


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), values | st.dictionaries(st.sampled_from("xy"), values)), min_size=1
    )
)
@settings(max_examples=60, deadline=None)
def test_json_in_all_forms_is_one_table(
    tmp_path_factory: pytest.TempPathFactory, objects: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("json")
    forms: dict[str, tuple[Content, str]] = {
        "lines": ("json_lines", "\n".join(map(json.dumps, objects))),
        "array": ("json", json.dumps(objects, indent=1, ensure_ascii=False)),
        "wrapped": ("json", json.dumps({"n": len(objects), "plays": objects})),
    }
    found = []
    for name, (content, text) in forms.items():
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        table = LogTable.open(PlainFile(folder / name, content, name))
        found.append(table.frame.select(*table.schema, valid=table.complete).collect())
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    assert len(found[0]) == len(objects)


class TestBytesThatAreNoUtf8:
    @pytest.mark.parametrize(
        ("data", "content"),
        [
            (b"id,title\n1,a\n2,caf\xe9\n", "text"),
            (b'id,title\n1,"a"\n2,"caf\xe9"\n', "text"),
            (b'id,title\n1,"a""\n2,caf\xe9\n', "text"),
            (b'{"a": 1}\n\n{"a": "\xe9"}\n', "json_lines"),
            (b'[{"a": 1},\n\n{"a": "\xe9"}]\n', "json"),
        ],
    )
    def test_are_refused_with_their_first_line(
        self, opened: Open, data: bytes, content: Content, tmp_path: Path
    ) -> None:
        with pytest.raises((BadLog, pl.exceptions.ComputeError)) as caught:
            rows(opened(data, content))
        plain = PlainFile(tmp_path / "log", content, "the log")
        told = caught.value if isinstance(caught.value, BadLog) else unreadable(plain, caught.value)
        assert re.match(r"the log, line 3: byte 0xE9 is no UTF-8: .* --encoding latin-1", str(told))

    def test_are_counted_from_the_lines_before(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_bytes(b"a\n\xff\n")
        plain = PlainFile(tmp_path / "log", "text", "the log", line_in_log=lambda line: line + 10)
        assert "line 12:" in str(unreadable(plain, pl.exceptions.ComputeError("invalid utf8")))
        assert str(unreadable(plain, pl.exceptions.ComputeError("x\ny"))) == "the log cannot be read: x"


class TestParquet:
    def test_has_rows_and_types(self, opened: Open) -> None:
        buffer = io.BytesIO()
        pl.DataFrame({" Track_ID": [1, 2], "title": ["a", None]}).write_parquet(buffer)
        table = opened(buffer.getvalue(), "parquet")
        assert table.schema == {"track_id": pl.Int64, "title": pl.String}
        assert rows(table) == [(1, "a"), (2, None)]
        assert (table.unit, table.line_of([1])) == ("row", [2])

    def test_that_is_none_is_refused(self, opened: Open) -> None:
        with pytest.raises(BadLog, match=r"^the log cannot be read as Parquet: "):
            opened(b"PAR1 and no more", "parquet")


def test_missing_columns_are_told_with_those_found(opened: Open) -> None:
    table = opened("a,b\n1,2\n")
    assert table.one_of(["x", "b"]) == "b"
    table.require("a", "b")
    with pytest.raises(BadLog, match=r"^the log has the columns a, b; expected a, c; missing are c$"):
        table.require("a", "c")
    with pytest.raises(BadLog, match=r"^the log has the columns a, b; expected x or y$"):
        table.one_of(["x", "y"])
