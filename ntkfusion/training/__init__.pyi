"""The public names of `ntkfusion.training`: the one list, for type checkers and, lazily, Python."""

from .evaluation import evaluate as evaluate
from .fine_tuning import Fit as Fit
from .fine_tuning import fit as fit
from .layerwise import LayerReport as LayerReport
from .layerwise import tune_layers as tune_layers
from .linearised import TrainingCurves as TrainingCurves
from .linearised import curve_distance as curve_distance
from .linearised import linearised_training as linearised_training
from .optimizer import Group as Group
from .optimizer import cluster_rates as cluster_rates
from .recipe import Recipe as Recipe
from .store import StateStore as StateStore
from .trackers import JsonLines as JsonLines
from .trackers import TensorBoard as TensorBoard
from .trackers import Tracker as Tracker
