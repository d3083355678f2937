"""The public names of `ntkfusion.data`: the one list, for type checkers and, lazily, Python."""

from .block_inputs import BlockInputs as BlockInputs
from .block_inputs import collect_block_inputs as collect_block_inputs
from .block_inputs import unseen_sentences as unseen_sentences
from .tasks.load import TASKS as TASKS
from .tasks.load import load_task as load_task
from .tasks.load import read_task as read_task
from .tasks.task import Examples as Examples
from .tasks.task import Task as Task
from .text import read_sentences as read_sentences
from .text import sample_sentences as sample_sentences
from .text import split_sentences as split_sentences
from .text_batch import text_batch as text_batch
