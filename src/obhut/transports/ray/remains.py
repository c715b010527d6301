"""What is left of a local Ray when its driver is gone, and who clears it away.

::

    remains = Remains(folder)      # a shell waits, from before Ray is started
    ...
    remains.remove()               # or the process ends in any way

Rules:

- Ray's servers end with the driver, and their agents some minutes later: the shell ends
  them at once. It knows them by the folder, which nobody else has.
- What the driver has forked itself is left alone.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_SCRIPT = r"""
read -r line
try=0
while [ -e "$1" ] && [ $try -lt 20 ]; do
  for each in /proc/[0-9]*; do
    [ "$each" = "/proc/$$" ] && continue
    if grep -qsaF "$1" "$each/cmdline"; then
      kill -9 "${each#/proc/}"
    elif grep -qsa '^ray::' "$each/cmdline"; then
      ls -l "$each/fd" | grep -qF "$1/" && kill -9 "${each#/proc/}"
    fi
  done
  rm -rf -- "$1"
  [ -e "$1" ] && sleep 0.3
  try=$((try + 1))
done 2>/dev/null
"""


class Remains:
    """A folder that goes with this process, and the processes that have files in it.

    Args:
        folder: of a name that no other has.

    Attributes:
        folder: as given.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shell = subprocess.Popen(  # noqa: S603 # a text of ours
            ["/bin/sh", "-c", _SCRIPT, "sh", str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for others
        )

    def remove(self, *, kill: bool = False) -> None:
        """Clear all away.

        Args:
            kill: whether processes are left that nobody has ended.
        """
        if not kill:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._shell.stdin is not None:
            self._shell.stdin.close()
        self._shell.wait()
