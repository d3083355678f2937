"""The public names of `ntkfusion.theory`: the one list, for type checkers and, lazily, Python."""

from .blocks.mixture_bounds import mixture_output_bound as mixture_output_bound
from .blocks.output_bounds import output_bound as output_bound
from .blocks.sgd_bounds import sgd_kernel_bound as sgd_kernel_bound
from .blocks.sign_bounds import sign_kernel_bound as sign_kernel_bound
from .blocks.signal_bounds import signal_bound as signal_bound
from .enclosures.enclosure import Enclosure as Enclosure
from .enclosures.output_enclosure import output_enclosure as output_enclosure
from .enclosures.sgd_enclosure import KernelDirections as KernelDirections
from .enclosures.sgd_enclosure import sgd_enclosure as sgd_enclosure
from .networks.network_bounds import NetworkBound as NetworkBound
from .networks.network_bounds import network_bound as network_bound
from .networks.network_errors import NetworkErrors as NetworkErrors
from .networks.network_errors import network_errors as network_errors
