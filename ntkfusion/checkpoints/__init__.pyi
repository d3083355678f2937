"""The public names of `ntkfusion.checkpoints`: the one list, for type checkers and, lazily, Python."""

from .audit import Audit as Audit
from .export import exportable as exportable
from .load import load_model as load_model
from .load import load_with_audit as load_with_audit
from .save import save_model as save_model
