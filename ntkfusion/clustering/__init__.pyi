"""The public names of `ntkfusion.clustering`: the one list, for type checkers and, lazily, Python."""

from .k_means import KMeansResult as KMeansResult
from .k_means import kmeans as kmeans
from .k_means import kmeans_batch as kmeans_batch
