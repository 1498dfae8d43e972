"""The program as a user runs it, many times over: its imports, which are all that a refusal costs, are made once."""

import functools
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVER = """
import json, os, signal, sys, tempfile
from absl import app
import diffusion.commands, main
sys.modules["__main__"] = main  # whose docstring the program prints
for line in sys.stdin:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        child = os.fork()
        if not child:
            signal.alarm(60)
            os.dup2(out.fileno(), 1), os.dup2(error.fileno(), 2)
            sys.argv = json.loads(line)
            app.run(main.main, flags_parser=main._parse)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0), error.seek(0)
        print(json.dumps([status, out.read(), error.read()]), flush=True)
"""


@functools.cache
def _server():
    """A process that has imported the program, and forks for each line of words."""
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", SERVER]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def program(*words):
    """(exit status, standard output, standard error) of main.py with these words, which must not reach a device."""
    server = _server()
    server.stdin.write(json.dumps(["main.py", *map(str, words)]) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())
