"""Runs a command for as long as its parent lives.

    lease.py [--remove DIRECTORY] -- COMMAND [ARGUMENT ...]

Our standard input is a socket whose other end the parent holds. When it closes, in whatever way the parent died, the
command is ended, and the directory removed. Lines on it: stop (end it, keep the directory), ask (the same, however long it
takes), kill, pause (answered with a line once the command stands still), resume.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

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
            elif line == b"ask":
                tell(child, signal.SIGTERM)
            elif line == b"kill":
                tell(child, signal.SIGKILL)
            elif line == b"pause":
                tell(child, signal.SIGSTOP)
                while is_running(child):
                    time.sleep(0.001)
                os.write(0, b"paused\n")
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


def is_running(child):
    """A signal is only queued when kill() returns; the state is the third field, after a name that may hold anything."""
    try:
        with open(f"/proc/{child.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "TtZXx"
    except OSError:
        return False


def die_with_parent():
    """Asks Linux to end the command also when this process is killed."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        pass


if __name__ == "__main__":
    main()
