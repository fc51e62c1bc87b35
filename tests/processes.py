"""Two processes that make one computation, on loopback."""

import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def both(call: str, environment: Mapping[str, str], timeout: int = 300) -> None:
    """Calls a function of ``tests`` in both, and waits for what each says if all went well.

    Args:
      call: module and function, and further arguments: ``spec.test_x.process({number}, {port})``.
      environment: of the processes.
      timeout: seconds that each may take.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    module = call.partition("(")[0].rpartition(".")[0]
    code = [f"import tests.{module}; tests.{call.format(number=i, port=port)}" for i in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", one],
            env=environment,
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for one in code
    ]
    try:
        said = [one.communicate(timeout=timeout)[0] for one in running]
    finally:
        for one in running:
            one.kill()
    for i in range(2):
        assert f"same in process {i}" in said[i], said[i][-3000:]
