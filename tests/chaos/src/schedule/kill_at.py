"""Becomes a program, and kills it at the n-th of a kind of system call, counted over all of its threads.

    kill_at.py LOG CALL N PROGRAM [ARGUMENT...]

strace counts for each thread by itself: behind the thread that makes most of a call it never comes to those of the
others. Here a filter of the kernel (seccomp) stops whoever makes the call, before it happens, and a process beside the
program counts. LOG gets one line: `N-th CALL of THREAD`, or, where so many did not come, `COUNT in all`.

x86-64 only, and root or a kernel that lets a process be traced by its child.
"""

import ctypes
import os
import signal
import struct
import sys

CALLS = {
    "pwrite64": 18,
    "fsync": 74,
    "fdatasync": 75,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "link": 86,
    "unlink": 87,
    "pwritev": 296,
    "syncfs": 306,
}
AUDIT_ARCH_X86_64 = 0xC000003E
PTRACE_CONT, PTRACE_SEIZE = 7, 0x4206
TRACE_FORK, TRACE_VFORK, TRACE_CLONE, TRACE_SECCOMP, EXIT_KILL = 1 << 1, 1 << 2, 1 << 3, 1 << 7, 1 << 20
EVENT_SECCOMP, EVENT_STOP = 7, 128
WAIT_ALL = 0x40000000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
RET_ALLOW, RET_TRACE = 0x7FFF0000, 0x7FF00000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def checked(outcome, what):
    if outcome < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def filter_calls(number):
    """From here on this thread, and whoever it becomes or begins, stops before each such call."""

    def instruction(code, yes, no, operand):
        return struct.pack("HBBI", code, yes, no, operand)

    load, equals, answer = 0x20, 0x15, 0x06
    program = b"".join(
        [
            instruction(load, 0, 0, 4),  # the architecture
            instruction(equals, 0, 3, AUDIT_ARCH_X86_64),
            instruction(load, 0, 0, 0),  # the call
            instruction(equals, 0, 1, number),
            instruction(answer, 0, 0, RET_TRACE),
            instruction(answer, 0, 0, RET_ALLOW),
        ]
    )
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    checked(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header), 0, 0), "the filter")


def count(pid, log, call, n):
    """Counts until the program has ended, or is to be killed."""
    seen = 0
    while True:
        try:
            thread, status = os.waitpid(-1, WAIT_ALL)
        except ChildProcessError:
            break
        if not os.WIFSTOPPED(status):
            continue
        event, deliver = status >> 16, os.WSTOPSIG(status)
        if event == EVENT_SECCOMP:
            seen += 1
            if seen == n:
                with open(f"/proc/{pid}/task/{thread}/comm", encoding="utf-8") as name:
                    told = f"{n}-th {call} of {name.read().strip()}\n"
                with open(log, "w", encoding="utf-8") as file:
                    file.write(told)
                os.kill(pid, signal.SIGKILL)
                continue
        # A thread that was killed meanwhile cannot go on, and need not.
        libc.ptrace(PTRACE_CONT, thread, None, deliver if event == 0 else None)
    if not 0 < n <= seen:
        with open(log, "w", encoding="utf-8") as file:
            file.write(f"{seen} in all\n")


def main():
    log, call, n, *program = sys.argv[1:]
    ready, tell = os.pipe()
    pid = os.getpid()
    if os.fork() == 0:
        # No child of the program's: it is to find none that it did not begin.
        if os.fork() == 0:
            os.setsid()
            options = TRACE_FORK | TRACE_VFORK | TRACE_CLONE | TRACE_SECCOMP | EXIT_KILL
            checked(libc.ptrace(PTRACE_SEIZE, pid, None, options), "ptrace")
            os.write(tell, b"+")
            os.close(tell)
            os.close(ready)
            count(pid, log, call, int(n))
        os._exit(0)
    os.wait()
    os.close(tell)
    if os.read(ready, 1) != b"+":
        sys.exit("kill_at.py: the program cannot be traced")
    os.close(ready)
    filter_calls(CALLS[call])
    os.execvp(program[0], program)


main()
