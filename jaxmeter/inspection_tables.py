"""What there is in a model, as tables for a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from jaxmeter.inspection import layer_rows
from jaxmeter.target import Target
from jaxmeter.terminal import one_line, printable


def facts_table(target: Target) -> Table:
    """Where a target came from, what it takes and what it gives."""
    spec, source = target.spec, target.spec.source
    versions = ", ".join(f"{package} {version}" for package, version in source.versions)
    difference = "not compared: there is no original to run"
    if source.difference is not None:
        difference = f"at most {source.difference:.1g} on a probe batch of random records"
    facts = {
        "Model": source.origin,
        "Route": f"{source.route} ({versions})" if versions else source.route,
        "Opened": source.process,
        "Difference": difference,
        "Input": f"{sizes_text(spec.input_shape)} {spec.input_dtype}",
        "Classes": "not known" if spec.n_classes is None else str(spec.n_classes),
        "Logits": source.logits,
    }
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(Text(name, style="bold"), Text(one_line(fact), overflow="fold"))
    return table


def layers_table(target: Target) -> Table:
    """One row a layer: its output, its variables, and what attacks can use of it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("#", justify="right")
    for title in ("Layer", "Output", "Variables"):
        table.add_column(title, overflow="fold")
    table.add_column("Parameters", justify="right")
    table.add_column("Attacks can use", overflow="fold")
    for row in layer_rows(target):
        variables = "\n".join(
            f"{printable(v.name)} {sizes_text(v.shape)}{'' if v.is_trainable else ', no gradient'}"
            for v in row.variables
        )
        uses = ["output"] if row.position else []
        for number, name in row.gradients:
            inner = "" if name == row.name else f": {printable(name)}"
            uses.append(f"gradients {number}{inner}")
        cells = (
            str(row.position or "-"),
            printable(row.name),
            sizes_text(row.output) if row.position else "-",
            variables or "-",
            f"{row.parameters:,}",
            "\n".join(uses) or "-",
        )
        table.add_row(*map(Text, cells))  # Text: brackets in a name are no markup
    return table


def sizes_text(shape: Sequence[int | None] | None) -> str:
    """A shape for reading: "(28, 28, 1)"; "?" is a dimension that is open."""
    if shape is None:
        return "not known"
    sizes = ["?" if d is None else str(d) for d in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
