"""System calls that serving takes: Python, trio, workers, guest memory, sockets."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["SERVING", "Rule", "rules"]


class Rule(NamedTuple):
    """A system call; with a mask only where the argument's masked bits are the value."""

    name: str
    arg: int = 0
    mask: int = 0
    value: int = 0


_CLONE_FS: Final = 0x200
#: CLONE_NEW*: threads come, namespaces do not
_CLONE_NEW: Final = 0x7E020080
_AF_UNIX: Final = 1

SERVING: Final = frozenset(
    """
    accept accept4 access arch_prctl bind brk capget clock_getres clock_gettime clock_nanosleep close
    close_range dup dup2 dup3 connect epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 exit
    exit_group faccessat faccessat2 fadvise64 fcntl fstat fstatfs ftruncate futex futex_waitv get_robust_list
    getcpu getcwd getdents64 getegid geteuid getgid getgroups getpeername getpid getppid getrandom getresgid
    getresuid getrlimit getrusage getsockname getsockopt gettid gettimeofday getuid io_uring_enter
    io_uring_register io_uring_setup ioctl listen lseek lstat madvise membarrier memfd_create mincore mlock mmap
    mprotect mremap msync munlock munmap nanosleep newfstatat open openat pipe2 poll ppoll prctl pread64 preadv
    preadv2 prlimit64 pselect6 pwrite64 pwritev pwritev2 read readlink readlinkat readv recvfrom recvmmsg
    recvmsg restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend
    rt_sigtimedwait sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getparam
    sched_getscheduler sched_setaffinity sched_yield select sendmmsg sendmsg sendto set_robust_list
    set_tid_address setsockopt shutdown sigaltstack signalfd4 socketpair stat statx sysinfo tgkill
    timerfd_create timerfd_gettime timerfd_settime umask uname unlink unlinkat userfaultfd write writev
    """.split()  # noqa: SIM905 - a list of 150 strings reads worse
)

_ALWAYS: Final = (
    Rule("clone", 0, _CLONE_NEW, 0),
    Rule("socket", 0, 0xFFFFFFFF, _AF_UNIX),
    Rule("unshare", 0, 0xFFFFFFFF, _CLONE_FS),
    Rule("kill", 1, 0xFFFFFFFF, 0),  # is it alive
)


def rules(more: frozenset[str]) -> list[Rule]:
    """Everything that passes: what serving takes and `more`."""
    return [*map(Rule, sorted(SERVING | more)), *_ALWAYS]
