"""A fork server that is not the system's root, whoever runs the tests.

It is held as the unit in ``deploy/`` holds a worker: no capability can ever be had, and
no new privileges.
"""

import os
import socket
import sys
from pathlib import Path

import probes

from obhut.transports.pipe import forkserver
from obhut.transports.pipe.libc import call
from obhut.worker.warming import warm_up

NOBODY = 65_533
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
LAST = "/proc/sys/kernel/cap_last_cap"

if __name__ == "__main__":
    warm_up()  # while Python's own files can be read for certain
    if not os.getuid():
        for capability in range(int(Path(LAST).read_text()) + 1):
            call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        forkserver.serve(control, probes.run)
