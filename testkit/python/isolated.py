"""Runs a module of Python and writes down whom it tried to reach.

isolated.py refuse|allow LOG MODULE ARGUMENT...

Each line of LOG is what was tried and with whom. With `refuse`, what is no unix socket fails as if there were no network.
"""

import errno
import os
import runpy
import socket
import sys

refuses = sys.argv[1] == "refuse"
log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"):
        address = arguments[0]
        # An address needs no look-up, nor does a place to listen at.
        if address in ("127.0.0.1", "::1", "localhost", None):
            return
        # Twisted's mail client asks once, at its start, what this machine calls itself.
        if address == socket.gethostname():
            if refuses:
                raise OSError(errno.ENETUNREACH, "nobody is there")
            return
    else:
        return
    is_unix = event == "socket.connect" and isinstance(address, (str, bytes))
    if event == "socket.sendmsg" and address is None:
        return
    os.write(log, f"{event} {os.fsdecode(address) if is_unix else address}\n".encode())
    if refuses and not is_unix:
        raise OSError(errno.ENETUNREACH, "nobody is there")


sys.argv = sys.argv[3:]
module = sys.argv[0]
sys.addaudithook(watch)
runpy.run_module(module, run_name="__main__", alter_sys=True)
