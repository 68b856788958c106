"""What the service can be told: every setting, its unit and bounds. Environment variables are `SEGUE_` and the name.

Nothing is read at import; the command line and `create_app_from_environment` call `read_settings`.
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

PREFIX = "SEGUE_"

# The plain name of a folder of releases_dir.
FOLDER_NAME_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}$"
Durability: TypeAlias = Literal["memory", "every-second", "always"]
# Variables with the prefix that are no settings: of the command line, of a build, of tests and benchmarks.
_OTHER_VARIABLES: Final = frozenset(
    {"SEGUE_API_KEY", "SEGUE_COMMIT", "SEGUE_DATA", "SEGUE_KEY_FILE", "SEGUE_SCREENSHOTS"}
)
# What Kubernetes sets in each pod for a service that is called `segue`.
_SERVICE_LINK: Final = re.compile(r"SEGUE_SERVICE_(HOST|PORT\w*)|SEGUE_PORT_\w+")
# What each means for Redis' appendfsync.
FSYNC: Final[dict[Durability, str]] = {"memory": "no", "every-second": "everysec", "always": "always"}

# An origin as browsers write it: without the scheme's own port, which would never match.
_ORIGIN: Final = re.compile(
    r"(?:http(?!.*:80$)|https(?!.*:443$))://(?:[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?"
)


class Settings(BaseSettings):
    """The settings of one service. Immutable."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, validate_default=True, hide_input_in_errors=True
    )

    release: Path = Field(description="Folder of the release to serve, written by `segue train`")
    releases_dir: Path | None = Field(
        default=None,
        description="Folder of releases, a folder each, that the service can be swapped to while it runs; its file "
        "`current` names the one that all who share the folder serve, and goes before `release`",
    )
    releases_poll_interval_s: float = Field(
        default=1.0, gt=0, le=3600, description="Seconds between two looks at the file `current` of `releases_dir`"
    )
    release_validation_timeout_s: float = Field(
        default=60,
        gt=0,
        le=3600,
        description="Seconds that a release of `releases_dir` gets to open and answer in a process of its own, before "
        "it is opened where requests are answered",
    )
    experiment: Annotated[tuple[str, float] | None, NoDecode] = Field(
        default=None,
        description="`folder:share`: a second release of `releases_dir` that answers this share (0 to 1) of sessions",
    )
    attribution_sample_rate: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of sessions whose recommended tracks are remembered, so that plays and skips of them are "
        "counted for the release; 0 remembers none",
    )
    index_device: Literal["cpu", "gpu"] = Field(default="cpu", description="Where the index is searched")
    encoder_threads: int = Field(default=1, ge=1, le=64, description="Threads of ONNX Runtime for one query")
    ranking_threads: int = Field(default=2, ge=1, le=64, description="Requests that are encoded and searched at a time")
    ranking_timeout_s: float = Field(
        default=2.0,
        gt=0,
        le=300,
        description="Seconds that a call of encoder, index or search may take; then it is given up, and an "
        "explanation after five times as long",
    )

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on")
    port: int = Field(default=8000, ge=0, le=65_535, description="TCP port to listen on; 0 takes a free one")
    max_request_bytes: int = Field(
        default=2**18,
        ge=1024,
        description="Largest body of a request with events, in bytes; more is a 413. A hypothetical session may have "
        "five times as many",
    )
    latency_budget_ms: float = Field(
        default=40,
        ge=0,
        le=60_000,
        description="Milliseconds that an answer may take: what cannot be answered within is refused with a 503 at "
        "once; 0 refuses nothing",
    )
    max_connections: int = Field(
        default=2048, ge=1, le=1_000_000, description="Clients connected to each worker; more get a 503 and are closed"
    )
    read_timeout_s: float = Field(
        default=10,
        gt=0,
        le=3600,
        description="Seconds that a client has to send a request whole, or to read what it is answered",
    )
    shutdown_grace_s: int = Field(default=10, ge=0, le=300, description="Seconds that open requests get at shutdown")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged; `debug` logs every request"
    )
    tracing: bool = Field(
        default=False,
        description="Whether requests are traced by OpenTelemetry, whose own variables say where spans go; needs "
        "segue[tracing]",
    )
    log_hash_key: str = Field(
        default_factory=lambda: secrets.token_hex(16),
        min_length=16,
        max_length=64,
        repr=False,
        description="Secret with which session ids are hashed in logs; another one at each start unless set",
    )

    api_keys: Path | None = Field(
        default=None, description="File of API keys, made by `segue keys new`; without one, every call is open"
    )
    allow_unauthenticated: bool = Field(
        default=False,
        description="Whether a service without keys may listen beyond this machine: a gateway must check who asks",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names, separated by commas, that requests may have in `Host` besides loopback's and `host`; "
        "others are refused where names are set, and where the service has neither keys nor `allow_unauthenticated`",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins, separated by commas, whose pages may call the service from a browser (CORS), as "
        "`https://music.example`; `*` for all, with API keys only",
    )
    root_path: str | None = Field(
        default=None,
        pattern=r"^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+$",
        description="Path prefix that a proxy strips before it passes requests on, as `/segue`; OpenAPI names it as "
        "the server",
    )
    key_rate_limit: float | None = Field(
        default=None, gt=0, le=1e6, description="Requests a second of each API key, in each worker; more is a 429"
    )
    session_rate_limit: float | None = Field(
        default=None, gt=0, le=1e6, description="Requests a second for each session, in each worker; more is a 429"
    )
    rate_limit_burst_s: float = Field(
        default=5, ge=0, le=3600, description="Seconds whose requests may come at once after a rest"
    )

    redis_url: str | None = Field(
        default=None,
        repr=False,  # it may hold a password
        pattern=r"^(redis|rediss|unix)://",
        description="Redis to keep sessions in (redis://, rediss:// or unix://); without one, Segue starts its own",
    )
    redis_password_file: FilePath | None = Field(
        default=None,
        description="File that holds the password for `redis_url`, which then has none itself; read at the start",
    )
    redis_cluster: bool = Field(
        default=False, description="Whether `redis_url` names a node of a Redis Cluster, whose others are then found"
    )
    redis_ca_file: FilePath | None = Field(
        default=None,
        description="Certificates of those who may vouch for a rediss:// server; the system's own where absent",
    )
    redis_timeout_s: float = Field(
        default=2.0, gt=0, le=60, description="Seconds to wait for Redis before answering 503"
    )
    fallback: Literal["popularity", "none"] = Field(
        default="popularity",
        description="What GET /recommendations answers while Redis is away, and both calls while the model fails: the "
        "most played tracks (`source` says so), or an error",
    )
    redis_server: Path | None = Field(
        default=None,
        description="Program of the embedded Redis, a redis-server or valkey-server of 6.2 or later; the newest of the "
        "installed package's and those on PATH unless set",
    )
    redis_max_memory_mb: int | None = Field(
        default=None,
        ge=16,
        le=1_000_000_000,
        description="Memory limit of the embedded Redis in MB (10^6 bytes), beyond which writes get a 503; half of the "
        "machine's or the container's memory unless set",
    )
    redis_connections: int = Field(default=32, ge=1, le=10_000, description="Connections to Redis in each worker")
    redis_wait_replicas: int = Field(
        default=0, ge=0, le=100, description="Replicas of Redis that must confirm a write before it is acknowledged"
    )
    redis_wait_timeout_ms: int = Field(
        default=500, ge=1, le=60_000, description="Milliseconds to wait for them; then the write is answered by 503"
    )
    data_dir: Path = Field(
        default=Path("data"), description="Folder of the embedded Redis (`redis/`) and of the event log (`events/`)"
    )
    durability: Durability = Field(
        default="every-second",
        description="What an acknowledged event survives (see Durability): the embedded Redis is started accordingly, "
        "any other is verified at the start and by readiness",
    )

    idle_gap_s: float = Field(
        default=1200, gt=0, le=31_536_000, description="Seconds without an event after which a session is over"
    )
    max_session_plays: int = Field(default=1000, ge=1, le=100_000, description="Latest plays kept of each session")
    event_log: bool = Field(default=True, description="Whether events are logged for training")
    event_log_writer: bool = Field(
        default=True,
        description="Whether this service writes the log's files; exactly one machine of those sharing a Redis does",
    )
    event_log_dir: Path | None = Field(default=None, description="Folder of the event log; `events/` in data_dir")
    event_log_flush_s: float = Field(
        default=30,
        gt=0,
        le=3600,
        description="Seconds between two files of the event log, and until an erasure has reached the files",
    )
    event_log_stream_max_length: int = Field(
        default=10_000, ge=100, description="Events kept in each of the 64 streams until the log's writer takes them"
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
        except ValueError:  # its text would quote a part of the password
            raise ValueError(
                "its port is no number: write `/`, `:`, `@`, `#` in a password as %2F, %3A, %40, %23"
            ) from None
        return url

    @model_validator(mode="after")
    def _has_its_use(self) -> Self:
        if self.redis_ca_file is not None and not (self.redis_url or "").startswith("rediss://"):
            raise ValueError("redis_ca_file is for a redis_url that begins with rediss://")
        if self.redis_password_file is not None and (self.redis_url is None or has_password(self.redis_url)):
            raise ValueError("redis_password_file is for a redis_url without a password")
        if self.redis_wait_replicas and self.redis_cluster:
            raise ValueError(
                "redis_wait_replicas is not for a Redis Cluster: set min-replicas-to-write in its configuration"
            )
        if self.redis_wait_replicas and self.redis_wait_timeout_ms >= self.redis_timeout_s * 1000:
            raise ValueError("redis_wait_timeout_ms must be below redis_timeout_s, or Redis would seem not to answer")
        if self.cors_origins == ("*",) and self.api_keys is None:
            raise ValueError(
                "cors_origins is *, and without api_keys every page could use the service: name the origins"
            )
        if self.key_rate_limit is not None and self.api_keys is None:
            raise ValueError("key_rate_limit limits API keys, and api_keys names none")
        return self

    @property
    def embedded_redis(self) -> dict[str, Any]:
        """What the embedded Redis is started with, as arguments of embedded_redis."""
        megabytes = self.redis_max_memory_mb
        return {
            "folder": self.data_dir / "redis",
            "fsync": FSYNC[self.durability],
            "program": self.redis_server,
            "max_memory_bytes": megabytes * 1_000_000 if megabytes is not None else None,
        }

    @property
    def event_log_folder(self) -> Path:
        """Where the event log's files are written."""
        return self.event_log_dir or self.data_dir / "events"


def has_password(url: str) -> bool:
    """Whether a URL of Redis holds a password."""
    parts = urlsplit(url)
    return parts.password is not None or "password" in parse_qs(parts.query)


def check_environment(names: Iterable[str]) -> None:
    """Raise BadOption for the first variable that has the prefix of settings and is none."""
    settings = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(names):
        if not name.startswith(PREFIX) or name in settings or name in _OTHER_VARIABLES or _SERVICE_LINK.fullmatch(name):
            continue
        known = difflib.get_close_matches(name, settings, n=1)
        remedy = f"did you mean {known[0]}?" if known else "docs/operations.md lists the settings"
        raise BadOption(f"unknown setting {name}: {remedy}")


def read_settings(**given: Any) -> Settings:
    """Settings from the environment; what is given and not None takes precedence. Raises BadOption with one line."""
    check_environment(os.environ)
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise BadOption(f"{first['msg'].removeprefix('Value error, ')}; see docs/operations.md") from error
        name = str(first["loc"][0])
        if first["type"] == "missing":
            raise BadOption(f"{name} is missing: set {PREFIX}{name.upper()} or give it to `segue serve`") from error
        found = _shown(name, first["input"])
        raise BadOption(
            f"{name} is {found}: {first['msg'].lower()}; see {PREFIX}{name.upper()} in docs/operations.md"
        ) from error


def _shown(name: str, value: object) -> str:
    """A setting as it may be printed: without its secret."""
    if name == "log_hash_key":
        return "not shown here"
    if name == "redis_url":
        return repr(re.sub(r"password=[^&]*", "password=***", re.sub(r"^.*@", "***@", str(value))))
    return repr(value)


def as_environment(settings: Settings) -> dict[str, str]:
    """Environment variables from which `read_settings` reads the same settings."""
    return {f"{PREFIX}{name.upper()}": str(value) for name, value in settings.model_dump().items() if value is not None}
