"""Settings of the service. Each one is an environment variable: `SEGUE_` and the name in upper case.

Nothing is read at import. The command line and `create_app_from_environment` call `read_settings`.
"""

import difflib
import os
import re
import secrets
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, FilePath, ValidationError, field_serializer, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from segue.errors import BadOption
from segue.validation_messages import expectation

PREFIX = "SEGUE_"

# Valid folder names in releases_dir.
FOLDER_NAME_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}$"
Durability: TypeAlias = Literal["memory", "every-second", "always"]
# Variables with the prefix that are not settings: they belong to the command line, the build, tests and benchmarks.
_OTHER_VARIABLES: Final = {
    f"{PREFIX}{name}" for name in ("API_KEY", "AUDIT", "COMMIT", "DATA", "KEY_FILE", "RECORD", "SCREENSHOTS")
}
# Kubernetes sets these in each pod for a service named `segue`.
_SERVICE_LINK: Final = re.compile(r"SEGUE_SERVICE_(HOST|PORT\w*)|SEGUE_PORT_\w+")
# The value of Redis' appendfsync for each durability.
FSYNC: Final[dict[Durability, str]] = {"memory": "no", "every-second": "everysec", "always": "always"}

# An origin as browsers send it. Browsers omit the default port, so an origin with it would never match.
_ORIGIN: Final = re.compile(
    r"(?:http(?!.*:80$)|https(?!.*:443$))://(?:[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?"
)


class Settings(BaseSettings):
    """Immutable settings of one service."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, validate_default=True, hide_input_in_errors=True
    )

    release: Path = Field(description="Folder of the release to serve, written by `segue train`")
    releases_dir: Path | None = Field(
        default=None,
        description="Folder of releases for hot swapping. Its file `current` names the live release for every replica "
        "that shares the folder, and overrides `release`",
    )
    releases_poll_interval_s: float = Field(
        default=1.0, gt=0, le=3600, description="Seconds between two checks of the file `current` in `releases_dir`"
    )
    release_validation_timeout_s: float = Field(
        default=60,
        gt=0,
        le=3600,
        description="Seconds that a release in `releases_dir` may take to load and pass validation in a separate "
        "process, before a worker loads it",
    )
    policies_dir: Path | None = Field(
        default=None, description="Folder of policies, `NAME.toml` each. A changed file takes effect within a second"
    )
    experiment: Annotated[tuple[str, float] | None, NoDecode] = Field(
        default=None,
        description="`folder:share`: A/B test with a second release of `releases_dir`, which serves this share (0 to "
        "1) of the sessions",
    )
    attribution_sample_rate: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of sessions whose plays and skips are attributed to the release that recommended the "
        "track; 0 turns attribution off",
    )
    index_device: Literal["cpu", "gpu"] = Field(default="cpu", description="Device for index search")
    encoder_threads: int = Field(default=1, ge=1, le=64, description="ONNX Runtime threads per query")
    ranking_threads: int = Field(default=2, ge=1, le=64, description="Concurrent encode-and-search jobs")
    ranking_timeout_s: float = Field(
        default=2.0,
        gt=0,
        le=300,
        description="Timeout of one encoder, index or search call in seconds; explanations get five times as long",
    )

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on")
    port: int = Field(default=8000, ge=0, le=65_535, description="TCP port to listen on; 0 picks a free one")
    max_request_bytes: int = Field(
        default=2**18,
        ge=1024,
        description="Maximum body size of a request with events, in bytes; larger bodies get a 413. A hypothetical "
        "session (what-if) may be five times as large, a ranking 7.5 times, a batch ten times",
    )
    latency_budget_ms: float = Field(
        default=40,
        ge=0,
        le=60_000,
        description="Latency budget in milliseconds. Requests that cannot be answered within it are shed with a 503; "
        "0 disables load shedding",
    )
    max_connections: int = Field(
        default=2048,
        ge=1,
        le=1_000_000,
        description="Maximum client connections per worker; further ones get a 503 and are closed",
    )
    read_timeout_s: float = Field(
        default=10,
        gt=0,
        le=3600,
        description="Seconds that a client may take to send a complete request, or to read the response",
    )
    shutdown_grace_s: int = Field(default=10, ge=0, le=300, description="Seconds that open requests get at shutdown")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Minimum log level; `debug` logs every request"
    )
    tracing: bool = Field(
        default=False,
        description="Trace requests with OpenTelemetry, whose own variables set the exporter; needs the extra "
        "`tracing`",
    )
    log_hash_key: str = Field(
        default_factory=lambda: secrets.token_hex(16),
        min_length=16,
        max_length=64,
        repr=False,
        description="Key for hashing session ids in logs; random at each start if unset",
    )

    api_keys: Path | None = Field(
        default=None, description="File of API keys, created by `segue keys new`. Without it, every call is open"
    )
    allow_unauthenticated: bool = Field(
        default=False,
        description="Allow a service without API keys to listen on non-loopback addresses. A gateway must then "
        "authenticate requests",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated names accepted in the `Host` header, besides loopback names and `host`. `Host` "
        "is checked if this is set, and always without API keys unless `allow_unauthenticated` is true",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated origins whose pages may call the service from a browser, for example "
        "`https://music.example`; `*` allows all, and needs API keys",
    )
    root_path: str | None = Field(
        default=None,
        pattern=r"^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+$",
        description="Path prefix that a proxy strips, for example `/segue`; OpenAPI names it as the server",
    )
    key_rate_limit: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Rate limit per API key and worker, in requests per second; more get a 429",
    )
    session_rate_limit: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Rate limit per session and worker, in requests per second; more get a 429",
    )
    rate_limit_burst_s: float = Field(
        default=5, ge=0, le=3600, description="Burst size of the rate limits, in seconds of quota"
    )

    redis_url: str | None = Field(
        default=None,
        repr=False,  # it may hold a password
        pattern=r"^(redis|rediss|unix)://",
        description="Redis for sessions (redis://, rediss:// or unix://). Without it, Segue starts an embedded one",
    )
    redis_password_file: FilePath | None = Field(
        default=None,
        description="File with the password for `redis_url`, which must then contain none. Read at the start",
    )
    redis_cluster: bool = Field(
        default=False, description="True if `redis_url` is a Redis Cluster node; the other nodes are discovered"
    )
    redis_ca_file: FilePath | None = Field(
        default=None, description="CA bundle for rediss:// connections; default: the system's CA store"
    )
    redis_timeout_s: float = Field(
        default=2.0, gt=0, le=60, description="Seconds to wait for Redis before responding with a 503"
    )
    fallback: Literal["popularity", "none"] = Field(
        default="popularity",
        description="Recommend the most played tracks (marked in `source`) if Redis is unavailable (`GET "
        "/recommendations`) or the model fails (also `POST /sessions/{id}/events?recommend=`). With "
        "`none`, respond with an error",
    )
    redis_server: Path | None = Field(
        default=None,
        description="Binary of the embedded Redis: redis-server or valkey-server 6.2 or later. Default: the newest of "
        "the bundled one and those on PATH",
    )
    redis_max_memory_mb: int | None = Field(
        default=None,
        ge=16,
        le=1_000_000_000,
        description="Memory limit of the embedded Redis in MB (10^6 bytes); at the limit, writes get a 503. Default: "
        "half of the memory of the machine or container",
    )
    redis_connections: int = Field(default=32, ge=1, le=10_000, description="Redis connections per worker")
    redis_wait_replicas: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Number of Redis replicas that must confirm a write before it is acknowledged",
    )
    redis_wait_timeout_ms: int = Field(
        default=500, ge=1, le=60_000, description="Milliseconds to wait for these replicas; then the write gets a 503"
    )
    data_dir: Path = Field(
        default=Path("data"), description="Folder of the embedded Redis (`redis/`) and of the event log (`events/`)"
    )
    durability: Durability = Field(
        default="every-second",
        description="Durability of acknowledged events: `memory`, `every-second` or `always`. The embedded Redis is "
        "configured to match; an external one is verified at the start and by readiness",
    )

    idle_gap_s: float = Field(
        default=1200, gt=0, le=31_536_000, description="Seconds of inactivity after which a session ends"
    )
    max_session_plays: int = Field(
        default=1000, ge=1, le=100_000, description="Maximum plays stored per session; the oldest are dropped"
    )
    event_log: bool = Field(default=True, description="Log events for training")
    event_log_writer: bool = Field(
        default=True,
        description="Write the event log's files. Of all machines that share a Redis, exactly one must write",
    )
    event_log_dir: Path | None = Field(
        default=None, description="Folder of the event log; default: `events/` in `data_dir`"
    )
    event_log_flush_s: float = Field(
        default=30, gt=0, le=3600, description="Seconds between two event log files, and until an erasure reaches them"
    )
    event_log_stream_max_length: int = Field(
        default=10_000, ge=100, description="Events kept in each of the 64 Redis streams until the writer takes them"
    )
    list_log_rate: float = Field(
        default=0, ge=0, le=1, description="Share of sessions whose lists are logged beside the event log; 0: off"
    )

    @field_validator("experiment", mode="before")
    @classmethod
    def _experiment(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        name, _, share = value.rpartition(":")
        if not re.fullmatch(FOLDER_NAME_PATTERN, name) or not re.fullmatch(r"0?\.\d+|[01](\.0*)?", share):
            raise ValueError("expected folder:share, as in sasrec-2:0.1, with a share from 0 to 1")
        return name, float(share)

    @field_serializer("experiment")
    def _experiment_as_text(self, value: tuple[str, float] | None) -> str | None:
        return None if value is None else f"{value[0]}:{Decimal(str(value[1])):f}"

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, value: str) -> str:
        is_bracketed = value.startswith("[") and value.endswith("]") and ":" in value
        return value[1:-1] if is_bracketed else value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _hosts(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        hosts = tuple(name.strip().lower() for name in value.split(",") if name.strip())
        if not all(re.fullmatch(r"[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?|[0-9a-f:]+", name) for name in hosts):
            raise ValueError("expected names or addresses without a port, as in music.example,10.0.0.7")
        return hosts

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        origins = tuple(origin.strip().lower() for origin in value.split(",") if origin.strip())
        if origins != ("*",) and not all(map(_ORIGIN.fullmatch, origins)):
            raise ValueError(
                "expected origins as browsers send them, as in https://music.example,http://localhost:3000: a scheme, "
                "a host, a port unless it is the scheme's own, and no path"
            )
        return origins

    @field_serializer("allowed_hosts", "cors_origins")
    def _hosts_as_text(self, value: tuple[str, ...]) -> str:
        return ",".join(value)

    @field_validator("redis_url")
    @classmethod
    def _can_be_parsed(cls, url: str | None) -> str | None:
        try:
            _ = urlsplit(url or "").port
        except ValueError:  # the original message would quote a part of the password
            raise ValueError(
                "the port is not a number: write `/`, `:`, `@`, `#` in a password as %2F, %3A, %40, %23"
            ) from None
        return url

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.redis_ca_file is not None and not (self.redis_url or "").startswith("rediss://"):
            raise ValueError("redis_ca_file requires a redis_url that begins with rediss://")
        if self.redis_password_file is not None and (self.redis_url is None or has_password(self.redis_url)):
            raise ValueError("redis_password_file requires a redis_url without a password")
        if self.redis_wait_replicas and self.redis_cluster:
            raise ValueError(
                "redis_wait_replicas does not support Redis Cluster: configure min-replicas-to-write there"
            )
        if self.redis_wait_replicas and self.redis_wait_timeout_ms >= self.redis_timeout_s * 1000:
            raise ValueError(
                "redis_wait_timeout_ms must be below redis_timeout_s: otherwise Redis seems to be unavailable"
            )
        if self.cors_origins == ("*",) and self.api_keys is None:
            raise ValueError("cors_origins=* requires api_keys: set them, or list the origins")
        if self.list_log_rate and not self.event_log:
            raise ValueError("list_log_rate requires event_log: set SEGUE_EVENT_LOG=true, or SEGUE_LIST_LOG_RATE=0")
        if self.key_rate_limit is not None and self.api_keys is None:
            raise ValueError("key_rate_limit requires api_keys")
        return self

    @property
    def embedded_redis(self) -> dict[str, Any]:
        """Keyword arguments of `embedded_redis`."""
        megabytes = self.redis_max_memory_mb
        return {
            "folder": self.data_dir / "redis",
            "fsync": FSYNC[self.durability],
            "program": self.redis_server,
            "max_memory_bytes": megabytes * 1_000_000 if megabytes is not None else None,
        }

    @property
    def event_log_folder(self) -> Path:
        """Folder of the event log's files."""
        return self.event_log_dir or self.data_dir / "events"


def has_password(url: str) -> bool:
    """Whether a Redis URL contains a password."""
    split = urlsplit(url)
    return split.password is not None or "password" in parse_qs(split.query)


def check_environment(names: Iterable[str]) -> None:
    """Raise BadOption for the first variable that starts with SEGUE_ but is not a setting."""
    settings = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(names):
        upper = name.upper()  # pydantic reads settings in any case
        if not upper.startswith(PREFIX) or upper in settings | _OTHER_VARIABLES or _SERVICE_LINK.fullmatch(upper):
            continue
        known = difflib.get_close_matches(upper, settings, n=1)
        remedy = f"did you mean {known[0]}?" if known else "docs/operate/settings.md lists the settings"
        raise BadOption(f"unknown setting {name}: {remedy}")


def read_settings(**given: Any) -> Settings:
    """Read settings from the environment. Arguments that are not None take precedence.

    Raises BadOption with one line if a setting is unknown, missing or invalid.
    """
    check_environment(os.environ)
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise BadOption(f"{first['msg'].removeprefix('Value error, ')}; see docs/operate/settings.md") from error
        name = str(first["loc"][0])
        if first["type"] == "missing":
            raise BadOption(f"{name} is missing: set {PREFIX}{name.upper()}, or pass it to `segue serve`") from error
        found = _shown(name, first["input"])
        raise BadOption(
            f"{name} is {found}: {expectation(first)}; see {PREFIX}{name.upper()} in docs/operate/settings.md"
        ) from error


def _shown(name: str, value: object) -> str:
    """The value of a setting for an error message, without secrets."""
    if name == "log_hash_key":
        return "invalid (the value is not shown)"
    if name == "redis_url":
        return repr(re.sub(r"password=[^&]*", "password=***", re.sub(r"^.*@", "***@", str(value))))
    return repr(str(value) if isinstance(value, Path) else value)


def as_environment(settings: Settings) -> dict[str, str]:
    """The environment variables from which `read_settings` reads the same settings."""
    return {f"{PREFIX}{name.upper()}": str(value) for name, value in settings.model_dump().items() if value is not None}
