"""The presets: which syscalls a contained program needs, by what they are about (``syscalls(2)``).

Three kinds of syscalls: `ALLOWED`; `REFUSED`, with EPERM, as if a privilege were missing; and all others, those that
kernels will get among them, which do not exist (ENOSYS), so that a libc falls back to what does. The kernel's own
checks of privilege stay in force behind the filter: what is allowed here is what is safe to try.
"""

from __future__ import annotations

import errno
from functools import lru_cache

from linx_trio import _seccomp_bpf as bpf
from linx_trio import _seccomp_compile as compiler
from linx_trio._seccomp_compile import MASKED_EQ, Comparison, Rule
from linx_trio._seccomp_make import only_with

ALLOWED = {
    "files": """
        access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
        fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync flock fstat fstatfs fsync ftruncate
        futimesat getcwd getdents getdents64 ioctl lchown link linkat lseek lstat mkdir mkdirat mknod mknodat
        name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead
        readlink readlinkat readv rename renameat renameat2 rmdir sendfile splice stat statfs statx symlink symlinkat
        sync sync_file_range sync_file_range2 syncfs tee truncate umask unlink unlinkat utime utimensat utimes vmsplice
        write writev
    """,
    "extended attributes": """
        fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
        lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
    """,
    "waiting for files": """
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
        eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
        io_getevents io_pgetevents io_setup io_submit poll ppoll pselect6 select signalfd signalfd4
    """,
    "memory": """
        brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
        mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
    """,
    "processes and threads": """
        arch_prctl clone execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv futex_wake
        get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid
        gettid ioprio_get ioprio_set personality pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease rseq
        sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
        sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
        set_robust_list set_thread_area set_tid_address setpgid setpriority setrlimit setsid vfork wait4 waitid
    """,
    "signals and pipes": """
        alarm kill pause pipe pipe2 restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
        rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack tgkill tkill
    """,
    "identity and privileges, which can only shrink": """
        capget capset getegid geteuid getgid getgroups getresgid getresuid getuid landlock_add_rule
        landlock_create_ruleset landlock_restrict_self seccomp setfsgid setfsuid setgid setgroups setregid setresgid
        setresuid setreuid setuid
    """,
    "debugging what is one's own: since Linux 4.8 ptrace(2) is no way round a filter": """
        process_vm_readv process_vm_writev ptrace
    """,
    "time": """
        adjtimex clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer
        time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
        timerfd_settime times
    """,
    "sockets": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg
        sendto setsockopt shutdown socket socketpair
    """,
    "System V and POSIX IPC, which an ipc namespace contains": """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget
        semop semtimedop shmat shmctl shmdt shmget
    """,
    "the system": "getrandom sysinfo uname",
}

REFUSED = {
    "new namespaces, and others'": "setns unshare",
    "mounts": """
        chroot fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr pivot_root umount2
    """,
    "files around the permissions of the directories above": "open_by_handle_at fanotify_init",
    "keys, which no namespace contains": "add_key keyctl request_key",
    "wide and often broken ways into the kernel": """
        bpf io_uring_enter io_uring_register io_uring_setup perf_event_open userfaultfd
    """,
    "other processes, beyond ptrace(2)": "kcmp pidfd_getfd process_madvise",
    "where memory lies": """
        get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node
    """,
    "the machine": """
        acct clock_settime delete_module finit_module init_module ioperm iopl kexec_file_load kexec_load lookup_dcookie
        quotactl quotactl_fd reboot setdomainname sethostname settimeofday swapoff swapon syslog vhangup
    """,
}

TIOCSTI, TIOCLINUX = 0x5412, 0x541C
"""``ioctl_tty(2)``: they type into the terminal, for its owner's shell to read."""

NAMESPACE_FLAGS = [1 << bit for bit in (17, 25, 26, 27, 28, 29, 30)]
"""``CLONE_NEW*`` of ``clone(2)``: mount, cgroup, uts, ipc, user, pid, net. Time namespaces it has none."""

FAMILIES = (1, 2, 10, 16, 17)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET. Others are seldom used, seldom looked after, or (AF_VSOCK) in no
namespace.
"""

PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, UNAME26, and the question; not READ_IMPLIES_EXEC or ADDR_NO_RANDOMIZE."""

_EPERM = bpf.ERRNO | errno.EPERM
_ENOSYS = bpf.ERRNO | 38  # ENOSYS: the errno module of another system has another number
_EAFNOSUPPORT = bpf.ERRNO | 97

_INT = 0xFFFFFFFF
"""The kernel looks at the low half of an int argument only: comparing all of it could be got round."""


def words(groups: dict[str, str]) -> list[str]:
    """All the names."""
    return [name for names in groups.values() for name in names.split()]


def _tty_rules() -> list[Rule]:
    ioctl = compiler.strict_number_of("ioctl", "preset")
    return [Rule(ioctl, _EPERM, (Comparison(1, MASKED_EQ, _INT, request),)) for request in (TIOCSTI, TIOCLINUX)]


@lru_cache(maxsize=1)
def no_tty_injection() -> bytes:
    """Everything but the two requests."""
    return compiler.compile_rules(bpf.ALLOW, _tty_rules())


@lru_cache(maxsize=16)
def default(more: frozenset[str]) -> bytes:
    """`more` are allowed too, whatever their arguments."""
    refused = [
        *(Rule(number, _EPERM) for number in _numbers(set(words(REFUSED)) - more)),
        *([] if "ioctl" in more else _tty_rules()),
    ]
    if "clone" not in more:  # and clone3(2), whose flags a filter cannot see, is ENOSYS
        clone = compiler.strict_number_of("clone", "preset")
        refused += [Rule(clone, _EPERM, (Comparison(0, MASKED_EQ, flag, flag),)) for flag in NAMESPACE_FLAGS]
    before = [compiler.compile_rules(bpf.ALLOW, refused)]
    for name, values, otherwise in (
        ("socket", FAMILIES, _EAFNOSUPPORT),
        ("socketpair", FAMILIES, _EAFNOSUPPORT),
        ("personality", PERSONALITIES, _EPERM),
    ):
        if name not in more:
            number = compiler.strict_number_of(name, "preset")
            before.append(only_with(compiler.machine().token, number, 0, values, otherwise))
    allowed = [Rule(number, bpf.ALLOW) for number in _numbers(set(words(ALLOWED)) | more)]
    return compiler.compile_rules(_ENOSYS, allowed, before)


def _numbers(names: set[str]) -> list[int]:
    """Those that this machine has; a name that libseccomp does not know stays without a rule, so ENOSYS."""
    found = (compiler.number_of(name) for name in sorted(names))
    return [number for number in found if number is not None and number >= 0]
