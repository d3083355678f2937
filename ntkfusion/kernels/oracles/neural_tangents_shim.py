"""What neural-tangents 0.6.5 misses on JAX 0.10 and newer, given to its own modules and to nobody else.

neural-tangents was written for JAX 0.4. Its modules are executed unchanged, but with a ``__builtins__`` of their own
whose ``__import__`` answers every import of JAX with a `View`: the real module, with substitutes for what has gone. The
real modules are only read, and nothing is put into ``sys.modules`` but neural-tangents itself. Everything below uses
JAX's public interface, so that a new JAX is unlikely to break it.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import itertools
import logging
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.interpreters import ad

NAME = "neural_tangents"

#: Its TensorFlow part; an empty module stands in for it.
TENSORFLOW_PART = f"{NAME}.experimental"

_log = logging.getLogger(__name__)


class View(ModuleType):
    """A module as neural-tangents sees it: substitutes first, then the real one, imported when first asked."""

    def __init__(self, name: str, **substitutes: Any) -> None:
        super().__init__(name)
        vars(self).update(substitutes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return getattr(importlib.import_module(self.__name__), name)
        except AttributeError:
            if not name.endswith("_p"):
                raise
        # a primitive that JAX no longer has: no program holds it, so a new one under its name never matches
        return vars(self).setdefault(name, jax.extend.core.Primitive(name.removesuffix("_p")))


def safe_map(f: Callable[..., Any], *sequences: Any) -> list[Any]:
    """``map`` that runs at once and refuses sequences of different lengths."""
    return [f(*items) for items in zip(*sequences, strict=True)]


def safe_zip(*sequences: Any) -> list[tuple[Any, ...]]:
    """``zip`` that runs at once and refuses sequences of different lengths."""
    return list(zip(*sequences, strict=True))


def flatten_function(f: Callable[..., Any], tree: Any) -> tuple[Callable[..., list[Any]], Callable[[], Any]]:
    """`f` from leaves to leaves, and a function that gives the structure of its result once it has run."""
    structures: list[Any] = []

    def flat(*leaves: Any) -> list[Any]:
        results, structure = jax.tree.flatten(f(*jax.tree.unflatten(tree, leaves)))
        structures.append(structure)
        return results

    return flat, lambda: structures[-1]


def without_splits(program: Any) -> Callable[..., list[Any]]:
    """The function of a program, each ``split`` as slices: neural-tangents takes only equations with one output."""

    def split(x: Any, sizes: Any, axis: int) -> list[Any]:
        ends = itertools.accumulate(sizes)
        return [jax.lax.slice_in_dim(x, end - size, end, axis=axis) for size, end in zip(sizes, ends, strict=True)]

    def run(*inputs: Any) -> list[Any]:
        jaxpr = program.jaxpr
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *inputs], strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jax.extend.core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            apply = split if equation.primitive.name == "split" else equation.primitive.bind
            results = apply(*map(read, equation.invars), **equation.params)
            several = equation.primitive.multiple_results
            values.update(zip(equation.outvars, results if several else [results], strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    return run


def linearize(f: Callable[..., list[Any]], *primals: Any, has_aux: bool) -> tuple[Any, Any, Any, Any]:
    """The old ``ad.linearize``: outputs, their partial values (none known), the linear program, its constants."""
    assert not has_aux
    outputs, tangent = jax.linearize(f, *primals)
    program = jax.make_jaxpr(tangent)(*primals)
    if any(equation.primitive.name == "split" for equation in program.eqns):
        program = jax.make_jaxpr(without_splits(program))(*primals)
    return outputs, [SimpleNamespace(is_known=lambda: False)] * len(outputs), program.jaxpr, program.consts


def equation_vjp(equation: Any, cotangent: Any, *inputs: Any) -> Sequence[Any]:
    """Cotangents of the linear inputs of one equation, None for the others: transposed by JAX, whatever its rule."""
    if equation is None:
        return (cotangent,)
    if isinstance(cotangent, ad.Zero):
        return [None] * len(inputs)
    linear = [i for i, value in enumerate(inputs) if ad.is_undefined_primal(value)]

    def apply(*tangents: Any) -> Any:
        values = dict(enumerate(inputs)) | dict(zip(linear, tangents, strict=True))
        result = equation.primitive.bind(*values.values(), **equation.params)
        return result[0] if equation.primitive.multiple_results else result

    shapes = [jax.ShapeDtypeStruct(inputs[i].aval.shape, inputs[i].aval.dtype) for i in linear]
    # neural-tangents drops axes of length 1 from what comes back to a reshape, whose old rule did not look at them
    expected = jax.eval_shape(apply, *shapes).shape
    if cotangent.shape != expected and math.prod(cotangent.shape) == math.prod(expected):
        cotangent = jnp.reshape(cotangent, expected)
    found = dict(zip(linear, jax.linear_transpose(apply, *shapes)(cotangent), strict=True))
    return [found.get(i) for i in range(len(inputs))]


def count_operations(f: Callable[..., Any], optimize: bool, *args: Any, **kwargs: Any) -> float:
    """Floating-point operations of a function by XLA's count, which has changed its form; infinite where unknown."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (args, kwargs))
    stage = jax.jit(f).lower(*shapes[0], **shapes[1])
    analysis = (stage.compile() if optimize else stage).cost_analysis() or {}
    if isinstance(analysis, list | tuple):
        analysis = analysis[0]
    return analysis.get("flops", float("inf"))


def jax_view() -> View:
    """JAX as neural-tangents 0.6.5 expects it."""
    names = ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
    dynamic = type("DShapedArray", (), {"__doc__": "Arrays of unknown shape, which JAX no longer has."})
    source = SimpleNamespace(transform_name_stack=lambda name: nullcontext())
    return View(
        "jax",
        core=View("jax.core", DShapedArray=dynamic, **{name: getattr(jax.extend.core, name) for name in names}),
        interpreters=View(
            "jax.interpreters",
            ad=View(
                "jax.interpreters.ad",
                linearize=linearize,
                source_info_util=source,
                config=SimpleNamespace(jax_enable_checks=False),
            ),
        ),
        extend=View("jax.extend", linear_util=SimpleNamespace(wrap_init=lambda f: f)),
        api_util=View("jax.api_util", flatten_fun_nokwargs=flatten_function),
        util=SimpleNamespace(safe_map=safe_map, safe_zip=safe_zip),
        lax=View("jax.lax"),
        # asked for the size of shapes, which jnp.size warns about and will refuse
        numpy=View("jax.numpy", size=lambda x: math.prod(jnp.shape(x))),
        # not loaded with JAX itself: loading them would add attributes to it
        scipy=View("jax.scipy", special=SimpleNamespace(erf=jax.lax.erf), linalg=View("jax.scipy.linalg")),
        experimental=View("jax.experimental", ode=View("jax.experimental.ode")),
        example_libraries=View("jax.example_libraries", stax=View("jax.example_libraries.stax")),
    )


#: Functions of neural-tangents that are replaced, by module.
REPLACED = {f"{NAME}._src.empirical": {"_eqn_vjp_fn": equation_vjp, "_get_flops": count_operations}}


class SourceLoader(SourceFileLoader):
    """Executes a module of neural-tangents with imports of its own."""

    view: View

    def exec_module(self, module: ModuleType) -> None:
        """Execute it; imports of JAX give the view."""

        def import_module(
            name: str, globals_: Any = None, locals_: Any = None, fromlist: Any = (), level: int = 0
        ) -> Any:
            top, *rest = name.split(".")
            if level or top != "jax":
                return builtins.__import__(name, globals_, locals_, fromlist, level)
            return functools.reduce(getattr, rest, self.view) if fromlist else self.view

        def to_log(*values: Any, **_: Any) -> None:  # AUTO prints what it compares
            _log.debug(" ".join(map(str, values)))

        vars(module)["__builtins__"] = {**vars(builtins), "__import__": import_module, "print": to_log}
        super().exec_module(module)
        for name, function in REPLACED.get(module.__name__, {}).items():
            getattr(module, name)  # a replacement for what is not there would be silently without effect
            setattr(module, name, function)


class _EmptyLoader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = "Left out: it needs TensorFlow."


class _Finder(MetaPathFinder):
    """Finds neural-tangents' modules, to be loaded as above."""

    def __init__(self) -> None:
        self.view = jax_view()

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname == TENSORFLOW_PART:
            return ModuleSpec(fullname, _EmptyLoader())
        if fullname.partition(".")[0] != NAME:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = SourceLoader(spec.loader.name, spec.loader.path)
            spec.loader.view = self.view
        return spec


def _forget() -> None:
    """Drop what failed imports left behind: Python drops a failed module, but not those it had imported."""
    for name in list(sys.modules):
        if name.partition(".")[0] == NAME and sys.modules[name] is not None:  # None: somebody forbade the import
            del sys.modules[name]


def import_neural_tangents() -> ModuleType:
    """Import neural-tangents from source with JAX's views; if it fails, leave no trace of it."""
    finder = _Finder()
    _forget()
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module(NAME)
    except BaseException:
        _forget()
        raise
    finally:
        sys.meta_path.remove(finder)
