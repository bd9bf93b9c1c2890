"""Run as a script by `memory.peak_bytes`: start the command given, wait, and print what it took as JSON.

Standard library only and nothing of sam-edge, because its own size is the floor of what it can report.
"""

import json
import os
import subprocess
import sys


def main() -> None:
    """Print `{"exit_code", "ru_maxrss"}` of the command in the arguments; negative exit codes are signals."""
    try:
        process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    except OSError as error:
        sys.exit(error.strerror or str(error))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    print(json.dumps({"exit_code": process.returncode, "ru_maxrss": usage.ru_maxrss}))


if __name__ == "__main__":
    main()
