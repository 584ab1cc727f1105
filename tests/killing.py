"""For tests of work that is to die at a chosen moment: a process that does it in children of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree")


def die_before(number: int, folder: str) -> None:
    """Kill this process before its `number`-th operation on a file under `folder`."""
    left = [number]

    def count(event, arguments):
        if event in FILE_EVENTS and str(arguments[0]).startswith(folder):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def serve(work: Callable[[dict], Any], count: Callable[[dict], int] = lambda order: 0) -> None:
    """Do the work of each order on standard input in a child, and say how that ended.

    Args:
        work: Is handed the order, a mapping with `folder`; what it gives is the answer, as is an error's
            name, text and file. A child that `kill_before` is killed before that many file operations.
        count: How far the work is. A child with `kill_after` (changes, seconds) is killed that many seconds
            after the count has changed so often.
    """
    for line in sys.stdin:
        order = json.loads(line)
        seen = count(order)
        child = os.fork()
        if not child:
            signal.alarm(60)
            if order.get("kill_before"):
                die_before(order["kill_before"], order["folder"])
            try:
                answer = work(order)
            except Exception as error:
                answer = [type(error).__name__, str(error), str(getattr(error, "filename", ""))]
            print(json.dumps(answer), flush=True)
            os._exit(0)
        ended, status = 0, 0
        changes, seconds = order.get("kill_after") or (0, 0)
        for _ in range(changes):
            while not ended and count(order) == seen:
                ended, status = os.waitpid(child, os.WNOHANG)
                time.sleep(0.001)
            seen = count(order)
        if changes and not ended:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        if not ended:
            _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            print(json.dumps(f"signal {os.WTERMSIG(status)}"), flush=True)


@contextmanager
def in_children(code: str, *arguments: str) -> Iterator[Callable[..., Any]]:
    """Yield what sends an order to a process that runs `code`, which calls `serve`, and gives its answer."""
    server = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )

    def ask(**order):
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield ask
    server.stdin.close()
    server.wait(timeout=30)
    server.stdout.close()


def everything(folder: Path) -> dict[str, tuple]:
    """Each path under a folder, with its mode and, for a file, when it was written and its bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (state.st_mode, state.st_mtime_ns * path.is_file(), content)
    return found
