"""Results of compression: tables for the terminal, JSON for programs, pictures for people."""

from ifjax.report.canvas import require_matplotlib
from ifjax.report.graph_picture import plot_graph
from ifjax.report.pictures import plot_accuracy, plot_divergence, plot_map, plot_sensitivity
from ifjax.report.results import Row, provenance, table, to_json, write_atomically

__all__ = [
    "Row",
    "plot_accuracy",
    "plot_divergence",
    "plot_graph",
    "plot_map",
    "plot_sensitivity",
    "provenance",
    "require_matplotlib",
    "table",
    "to_json",
    "write_atomically",
]
