"""Runs scripts as `python SCRIPT ARGUMENTS...` would, each in a process of its own, forked off one that has imported
TensorFlow: importing it anew for each would take most of the time.

Reads a line of JSON for each script, {script, arguments, folder, output}, and answers with a line {status}.
"""

import json
import os
import runpy
import sys

import tf_keras  # noqa: F401 - for the forked ones

import moxserve.tensorflow  # noqa: F401 - for the forked ones


def answer(status: int) -> None:
    """Tell how the last thing went."""
    sys.stdout.write(json.dumps({"status": status}) + "\n")
    sys.stdout.flush()


def become(script: str, arguments: list[str], folder: str, output: str) -> None:
    """Go on as the script's process."""
    os.chdir(folder)
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    answer(0)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(**json.loads(line))
            break
        _, code = os.waitpid(child, 0)
        answer(os.waitstatus_to_exitcode(code))
