"""Results of compression: tables for the terminal, JSON for programs, pictures for people."""

from ifjax.report.accuracy import plot_accuracy
from ifjax.report.canvas import require_matplotlib
from ifjax.report.divergence import plot_divergence
from ifjax.report.files import write_atomically
from ifjax.report.origin import provenance
from ifjax.report.rows import Row, table, to_json
from ifjax.report.sensitivity import plot_sensitivity
from ifjax.report.transport_map import plot_map

__all__ = [
    "Row",
    "plot_accuracy",
    "plot_divergence",
    "plot_map",
    "plot_sensitivity",
    "provenance",
    "require_matplotlib",
    "table",
    "to_json",
    "write_atomically",
]
