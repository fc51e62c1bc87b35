"""A row per group, arcs between those that a kernel connects."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import ifjax
from ifjax import report
from ifjax.report import graph_picture

X = jnp.ones((1, 8))


def network(count):
    """Layers of different widths, none like another."""
    params = {f"{i:03d}": jnp.ones((8 + i, 9 + i)) for i in range(count + 1)}

    def apply(p, x):
        for kernel in p.values():
            x = jnp.tanh(x @ kernel)
        return x

    return ifjax.trace(apply, params, X)


def residual():
    params = {"in": jnp.ones((8, 6)), "up": jnp.ones((6, 12)), "down": jnp.ones((12, 6))}

    def apply(p, x):
        x = x @ p["in"]
        return (x + jax.nn.relu(x @ p["up"]) @ p["down"]).sum()

    return ifjax.trace(apply, params, X)


@pytest.mark.parametrize("count", [1, 100])
def test_a_row_per_group_and_all_weights_counted(count, tmp_path):
    graph = network(count)
    rows = graph_picture._rows(graph)
    assert len(rows) == count
    assert [row.name for row in rows] == [f"{i:03d}" for i in range(count)]
    assert graph_picture._follow(graph, rows) == {(i, i + 1) for i in range(count - 1)}
    report.plot_graph(graph, tmp_path / "graph.png", "a title")
    assert (tmp_path / "graph.png").stat().st_size > 10_000


def test_what_a_block_writes_back():
    graph = residual()
    rows = graph_picture._rows(graph)
    assert [row.name for row in rows] == ["in", "up"]
    assert graph_picture._follow(graph, rows) == {(0, 1), (1, 0)}


def test_layers_alike_share_a_row():
    params = {f"layer{i}": jnp.ones((8, 8)) for i in range(4)}

    def apply(p, x):
        for kernel in p.values():
            x = jnp.tanh(x @ kernel)
        return x

    rows = graph_picture._rows(ifjax.trace(apply, params, X))
    assert sum(len(row.groups) for row in rows) == 3
    assert len(rows) < 3
    assert any("of them" in row.name for row in rows)


def test_the_heaviest_rows_are_drawn_and_the_rest_counted(tmp_path):
    report.plot_graph(network(30), tmp_path / "graph.svg", most=5)
    assert (tmp_path / "graph.svg").stat().st_size > 5_000


def test_nothing_to_draw(tmp_path):
    graph = ifjax.trace(lambda p, x: x @ p, jnp.ones((8, 2)), X)
    with pytest.raises(ValueError, match="expected a graph with groups"):
        report.plot_graph(graph, tmp_path / "graph.png")
    with pytest.raises(ValueError, match="at least 1 row"):
        report.plot_graph(network(1), tmp_path / "graph.png", most=0)
