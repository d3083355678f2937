"""What every architecture's configuration has, and checks of values before anything is allocated."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from ntkfusion.errors import InputError

#: The largest value any size in a configuration may have: beyond it a file is damaged, not large.
LARGEST_SIZE = 2**24

#: A size that may be 0, or the number of something that is counted from 0.
Index: TypeAlias = int

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

    vocab_size: int = 30522
    hidden_size: int = 768
    head: Head | None = None
    num_labels: int | None = None
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    mlp_layouts: tuple[Any, ...] = ()

    #: Heads that this architecture can have.
    HEADS: ClassVar[tuple[Head, ...]] = ()
    #: Fields that are not keys of ``config.json``.
    OWN_FIELDS: ClassVar[tuple[str, ...]] = ("head", "num_labels", "mlp_layouts")
    #: The field that is the hidden width of every original MLP block.
    WIDTH_FIELD: ClassVar[str] = "intermediate_size"

    def __post_init__(self) -> None:
        check_values(type(self), vars(self))
        if self.head is None and self.num_labels is not None:
            object.__setattr__(self, "head", "sequence-classification")
        if self.head is not None and self.head not in self.HEADS:
            raise InputError(f"config: {self.architecture} has no head {self.head!r}; it has {', '.join(self.HEADS)}")
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
    def original_layout(self, index: int) -> Any:
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

    def block_layout(self, index: int) -> Any:
        """The layout of MLP block `index`."""
        return self.mlp_layouts[index] if self.mlp_layouts else self.original_layout(index)


def check_values(cls: type[ModelConfig], values: Mapping[str, Any]) -> None:
    """Check every given value by itself, before anything is computed with it.

    Raises:
        InputError: for a value that its field cannot have; fields that are not given are not looked at.
    """
    for field in dataclasses.fields(cls):
        value = values.get(field.name, field.default)
        optional = str(field.type).endswith("| None")
        if optional and value is None:
            continue
        match str(field.type).removesuffix(" | None"):
            case "int":
                _check_size(field.name, value)
            case "Index":
                _check_size(field.name, value, smallest=0)
            case "float" if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e3:
                raise InputError(f"config: {field.name} must be a small non-negative number, got {value!r}")
            case "str" if not isinstance(value, str):
                raise InputError(f"config: {field.name} must be a string, got {value!r}")
            case "bool" if not isinstance(value, bool):
                raise InputError(f"config: {field.name} must be true or false, got {value!r}")
            case _:
                pass


def _check_size(name: str, value: Any, smallest: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= LARGEST_SIZE:
        raise InputError(f"config: {name} must be a whole number from {smallest} to {LARGEST_SIZE}, got {value!r}")


def known_values(cls: type[ModelConfig], config: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
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
    names = {field.name for field in dataclasses.fields(cls)} - {*cls.OWN_FIELDS}
    return checked_values(cls, {name: config[name] for name in names if name in config})


def checked_values(cls: type[ModelConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values from a JSON file for some fields, checked; whole numbers become floats where the field is one.

    Raises:
        InputError: as `check_values`.
    """
    check_values(cls, values)
    floats = {field.name for field in dataclasses.fields(cls) if str(field.type).startswith("float")}
    return {k: float(value) if k in floats and value is not None else value for k, value in values.items()}
