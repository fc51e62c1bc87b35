"""The evidence: every question that a benchmark answers, by one command.

    python -m benchmarks                      # the questions
    python -m benchmarks --quick [NAME ...]   # all, or some, at small size: under 15 minutes
    python -m benchmarks NAME [ARGUMENT ...]  # one in full: its script, with further arguments
    python -m benchmarks --sample [NAME ...]  # rows of all, or some, again: do they still hold?
    python -m benchmarks --stale              # results that are older than the code
    python -m benchmarks --tables             # pages of all results anew, from their JSON

Quick forms write to ``benchmarks/results/quick``, which is not kept, and leave the results alone. A
sample measures a few rows of the full form again, and notes in ``benchmarks/samples.json`` how far
they are off.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import age, result_page
from benchmarks import sample as sampling
from benchmarks.registry import FOLDER, SAMPLES, STUDIES, Study

QUICK = FOLDER / "results/quick"


def table() -> str:
    """The questions as a markdown table."""
    lines = ["| question | command | writes | page |", "|---|---|---|---|"]
    for study in STUDIES.values():
        results = ", ".join(f"`{name}.json`" for name in study.files)
        page = Path(study.page).name
        link = os.path.relpath(study.page, "docs/results")
        command = f"`python -m benchmarks {study.name}`"
        lines.append(f"| {study.question} | {command} | {results} | [{page}]({link}) |")
    return "\n".join(lines)


def listing() -> str:
    """The questions for a terminal."""
    lines = []
    for number, study in enumerate(STUDIES.values(), 1):
        needs = f"  needs {', '.join(study.missing())}" if study.missing() else ""
        results = ", ".join(f"benchmarks/results/{name}.json" for name in study.files)
        lines += [f"{number:2}  {study.question}"]
        lines += [f"      {study.name}: {study.page}, {results or 'prints only'}{needs}"]
    return "\n".join(lines)


def run(study: Study, arguments: Sequence[str], env: dict[str, str], limit: float | None) -> str:
    """Runs a script, its output passed on; says how it ended."""
    began, used = time.monotonic(), _used()
    command = [sys.executable, *study.command(list(arguments))]
    try:
        code = subprocess.run(command, env={**os.environ, **env}, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"failed: not ready after {limit:.0f} s"
    seconds = f"{time.monotonic() - began:.0f} s, {_used() - used:.0f} s of processors"
    return f"ok, {seconds}" if code == 0 else f"failed with status {code}, {seconds}"


def _used() -> float:
    """Seconds of processors of all processes that have ended."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def run_aside(study: Study, results: Path, limit: float | None, again: bool = False) -> str:
    """Runs the quick form, or the sample, with results in a folder of their own."""
    if study.missing():
        return f"left out: needs {', '.join(study.missing())}"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    arguments = study.arguments(results, again=again)
    return run(study, arguments, {"IFJAX_RESULTS": str(results)}, limit)


def quick(names: Sequence[str], limit: float) -> int:
    """Runs quick forms one after another; the exit status says whether all went well."""
    ended: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}: {STUDIES[name].question}", flush=True)
        ended[name] = run_aside(STUDIES[name], QUICK / name, limit)
        print(f"[{number}/{len(names)}] {name}: {ended[name]}", flush=True)
    print("\n" + "\n".join(f"{name:20} {how}" for name, how in ended.items()))
    QUICK.mkdir(parents=True, exist_ok=True)
    (QUICK / "summary.json").write_text(json.dumps(ended, indent=1) + "\n")
    return int(any(how.startswith("failed") for how in ended.values()))


def sample(names: Sequence[str]) -> int:
    """Measures some rows of results again; the exit status says whether all could be compared."""
    failed = 0
    for number, name in enumerate(names, 1):
        study, again = STUDIES[name], QUICK / f"{name}-sample"
        assert study.sample is not None
        how = run_aside(study, again, None, again=True)
        if how.startswith("ok"):
            file = f"{study.files[0]}.json"
            try:
                found = sampling.noted(
                    FOLDER / "results" / file, again / file, study.sample, SAMPLES
                )
                how += f", {found['rows']} rows, largest differences {found['largest differences']}"
            except (OSError, ValueError) as error:
                failed, how = 1, f"{how}, not compared: {error}"
        failed |= how.startswith("failed")
        print(f"[{number}/{len(names)}] {name}: {how}", flush=True)
    return failed


def stale() -> None:
    """Prints how old every result is."""
    found = age.ages()
    print("\n".join(map(str, found)))
    old = [a for a in found if a.is_old]
    print(f"\n{len(old)} of {len(found)} results are older than code that they depend on; of")
    again = sum(a.is_sampled for a in old)
    print(f"{again} of these some rows were measured again on today's code, with what came of it.")
    print("A file that differs need not change a number; to know, run the command of the result.")


def main(arguments: Sequence[str]) -> int:
    """Lists, or runs what is named."""
    if arguments and not arguments[0].startswith("-"):
        name, *rest = arguments
        if name not in STUDIES:
            sys.exit(f"no benchmark is called {name!r}; there are: {', '.join(STUDIES)}")
        how = run(STUDIES[name], rest or STUDIES[name].arguments(), {}, None)
        print(f"{name}: {how}", file=sys.stderr)
        return int(how.startswith("failed"))
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", nargs="*", choices=list(STUDIES), metavar="NAME")
    parser.add_argument("--limit", type=float, default=300, help="seconds of one quick form")
    sampled = [name for name, study in STUDIES.items() if study.sample]
    parser.add_argument("--sample", nargs="*", choices=sampled, metavar="NAME")
    parser.add_argument("--stale", action="store_true", help="how old the results are")
    parser.add_argument("--table", action="store_true", help="the questions as a markdown table")
    parser.add_argument("--tables", action="store_true", help="pages of all results, from JSON")
    args = parser.parse_args(arguments)
    if args.tables:
        for file in (FOLDER / "results").glob("*.json"):
            result_page.write(file)
        return 0
    if args.quick is not None:
        return quick(args.quick or list(STUDIES), args.limit)
    if args.sample is not None:
        return sample(args.sample or sampled)
    stale() if args.stale else print(table() if args.table else listing())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
