"""A fork server in a container that allows no namespaces, and filters of one's own.

So do the usual profiles of podman and docker.
"""

import ctypes
import socket
import struct
import sys

import probes
from poor_host import ALLOW, REFUSE, UNSHARE

from obhut.transports.pipe import forkserver
from obhut.transports.pipe.libc import call

PROGRAM = [
    (0x20, 0, 0, 0),  # load the number
    (0x15, 0, 1, UNSHARE),
    (0x06, 0, 0, REFUSE),
    (0x06, 0, 0, ALLOW),
]

if __name__ == "__main__":
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in PROGRAM)
    memory = ctypes.create_string_buffer(code, len(code))
    call("prctl", 38, 1, 0, 0, 0)
    header = struct.pack("@HP", len(PROGRAM), ctypes.addressof(memory))
    call("prctl", 22, 2, header, 0, 0)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        forkserver.serve(control, probes.run)
