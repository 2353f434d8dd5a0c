"""Runs a command in a network of its own, and writes down every packet in it.

    watch.py SETTINGS COMMAND [ARGUMENT ...]

In that network every address is reached, and nobody is at any, so that what strays leaves a packet: all of it is routed to the
loopback interface. SETTINGS are JSON: `control` is a unix socket that tells the packets so far, `dns` the name server outside
that answers what is asked at 192.0.2.53, and `door` a unix socket to which port 8118 of 127.0.0.1 leads; the last two may be null.
"""

import collections
import ctypes
import fcntl
import ipaddress
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading

NAME_SERVER = ("192.0.2.53", 53)
DOOR = ("127.0.0.1", 8118)
MARK = ("192.0.2.9", 9)

SOL_PACKET, PACKET_STATISTICS, PACKET_OUTGOING, ETH_P_ALL = 263, 6, 4, 3


def main():
    settings, command = json.loads(sys.argv[1]), sys.argv[2:]
    if "descriptor" not in settings:
        leave(settings, command)
    surroundings(os.path.dirname(settings["control"]))
    everything_is_here()
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    ready, tell = os.pipe()
    if os.fork() == 0:
        # It ends with the command, and sees that to its end.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        watch(packets, settings, tell)
    packets.close()
    os.close(tell)
    if not os.read(ready, 1):
        sys.exit("nobody watches")
    os.execvp(command[0], command)


def leave(settings, command):
    """Goes on in the other network, with a socket that stays in this one."""
    settings["descriptor"] = None
    if settings["dns"]:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.connect(tuple(settings["dns"]))
        settings["descriptor"] = server.detach()
        os.set_inheritable(settings["descriptor"], True)
    unshare = ["unshare", "--map-root-user", "--net", "--mount", "--"]
    os.execvp(unshare[0], [*unshare, sys.executable, "-I", __file__, json.dumps(settings), *command])


def surroundings(directory):
    """Names are asked for in packets, and in no other way, but for what every machine calls itself."""
    for name, text in {
        "resolv.conf": f"nameserver {NAME_SERVER[0]}\n",
        "hosts": f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {socket.gethostname()}\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }.items():
        path = os.path.join(directory, name)
        with open(path, "w") as file:
            file.write(text)
        if os.path.exists(f"/etc/{name}"):
            subprocess.run(["mount", "--bind", path, f"/etc/{name}"], check=True)


def everything_is_here():
    """Sets the loopback interface up, and routes every address of both families to it, as its own."""
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    request = fcntl.ioctl(control, 0x8913, struct.pack("16sH14x", b"lo", 0))  # SIOCGIFFLAGS
    flags = struct.unpack_from("H", request, 16)[0] | 1  # IFF_UP
    fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", flags))  # SIOCSIFFLAGS
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    for family in (socket.AF_INET, socket.AF_INET6):
        # A default route of type local in the table local, over this interface.
        route = struct.pack("8BI", family, 0, 0, 0, 255, 3, 254, 2, 0)
        route += struct.pack("HHI", 8, 4, socket.if_nametoindex("lo"))
        # RTM_NEWROUTE; a request, to be acknowledged, that makes a new one.
        netlink.send(struct.pack("IHHII", 16 + len(route), 24, 0x405, 1, 0) + route)
        error = struct.unpack_from("i", netlink.recv(4096), 16)[0]
        # A system may have no IPv6.
        if error and family == socket.AF_INET:
            raise OSError(-error, os.strerror(-error))


def watch(packets, settings, ready):
    """Writes packets down, and plays those who are not in this network."""
    seen = Seen(packets)
    # Whoever stops listening is missed, and not passed over.
    for play in (seen.read, lambda: control(settings["control"], seen)):
        threading.Thread(target=play, daemon=True).start()
    if settings["dns"]:
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind(NAME_SERVER)
        server = socket.socket(fileno=settings["descriptor"])
        threading.Thread(target=name_server, args=(names, server), daemon=True).start()
    if settings["door"]:
        door = socket.create_server(DOOR)
        threading.Thread(target=relay, args=(door, settings["door"]), daemon=True).start()
    os.write(ready, b"!")
    signal.pause()


class Seen:
    """What was seen: how often each kind of packet."""

    def __init__(self, packets):
        self.packets, self.counts, self.marks = packets, collections.Counter(), 0
        self.changed = threading.Condition()
        self.mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.mark.bind(MARK)

    def read(self):
        while True:
            data, (_, kind, direction, *_) = self.packets.recvfrom(65536)
            # On this interface whatever is sent is received, too.
            if direction != PACKET_OUTGOING:
                continue
            packet = describe(kind, data[14:])
            with self.changed:
                if packet == MARKED:
                    self.marks += 1
                    self.changed.notify_all()
                else:
                    self.counts[tuple(packet.items())] += 1

    def tell(self):
        """All that was sent before this was asked: a packet of ours comes behind them."""
        with self.changed:
            wanted = self.marks + 1
            self.mark.sendto(b"", MARK)
            if not self.changed.wait_for(lambda: self.marks >= wanted, timeout=30):
                return {"error": "a packet was sent and not seen"}
            lost = struct.unpack("II", self.packets.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
            if lost:
                return {"error": f"{lost} packets came too fast to be seen"}
            return {"packets": [dict(packet, times=times) for packet, times in self.counts.items()]}


def describe(kind, data):
    """What a packet is, who sent it, to whom; what it asks, where it is a question of the DNS."""
    if kind == 0x0800:
        protocol, ends, rest = data[9], (data[12:16], data[16:20]), data[(data[0] & 15) * 4 :]
        # Only the first part of what was cut has ports.
        protocol = protocol if not struct.unpack_from("!H", data, 6)[0] & 0x1FFF else f"part of {protocol}"
    elif kind == 0x86DD:
        protocol, ends, rest = data[6], (data[8:24], data[24:40]), data[40:]
    else:
        return {"protocol": f"ethernet {kind:#06x}", "from": "", "to": ""}
    name = {6: "tcp", 17: "udp"}.get(protocol, str(protocol))
    ports = struct.unpack_from("!HH", rest) if name in ("tcp", "udp") else (None, None)
    ends = [str(ipaddress.ip_address(end)) if port is None else at(end, port) for end, port in zip(ends, ports)]
    packet = {"protocol": name, "from": ends[0], "to": ends[1]}
    if name == "udp" and ports[1] == 53:
        packet["question"] = question(rest[8:])
    return packet


def at(address, port):
    address = ipaddress.ip_address(address)
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


MARKED = {"protocol": "udp", "from": "%s:%d" % MARK, "to": "%s:%d" % MARK}


def question(message):
    """Type and name of the question that a message of the DNS has."""
    labels, place = [], 12
    try:
        while length := message[place]:
            labels.append(message[place + 1 : place + 1 + length].decode("ascii"))
            place += 1 + length
        kind = struct.unpack_from("!H", message, place + 1)[0]
    except (IndexError, UnicodeDecodeError, struct.error):
        return f"cannot be read: {message.hex()}"
    kinds = {1: "A", 5: "CNAME", 12: "PTR", 28: "AAAA", 33: "SRV", 65: "HTTPS"}
    return f"{kinds.get(kind, kind)} {'.'.join(labels)}"


def control(path, seen):
    """Tells whoever asks, one after the other."""
    if os.path.exists(path):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            asking, _ = listener.accept()
            with asking:
                asking.sendall(json.dumps(seen.tell()).encode())


def name_server(names, server):
    """Asks the one outside what is asked here."""
    while True:
        question, asking = names.recvfrom(4096)
        server.send(question)
        names.sendto(server.recv(4096), asking)


def relay(listener, path):
    """Leads what comes to a unix socket."""
    while True:
        near, _ = listener.accept()
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(path)
        except OSError:
            near.close()
            continue
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=copy, args=(source, sink), daemon=True).start()


def copy(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            end.close()


if __name__ == "__main__":
    main()
