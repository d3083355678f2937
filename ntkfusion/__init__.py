"""Exact neural tangent kernels of compressed language models.

>>> import ntkfusion as nf
>>> nf.MLPFusion(width=0.25).width
0.25

Names are imported when they are first used, so that the command line can answer ``--help`` without loading JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ntkfusion._version import __version__

if TYPE_CHECKING:
    from ntkfusion.allocator import keep_freed_memory
    from ntkfusion.checkpoints.load import load_model
    from ntkfusion.checkpoints.save import save_model
    from ntkfusion.clustering.kmeans import KMeansResult, kmeans, kmeans_batch
    from ntkfusion.compression.activation_pruning import ActivationPruning
    from ntkfusion.compression.active_neurons import ActiveNeurons
    from ntkfusion.compression.autoencoder.method import Autoencoder
    from ntkfusion.compression.autoencoder.training import Training
    from ntkfusion.compression.compress import compress
    from ntkfusion.compression.compress_matrices import CodedStore, MatrixReport, compress_matrices
    from ntkfusion.compression.contract import BlockReport, Compressed, LayerwiseMethod, Method, Workspace
    from ntkfusion.compression.improved import Matched, Refitted
    from ntkfusion.compression.kronecker import Kronecker
    from ntkfusion.compression.matching import MatchedBlock, match_both, match_constants
    from ntkfusion.compression.matrices import LowRank
    from ntkfusion.compression.mlp_fusion import MLPFusion
    from ntkfusion.compression.mmd import MMDPoints
    from ntkfusion.compression.ntk_fusion import NTKFusion
    from ntkfusion.compression.random_neurons import RandomNeurons
    from ntkfusion.compression.refit import refit_output
    from ntkfusion.compression.registry import METHODS, build_method
    from ntkfusion.compression.sketch import Sketch
    from ntkfusion.compression.structured_pruning import StructuredPruning
    from ntkfusion.compression.svd import SVD
    from ntkfusion.compression.tuning import Tuning, tune
    from ntkfusion.compression.weight_pruning import WeightPruning
    from ntkfusion.compression.weighted_svd import WeightedSVD
    from ntkfusion.compression.whitened_svd import WhitenedSVD
    from ntkfusion.data.inputs import BlockInputs, collect_block_inputs
    from ntkfusion.data.task import Examples, Task
    from ntkfusion.data.tasks import load_task, read_task
    from ntkfusion.errors import CheckpointError, InputError, NTKFusionError, OutputExistsError
    from ntkfusion.kernels.block import block_kernel, estimate_block_kernel
    from ntkfusion.kernels.devices import fetch, row_mesh
    from ntkfusion.kernels.distance import KernelDistance, kernel_distance
    from ntkfusion.kernels.estimate import Estimate
    from ntkfusion.kernels.full_distance import FullKernelDistance, full_kernel_distance
    from ntkfusion.kernels.network import estimate_network_kernel, network_kernel
    from ntkfusion.kernels.oracle import dense_kernel
    from ntkfusion.kernels.sequence import estimate_sequence_kernel, sequence_kernel
    from ntkfusion.models.albert_config import AlbertConfig
    from ntkfusion.models.bert_config import BertConfig
    from ntkfusion.models.coded import CodedBlock, as_dense_weights
    from ntkfusion.models.gated import GatedBlock
    from ntkfusion.models.generation import generate
    from ntkfusion.models.gpt2_config import GPT2Config
    from ntkfusion.models.masked import MaskedBlock
    from ntkfusion.models.mixture import MixtureBlock
    from ntkfusion.models.mlp import FactorizedBlock, MLPBlock
    from ntkfusion.models.model import Model, random_model
    from ntkfusion.models.new_head import with_new_head
    from ntkfusion.models.roberta_config import RobertaConfig
    from ntkfusion.reporting.kernel_file import KernelFile, load_kernel_file
    from ntkfusion.theory.network_bounds import NetworkBound, network_bound
    from ntkfusion.theory.network_errors import NetworkErrors, network_errors
    from ntkfusion.theory.output_bounds import output_bound
    from ntkfusion.theory.sgd_bounds import sgd_kernel_bound
    from ntkfusion.theory.sign_bounds import sign_kernel_bound
    from ntkfusion.theory.signal_bounds import signal_bound
    from ntkfusion.theory.tight_output import output_enclosure
    from ntkfusion.theory.tight_sgd import sgd_enclosure
    from ntkfusion.training.evaluate import evaluate
    from ntkfusion.training.fit import Fit, fit
    from ntkfusion.training.groups import Group, cluster_rates
    from ntkfusion.training.layerwise import LayerReport, tune_layers
    from ntkfusion.training.linearised import TrainingCurves, curve_distance, linearised_training
    from ntkfusion.training.recipe import Recipe
    from ntkfusion.training.store import StateStore

_HOMES = {
    "keep_freed_memory": "allocator",
    "fit": "training.fit",
    "Fit": "training.fit",
    "Recipe": "training.recipe",
    "evaluate": "training.evaluate",
    "Group": "training.groups",
    "cluster_rates": "training.groups",
    "StateStore": "training.store",
    "linearised_training": "training.linearised",
    "curve_distance": "training.linearised",
    "TrainingCurves": "training.linearised",
    "tune_layers": "training.layerwise",
    "LayerReport": "training.layerwise",
    "output_bound": "theory.output_bounds",
    "sgd_kernel_bound": "theory.sgd_bounds",
    "sign_kernel_bound": "theory.sign_bounds",
    "signal_bound": "theory.signal_bounds",
    "output_enclosure": "theory.tight_output",
    "sgd_enclosure": "theory.tight_sgd",
    "tune": "compression.tuning",
    "Tuning": "compression.tuning",
    "refit_output": "compression.refit",
    "NTKFusion": "compression.ntk_fusion",
    "match_both": "compression.matching",
    "match_constants": "compression.matching",
    "MatchedBlock": "compression.matching",
    "Refitted": "compression.improved",
    "Matched": "compression.improved",
    "Autoencoder": "compression.autoencoder.method",
    "Training": "compression.autoencoder.training",
    "Kronecker": "compression.kronecker",
    "LowRank": "compression.matrices",
    "compress_matrices": "compression.compress_matrices",
    "CodedStore": "compression.compress_matrices",
    "MatrixReport": "compression.compress_matrices",
    "CodedBlock": "models.coded",
    "as_dense_weights": "models.coded",
    "row_mesh": "kernels.devices",
    "fetch": "kernels.devices",
    "estimate_sequence_kernel": "kernels.sequence",
    "estimate_network_kernel": "kernels.network",
    "estimate_block_kernel": "kernels.block",
    "Estimate": "kernels.estimate",
    "MixtureBlock": "models.mixture",
    "GatedBlock": "models.gated",
    "GPT2Config": "models.gpt2_config",
    "generate": "models.generation",
    "MaskedBlock": "models.masked",
    "sequence_kernel": "kernels.sequence",
    "full_kernel_distance": "kernels.full_distance",
    "FullKernelDistance": "kernels.full_distance",
    "ActivationPruning": "compression.activation_pruning",
    "ActiveNeurons": "compression.active_neurons",
    "WeightPruning": "compression.weight_pruning",
    "AlbertConfig": "models.albert_config",
    "BertConfig": "models.bert_config",
    "RobertaConfig": "models.roberta_config",
    "BlockInputs": "data.inputs",
    "BlockReport": "compression.contract",
    "CheckpointError": "errors",
    "Compressed": "compression.contract",
    "FactorizedBlock": "models.mlp",
    "InputError": "errors",
    "KMeansResult": "clustering.kmeans",
    "KernelDistance": "kernels.distance",
    "KernelFile": "reporting.kernel_file",
    "LayerwiseMethod": "compression.contract",
    "METHODS": "compression.registry",
    "MLPBlock": "models.mlp",
    "MLPFusion": "compression.mlp_fusion",
    "MMDPoints": "compression.mmd",
    "Method": "compression.contract",
    "Model": "models.model",
    "NTKFusionError": "errors",
    "OutputExistsError": "errors",
    "RandomNeurons": "compression.random_neurons",
    "SVD": "compression.svd",
    "Sketch": "compression.sketch",
    "StructuredPruning": "compression.structured_pruning",
    "WeightedSVD": "compression.weighted_svd",
    "WhitenedSVD": "compression.whitened_svd",
    "Workspace": "compression.contract",
    "block_kernel": "kernels.block",
    "build_method": "compression.registry",
    "collect_block_inputs": "data.inputs",
    "compress": "compression.compress",
    "dense_kernel": "kernels.oracle",
    "kernel_distance": "kernels.distance",
    "kmeans": "clustering.kmeans",
    "kmeans_batch": "clustering.kmeans",
    "load_kernel_file": "reporting.kernel_file",
    "load_model": "checkpoints.load",
    "Examples": "data.task",
    "Task": "data.task",
    "load_task": "data.tasks",
    "read_task": "data.tasks",
    "save_model": "checkpoints.save",
    "network_kernel": "kernels.network",
    "NetworkBound": "theory.network_bounds",
    "network_bound": "theory.network_bounds",
    "NetworkErrors": "theory.network_errors",
    "network_errors": "theory.network_errors",
    "random_model": "models.model",
    "with_new_head": "models.new_head",
}

__all__ = [
    "METHODS",
    "SVD",
    "ActivationPruning",
    "ActiveNeurons",
    "AlbertConfig",
    "Autoencoder",
    "BertConfig",
    "BlockInputs",
    "BlockReport",
    "CheckpointError",
    "CodedBlock",
    "CodedStore",
    "Compressed",
    "Estimate",
    "Examples",
    "FactorizedBlock",
    "Fit",
    "FullKernelDistance",
    "GPT2Config",
    "GatedBlock",
    "Group",
    "InputError",
    "KMeansResult",
    "KernelDistance",
    "KernelFile",
    "Kronecker",
    "LayerReport",
    "LayerwiseMethod",
    "LowRank",
    "MLPBlock",
    "MLPFusion",
    "MMDPoints",
    "MaskedBlock",
    "Matched",
    "MatchedBlock",
    "MatrixReport",
    "Method",
    "MixtureBlock",
    "Model",
    "NTKFusion",
    "NTKFusionError",
    "NetworkBound",
    "NetworkErrors",
    "OutputExistsError",
    "RandomNeurons",
    "Recipe",
    "Refitted",
    "RobertaConfig",
    "Sketch",
    "StateStore",
    "StructuredPruning",
    "Task",
    "Training",
    "TrainingCurves",
    "Tuning",
    "WeightPruning",
    "WeightedSVD",
    "WhitenedSVD",
    "Workspace",
    "__version__",
    "as_dense_weights",
    "block_kernel",
    "build_method",
    "cluster_rates",
    "collect_block_inputs",
    "compress",
    "compress_matrices",
    "curve_distance",
    "dense_kernel",
    "estimate_block_kernel",
    "estimate_network_kernel",
    "estimate_sequence_kernel",
    "evaluate",
    "fetch",
    "fit",
    "full_kernel_distance",
    "generate",
    "keep_freed_memory",
    "kernel_distance",
    "kmeans",
    "kmeans_batch",
    "linearised_training",
    "load_kernel_file",
    "load_model",
    "load_task",
    "match_both",
    "match_constants",
    "network_bound",
    "network_errors",
    "network_kernel",
    "output_bound",
    "output_enclosure",
    "random_model",
    "read_task",
    "refit_output",
    "row_mesh",
    "save_model",
    "sequence_kernel",
    "sgd_enclosure",
    "sgd_kernel_bound",
    "sign_kernel_bound",
    "signal_bound",
    "tune",
    "tune_layers",
    "with_new_head",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ntkfusion' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ntkfusion.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
