/* System calls without libc, for those that share their memory with the monitor (child.c).
 *
 * libc's wrappers write errno, which would be the monitor's errno too. These return what the kernel does: a result, or a
 * negated errno, and never touch errno. Where there is no assembly for the machine, RAW_SYSCALLS is 0, and each child gets
 * memory of its own. */
#ifndef LINX_RAW_H
#define LINX_RAW_H

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Besides, raw_clone: the child begins with what its stack begins with, a function and then its argument. It never returns. */

/* Libcs and headers differ in having these. */
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

#if defined(__x86_64__) && !defined(__ILP32__)
#define RAW_SYSCALLS 1
static inline long raw_syscall(long number, long a, long b, long c, long d, long e) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

static inline long raw_clone(unsigned long flags, void **stack, int *pidfd) {
    long result;
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "pop %%rax\n\t"
                     "pop %%rdi\n\t"
                     "call *%%rax\n\t"
                     "ud2\n"
                     "1:"
                     : "=a"(result)
                     : "a"(SYS_clone), "D"(flags), "S"(stack), "d"(pidfd), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory", "cc");
    return result;
}
#elif defined(__aarch64__)
#define RAW_SYSCALLS 1
static inline long raw_syscall(long number, long a, long b, long c, long d, long e) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory", "cc");
    return x0;
}

static inline long raw_clone(unsigned long flags, void **stack, int *pidfd) {
    register long x8 __asm__("x8") = SYS_clone;
    register long x0 __asm__("x0") = (long)flags;
    register long x1 __asm__("x1") = (long)stack;
    register long x2 __asm__("x2") = (long)pidfd;
    register long x3 __asm__("x3") = 0;
    register long x4 __asm__("x4") = 0;
    __asm__ volatile("svc 0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "ldp x1, x0, [sp], #16\n\t"
                     "blr x1\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                     : "memory", "cc");
    return x0;
}
#else
#define RAW_SYSCALLS 0
static inline long raw_syscall(long number, long a, long b, long c, long d, long e) {
    int saved = errno;
    long result = syscall(number, a, b, c, d, e);
    result = result < 0 ? -errno : result;
    errno = saved;
    return result;
}

static inline long raw_clone(unsigned long flags, void **stack, int *pidfd) {
    (void)flags, (void)stack, (void)pidfd;
    return -ENOSYS;
}
#endif

/* Each pastes its first argument itself: passed on to another macro it would be expanded, and libcs define some names. */
#define RAW0(name) raw_syscall(SYS_##name, 0, 0, 0, 0, 0)
#define RAW1(name, a) raw_syscall(SYS_##name, (long)(a), 0, 0, 0, 0)
#define RAW2(name, a, b) raw_syscall(SYS_##name, (long)(a), (long)(b), 0, 0, 0)
#define RAW3(name, a, b, c) raw_syscall(SYS_##name, (long)(a), (long)(b), (long)(c), 0, 0)
#define RAW4(name, a, b, c, d) raw_syscall(SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d), 0)
#define RAW5(name, a, b, c, d, e) raw_syscall(SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

#endif
