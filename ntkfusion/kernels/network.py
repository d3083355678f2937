"""The exact kernel of a whole network, of any function, with respect to any of its parameters.

One forward pass and one backward pass per output give the factors of every gradient (`ntkfusion.kernels.tap_factors`);
then the parameters are contracted one after the other (`ntkfusion.kernels.leaf_kernels`), so that no more than a few
rows of one parameter's gradients exist at a time. Examples are taken in chunks when the factors of all do not fit.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.kernels.dense import Kind
from ntkfusion.kernels.leaf_kernels import DenseFactors, DirectFactors, Factors, LookupFactors, leaf_kernel
from ntkfusion.kernels.memory import memory_limit as limit_in_bytes
from ntkfusion.kernels.memory import show_size
from ntkfusion.kernels.tap_factors import as_matrices, as_rows, factors
from ntkfusion.kernels.taps import Dense, Lookup, Taps, find_taps

#: Which parameters: a pattern of paths such as "layer_3/*" or "*/mlp/*", several, or a function of the path.
Select = str | Sequence[str] | Callable[[str], bool]


def network_kernel(
    f: Callable[[Any, Any], Float[Array, " C"]],
    params: Any,
    x: Any,
    z: Any = None,
    *,
    kind: Kind = "sgd",
    select: Select | None = None,
    groups: Mapping[str, Select] | None = None,
    memory_limit: int | str | None = None,
) -> Float[Array, "N M C C"] | dict[str, Float[Array, "N M C C"]]:
    """The exact empirical NTK of ``f(params, one_example) -> [C]``.

    SGD: ``K(x, z)[c, d] = ⟨∇f_c(x), ∇f_d(z)⟩``. Sign: ``⟨∇f_c(x), sgn ∇f_d(z)⟩`` with z the training example. Sums over
    all selected parameters; not divided by anything.

    Args:
        f: the function, of the parameters and one example without batch axis.
        params: pytree of parameters.
        x: evaluated examples: an array or pytree of arrays, examples along the first axis.
        z: training examples; by default `x`.
        kind: "sgd" or "sign".
        select: parameters to differentiate; by default all. Paths are joined by slashes: "layer_0/mlp/w1".
        groups: name → which parameters: return one kernel per group. A parameter belongs to the first group that it
            fits; what fits none is left out.
        memory_limit: bytes, or a text such as "8GiB"; by default a safe share of what the machine has. Examples are
            taken in chunks that fit; the result changes by rounding only.

    Returns:
        [N, M, C, C], or {group: [N, M, C, C]}.

    Raises:
        InputError: if nothing is selected, f does not return a vector, examples differ in number or shape, or not even
            one example fits into the memory limit.
    """
    problem = _Problem.of(f, params, x, z, select, groups)
    kernels = {name: jnp.zeros(problem.shape, problem.dtype) for name in problem.group_names}
    chunks = problem.chunks(limit_in_bytes(memory_limit))
    mirrored = z is None and kind == "sgd"
    for rows, columns, left, right in _tiles(problem, chunks, x, z, mirrored=mirrored):
        for leaf, group in problem.group_of.items():
            # finished before the next one begins: side by side they would share cores and add up in memory
            tile = jax.block_until_ready(leaf_kernel(left[leaf], right[leaf], problem.num_rows(leaf), kind))
            kernels[group] = kernels[group].at[rows, columns].add(tile)
            if mirrored and rows != columns:
                kernels[group] = kernels[group].at[columns, rows].add(tile.transpose(1, 0, 3, 2))
    return kernels if groups is not None else kernels["all"]


def parameter_paths(params: Any) -> list[str]:
    """The path of every parameter, in the order of `jax.tree.leaves`: "layer_0/mlp/w1"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def matches(path: str, select: Select) -> bool:
    """Whether a parameter's path fits.

    >>> matches("layer_0/mlp/w1", "*/mlp/*"), matches("layer_10/mlp/w1", ["layer_1/*", "pooler/*"])
    (True, False)
    """
    if callable(select):
        return bool(select(path))
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in ([select] if isinstance(select, str) else select))


@dataclasses.dataclass(frozen=True)
class _Problem:
    """A checked request."""

    taps: Taps
    leaves: list[Array]
    group_of: dict[int, str]
    group_names: tuple[str, ...]
    shape: tuple[int, int, int, int]
    dtype: Any
    example: Any

    @classmethod
    def of(
        cls,
        f: Callable[[Any, Any], Float[Array, " C"]],
        params: Any,
        x: Any,
        z: Any,
        select: Select | None,
        groups: Mapping[str, Select] | None,
    ) -> _Problem:
        leaves, treedef = jax.tree.flatten(params)
        group_of = _group_leaves(parameter_paths(params), select, groups)
        example, n = _one_example(x)
        other, m = (example, n) if z is None else _one_example(z)
        if jax.tree.structure(example) != jax.tree.structure(other) or jax.tree.leaves(example) != jax.tree.leaves(
            other
        ):
            raise InputError(f"examples of z differ from those of x: {other} against {example}")

        def flat(values: list[Array], one: Any) -> Any:
            return f(jax.tree.unflatten(treedef, values), one)

        out = jax.eval_shape(flat, leaves, example)
        if not isinstance(out, jax.ShapeDtypeStruct) or len(out.shape) != 1 or not out.shape[0]:
            raise InputError(f"f must return a vector [C] for one example, got {out}")
        taps = find_taps(flat, leaves, example, frozenset(group_of))
        names = tuple(groups) if groups is not None else ("all",)
        outputs = out.shape[0]
        return cls(taps, leaves, group_of, names, (n, m, outputs, outputs), out.dtype, example)

    def num_rows(self, leaf: int) -> int:
        """Rows of a parameter as its rule sees it."""
        shape = self.leaves[leaf].shape
        uses = [use for _, use in self.taps.of(leaf)]
        dense = next((use for use in uses if isinstance(use, Dense)), None)
        if dense is None:
            return shape[0] if shape else 1
        summed, kept = len(dense.contracted), len(dense.features)
        return math.prod(shape[: summed if dense.rows_are_input else kept])

    def factors_of(self, leaves: list[Array], example: Any) -> dict[int, tuple[Factors, ...]]:
        """The factors of every selected parameter for one example (no batch axis)."""
        inputs, cotangents, gradients = factors(self.taps, leaves, example)
        found: dict[int, tuple[Factors, ...]] = {}
        for leaf in self.group_of:
            if leaf in gradients:
                gradient = gradients[leaf]
                found[leaf] = (DirectFactors(gradient.reshape(gradient.shape[0], -1)),)
                continue
            found[leaf] = tuple(
                self._use(leaf, use, inputs[path], cotangents[path]) for path, use in self.taps.of(leaf)
            )
        return found

    def _use(self, leaf: int, use: Dense | Lookup, given: Array, cotangent: Array) -> Factors:
        if isinstance(use, Lookup):
            return LookupFactors(*as_rows(use, given, cotangent, self.leaves[leaf].shape[0]))
        a, d = as_matrices(use, given, cotangent)
        return DenseFactors(a, d, use.rows_are_input)

    def compiled(self, count: int) -> Any:
        """The program that computes the factors of `count` examples."""

        def batched(leaves: list[Array], examples: Any) -> dict[int, tuple[Factors, ...]]:
            return jax.vmap(self.factors_of, (None, 0))(leaves, examples)

        examples = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), self.example)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.leaves)
        with jax.default_matmul_precision("highest"):
            return jax.jit(batched).lower(shapes, examples).compile()

    def chunks(self, limit: int) -> _Chunks:
        """The largest chunk of examples whose factors, twice, and workspace fit into the limit."""
        n, m, outputs, _ = self.shape
        result = n * m * outputs**2 * jnp.dtype(self.dtype).itemsize * len(self.group_names)
        one = jax.eval_shape(self.factors_of, self.leaves, self.example)
        per_example = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))
        count = max(1, min(max(n, m), (limit - 2 * result) // max(1, 2 * per_example)))
        while True:
            program = self.compiled(count)
            needed = 2 * result + count * per_example + _program_bytes(program)
            if needed <= limit:
                return _Chunks(program, count)
            if count == 1:
                raise InputError(
                    f"the kernel needs {show_size(needed)} for one example at a time, the limit is {show_size(limit)}: "
                    "raise memory_limit, shorten the examples or select fewer parameters"
                )
            count = max(1, min(count // 2, int(count * limit / needed)))


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """A program for `count` examples."""

    program: Any
    count: int


def _program_bytes(program: Any) -> int:
    analysis = program.memory_analysis()
    return 0 if analysis is None else int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)


def _group_leaves(paths: list[str], select: Select | None, groups: Mapping[str, Select] | None) -> dict[int, str]:
    chosen = [leaf for leaf, path in enumerate(paths) if select is None or matches(path, select)]
    if groups is None:
        group_of = dict.fromkeys(chosen, "all")
    else:
        fits = {leaf: [name for name, group in groups.items() if matches(paths[leaf], group)] for leaf in chosen}
        group_of = {leaf: names[0] for leaf, names in fits.items() if names}
        empty = [name for name in groups if name not in group_of.values()]
        if empty:
            raise InputError(f"group {empty[0]!r} fits no parameter; paths look like {', '.join(paths[:3])}")
    if not group_of:
        raise InputError(f"no parameter is selected by {select!r}; paths look like {', '.join(paths[:3])}")
    return group_of


def _one_example(examples: Any) -> tuple[Any, int]:
    """The shapes of one example, and the number of examples."""
    counts = {leaf.shape[0] if leaf.ndim else -1 for leaf in jax.tree.leaves(examples)}
    if len(counts) != 1 or min(counts) < 1:
        raise InputError(f"examples must share a first axis of length at least 1; found lengths {sorted(counts)}")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), examples), counts.pop()


def _tiles(
    problem: _Problem, chunks: _Chunks, x: Any, z: Any, *, mirrored: bool
) -> Iterator[tuple[slice, slice, Any, Any]]:
    """Pairs of chunks with their factors; for a symmetric kernel each unordered pair once."""
    n, m = problem.shape[:2]
    for start in range(0, n, chunks.count):
        rows = slice(start, min(n, start + chunks.count))
        left = _factors_of_chunk(problem, chunks, x, rows)
        for other in range(0, rows.start + 1 if mirrored else m, chunks.count):
            columns = slice(other, min(m, other + chunks.count))
            same = z is None and columns == rows
            yield (
                rows,
                columns,
                left,
                left if same else _factors_of_chunk(problem, chunks, x if z is None else z, columns),
            )


def _factors_of_chunk(problem: _Problem, chunks: _Chunks, examples: Any, rows: slice) -> Any:
    count = rows.stop - rows.start
    some = jax.tree.map(lambda leaf: jnp.asarray(leaf[rows]), examples)
    if count < chunks.count:
        some = jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:1], chunks.count - count, 0)]), some)
    found = chunks.program(problem.leaves, some)
    return jax.tree.map(lambda leaf: leaf[:count], found) if count < chunks.count else found
