"""Run as a script by `memory.run_alone`: start the command given, wait, and print what it took as JSON.

Standard library only and nothing of sam-edge, because its own size is the floor of what it can report.
"""

import json
import os
import resource
import subprocess
import sys
import time


def main() -> None:
    """Print what the command in the arguments took: `exit_code` (negative is a signal), `ru_maxrss`, `wall_s`, `cpu_s`.

    Limits come first: `--address-space BYTES`, and `--group FOLDER`, a control group to run in.
    """
    arguments = sys.argv[1:]
    limits = {"--address-space": "", "--group": ""}
    while arguments and arguments[0] in limits:
        limits[arguments[0]] = arguments[1]
        arguments = arguments[2:]
    if limits["--group"]:
        with open(f"{limits['--group']}/cgroup.procs", "w") as members:
            members.write(str(os.getpid()))
    if limits["--address-space"]:
        resource.setrlimit(resource.RLIMIT_AS, (int(limits["--address-space"]),) * 2)
    started = time.perf_counter()
    try:
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    except OSError as error:
        sys.exit(error.strerror or str(error))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    taken = {"ru_maxrss": usage.ru_maxrss, "wall_s": time.perf_counter() - started}
    taken["cpu_s"] = usage.ru_utime + usage.ru_stime
    print(json.dumps({"exit_code": process.returncode, **taken}))


if __name__ == "__main__":
    main()
