"""Hosts on one machine, and the links between them: slowed, thinned out, narrowed and cut as a test says.

    links.py NAME=ADDRESS ...

Makes a network namespace for each name, with one interface, and forwards packets between them. It says "ready", then
takes one JSON object a line, `{"from": ADDRESS, "to": ADDRESS, "delay_ms": 0, "loss": 0, "cut": false, "mtu": 0,
"icmp": true}`, for one direction of one link, and answers each with "ok". It ends with its standard input.

The kernel's own netem is a module that many machines lack; this needs a TUN device and no more.
"""

import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LARGEST = 65536
# Lost packets are the same in every run.
dice = random.Random(20260101)


def host(index, name, address):
    """A namespace with one interface, whose other end is the file that is returned."""
    device = f"link{index}"
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
    inside = ["ip", "-n", name]
    for command in (
        ["ip", "netns", "add", name],
        ["ip", "link", "set", device, "netns", name],
        [*inside, "addr", "add", f"{address}/24", "dev", device],
        [*inside, "link", "set", device, "up"],
        [*inside, "link", "set", "lo", "up"],
    ):
        subprocess.run(command, check=True)
    return fd


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def too_big(packet, mtu):
    """What a router says of a packet that may not be cut in pieces: ICMP 3, 4 (RFC 1191)."""
    quoted = packet[: (packet[0] & 15) * 4 + 8]
    said = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted
    said = said[:2] + struct.pack("!H", checksum(said)) + said[4:]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(said), 0, 0, 64, 1, 0, packet[16:20], packet[12:16])
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + said


def main():
    hosts = {}
    for index, (name, address) in enumerate(argument.split("=") for argument in sys.argv[1:]):
        hosts[bytes(map(int, address.split(".")))] = host(index, name, address)
    links, waiting, count = {}, [], 0
    print("ready", flush=True)
    commands = b""
    while True:
        until = max(0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([0, *hosts.values()], [], [], until)
        for fd in readable:
            if fd == 0:
                read = os.read(0, LARGEST)
                if not read:
                    return
                *lines, commands = (commands + read).split(b"\n")
                for line in lines:
                    link = json.loads(line)
                    ends = tuple(bytes(map(int, link[end].split("."))) for end in ("from", "to"))
                    links[ends] = link
                    print("ok", flush=True)
                continue
            packet = os.read(fd, LARGEST)
            # IPv6 looks for neighbours that are not there.
            if packet[0] >> 4 != 4 or packet[16:20] not in hosts:
                continue
            link = links.get((packet[12:16], packet[16:20]), {})
            if link.get("cut") or dice.random() < link.get("loss", 0):
                continue
            mtu = link.get("mtu", 0)
            if mtu and len(packet) > mtu:
                if link.get("icmp"):
                    deliver(fd, too_big(packet, mtu))
                continue
            count += 1
            heapq.heappush(waiting, (time.monotonic() + link.get("delay_ms", 0) / 1000, count, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, packet = heapq.heappop(waiting)
            deliver(hosts[packet[16:20]], packet)


def deliver(fd, packet):
    try:
        os.write(fd, packet)
    except OSError:
        # A full queue loses packets, as any does.
        pass


main()
