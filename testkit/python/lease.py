"""Runs a command for as long as its parent lives.

    lease.py [--remove DIRECTORY] -- COMMAND [ARGUMENT ...]

The parent holds the other end of our standard input. When it closes, in whatever way the parent died, the command is
ended, and the directory removed. Lines on standard input: stop (end it, keep the directory), kill, pause, resume.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading

GRACE = 5  # seconds from SIGTERM to SIGKILL


def main():
    split = sys.argv.index("--")
    options, command = sys.argv[1:split], sys.argv[split + 1 :]
    remove = options[1] if options[:1] == ["--remove"] else None
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent)
    gone, abandoned = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end, args=(child, gone), daemon=True).start())
    threading.Thread(target=obey, args=(child, gone, abandoned, remove), daemon=True).start()
    code = child.wait()
    gone.set()
    if remove and abandoned.is_set():
        shutil.rmtree(remove, ignore_errors=True)
    # Not sys.exit: the other thread still reads standard input.
    os._exit(code if code >= 0 else 128 - code)


def obey(child, gone, abandoned, remove):
    """Follows the parent's words until it has none left."""
    pending = b""
    while data := os.read(0, 4096):
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            if line == b"stop":
                end(child, gone)
            elif line == b"kill":
                tell(child, signal.SIGKILL)
            elif line == b"pause":
                tell(child, signal.SIGSTOP)
            elif line == b"resume":
                tell(child, signal.SIGCONT)
    abandoned.set()
    if remove:
        tell(child, signal.SIGKILL)  # nobody will read what it would still write
    else:
        end(child, gone)


def end(child, gone):
    tell(child, signal.SIGTERM)
    tell(child, signal.SIGCONT)
    if not gone.wait(GRACE):
        tell(child, signal.SIGKILL)


def tell(child, number):
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        pass


def die_with_parent():
    """Asks Linux to end the command also when this process is killed."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        pass


if __name__ == "__main__":
    main()
