"""The public names of `ntkfusion.kernels`: the one list, for type checkers and, lazily, Python."""

from .block.block_kernel import block_kernel as block_kernel
from .block.block_kernel import estimate_block_kernel as estimate_block_kernel
from .block.sequence_kernel import estimate_sequence_kernel as estimate_sequence_kernel
from .block.sequence_kernel import sequence_kernel as sequence_kernel
from .distance.full_kernel_distance import FullKernelDistance as FullKernelDistance
from .distance.full_kernel_distance import full_kernel_distance as full_kernel_distance
from .distance.kernel_distance import KernelDistance as KernelDistance
from .distance.kernel_distance import kernel_distance as kernel_distance
from .distance.kernel_distance import relative_error as relative_error
from .estimate import Estimate as Estimate
from .kinds import KINDS as KINDS
from .kinds import Kind as Kind
from .network.network_kernel import estimate_network_kernel as estimate_network_kernel
from .network.network_kernel import network_kernel as network_kernel
from .oracles.dense_jacobian import block_function as block_function
from .oracles.dense_jacobian import dense_kernel as dense_kernel
from .oracles.neural_tangents import reference_kernel as reference_kernel
