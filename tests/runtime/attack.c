/* SPDX-License-Identifier: Apache-2.0 */
/* Tries one thing that a step must not be able to do, named by the first argument: prints "done", or "refused ERRNO". */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
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
#include <sys/un.h>
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

/* Every system call of a range, with arguments that mean nothing: what lets it through says something else than a filter. */
static int every_call(long first, long last)
{
	for (long number = first; number < last; number++) {
		pid_t child;
		int status;

		if (number == SYS_exit || number == SYS_exit_group || number == SYS_rt_sigreturn)
			continue;
		fflush(stdout);
		child = fork();
		if (child == 0) {
			setsid();
			alarm(5); /* those that wait */
			errno = 0;
			_exit(syscall(number, -1L, -1L, -1L, -1L, -1L, -1L) < 0 ? errno : 0);
		}
		if (child < 0 || waitpid(child, &status, 0) != child)
			return 2;
		printf("%ld %s\n", number, WIFSIGNALED(status) ? (WTERMSIG(status) == SIGALRM ? "waits" : "killed")
						       : WEXITSTATUS(status) ? strerror(WEXITSTATUS(status)) : "done");
	}
	return 0;
}

/* What of a tree can be opened for writing: processes' own files are named by themselves. */
static void writable_below(const char *path, int depth)
{
	DIR *directory = opendir(path);
	struct dirent *entry;

	while (directory && (entry = readdir(directory))) {
		char below[4096];
		struct stat info;
		int fd;

		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") || (depth == 0 && isdigit((unsigned char)entry->d_name[0])))
			continue;
		snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
		if (lstat(below, &info) || S_ISLNK(info.st_mode))
			continue;
		if (S_ISDIR(info.st_mode)) {
			if (depth < 12)
				writable_below(below, depth + 1);
			continue;
		}
		fd = S_ISREG(info.st_mode) ? open(below, O_WRONLY | O_NONBLOCK) : -1;
		if (fd >= 0) {
			puts(below);
			close(fd);
		}
	}
	if (directory)
		closedir(directory);
}

static long abstract(const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(address.sun_path + 1, name);
	return connect(fd, (struct sockaddr *)&address, sizeof(sa_family_t) + 1 + strlen(name));
}

static long wrote(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	return fd < 0 ? -1 : write(fd, text, strlen(text));
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

	if (!strcmp(what, "every-call"))
		return every_call(strtol(more, NULL, 0), strtol(argv[3], NULL, 0));
	if (!strcmp(what, "writable")) {
		writable_below(more, 0);
		return 0;
	}
	if (!strcmp(what, "session-keyring")) {
		printf("%ld\n", syscall(SYS_keyctl, 0, -3, 0));
		return 0;
	}
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
	CALL("unshare-time", unshare(0x80))
	CALL("unshare-pid", unshare(CLONE_NEWPID))
	CALL("fspick", syscall(433, -100, "/proc", 0))
	CALL("fsmount", syscall(432, 0, 0, 0))
	CALL("quotactl-fd", syscall(443, 0, 0x80000100, 0, zeros))
	CALL("io-uring-register", syscall(427, 0, 0, NULL, 0))
	CALL("mount-unbindable", mount(NULL, "/proc", NULL, MS_UNBINDABLE, NULL))
	CALL("umount-dev", umount2("/dev", MNT_DETACH))
	CALL("umount-console", umount2("/dev/pts", MNT_DETACH))
	CALL("name-to-handle", syscall(SYS_name_to_handle_at, -100, "/", zeros, NULL, 0) < 0 && errno == EOVERFLOW ? handle_of_root() : -1)
	CALL("oom-adj", wrote("/proc/self/oom_score_adj", "-1000"))
	CALL("uid-map", wrote("/proc/self/uid_map", "0 0 1"))
	CALL("tioclinux", ioctl(0, TIOCLINUX, "\2"))
	CALL("tty-steal", ioctl(0, TIOCSCTTY, 1))
	CALL("rt-priority", sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){1}))
	CALL("set-mm", prctl(PR_SET_MM, 1, 0x400000, 0, 0))
	CALL("keep-caps-inheritable", prctl(47 /* PR_CAP_AMBIENT */, 2, 21, 0, 0))
	CALL("raw", socket(AF_INET, SOCK_RAW, 1))
	CALL("packet", socket(AF_PACKET, SOCK_RAW, 0x300))
	CALL("abstract", abstract(more))
	CALL("text", wrote(more, argv[3]))
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
