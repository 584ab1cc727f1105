"""For children of the tests that are to die at a chosen moment."""

import os
import signal
import sys

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
