"""How much accuracy each group costs when it alone is cut, as the paper plots it."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ifjax
from ifjax import data
from ifjax.activations.statistics import Stats
from ifjax.experiment.config import Config
from ifjax.experiment.network import Network
from ifjax.experiment.runner import evaluator
from ifjax.experiment.variants import choose
from ifjax.training.evaluate import Evaluation


def one_at_a_time(
    config: Config, graph: ifjax.DependencyGraph, spec: ifjax.FusionSpec
) -> Iterator[tuple[str, list[tuple[float, str, str, ifjax.FusionSpec]]]]:
    """Lists the specs that cut one group alone, group by group.

    Args:
        config: sparsities, importances and methods.
        graph: of the dense network.
        spec: one that cuts all groups in question.

    Yields:
        The name of a group, and its sparsities, importances, methods and specs.
    """
    for name in spec.structure.widths:
        found = []
        for sparsity in sorted(config.cuts):
            alone = choose(config, graph, sparsity, lambda group, name=name: group.name == name)
            for score, method in itertools.product(config.importances, config.scored):
                chosen = dataclasses.replace(alone.method, importance=score, method=method)
                found.append((sparsity, score, method, dataclasses.replace(alone, method=chosen)))
        yield name, found


def accuracy_alone(
    config: Config,
    dataset: data.ImageDataset,
    network: Network,
    spec: ifjax.FusionSpec,
    stats: Stats | None,
    test: Callable[[Any], Evaluation],
) -> float:
    """The accuracy after a cut, without a program of its own where that is possible.

    Args:
        config: the batch size.
        dataset: the images.
        network: the dense network.
        spec: what is cut.
        stats: what the importance needs.
        test: evaluates variables at full width: neurons of an exact group that are zero are as
            good as gone.

    Returns:
        Fraction of the test images classified correctly.
    """
    exact = all(group.exact for group in spec.groups if group.name in spec.structure.widths)
    small = ifjax.fuse_params(network.variables, spec, stats=stats, keep_shape=exact)
    if exact:
        return test(small).accuracy
    return evaluator(config, dataset, network.shrink(None, spec))(small).accuracy


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Aligns the accuracies of all groups, a line per group and sparsity and a column per method.

    Args:
        records: with ``group``, ``sparsity``, ``method`` and ``accuracy``, those of a group and
            sparsity one after another.

    Returns:
        Lines joined by newlines, none at the end.

    Raises:
        ValueError: if there is no record.

    Example:
        >>> one = {"group": "a/kernel", "sparsity": 0.5}
        >>> print(table([one | {"method": "pruning", "accuracy": 0.7},
        ...              one | {"method": "fusion", "accuracy": 0.85}]))
        group     sparsity  pruning   fusion
        --------  --------  -------  -------
        a/kernel      50 %  70.00 %  85.00 %
    """
    if not records:
        raise ValueError("expected at least one record, got none")
    methods = list(dict.fromkeys(record["method"] for record in records))
    lines: list[tuple[str, ...]] = [("group", "sparsity", *methods)]
    for (group, sparsity), found in itertools.groupby(
        records, key=lambda record: (record["group"], record["sparsity"])
    ):
        accuracy = {record["method"]: f"{100 * record['accuracy']:.2f} %" for record in found}
        lines.append((group, f"{100 * sparsity:g} %", *(accuracy[method] for method in methods)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
