#include "confine.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>

#include "privileges.h"
#include "raw.h"

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#endif

static void keep_cap_kill(void) {
    struct capability_sets now, kept = {0};
    if (privileges_get(&now) < 0)
        return;
    kept.half[0].permitted = kept.half[0].effective = now.half[0].permitted & 1U << CAP_KILL;
    (void)privileges_set(&kept); /* the ambient ones go with the permitted ones (capabilities(7)) */
}

#ifdef MACHINE
static void allow_only(const unsigned *calls, size_t count) {
    enum { BEFORE = 3, LIMIT = 32 };
    struct sock_filter program[BEFORE + LIMIT + 2] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MACHINE, 0, (uint8_t)(count + 1)),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    struct sock_filter *next = program + BEFORE;
    for (size_t i = 0; i < count; i++)
        *next++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], (uint8_t)(count - i), 0);
    *next++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    *next++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog all = {(unsigned short)(next - program), program};
    /* A kernel that knows no filters has none for a workload either, which could be got round. */
    (void)RAW3(seccomp, SECCOMP_SET_MODE_FILTER, 0, &all);
}
#endif

void confine(bool opens_files) {
    keep_cap_kill();
    (void)RAW5(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
#ifdef MACHINE
    static const unsigned calls[] = {
        SYS_openat, /* the first, which may be left out */
        SYS_read,    SYS_lseek,    SYS_close, SYS_ppoll,      SYS_waitid,       SYS_wait4, SYS_kill, SYS_pidfd_send_signal,
        SYS_sendmsg, SYS_recvfrom, SYS_exit,  SYS_exit_group, SYS_rt_sigreturn, SYS_restart_syscall,
    };
    size_t from = opens_files ? 0 : 1;
    allow_only(calls + from, COUNT_OF(calls) - from);
#else
    (void)opens_files;
#endif
}
