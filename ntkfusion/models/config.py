"""What every architecture's configuration has, and checks of values before anything is allocated.

Every field of a configuration is made by one of `size`, `index`, `token_id`, `number`, `text`, `flag` and `unchecked`,
which say in the field's metadata how its values are checked.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Layout

#: The largest value any size in a configuration may have: beyond it a file is damaged, not large.
LARGEST_SIZE = 2**24

#: The contents of a JSON file such as ``config.json``: names → values, of which nothing is known yet.
JsonObject: TypeAlias = Mapping[str, Any]

#: (name of a field, its value, all values) → nothing; raises InputError for a value that the field cannot have.
Check: TypeAlias = Callable[[str, object, JsonObject], None]

#: Keys of a field's metadata: its `Check`, and whether it may be None.
CHECK, OPTIONAL = "check", "optional"

#: What a network has behind its last layer, beside nothing.
Head: TypeAlias = Literal[
    "sequence-classification",
    "token-classification",
    "question-answering",
    "masked-lm",
    "causal-lm",
    "seq2seq-lm",
]

#: Heads whose number of outputs is free.
WITH_LABELS: tuple[Head, ...] = ("sequence-classification", "token-classification")


_T = TypeVar("_T")


def field_of(default: _T, check: Check | None, *, optional: bool = False) -> _T:
    """A field whose values a function checks; with the default None, it may be None."""
    return dataclasses.field(default=default, metadata={CHECK: check, OPTIONAL: optional or default is None})


def size(default: _T, *, optional: bool = False) -> _T:
    """A field that is a whole number from 1 on."""
    return field_of(default, _check_size, optional=optional)


def index(default: _T, *, optional: bool = False) -> _T:
    """A field that is a whole number from 0 on."""
    return field_of(default, _check_index, optional=optional)


def token_id(default: _T, *, optional: bool = False) -> _T:
    """A field that is the number of a token in the vocabulary."""
    return field_of(default, _check_token_id, optional=optional)


def number(default: _T, *, optional: bool = False) -> _T:
    """A field that is a small number from 0 on, such as a probability."""
    return field_of(default, _check_number, optional=optional)


def text(default: _T, *, optional: bool = False) -> _T:
    """A field that is a string."""
    return field_of(default, _check_text, optional=optional)


def flag(default: _T) -> _T:
    """A field that is true or false."""
    return field_of(default, _check_flag)


def unchecked(default: _T) -> _T:
    """A field that is not checked by itself: ``__post_init__`` looks at it together with others."""
    return field_of(default, None)


def check_whole(name: str, value: object, smallest: int, largest: int = LARGEST_SIZE) -> None:
    """Refuse what is no whole number of a range.

    Raises:
        InputError: naming the field, the range and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise InputError(f"config: {name} must be a whole number from {smallest} to {largest}, got {value!r}")


def _check_size(name: str, value: object, values: JsonObject) -> None:
    check_whole(name, value, 1)


def _check_index(name: str, value: object, values: JsonObject) -> None:
    check_whole(name, value, 0)


def _check_token_id(name: str, value: object, values: JsonObject) -> None:
    check_whole(name, value, 0, values["vocab_size"] - 1)


def _check_number(name: str, value: object, values: JsonObject) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e3:
        raise InputError(f"config: {name} must be a small non-negative number, got {value!r}")


def _check_text(name: str, value: object, values: JsonObject) -> None:
    if not isinstance(value, str):
        raise InputError(f"config: {name} must be a string, got {value!r}")


def _check_flag(name: str, value: object, values: JsonObject) -> None:
    if not isinstance(value, bool):
        raise InputError(f"config: {name} must be true or false, got {value!r}")


@dataclasses.dataclass(frozen=True)
class ModelConfig(ABC):
    """The part of a configuration that does not depend on the architecture.

    Attributes:
        vocab_size: rows of the word embedding.
        hidden_size: d, the model width.
        head: what is behind the last layer; None for a bare network. With `num_labels` it is sequence classification
            unless it is said.
        num_labels: outputs of a classification head, else None.
        tie_word_embeddings: whether the output layer of a language model is its word embedding.
        initializer_range: standard deviation of fresh weights.
        mlp_layouts: one `layout` per MLP block; empty for the original blocks everywhere. Compressed models have blocks
            of different shapes.
    """

    vocab_size: int = size(30522)
    hidden_size: int = size(768)
    head: Head | None = unchecked(None)  # noqa: RUF009
    num_labels: int | None = size(None)
    tie_word_embeddings: bool = flag(True)
    initializer_range: float = number(0.02)
    mlp_layouts: tuple[Layout, ...] = unchecked(())

    #: Heads that this architecture can have.
    HEADS: ClassVar[tuple[Head, ...]] = ()
    #: Fields that are not keys of ``config.json``.
    NOT_IN_FILE: ClassVar[tuple[str, ...]] = ("head", "num_labels", "mlp_layouts")
    #: The field that is the hidden width of every original MLP block.
    WIDTH_FIELD: ClassVar[str] = "intermediate_size"

    def __post_init__(self) -> None:
        check_values(type(self), vars(self))
        if self.head is None and self.num_labels is not None:
            object.__setattr__(self, "head", "sequence-classification")
        check_head(self.head, self.HEADS, self.architecture)
        if (self.num_labels is not None) != (self.head in WITH_LABELS):
            raise InputError(f"config: head {self.head!r} does not go with num_labels {self.num_labels}")
        if self.mlp_layouts and len(self.mlp_layouts) != self.num_blocks:
            raise InputError(f"config: {len(self.mlp_layouts)} block layouts for {self.num_blocks} layers")

    @property
    @abstractmethod
    def architecture(self) -> str:
        """The architecture's name for people, such as ``BERT``."""

    @property
    @abstractmethod
    def model_type(self) -> str:
        """The architecture's name in ``config.json``, such as ``bert``."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """How many layers data passes through."""

    @property
    @abstractmethod
    def max_length(self) -> int | None:
        """The longest input in tokens, or None if there is no limit."""

    @property
    @abstractmethod
    def block_paths(self) -> tuple[str, ...]:
        """Where in the parameter tree each MLP block is, such as ``layer_0/mlp``, in the order of the network."""

    @abstractmethod
    def original_layout(self, index: int) -> Layout:
        """The layout that MLP block `index` has before any compression."""

    def with_parts(self, paths: Collection[str]) -> ModelConfig:
        """The configuration with the optional parts that a checkpoint with these parameters has."""
        return self

    def may_have(self, head: Head, paths: Collection[str]) -> bool:
        """Whether a checkpoint with these parameters, some of the head's among them, can be a model with this head."""
        return True

    @property
    def applications(self) -> tuple[int, ...]:
        """The MLP block of every layer in turn; a block that layers share appears more than once."""
        return tuple(range(len(self.block_paths)))

    @property
    def num_stored_layers(self) -> int:
        """How many layers have weights of their own."""
        return self.num_layers

    @property
    def fewest_tensors(self) -> int:
        """At least so many tensors are in every checkpoint of this configuration."""
        return self.num_layers

    @property
    def table_sizes(self) -> Mapping[str, int]:
        """Input of whole numbers → rows of the table that they look up; inputs that are not read are not there."""
        return {"input_ids": self.vocab_size}

    @property
    def is_causal(self) -> bool:
        """Whether no token sees those behind it, so that equal beginnings give equal hidden states."""
        return False

    @property
    def readout_token(self) -> Literal["first", "last"]:
        """The token whose last hidden state stands for a whole input."""
        return "first"

    @property
    def num_blocks(self) -> int:
        """How many MLP blocks there are."""
        return len(self.block_paths)

    @property
    def layer_paths(self) -> tuple[str, ...]:
        """Where in the parameter tree the layer of each MLP block is."""
        return tuple(path.rsplit("/", 1)[0] for path in self.block_paths)

    def block_layout(self, index: int) -> Layout:
        """The layout of MLP block `index`."""
        return self.mlp_layouts[index] if self.mlp_layouts else self.original_layout(index)


def check_head(head: str | None, known: Sequence[Head], architecture: str) -> None:
    """Refuse a head that an architecture does not have.

    Raises:
        InputError: if it is none of those that are known.
    """
    if head is not None and head not in known:
        raise InputError(f"config: {architecture} has no head {head!r}; it has {', '.join(known)}")


def check_values(cls: type[ModelConfig], values: JsonObject) -> None:
    """Check every given value by itself, before anything is computed with it.

    Raises:
        InputError: for a value that its field cannot have; for fields that are not given their defaults are checked.
    """
    fields = dataclasses.fields(cls)
    whole = {field.name: field.default for field in fields} | dict(values)
    for field in fields:
        check: Check | None = field.metadata[CHECK]
        if check is not None and not (field.metadata[OPTIONAL] and whole[field.name] is None):
            check(field.name, whole[field.name], whole)


def known_values(cls: type[ModelConfig], config: JsonObject, required: Sequence[str]) -> dict[str, Any]:
    """The values of ``config.json`` that are fields of a configuration, checked.

    Args:
        cls: the configuration.
        config: the contents of ``config.json``.
        required: keys that must be there.

    Returns:
        Field → value; fields that the file does not have are left out.

    Raises:
        InputError: for a missing key or a value that its field cannot have.
    """
    missing = [name for name in required if name not in config]
    if missing:
        raise InputError(f"config: missing {', '.join(missing)}")
    names = {field.name for field in dataclasses.fields(cls)} - {*cls.NOT_IN_FILE}
    return checked_values(cls, {name: config[name] for name in names if name in config})


def with_real_names(config: JsonObject, aliases: Mapping[str, str]) -> dict[str, Any]:
    """The contents of ``config.json`` without transformers' second names of the same keys.

    Args:
        config: the contents.
        aliases: second name → the key that it stands for (``attribute_map`` in transformers).

    Returns:
        Key → value; where both names are there, the second one counts, as in transformers.

    >>> with_real_names({"n_layer": 2, "num_hidden_layers": 3}, {"num_hidden_layers": "n_layer"})
    {'n_layer': 3}
    """
    plain = {key: value for key, value in config.items() if key not in aliases}
    return plain | {aliases[key]: value for key, value in config.items() if key in aliases}


def checked_values(cls: type[ModelConfig], values: JsonObject) -> dict[str, Any]:
    """Values from a JSON file for some fields, checked; whole numbers become floats where the field is one.

    Raises:
        InputError: as `check_values`.
    """
    check_values(cls, values)
    numbers = {field.name for field in dataclasses.fields(cls) if field.metadata[CHECK] is _check_number}
    return {k: float(value) if k in numbers and value is not None else value for k, value in values.items()}
