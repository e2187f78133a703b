"""How tokens are sampled, scored and stored. Ctrl-C while a script imports ends in one line."""
import os
import signal
import sys
from pathlib import Path


def stop(number, frame):
    """Handler of SIGINT. During an import it ends the process: packages catch a KeyboardInterrupt there."""
    names = set()
    while frame:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    if "_find_and_load" in names or "run_main" not in names:        # importlib's; of files.py
        os.write(2, b"\ninterrupted\n")
        os._exit(130)
    raise KeyboardInterrupt


# In a script of this project alone: a notebook, a test or a fork keeps its own handler
_script = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
_default = signal.getsignal(signal.SIGINT) == signal.default_int_handler
if _default and _script.parent == Path(__file__).resolve().parents[1]:
    signal.signal(signal.SIGINT, stop)
