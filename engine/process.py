"""Helper processes: one JSON line in, one out; a process that dies or hangs is started again."""
import json
import subprocess
import threading
from contextlib import suppress


class Helper:
    """A process that `start` starts, one for all questions and threads; where it died, a new one is started.

    start() -> a Popen with pipes. A question is a line of JSON on its input, the answer a line on its output.
    """

    def __init__(self, start):
        self.start = start
        self.process = None
        self.lock = threading.Lock()

    def running(self):
        if self.process is None:
            self.process = self.start()
        return self.process

    def ask(self, question):
        """The answer, any JSON. Raises what start raises, and RuntimeError where two processes died."""
        with self.lock:
            for _ in range(2):
                process = self.running()
                self.process = None         # if interrupted, a late reply must not answer the next question
                with suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(question).encode() + b"\n")
                    if reply := process.stdout.readline():
                        self.process = process
                        return json.loads(reply)
            raise RuntimeError("a helper process died twice; is the machine out of memory?")


def start_process(command, **options):
    """(process, its first line) of a program; the line is empty where the program does not start."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    # a session of its own: Ctrl-C is not for helpers
    process = subprocess.Popen(command, **pipes, bufsize=0, start_new_session=True, **options)
    return process, process.stdout.readline()
