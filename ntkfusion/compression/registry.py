"""Every method under the name it has on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from ntkfusion.compression.contract import Method
from ntkfusion.compression.methods.activation_pruning import ActivationPruning
from ntkfusion.compression.methods.active_neurons import ActiveNeurons
from ntkfusion.compression.methods.autoencoder.method import Autoencoder
from ntkfusion.compression.methods.improved import Improved, Matched, Refitted
from ntkfusion.compression.methods.kronecker import Kronecker
from ntkfusion.compression.methods.mlp_fusion import MLPFusion
from ntkfusion.compression.methods.mmd import MMDPoints
from ntkfusion.compression.methods.ntk_fusion import NTKFusion
from ntkfusion.compression.methods.random_neurons import RandomNeurons
from ntkfusion.compression.methods.sketch import Sketch
from ntkfusion.compression.methods.structured_pruning import StructuredPruning
from ntkfusion.compression.methods.svd import SVD, WeightedSVD, WhitenedSVD
from ntkfusion.compression.methods.weight_pruning import WeightPruning
from ntkfusion.errors import InputError


@dataclasses.dataclass(frozen=True)
class Entry:
    """A named method: how to build it for a keep ratio, and what it is in one line.

    Attributes:
        build: keep ratio → method.
        description: what it is.
        default: whether ``ntkfusion compare`` runs it unasked; variants for specialists and slow ones have to be named.
    """

    build: Callable[[float], Method]
    description: str
    default: bool = True


#: Name → method, in the order in which tables show them.
METHODS: dict[str, Entry] = {
    "mlp-fusion": Entry(
        lambda share: MLPFusion(share), "MLP Fusion V1: k-means centroids of the neurons, cluster sizes as constants"
    ),
    "mlp-fusion-v0": Entry(
        lambda share: MLPFusion(share, variant="v0"),
        "MLP Fusion V0: centroids alone, cluster sizes forgotten",
        default=False,
    ),
    "mlp-fusion-v2": Entry(
        lambda share: MLPFusion(share, variant="v2"), "MLP Fusion V2: cluster sizes multiplied into the output weights"
    ),
    "mlp-fusion-v3": Entry(
        lambda share: MLPFusion(share, variant="v3"),
        "MLP Fusion V3: all weights times the root of the cluster size",
        default=False,
    ),
    "mlp-fusion-v4": Entry(
        lambda share: MLPFusion(share, variant="v4"),
        "MLP Fusion V4: as V3, with constants that restore the function for every activation",
    ),
    "mlp-fusion-half": Entry(
        lambda share: MLPFusion(share, variant="kappa"),
        "MLP Fusion between V1 and V4 (κ = ½), for optimisers whose steps grow as the root of the gradient",
        default=False,
    ),
    "mlp-fusion-data": Entry(
        lambda share: MLPFusion(share, metric="data"),
        "MLP Fusion V1, neurons compared by what they do on calibration text",
    ),
    "svd": Entry(lambda share: SVD(share), "Truncated SVD of both matrices at equal parameters, split UΣ^½ | Σ^½Vᵀ"),
    "svd-left": Entry(
        lambda share: SVD(share, split="left"),
        "The same SVD, split UΣ | Vᵀ: same function, other kernels",
        default=False,
    ),
    "svd-fisher": Entry(
        lambda share: WeightedSVD(share),
        "SVD that weighs outputs by Fisher information, of the block's own outputs where no task is given (FWSVD)",
        default=False,
    ),
    "svd-sparsity": Entry(
        lambda share: WeightedSVD(share, importance="survivors", prune="first-order"),
        "Matrices pruned by first-order scores, then an SVD weighing outputs by what is left (after LPAF's abstract)",
        default=False,
    ),
    "svd-whitened": Entry(
        lambda share: WhitenedSVD(share), "SVD that is best for the inputs each matrix gets on calibration text (DRONE)"
    ),
    "autoencoder": Entry(
        lambda share: Autoencoder(share),
        "Rows as latents, norms and a decoder that all layers share; kernels of the decoded weights",
        default=False,
    ),
    "autoencoder-layer": Entry(
        lambda share: Autoencoder(share, sharing="layer"),
        "The same with a decoder for every matrix; kernels of the decoded weights",
        default=False,
    ),
    "autoencoder-linear": Entry(
        lambda share: Autoencoder(share, linear=True),
        "Linear encoder and decoder, shared by all layers; kernels of the decoded weights",
        default=False,
    ),
    "kronecker": Entry(
        lambda share: Kronecker(share),
        "Best sums of Kronecker products at equal parameters; kernels of the decoded weights",
        default=False,
    ),
    "sketch": Entry(lambda share: Sketch(share), "Random Gaussian combinations of the neurons"),
    "sketch-top-k": Entry(
        lambda share: Sketch(share, top_k=1 / 3),
        "A third of the kept neurons are the largest, the rest is sketched",
        default=False,
    ),
    "mmd": Entry(
        lambda share: MMDPoints(share),
        "Free points with the distribution of the neurons (least MMD), times √(m/c)",
        default=False,
    ),
    "mmd-double-b2": Entry(
        lambda share: MMDPoints(share, scale_b2=True),
        "The same with the output bias times √(m/c) too, as it was published (historical)",
        default=False,
    ),
    "structured-pruning": Entry(lambda share: StructuredPruning(share), "The neurons with the largest ‖w‖‖v‖, whole"),
    "active-neurons": Entry(
        lambda share: ActiveNeurons(share), "The neurons that add most to the output on calibration inputs, rms(a)‖v‖"
    ),
    "magnitude-pruning": Entry(
        lambda share: WeightPruning(share),
        "The largest weights of each matrix, at equal parameters (masks not counted)",
        default=False,
    ),
    "first-order-pruning": Entry(
        lambda share: WeightPruning(share, score="first-order", scope="block"),
        "The weights of the block with the largest |w|√Fisher, at equal parameters (masks not counted)",
        default=False,
    ),
    "activation-pruning": Entry(
        lambda share: ActivationPruning(share),
        "Wanda: per output the largest |W_ji|‖x_j‖ on calibration inputs (masks not counted)",
    ),
    "ntk-fusion": Entry(
        lambda share: NTKFusion(share),
        "Selected neurons, refitted, tuned to outputs and kernels, constants matched to the SGD kernel (our own)",
    ),
    "ntk-fusion-sign": Entry(
        lambda share: NTKFusion(share, target="sign"), "The same function, constants matched to the sign kernel"
    ),
    "ntk-fusion-both": Entry(
        lambda share: NTKFusion(share, target="both"),
        "The same function, one set of constants as a compromise between both kernels",
        default=False,
    ),
    "random-neurons": Entry(
        lambda share: RandomNeurons(share), "A random subset of the neurons, each counted m/c times (the control)"
    ),
}

#: What may follow a method's name after a plus: the improvement on top of it.
IMPROVEMENTS: dict[str, Callable[[Method], Method]] = {
    "refit": lambda method: Refitted(method=method),
    "sgd": lambda method: Matched(method=method),
    "sign": lambda method: Matched(method=method, target="sign"),
    "both": lambda method: Matched(method=method, target="both"),
}

#: The same in a sentence.
IMPROVEMENTS_HELP = (
    "After a name, +refit refits output weights on calibration text; +sgd, +sign and +both match constants of the "
    "neurons to a kernel, function unchanged: mlp-fusion-v2+refit+sgd"
)


def build_method(name: str, keep_ratio: float) -> Method:
    """The method of that name at a keep ratio, with improvements on top of it after plus signs.

    ``+refit`` refits the output weights by ridge regression (`Refitted`); ``+sgd``, ``+sign`` and ``+both`` match the
    neurons' constants to a kernel (`Matched`). They apply from left to right.

    Raises:
        InputError: for an unknown name or improvement, or a keep ratio out of range.

    >>> build_method("svd", 0.5)
    SVD(keep_ratio=0.5, split='balanced')
    >>> build_method("mlp-fusion-v2+refit+sgd", 0.5).target
    'sgd'
    """
    if not isinstance(name, str):
        raise InputError(f"a method is given by its name, such as 'mlp-fusion'; got {name!r} ({type(name).__name__})")
    base, *improvements = name.split("+")
    if base not in METHODS:
        raise InputError(f"unknown method {base!r}; known: {', '.join(METHODS)}")
    if unknown := [improvement for improvement in improvements if improvement not in IMPROVEMENTS]:
        raise InputError(f"unknown improvement {unknown[0]!r} of {base}; known: +{', +'.join(IMPROVEMENTS)}")
    method = METHODS[base].build(keep_ratio)
    for improvement in improvements:
        method = IMPROVEMENTS[improvement](method)
    return method


def with_clustering(method: Method, *, restarts: int, allocation: Literal["uniform", "inertia"]) -> Method:
    """The method, or what it improves, with options for k-means if that is what it does."""
    if isinstance(method, Improved):
        inner = with_clustering(method.method, restarts=restarts, allocation=allocation)
        return dataclasses.replace(method, method=inner)
    if not isinstance(method, MLPFusion):
        return method
    return dataclasses.replace(method, num_restarts=restarts, allocation=allocation)
