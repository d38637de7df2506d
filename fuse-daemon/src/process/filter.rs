//! The system calls that a locked-up worker may use: those of a program that has sockets, memory and threads. All others fail
//! with EPERM.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Calls that may have any arguments.
const FREE: &[i64] = &[
    // Descriptors that it has.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_fallocate,
    libc::SYS_close,
    libc::SYS_dup,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    // Connections.
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads and time. `clone3` fails in a way that has the C library use `clone`: see `without_clone3`.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
];

/// Older forms, which only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[i64] = &[];

/// `PR_SET_VMA` of `linux/prctl.h`, by which the C library names memory.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Applies the filters to the process.
pub(super) fn apply() -> Result<(), seccompiler::Error> {
    seccompiler::apply_filter_all_threads(&without_clone3()?)?;
    seccompiler::apply_filter_all_threads(&allowed()?)
}

fn allowed() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        FREE.iter().chain(OLD).map(|call| (*call, Vec::new())).collect();
    let is = |argument, value: u64| (argument, SeccompCmpOp::Eq, value);
    let has = |argument, mask: u64, value: u64| (argument, SeccompCmpOp::MaskedEq(mask), value);
    // Of each call, the arguments that it may have.
    let restricted: &[(i64, (u8, SeccompCmpOp, u64))] = &[
        (libc::SYS_socket, is(0, libc::AF_INET as u64)),
        (libc::SYS_socket, is(0, libc::AF_INET6 as u64)),
        // A datagram socket could be sent from to any name.
        (libc::SYS_socketpair, has(1, 0xf, libc::SOCK_STREAM as u64)),
        // No new processes, only threads.
        (libc::SYS_clone, has(0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64)),
        (libc::SYS_mmap, has(2, libc::PROT_EXEC as u64, 0)),
        (libc::SYS_mprotect, has(2, libc::PROT_EXEC as u64, 0)),
        (libc::SYS_prctl, is(0, libc::PR_SET_NAME as u64)),
        (libc::SYS_prctl, is(0, PR_SET_VMA)),
        (libc::SYS_prlimit64, is(2, 0)),
        (libc::SYS_tgkill, is(2, libc::SIGABRT as u64)),
        (libc::SYS_ioctl, is(1, libc::FIONBIO)),
        (libc::SYS_ioctl, is(1, libc::FIONREAD)),
        (libc::SYS_ioctl, is(1, libc::TCGETS)),
        (libc::SYS_fcntl, is(1, libc::F_GETFL as u64)),
        (libc::SYS_fcntl, is(1, libc::F_SETFL as u64)),
        (libc::SYS_fcntl, is(1, libc::F_GETFD as u64)),
        (libc::SYS_fcntl, is(1, libc::F_SETFD as u64)),
        (libc::SYS_fcntl, is(1, libc::F_DUPFD_CLOEXEC as u64)),
    ];
    for (call, (argument, comparison, value)) in restricted {
        let condition =
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, comparison.clone(), *value)?;
        rules.entry(*call).or_default().push(SeccompRule::new(vec![condition])?);
    }
    program(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

/// What `clone3` does is in memory, where no filter looks.
fn without_clone3() -> Result<BpfProgram, BackendError> {
    let rules = [(libc::SYS_clone3, Vec::new())].into();
    program(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, matching, architecture)?.try_into()
}
