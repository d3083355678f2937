"""What ``ntkfusion kernel`` writes and prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ntkfusion.commands.kernel.run import KernelResult
from ntkfusion.commands.protocol import print_lines
from ntkfusion.reporting.kernel_file import KernelFile, save_kernel_file
from ntkfusion.reporting.kernel_plots import VALUES, Spectrum, describe, kernel_figure, spectrum_figure
from ntkfusion.reporting.plots import save_png
from ntkfusion.utils.memory import show_size

#: Leading eigenvalues or singular values that are printed.
LEADING = 3


def write(result: KernelResult, folder: Path) -> None:
    """Write the kernel, its heat map and its spectrum."""
    numbers, heatmap, spectrum = (folder / name for name in result.plan.output.files)
    save_kernel_file(result.file, numbers)
    save_png(kernel_figure(result.file), heatmap)
    save_png(spectrum_figure(result.file, result.spectra), spectrum)


def show(result: KernelResult, console: Console) -> None:
    """Print what was computed and under which conditions, the groups, and where the files are."""
    file = result.file
    size = " × ".join(str(length) for length in file.kernel.shape)
    print_lines(console, f"{describe(file)}: {size}", conditions_line(file))
    console.print(groups_table(file, result.spectra))
    files = ", ".join(str(path) for path in result.plan.output.paths)
    print_lines(console, memory_line(file), time_line(file), f"Files: {files}")


def conditions_line(file: KernelFile) -> str:
    """Normalisation, readout, text and seed in one line."""
    conditions = file.conditions
    length = f" of at most {conditions['length']} tokens" if "length" in conditions else ""
    return (
        f"Conditions: {conditions['normalisation']}; {conditions['readout']}; {conditions['text']}{length}; "
        f"seed {conditions['seed']}"
    )


def memory_line(file: KernelFile) -> str:
    """What the computation was estimated to take."""
    memory = file.conditions["memory"]
    return (
        f"Memory: {show_size(memory['peak'])} at most by estimate, of {show_size(memory['limit'])}; "
        f"{min(memory['chunk'], len(file.kernel))} at a time"
    )


def groups_table(file: KernelFile, spectra: Mapping[str, Spectrum]) -> Table:
    """Share in the trace, effective rank and leading values of the whole and of every group."""
    table = Table(title="Parameter groups and their shares of the trace", title_justify="left")
    table.add_column("group", no_wrap=True)
    for name in ("share", "effective rank", f"leading {VALUES[file.conditions['kind']]}s"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, spectrum in spectra.items():
        leading = "  ".join(f"{value:.4g}" for value in spectrum.significant[:LEADING]) or "0"
        table.add_row(name, f"{100 * spectrum.share:.1f} %", f"{spectrum.effective_rank:.2f}", leading)
    return table


def time_line(file: KernelFile) -> str:
    """Seconds, and how far neural-tangents' kernel is, if it was asked for."""
    seconds = file.conditions["seconds"]
    line = f"Time: {seconds['kernel']:.1f} s for the kernel, compilation included; {seconds['total']:.1f} s in all"
    if "reference" not in file.conditions:
        return line
    reference = file.conditions["reference"]
    return (
        f"{line}\nneural-tangents: relative Frobenius difference {reference['relative_frobenius']:.2e}; it took "
        f"{reference['seconds']:.1f} s"
    )
