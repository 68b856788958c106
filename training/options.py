"""Options of all models, read from recipes (TOML), `--set key=value` and flags. This module does not import torch."""

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segue.errors import BadOption
from segue.validation_messages import expectation
from segue.window import DEFAULT_LENGTH

_LONGEST_FOLDED_WINDOW: Final = 100  # the solver of WRMF's fold-in is unrolled, one step a column
_ROUNDS: Final = ("epochs", "iterations")  # names of the number of passes over the data


class Options(BaseModel):
    """Options common to every model. An unknown name or a value out of range is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(default=DEFAULT_LENGTH, ge=2, le=1000, description="Number of latest plays that the model uses")
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Random seed. On a CPU, the same seed gives the same weights"
    )


class ServedOptions(Options):
    """Options of every model that can be served."""

    caution: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Default caution of requests: the weight of log P(played) in the ranking. 0 ranks by the model's "
        "score alone",
    )


class NeuralOptions(ServedOptions):
    """Options of every encoder; the defaults are the paper's (section 4.1.2) where it names a value."""

    # The options that define the network. All others define its training.
    architecture_options: ClassVar[tuple[str, ...]] = ("window", "dimension", "skip_input", "plays")

    rescoring: Literal["off", "next", "next-played"] = Field(
        default="off",
        description="Hybrids only: correct the most probable tracks with a small network, learned on validation "
        "targets: all next tracks, or those that were not skipped",
    )
    epochs: int = Field(
        default=30,
        ge=0,
        description="Maximum number of epochs; early stopping may end sooner. 0 is allowed only with --init-from: new "
        "tracks get embeddings and nothing is trained",
    )
    patience: int = Field(default=5, ge=1, description="Epochs without a better validation HR@10 before training stops")
    batch_size: int = Field(default=64, ge=1, description="Sessions per step")
    learning_rate: float = Field(default=0.005, gt=0, le=1, description="Adam's learning rate (paper: 0.005)")
    schedule: Literal["constant", "linear"] = Field(
        default="constant", description="Learning rate schedule: constant, or linear decay to 0"
    )
    gradient_clip: float = Field(default=5.0, gt=0, description="Maximum norm of the gradient (gradient clipping)")
    updates: Literal["touched", "all"] = Field(
        default="touched",
        description="Item embeddings that Adam updates in a step: only the rows of its tracks (lazy Adam, whose cost "
        "does not grow with the catalogue), or all rows",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Decoupled weight decay (AdamW); 0 is Adam, as in the paper"
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay per step of an exponential moving average of the weights. The average is validated and "
        "released instead of the weights. 0 disables it, as in the paper",
    )
    objective: Literal["next", "next-played"] = Field(
        default="next", description="Target of the NLL term: the next track, or the next track that was not skipped"
    )
    negatives: int = Field(
        default=1000,
        ge=1,
        description="Number of uniform negatives of the sampled softmax, drawn per batch and shared by its sessions",
    )
    log_q: bool = Field(
        default=False,
        description="Correct the sampled softmax for its sampling probability (logQ), so that it estimates the softmax "
        "over all tracks (Bengio and Senecal, 2008). Not in the paper",
    )
    alpha: float = Field(default=1.0, ge=0, description="Weight of the NLL term")
    beta: float = Field(
        default=0.5, ge=0, description="Weight of the InfoNCE term over skips. 0 disables it, as --no-nce does"
    )
    temperature: float = Field(default=0.1, gt=0, description="Temperature of the InfoNCE term")
    negative_pairing: Literal["session", "published"] = Field(
        default="session",
        description="Negatives of the InfoNCE term: skips of the same session, as in the paper, or mostly skips of "
        "another session, as in the authors' public code",
    )
    plays: Literal["all", "played"] = Field(
        default="all", description="Plays that the encoder uses: all, or only those that were not skipped"
    )
    dimension: int = Field(default=128, ge=1, description="Dimension of the item embeddings and hidden layers")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="Dropout rate")
    init_scale: float = Field(
        default=0.02, gt=0, le=1, description="Initial weights are normal(0, 1), truncated at plus and minus this value"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Precision of matrix products. bfloat16 rounds the factors and accumulates in float32, on CPUs "
        "with AVX-512 BF16 or AMX. GPUs use TF32 instead. It has no effect on other CPUs",
    )
    skip_input: bool = Field(
        default=True,
        description="Give the encoder the skip flags as input. Without it, skips affect only the loss",
    )

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0, so there is no loss: set one of them above 0")
        if self.plays == "played" and self.beta > 0:
            raise ValueError("plays=played removes the skips that the InfoNCE term needs: add --no-nce, or set beta=0")
        return self


class TransformerOptions(NeuralOptions):
    """Sizes of a stack of blocks; the defaults are the paper's (section 4.1.2)."""

    architecture_options: ClassVar[tuple[str, ...]] = (*NeuralOptions.architecture_options, "blocks", "heads", "norm")

    blocks: int = Field(default=2, ge=1, description="Number of transformer blocks")
    heads: int = Field(default=8, ge=1, description="Attention heads per block. Must divide the dimension")
    norm: Literal["post", "pre"] = Field(
        default="post",
        description="Layer norm after each residual sum, as in the authors' public code, or before each layer, which "
        "needs no learning-rate warm-up (Xiong et al., 2020)",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dimension % self.heads:
            raise ValueError(f"{self.heads} heads do not divide dimension {self.dimension}: choose a divisor")
        return self


class SasRecOptions(TransformerOptions):
    """SASRec's options: the sizes of its blocks."""

    family: ClassVar[str] = "sasrec"


class Bert4RecOptions(TransformerOptions):
    """BERT4Rec's own options; the default of `masking` is the paper's (section 4.1.2)."""

    family: ClassVar[str] = "bert4rec"

    masking: float = Field(default=0.2, ge=0, lt=1, description="Share of the plays before the last that are masked")
    duplication_factor: int = Field(
        default=2, ge=1, description="Copies of a session in a step, each truncated and masked at random"
    )


class Gru4RecOptions(NeuralOptions):
    """GRU4Rec's own sizes."""

    family: ClassVar[str] = "gru4rec"
    architecture_options: ClassVar[tuple[str, ...]] = (*NeuralOptions.architecture_options, "layers")

    layers: int = Field(default=1, ge=1, description="Recurrent layers; the authors found one to be best")


class CaserOptions(NeuralOptions):
    """Caser's own sizes; the defaults are those of the authors' public code."""

    family: ClassVar[str] = "caser"
    architecture_options: ClassVar[tuple[str, ...]] = (
        *NeuralOptions.architecture_options,
        *("order", "horizontal_filters", "vertical_filters"),
    )

    order: int = Field(default=5, ge=1, description="Latest plays that the convolutions cover (L in the original)")
    horizontal_filters: int = Field(
        default=16, ge=1, description="Number of convolution filters per height; the heights are 1 to `order` plays"
    )
    vertical_filters: int = Field(default=4, ge=1, description="Filters over each embedding column")
    dropout: float = Field(default=0.5, ge=0, lt=1, description="Dropout rate")


class WrmfOptions(ServedOptions):
    """Options of WRMF in all its versions."""

    family: ClassVar[str] = "wrmf"

    window: int = Field(
        default=DEFAULT_LENGTH, ge=2, le=_LONGEST_FOLDED_WINDOW, description="Number of latest plays that are folded in"
    )
    dimension: int = Field(default=128, ge=1, description="Number of factors")
    iterations: int = Field(default=15, ge=1, description="Iterations of alternating least squares")
    regularization: float = Field(default=10.0, gt=0, description="L2 regularization of each row of factors")
    positive_weight: float = Field(
        default=20.0, gt=0, description="Weight of the squared error of a positive pair. A missing pair has weight 1"
    )
    skip_weight: float = Field(
        default=2.0, gt=0, description="Weight of the squared error of a session and a track that it skipped (wrmf-nr)"
    )
    half_life: float = Field(
        default=0.5,
        ge=0,
        description="Half-life of a play's weight in the fold-in, in plays. 0: equal weights, as in the papers",
    )


class BprOptions(ServedOptions):
    """Options of BPR in all its versions."""

    family: ClassVar[str] = "bpr"

    dimension: int = Field(default=128, ge=1, description="Number of factors, without the bias of a track")
    epochs: int = Field(default=120, ge=1, description="Epochs, each with as many draws as there are positive pairs")
    batch_size: int = Field(default=1000, ge=1, description="Draws per step")
    learning_rate: float = Field(default=0.05, gt=0, le=1, description="Learning rate per draw")
    regularization: float = Field(default=0.003, ge=0, description="L2 regularization of the rows that a draw uses")
    negative_sampling: Literal["uniform", "popular"] = Field(
        default="popular", description="Sampling of tracks outside a session: uniform, or by popularity"
    )
    skip_share: float = Field(
        default=0.2, ge=0, le=1, description="Share of draws that rank a played track above a skipped one, for bpr-nr"
    )
    half_life: float = Field(
        default=1.0, ge=0, description="Half-life of a play's weight in the fold-in, in plays. 0: equal weights"
    )


class VmisKnnOptions(Options):
    """Options of VMIS-kNN."""

    family: ClassVar[str] = "vmis-knn"

    neighbours: int = Field(default=100, ge=1, description="Number of most similar sessions that a recommendation uses")
    sample: int = Field(default=500, ge=1, description="Most recent sessions of a track that may become neighbours")
    decay: float = Field(default=0.5, gt=0, le=1, description="Weight of a play relative to the next newer one")
    idf: bool = Field(default=True, description="Weight shared tracks more if fewer sessions contain them")
    reach: float = Field(
        default=1.0, gt=0, description="Plays over which a neighbour's weight falls to 1/e away from the shared track"
    )
    before: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Weight of tracks that a neighbour played before the shared track; tracks after it have 1",
    )


class NgramOptions(ServedOptions):
    """Options of the transition counts."""

    family: ClassVar[str] = "ngram"

    max_followers: int = Field(
        default=64, ge=1, description="Stored tracks of each context and of each track, the most frequent ones"
    )


AnyOptions = TypeVar("AnyOptions", bound=Options)


def read_options(
    kind: type[AnyOptions], recipe: Path | str | None, settings: Sequence[str], model: str | None = None, **flags: Any
) -> AnyOptions:
    """Read options of class `kind`: defaults, then the recipe, then `--set`, then flags that are not None.

    `recipe` is a TOML file or the name of a shipped recipe. If it has tables, the table named `model` is used.
    `settings` are texts `key=value`. Raises BadOption with one line.
    """
    family: str | None = getattr(kind, "family", None)  # a hybrid has the recipe of its encoder
    values: dict[str, Any] = {} if recipe is None else _of_model(_read_recipe(recipe), recipe, model, family)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise BadOption(f"--set {setting!r}: expected key=value, such as epochs=10")
        values[key.strip()] = value.strip()
    values |= {key: value for key, value in flags.items() if value is not None}
    return check_options(kind, values)


def _of_model(content: Mapping[str, Any], recipe: Path | str, model: str | None, family: str | None) -> dict[str, Any]:
    """The options of a recipe for a model: all of them, or the model's or its family's table if there are tables."""
    tables = {name for name, value in content.items() if isinstance(value, Mapping)}
    if not tables:
        return dict(content)
    loose = sorted(content.keys() - tables)
    if loose:
        raise BadOption(f"recipe {recipe}: {loose[0]} is outside of its tables: move it into the table of a model")
    return dict(content.get(model or "", content.get(family or "", {})))


def check_options(kind: type[AnyOptions], values: Mapping[str, Any]) -> AnyOptions:
    """Validate options. Raises BadOption with one line that names the option, the value and what is allowed."""
    for key in values:
        if key not in kind.model_fields:
            raise BadOption(
                f"unknown option {key!r}{_suggestion(key, kind)}: this model has {', '.join(sorted(kind.model_fields))}"
                f"{_models_with(key)}"
            )
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        message = expectation(first)
        raise BadOption(f"option {name} = {first['input']!r}: {message}" if name else message) from error


def _suggestion(name: str, kind: type[Options]) -> str:
    """A hint: this model's name for an option of another model, or a similar name."""
    known = [word for word in _ROUNDS if word in kind.model_fields] if name in _ROUNDS else []
    similar = known or get_close_matches(name, kind.model_fields, n=1)
    return f", use {similar[0]}" if similar else ""


def _models_with(name: str) -> str:
    """A hint: the models that have an option."""
    kinds = (
        *(SasRecOptions, Bert4RecOptions, Gru4RecOptions, CaserOptions),
        *(WrmfOptions, BprOptions, VmisKnnOptions, NgramOptions),
    )
    models = [kind.family for kind in kinds if name in kind.model_fields]
    return f"; {name} is an option of {', '.join(models)}" if models else ""


def shipped_recipes() -> list[str]:
    """Names of the recipes in training/recipes."""
    folder = resources.files("training") / "recipes"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def _read_recipe(recipe: Path | str) -> Mapping[str, Any]:
    path = Path(recipe)
    shipped = resources.files("training") / "recipes" / f"{recipe}.toml"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else shipped.read_text(encoding="utf-8")
    except OSError as error:
        names = ", ".join(shipped_recipes())
        raise BadOption(f"no recipe {str(recipe)!r}: expected a TOML file or one of {names}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadOption(f"recipe {recipe} is not TOML: {error}") from error
