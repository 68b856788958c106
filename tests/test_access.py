"""Keys, limits and the table of calls, in this process; tests/live/test_access_over_http.py asks a real service."""

import hmac
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from starlette.routing import Mount, Route

from segue.cli import main
from segue.errors import BadOption
from service.app import ROUTERS, create_app
from service.http.auth import CALLS, OPEN, RateLimit, call_of, check, is_needed
from service.http.keys import SCOPES, Keyring, Scope, new_key, read_keys, write_keys
from service.settings import Settings

SETTINGS = Settings(release=Path("unused"))


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What is logged, as it is logged."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def keys_file(path: Path, **scopes: tuple[Scope, ...]) -> dict[str, str]:
    """Write a file of keys with these names and scopes; the keys themselves."""
    made = {name: new_key(name, of_name) for name, of_name in scopes.items()}
    write_keys(path, [key for _, key in made.values()])
    return {name: text for name, (text, _) in made.items()}


class TestTable:
    def routes(self) -> set[tuple[str, str]]:
        app = create_app(SETTINGS)
        found = set()
        for route in [*app.router.routes, *(route for router in ROUTERS for route in router.routes)]:
            if isinstance(route, Mount):
                found.add(("GET", f"{route.path}/{{path:path}}"))
            elif isinstance(route, Route):
                found |= {(method, route.path) for method in (route.methods or set()) - {"HEAD"}}
        return found

    def test_it_lists_every_route_and_no_other(self) -> None:
        assert self.routes() == set(CALLS)

    def test_what_is_not_listed_needs_admin(self) -> None:
        for method, path in [
            ("GET", "/nowhere"),
            ("PATCH", "/sessions/a"),
            ("GET", "/health/live/"),
            ("GET", "//"),
            ("GET", "/WEB/x"),
            ("HEAD", "/metrics"),
            ("OPTIONS", "/recommendations"),
        ]:
            assert call_of(method, path, b"").scope == "admin"

    @pytest.mark.parametrize(
        ("method", "path", "query", "session_id"),
        [
            ("POST", "/sessions/a.b~c/events", b"recommend=3", "a.b~c"),
            ("DELETE", "/sessions/a", b"", "a"),
            ("GET", "/recommendations", b"k=1&session_id=a", "a"),
            ("GET", "/recommendations", b"session%5fid=%61", "a"),
            ("GET", "/recommendations", b"session_id=b&session_id=a", "a"),  # as FastAPI reads it
            ("GET", "/recommendations", b"k=1", None),
            ("GET", "/recommendations", b"session_id=" + b"a" * 129, None),  # no limit need remember what is refused
            ("DELETE", "/sessions/a b", b"", None),
            ("GET", "/tracks", b"session_id=a", None),
            ("GET", "/tracks/x/y/similar", b"", None),
        ],
    )
    def test_the_session_is_found_where_the_call_has_it(
        self, method: str, path: str, query: bytes, session_id: str | None
    ) -> None:
        assert call_of(method, path, query).session_id == session_id

    def test_openapi_says_which_key_each_call_needs_and_how_it_is_refused(self) -> None:
        description = create_app(SETTINGS).openapi()
        assert description["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        scopes = {(method, template.replace(":path", "")): scope for (method, template), scope in CALLS.items()}
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                scope = scopes[method.upper(), path]
                refused = {"401", "403", "429"} & set(operation["responses"])
                if scope is OPEN:
                    assert "security" not in operation
                    assert refused == {"403"}  # to pages of other sites
                else:
                    assert operation["security"] == [{}, {"key": [scope]}]
                    assert refused == {"401", "403", "429"}

    def test_the_operators_manual_holds_the_same_table(self) -> None:
        manual = Path(__file__).parents[1] / "docs" / "operate" / "access.md"
        if not manual.exists():
            pytest.skip("the documents are not part of the wheel")
        rows = re.findall(r"^\| `(\w+) (/\S*)` \| `?(\w+)`? \|", manual.read_text(encoding="utf-8"), re.MULTILINE)
        told = {(method, path): None if scope == "open" else scope for method, path, scope in rows}
        ids = re.compile(r"\{(session_id|listener_id|track_id:path|position)\}")
        assert told == {
            (method, ids.sub("{id}", path).replace("{path:path}", "…")): scope
            for (method, path), scope in CALLS.items()
            if method != "HEAD"
        }


class TestKeys:
    def test_a_key_has_256_random_bits_and_the_file_does_not_hold_it(self, tmp_path: Path) -> None:
        file = tmp_path / "keys.toml"
        made = keys_file(file, one=("client",), two=("read", "admin"))
        assert all(re.fullmatch(r"segue_[\w-]{43}", text) for text in made.values())
        assert len(set(made.values())) == 2
        assert not any(text in file.read_text() for text in made.values())
        assert [(key.name, key.scopes) for key in read_keys(file)] == [
            ("one", frozenset({"client"})),
            ("two", frozenset({"read", "admin"})),
        ]

    @pytest.mark.parametrize("has", SCOPES)
    @pytest.mark.parametrize("needed", SCOPES)
    def test_admin_includes_the_others_which_stand_alone(self, has: Scope, needed: Scope) -> None:
        assert new_key("k", [has])[1].allows(needed) == (has in (needed, "admin"))

    def test_every_key_is_compared_whatever_is_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = keys_file(tmp_path / "keys.toml", **{f"k{number}": ("client",) for number in range(7)})
        keyring = Keyring(tmp_path / "keys.toml")
        compared: list[tuple[bytes, bytes]] = []
        true_compare = hmac.compare_digest

        def counting(one: bytes, other: bytes) -> bool:
            compared.append((one, other))
            return true_compare(one, other)

        monkeypatch.setattr(hmac, "compare_digest", counting)
        for text in [*made.values(), "", "wrong", "segue_" + "A" * 43, made["k0"][:-1], made["k6"] + "x"]:
            compared.clear()
            found = keyring.find(text.encode())
            assert (found.name if found else None) == next((name for name in made if made[name] == text), None)
            assert len(compared) == 7
            assert {len(one) for pair in compared for one in pair} == {32}

    def test_a_changed_file_is_followed_within_a_second(self, tmp_path: Path, logged: list[Any]) -> None:
        file, clock = tmp_path / "keys.toml", Clock()
        old = keys_file(file, one=("client",))["one"].encode()
        keyring = Keyring(file, clock)
        new = keys_file(file, one=("client",))["one"].encode()
        assert keyring.find(old) is not None
        assert keyring.find(new) is None
        clock.now += 1
        assert keyring.find(old) is None
        assert keyring.find(new) is not None
        assert [line["event"] for line in logged] == ["keys_reloaded"]

    @pytest.mark.parametrize("damage", ["", "keys = 3", "[[keys]]\nname = 'x'", "[[keys]", b"\xff\xfe", None])
    def test_a_damaged_new_file_leaves_the_old_keys_and_one_line(
        self, tmp_path: Path, logged: list[Any], damage: str | bytes | None
    ) -> None:
        file, clock = tmp_path / "keys.toml", Clock()
        text = keys_file(file, one=("client",))["one"].encode()
        keyring = Keyring(file, clock)
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
        for _ in range(3):
            clock.now += 1
            assert keyring.find(text) is not None
        assert [line["event"] for line in logged] == ["keys_reload_failed"]
        with pytest.raises(BadOption, match=r"the keys file .* (is invalid|cannot be read)") as caught:
            read_keys(file)
        assert "\n" not in str(caught.value)

    def test_a_file_without_keys_lets_nobody_in(self, tmp_path: Path) -> None:
        write_keys(tmp_path / "keys.toml", [])
        assert Keyring(tmp_path / "keys.toml").find(b"") is None

    def test_one_name_is_one_key(self, tmp_path: Path) -> None:
        write_keys(tmp_path / "keys.toml", [new_key("one", ["read"])[1], new_key("one", ["read"])[1]])
        with pytest.raises(BadOption, match="two keys have the name one"):
            read_keys(tmp_path / "keys.toml")


class TestCommands:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
        code = main(["keys", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def test_make_list_and_revoke(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "keys.toml"
        code, text, _ = self.run(capsys, "new", "player", "--scope", "read", "--scope", "client", "--file", file)
        assert code == 0
        file.chmod(0o640)
        self.run(capsys, "new", "operator", "--scope", "admin", "--file", file)
        assert file.stat().st_mode & 0o777 == 0o640
        found = Keyring(file).find(text.strip().encode())
        assert found is not None
        assert (found.name, found.scopes) == ("player", frozenset({"client", "read"}))
        _, listed, _ = self.run(capsys, "list", "--file", file)
        assert "player" in listed
        assert "client, read" in listed
        assert text.strip() not in listed
        assert self.run(capsys, "revoke", "player", "--file", file)[0] == 0
        assert [key.name for key in read_keys(file)] == ["operator"]
        assert list(tmp_path.iterdir()) == [file]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["new", "two", "--scope", "all"], "'all' is not one of"),
            (["new", "two"], "Missing option '--scope'"),
            (["new", "one", "--scope", "read"], "already has a key named 'one'"),
            (["new", 'tw"o', "--scope", "read"], "is not a valid key name"),
            (["revoke", "two"], "has no key named 'two'"),
        ],
    )
    def test_a_wrong_input_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        keys_file(tmp_path / "keys.toml", one=("read",))
        before = (tmp_path / "keys.toml").read_bytes()
        code, out, err = self.run(capsys, *arguments, "--file", tmp_path / "keys.toml")
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1
        assert (tmp_path / "keys.toml").read_bytes() == before


class TestRateLimit:
    def test_a_burst_passes_then_the_rate(self) -> None:
        clock = Clock()
        limit = RateLimit(per_s=10, burst_s=2, clock=clock)
        assert [limit.wait_s("a") for _ in range(20)] == [0.0] * 20
        assert limit.wait_s("a") == pytest.approx(0.1)
        assert limit.wait_s("b") == 0
        clock.now += 0.1
        assert limit.wait_s("a") == 0
        assert limit.wait_s("a") > 0
        clock.now += 1000
        assert [limit.wait_s("a") for _ in range(20)] == [0.0] * 20
        assert limit.wait_s("a") > 0

    @pytest.mark.parametrize("per_s", [0.01, 1, 7, 1e6])
    def test_over_time_it_is_the_rate(self, per_s: float) -> None:
        clock = Clock()
        limit = RateLimit(per_s, burst_s=0, clock=clock)
        passed = 0
        for _ in range(5000):
            clock.now += 0.1 / per_s
            passed += limit.wait_s("a") == 0
        assert passed == pytest.approx(500, abs=1)

    def test_a_costly_request_passes_and_those_after_it_wait(self) -> None:
        clock = Clock()
        limit = RateLimit(per_s=1, burst_s=5, clock=clock)
        assert limit.wait_s("a") == 0
        limit.charge("a", 12)
        assert limit.wait_s("a") == pytest.approx(9)  # 13 are spent, 5 were there, and one is needed
        assert limit.wait_s("b") == 0
        clock.now += 9
        assert limit.wait_s("a") == 0

    def test_a_charge_remembers_a_bounded_number_of_names(self) -> None:
        limit = RateLimit(per_s=1, burst_s=0, max_buckets=10, clock=Clock())
        for number in range(100):
            limit.charge(f"n{number}", 5)
        assert len(limit) == 10

    def test_it_remembers_a_bounded_number_of_names(self) -> None:
        limit = RateLimit(per_s=1, burst_s=0, max_buckets=100, clock=Clock())
        assert limit.wait_s("busy") == 0
        for number in range(1000):
            limit.wait_s(f"n{number}")
            assert limit.wait_s("busy") > 0  # whoever asks again and again is not forgotten
        assert len(limit) <= 101


class TestOpenBeyondLoopback:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
    def test_loopback_needs_no_key(self, host: str) -> None:
        check(Settings(release=Path("unused"), host=host))

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
    def test_elsewhere_it_is_refused_without_keys_or_a_word(self, tmp_path: Path, host: str) -> None:
        with pytest.raises(BadOption, match=f"host is {host}, so other machines could connect without a key") as caught:
            check(Settings(release=Path("unused"), host=host))
        assert "\n" not in str(caught.value)
        check(Settings(release=Path("unused"), host=host, allow_unauthenticated=True))
        keys_file(tmp_path / "keys.toml", one=("client",))
        check(Settings(release=Path("unused"), host=host, api_keys=tmp_path / "keys.toml"))

    def test_a_damaged_keys_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadOption, match="cannot be read"):
            check(Settings(release=Path("unused"), api_keys=tmp_path / "none.toml"))


def test_a_service_without_keys_and_limits_has_no_step_for_them() -> None:
    def steps(settings: Settings) -> list[Any]:
        return [layer.cls for layer in create_app(settings).user_middleware]

    more = Settings(release=Path("unused"), session_rate_limit=1)
    assert not is_needed(SETTINGS)
    assert len(steps(more)) == len(steps(SETTINGS)) + 1


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SEGUE_"):
            monkeypatch.delenv(name)
