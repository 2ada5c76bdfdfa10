/* SPDX-License-Identifier: Apache-2.0 */
/* Tries one thing that a step must not be able to do, named by the first argument: prints "done", or "refused ERRNO". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long tried;

#define CALL(name, ...)                                                                                                          \
	if (!strcmp(what, name)) {                                                                                                 \
		errno = 0;                                                                                                         \
		tried = (long)(__VA_ARGS__);                                                                                       \
		goto told;                                                                                                         \
	}

static long handle_of_root(void)
{
	/* The inode number of a root directory is 2 on ext4, 64..128 on XFS, 256 on Btrfs: the attack named shocker. */
	struct { unsigned bytes; int type; unsigned inode, generation; } handle = {8, 1, 2, 0};
	int fd = open("/etc/hosts", O_RDONLY);

	if (fd < 0)
		fd = open("/", O_RDONLY);
	return syscall(SYS_open_by_handle_at, fd, &handle, O_RDONLY);
}

static long all_capabilities(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{~0U, ~0U, 0}, {~0U, ~0U, 0}};

	return syscall(SYS_capset, &header, data);
}

static long more_files(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_max += 1000;
	return setrlimit(RLIMIT_NOFILE, &limit);
}

static long loopback_down(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	ioctl(fd, SIOCGIFFLAGS, &request);
	return ioctl(fd, SIOCSIFFLAGS, &request); /* unchanged, which needs CAP_NET_ADMIN as well */
}

/* Out of a chroot that is not ours: the container's root must hold whatever we do in it. */
static long chroot_out(const char *seen)
{
	int fd = open("/", O_RDONLY);

	mkdir("/tmp/c", 0755);
	if (chroot("/tmp/c") || fchdir(fd))
		return -1;
	for (int i = 0; i < 64; i++)
		if (chdir(".."))
			return -1;
	if (chroot("."))
		return -1;
	return access(seen, F_OK);
}

static long opened(const char *path, int flags)
{
	char byte;
	int fd = open(path, flags);

	if (fd < 0)
		return -1;
	if ((flags & O_ACCMODE) == O_RDONLY)
		return read(fd, &byte, 1) == 1 ? 0 : -1;
	return 0;
}

static long in_namespace(const char *path)
{
	int fd = open(path, O_RDONLY);

	return fd < 0 ? -1 : syscall(SYS_setns, fd, 0);
}

static long waited(long pid)
{
	if (pid == 0)
		_exit(0);
	if (pid > 0)
		waitpid((pid_t)pid, NULL, 0);
	return pid;
}

#ifdef __x86_64__
static long call_32(long number, long a, long b)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(0), "S"(0), "D"(0) : "memory", "r8", "r9", "r10", "r11");
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}
#endif

int main(int argc, char **argv)
{
	const char *what = argv[1], *more = argc > 2 ? argv[2] : "";
	struct timeval now = {1000000000, 0};
	struct timespec then = {1000000000, 0};
	struct timex change = {.modes = ADJ_OFFSET};
	static uint64_t zeros[32];
	union { uint64_t words[16]; } map = {{1 | 4ULL << 32, 4 | 1ULL << 32}};

	gettimeofday(&now, NULL);
	clock_gettime(CLOCK_REALTIME, &then);
	mkdir("/tmp/d", 0755);

	CALL("mount-tmpfs", mount("none", "/tmp/d", "tmpfs", 0, ""))
	CALL("mount-proc", mount("none", "/tmp/d", "proc", 0, ""))
	CALL("mount-sysfs", mount("none", "/tmp/d", "sysfs", 0, ""))
	CALL("mount-cgroup", mount("none", "/tmp/d", "cgroup", 0, "memory"))
	CALL("mount-cgroup2", mount("none", "/tmp/d", "cgroup2", 0, ""))
	CALL("mount-devtmpfs", mount("none", "/tmp/d", "devtmpfs", 0, ""))
	CALL("mount-overlay", mount("none", "/tmp/d", "overlay", 0, "lowerdir=/bin:/etc"))
	CALL("mount-bind", mount("/bin", "/tmp/d", NULL, MS_BIND, NULL))
	CALL("mount-move", mount("/dev/shm", "/tmp/d", NULL, MS_MOVE, NULL))
	CALL("remount-proc-sys", mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL))
	CALL("remount-root-shared", mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL))
	CALL("umount-mask", umount2("/proc/keys", MNT_DETACH))
	CALL("umount-proc-sys", umount2("/proc/sys", MNT_DETACH))
	CALL("pivot-root", syscall(SYS_pivot_root, ".", "."))
	CALL("fsopen", syscall(SYS_fsopen, "tmpfs", 0))
	CALL("open-tree", syscall(SYS_open_tree, -100, "/", 1))
	CALL("move-mount", syscall(SYS_move_mount, -100, "/dev/shm", -100, "/tmp/d", 0))
	CALL("mount-setattr", syscall(SYS_mount_setattr, -100, "/proc/sys", 0, zeros, 32))
	CALL("unshare-user", unshare(CLONE_NEWUSER))
	CALL("unshare-mount", unshare(CLONE_NEWNS))
	CALL("unshare-net", unshare(CLONE_NEWNET))
	CALL("unshare-cgroup", unshare(CLONE_NEWCGROUP))
	CALL("clone-user", waited(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)))
	CALL("clone3", waited(syscall(SYS_clone3, zeros, 64)))
	CALL("setns-mount", in_namespace("/proc/1/ns/mnt"))
	CALL("setns-pidfd", syscall(SYS_setns, syscall(SYS_pidfd_open, 1, 0), CLONE_NEWNS))
	CALL("keyctl", syscall(SYS_keyctl, 0, -3, 1))
	CALL("keyctl-search", syscall(SYS_keyctl, 10, -5, "user", "x", 0))
	CALL("add-key", syscall(SYS_add_key, "user", "x", "y", 1, -3))
	CALL("request-key", syscall(SYS_request_key, "user", "x", NULL, -3))
	CALL("bpf-map", syscall(SYS_bpf, 0, &map, 64))
	CALL("bpf-prog", syscall(SYS_bpf, 5, zeros, 64))
	CALL("perf-event", syscall(SYS_perf_event_open, zeros, 0, -1, -1, 0))
	CALL("userfaultfd", syscall(SYS_userfaultfd, 0))
	CALL("io-uring", syscall(425, 4, zeros))
	CALL("open-by-handle", handle_of_root())
	CALL("init-module", syscall(SYS_init_module, zeros, 8, ""))
	CALL("finit-module", syscall(SYS_finit_module, 0, "", 0))
	CALL("delete-module", syscall(SYS_delete_module, "dummy", 0))
	CALL("kexec-load", syscall(SYS_kexec_load, 0, 0, NULL, 0))
	CALL("kexec-file-load", syscall(SYS_kexec_file_load, 0, 0, 0, "", 8))
	CALL("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0x89abcdef /* Ctrl-Alt-Del on: harmless */, NULL))
	CALL("swapon", syscall(SYS_swapon, "/bin/busybox", 0))
	CALL("swapoff", syscall(SYS_swapoff, "/bin/busybox"))
	CALL("acct", acct("/tmp/acct"))
	CALL("quotactl", syscall(SYS_quotactl, 0x80000100, "/dev/null", 0, zeros))
	CALL("settimeofday", settimeofday(&now, NULL))
	CALL("clock-settime", clock_settime(CLOCK_REALTIME, &then))
	CALL("adjtimex", adjtimex(&change))
	CALL("sethostname", sethostname("x", 1))
	CALL("setdomainname", setdomainname("x", 1))
	CALL("syslog", syscall(SYS_syslog, 3, zeros, 64))
	CALL("vhangup", vhangup())
	CALL("lookup-dcookie", syscall(SYS_lookup_dcookie, 0, zeros, 8))
	CALL("move-pages", syscall(SYS_move_pages, 1, 0, NULL, NULL, NULL, 0))
	CALL("set-mempolicy", syscall(SYS_set_mempolicy, 0, NULL, 0))
	CALL("kcmp", syscall(SYS_kcmp, getpid(), 1, 0, 0, 0))
	CALL("pidfd-getfd", syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, 1, 0), 0, 0))
	CALL("personality", syscall(SYS_personality, 0x0400000UL))
	CALL("vsock", socket(40, SOCK_STREAM, 0))
	CALL("vsock-high-bits", syscall(SYS_socket, 40L | 1L << 32, SOCK_STREAM, 0))
	CALL("fanotify", syscall(SYS_fanotify_init, 0, 0))
	CALL("more-files", more_files())
	CALL("all-capabilities", all_capabilities())
	CALL("loopback-down", loopback_down())
	CALL("chroot-out", chroot_out(more))
	CALL("read", opened(more, O_RDONLY | O_NONBLOCK))
	CALL("write", opened(more, O_WRONLY | O_NONBLOCK))
	CALL("kill", kill(atoi(more), 0))
	CALL("nice", setpriority(PRIO_PROCESS, 0, -10))
#ifdef __x86_64__
	CALL("iopl", syscall(SYS_iopl, 3))
	CALL("ioperm", syscall(SYS_ioperm, 0, 1, 1))
	CALL("x32-mount", syscall(0x40000000 | 165, "none", "/tmp/d", "tmpfs", 0, ""))
	CALL("i386-unshare", call_32(310, CLONE_NEWNS, 0))
	CALL("i386-keyctl", call_32(288, 0, -3))
#endif
	printf("unknown %s\n", what);
	return 3;
told:
	if (tried < 0)
		printf("refused %s\n", strerror(errno));
	else
		printf("done\n");
	return tried < 0 ? 1 : 0;
}
