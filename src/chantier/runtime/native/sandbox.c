/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The helper of the native sandbox: does what a plan says, in the order it says it.
 *
 *   engine --- server --- monitor --- the step (pid 1), or in a running container: a guard --- the step
 *
 * The server is started once an engine, with a socket as descriptor 3. For each container it is sent five descriptors
 * (stdin, stdout, stderr, a control socket, the plan) and forks a monitor; the sixth, if there is one, is a pidfd of the
 * container to enter. The monitor makes the namespaces, puts their first process into its cgroups, passes signals on, and
 * tells the engine how it ended once nothing of the container is left. If the engine dies, the control socket ends and the
 * container with it. The first process makes the container and then becomes the step, which so is pid 1 as it is under an OCI
 * runtime: what it leaves behind dies with the namespace. A step in a container that runs has a guard outside of that
 * container's pid namespace, which passes signals on to it and reaps it.
 *
 * A plan is NUL-terminated words: the name of a record, how many arguments follow, the arguments. What helper/ does in
 * Python is the same, record by record; both pass the same tests. Policy is not found here: see plan.py.
 *
 * Packets on the control socket: to us "K" kill, "S<n>" send a signal, "G" go on; from us "H<pid>" the container is made and
 * waits to go on, "R<pid>" started (with a pidfd), "T" a terminal (with its descriptor), "E<text>" could not start,
 * "X<code> <oom>" the end.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef PR_CAP_AMBIENT
#define PR_CAP_AMBIENT 47
#define PR_CAP_AMBIENT_RAISE 2
#define PR_CAP_AMBIENT_CLEAR_ALL 4
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif
#define INTO_CGROUP 0x200000000ULL
#define PROC_MAGIC 0x9fa0
#define DEVPTS_MAGIC 0x1cd1
#define NO_MAGICLINKS 2
#define NO_SYMLINKS 4
#define LINKS 40 /* as many as the kernel follows in a path */
#define DEPTH 64 /* groups within groups that are removed */

struct record {
	const char *op;
	int argc;
	char **argv;
};

static char *plan_text;
static size_t plan_size;
static struct record *records;
static int record_count;
static int to_parent = -1; /* where an error is told: the first process's socket, or the pipe to a guard */
static int to_guard;

/* ---- saying what went wrong ---- */

static const char *reason(int code)
{
	static char text[128];

	snprintf(text, sizeof text, "%s", strerror(code));
	text[0] = (char)tolower((unsigned char)text[0]);
	return text;
}

static void die(int code, const char *format, ...)
{
	char text[3900] = "E";
	va_list args;
	size_t used;

	va_start(args, format);
	vsnprintf(text + 1, sizeof text - 200, format, args);
	va_end(args);
	used = strlen(text);
	if (code)
		snprintf(text + used, sizeof text - used, ": %s", reason(code));
	if (to_parent >= 0) {
		if (to_guard) {
			if (write(to_parent, text + 1, strlen(text) - 1) < 0)
				_exit(2);
		} else {
			send(to_parent, text, strlen(text), MSG_NOSIGNAL);
		}
	}
	_exit(1);
}

/* ---- descriptors ---- */

static void close_from(int first)
{
	struct dirent *entry;
	DIR *directory;

	if (syscall(SYS_close_range, (unsigned)first, ~0U, 0) == 0)
		return;
	directory = opendir("/proc/self/fd");
	if (!directory) {
		for (int fd = first; fd < 65536; fd++)
			close(fd);
		return;
	}
	while ((entry = readdir(directory))) {
		int fd = atoi(entry->d_name);
		if (isdigit((unsigned char)entry->d_name[0]) && fd >= first && fd != dirfd(directory))
			close(fd);
	}
	closedir(directory);
}

static int send_with(int socket, const char *text, size_t size, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {(void *)text, size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (fd >= 0) {
		struct cmsghdr *header;
		message.msg_control = control;
		message.msg_controllen = sizeof control;
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof fd);
	}
	return (int)sendmsg(socket, &message, MSG_NOSIGNAL);
}

static ssize_t receive_with(int socket, char *text, size_t size, int *fds, int *count, int flags)
{
	char control[CMSG_SPACE(sizeof(int) * 8)];
	struct iovec part = {text, size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	int limit = *count;
	ssize_t got;

	*count = 0;
	do {
		got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | flags);
	} while (got < 0 && errno == EINTR);
	if (got < 0)
		return got;
	for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
		int held = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
			continue;
		for (int i = 0; i < held; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(header) + sizeof(int) * (size_t)i, sizeof fd);
			if (*count < limit)
				fds[(*count)++] = fd;
			else
				close(fd);
		}
	}
	return got;
}

/* ---- the plan ---- */

static void load_plan(int fd)
{
	struct stat info;
	size_t done = 0;
	int words = 0, used = 0;
	char **word;

	if (fstat(fd, &info))
		die(errno, "cannot read the plan");
	plan_size = (size_t)info.st_size;
	plan_text = malloc(plan_size + 1);
	if (!plan_text)
		die(ENOMEM, "cannot read the plan");
	while (done < plan_size) {
		ssize_t got = pread(fd, plan_text + done, plan_size - done, (off_t)done);
		if (got <= 0)
			die(got ? errno : EIO, "cannot read the plan");
		done += (size_t)got;
	}
	plan_text[plan_size] = 0;
	for (size_t i = 0; i < plan_size; i++)
		words += !plan_text[i];
	word = calloc((size_t)words + 1, sizeof *word);
	records = calloc((size_t)words + 1, sizeof *records);
	if (!word || !records)
		die(ENOMEM, "cannot read the plan");
	for (char *at = plan_text; at < plan_text + plan_size; at += strlen(at) + 1)
		word[used++] = at;
	for (int i = 0; i + 1 < words;) {
		struct record *record = &records[record_count++];
		record->op = word[i];
		record->argc = atoi(word[i + 1]);
		record->argv = word + i + 2;
		i += 2 + record->argc;
		if (record->argc < 0 || i > words)
			die(EINVAL, "cannot read the plan");
	}
}

static struct record *find(const char *op)
{
	for (int i = 0; i < record_count; i++)
		if (!strcmp(records[i].op, op))
			return &records[i];
	return NULL;
}

static unsigned long long number(const char *text)
{
	return strtoull(text, NULL, 0);
}

/* ---- paths below the root we are chrooted into; the old root is our working directory meanwhile ---- */

static const char *by_fd(int fd)
{
	static char names[4][40];
	static int turn;

	turn = (turn + 1) % 4;
	snprintf(names[turn], sizeof names[turn], "proc/self/fd/%d", fd); /* of the old root */
	return names[turn];
}

/*
 * A descriptor of what is at a path. Links of /proc that are no paths (/proc/self/cwd, fd/3) lead out of any root: where we are
 * inside a container's they must not be followed.
 */
static int open_there(const char *path, int flags, uint64_t without)
{
	uint64_t how[3] = {(uint64_t)flags | O_CLOEXEC, 0, without};
	int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, how, sizeof how);

	if (fd < 0 && (errno == ENOSYS || errno == EPERM)) /* an older kernel, or a filter that does not know it */
		fd = open(path, flags | O_CLOEXEC);
	return fd;
}

/* Make what is missing of a path, following links as securejoin does: also those that lead nowhere yet. */
static void make_path(const char *path, int want_directory)
{
	char done[PATH_MAX] = "", rest[PATH_MAX], link[PATH_MAX];
	int links = 0;

	snprintf(rest, sizeof rest, "%s", path);
	for (char *at = rest; *at;) {
		char part[NAME_MAX + 1], next[PATH_MAX];
		size_t length;
		struct stat info;
		int last;

		while (*at == '/')
			at++;
		if (!*at)
			break;
		length = strcspn(at, "/");
		if (length > NAME_MAX)
			die(ENAMETOOLONG, "error creating mount point \"%s\"", path);
		memcpy(part, at, length);
		part[length] = 0;
		at += length;
		last = !at[strspn(at, "/")];
		if (!strcmp(part, "."))
			continue;
		if (!strcmp(part, "..")) {
			char *slash = strrchr(done, '/');
			if (slash)
				*slash = 0;
			continue;
		}
		if ((size_t)snprintf(next, sizeof next, "%s/%s", done, part) >= sizeof next)
			die(ENAMETOOLONG, "error creating mount point \"%s\"", path);
		if (lstat(next, &info)) {
			if (errno != ENOENT)
				die(errno, "error creating mount point \"%s\"", path);
			if (last && !want_directory) {
				int fd = open(next, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
				if (fd < 0 && errno != EEXIST)
					die(errno, "error creating mount point \"%s\"", path);
				if (fd >= 0)
					close(fd);
			} else if (mkdir(next, 0755) && errno != EEXIST) {
				die(errno, "error creating mount point \"%s\"", path);
			}
		} else if (S_ISLNK(info.st_mode)) {
			char joined[2 * PATH_MAX];
			ssize_t size = readlink(next, link, sizeof link - 1);
			if (size < 0 || ++links > LINKS)
				die(size < 0 ? errno : ELOOP, "error creating mount point \"%s\"", path);
			link[size] = 0;
			snprintf(joined, sizeof joined, "%s/%s", link, at);
			if (strlen(joined) >= sizeof rest)
				die(ENAMETOOLONG, "error creating mount point \"%s\"", path);
			strcpy(rest, joined);
			at = rest;
			if (link[0] == '/')
				done[0] = 0;
			continue;
		}
		strcpy(done, next);
	}
}

/* A descriptor of a place to mount on. Whoever may write to a directory on the way cannot lead it onto /proc unasked. */
static int target_of(const char *path, int want_directory)
{
	struct statfs info;
	int fd = open_there(path, O_PATH, NO_MAGICLINKS);

	if (fd < 0 && errno == ENOENT) {
		make_path(path, want_directory);
		fd = open_there(path, O_PATH, NO_MAGICLINKS);
	}
	if (fd < 0)
		die(errno, "error opening mount point \"%s\"", path);
	if (strcmp(path, "/proc") && strncmp(path, "/proc/", 6) && !fstatfs(fd, &info) && (unsigned long)info.f_type == PROC_MAGIC)
		die(0, "refusing to mount at \"%s\": it leads into /proc", path);
	return fd;
}

static unsigned long kept_flags(int fd)
{
	struct statvfs info;
	unsigned long flags = 0;

	if (fstatvfs(fd, &info))
		return 0;
	if (info.f_flag & ST_RDONLY)
		flags |= MS_RDONLY;
	if (info.f_flag & ST_NOSUID)
		flags |= MS_NOSUID;
	if (info.f_flag & ST_NODEV)
		flags |= MS_NODEV;
	if (info.f_flag & ST_NOEXEC)
		flags |= MS_NOEXEC;
	return flags;
}

static void apply(const char *target, int fd, unsigned long flags, unsigned long propagation, int locked)
{
	if (flags) {
		unsigned long all = MS_REMOUNT | MS_BIND | flags | (locked ? kept_flags(fd) : 0);
		if (mount(NULL, by_fd(fd), NULL, all, NULL))
			die(errno, "error remounting \"%s\"", target);
	}
	if (propagation && mount(NULL, by_fd(fd), NULL, propagation, NULL))
		die(errno, "error setting propagation of \"%s\"", target);
}

/* mount TYPE SOURCE TARGET FLAGS DATA PROPAGATION */
static void do_mount(char **a)
{
	struct stat info;
	int fd;

	/* Through a link of the image's these would appear where nothing is masked. */
	if ((!strcmp(a[0], "proc") || !strcmp(a[0], "sysfs")) && !lstat(a[2], &info) && !S_ISDIR(info.st_mode))
		die(0, "filesystem \"%s\" must be mounted on ordinary directory", a[0]);
	fd = target_of(a[2], 1);
	if (mount(a[1], by_fd(fd), a[0], number(a[3]), *a[4] ? a[4] : NULL))
		die(errno, "error mounting \"%s\" to rootfs at \"%s\"", a[1], a[2]);
	close(fd);
	if (number(a[5])) {
		fd = open_there(a[2], O_PATH, NO_MAGICLINKS);
		if (fd < 0)
			die(errno, "error opening \"%s\"", a[2]);
		apply(a[2], fd, 0, number(a[5]), 0);
		close(fd);
	}
}

/* bind SOURCE TARGET REC FLAGS PROPAGATION: the source is a path of the old root, without links */
static void do_bind(char **a)
{
	struct stat from, now;
	const char *source = a[0] + strspn(a[0], "/");
	int src = open_there(*source ? source : ".", O_PATH, NO_SYMLINKS), fd;

	if (src < 0 || fstat(src, &from))
		die(errno, "error mounting \"%s\" to rootfs at \"%s\"", a[0], a[1]);
	fd = target_of(a[1], S_ISDIR(from.st_mode));
	if (mount(by_fd(src), by_fd(fd), NULL, MS_BIND | number(a[2]), NULL))
		die(errno, "error mounting \"%s\" to rootfs at \"%s\"", a[0], a[1]);
	close(fd);
	close(src);
	if (!number(a[3]) && !number(a[4]))
		return;
	fd = open_there(a[1], O_PATH, NO_MAGICLINKS);
	if (fd < 0 || fstat(fd, &now))
		die(errno, "error opening \"%s\"", a[1]);
	if (now.st_dev != from.st_dev || now.st_ino != from.st_ino)
		die(0, "mount point \"%s\" has changed while it was being mounted", a[1]);
	apply(a[1], fd, number(a[3]), number(a[4]), 1);
	close(fd);
}

/* node PATH KIND MAJOR MINOR MODE UID GID */
static void do_node(char **a)
{
	mode_t kind = *a[1] == 'b' ? S_IFBLK : *a[1] == 'p' ? S_IFIFO : S_IFCHR;
	mode_t mode = (mode_t)number(a[4]);
	const char *name = strrchr(a[0], '/') + 1;
	char parent[PATH_MAX];
	int fd;

	snprintf(parent, sizeof parent, "%.*s", (int)(name - a[0]), a[0]);
	fd = target_of(parent, 1);
	unlinkat(fd, name, 0); /* a file in its place is replaced */
	if (mknodat(fd, name, kind | mode, makedev((unsigned)number(a[2]), (unsigned)number(a[3]))))
		die(errno, "error creating device \"%s\"", a[0]);
	if (fchownat(fd, name, (uid_t)number(a[5]), (gid_t)number(a[6]), AT_SYMLINK_NOFOLLOW))
		die(errno, "error giving device \"%s\" away", a[0]);
	close(fd);
}

/* mask PATH: nothing is to be seen there; what does not exist need not be hidden */
static void do_mask(char **a)
{
	struct stat info;
	int fd = open_there(a[0], O_PATH, NO_MAGICLINKS);

	if (fd < 0) {
		if (errno == ENOENT || errno == ENOTDIR || errno == EACCES)
			return;
		die(errno, "error masking \"%s\"", a[0]);
	}
	if (fstat(fd, &info))
		die(errno, "error masking \"%s\"", a[0]);
	if (S_ISDIR(info.st_mode)) {
		if (mount("tmpfs", by_fd(fd), "tmpfs", MS_RDONLY, "size=4k"))
			die(errno, "error masking \"%s\"", a[0]);
	} else {
		struct stat null;
		int src = open("dev/null", O_PATH | O_CLOEXEC);
		if (src < 0 || fstat(src, &null))
			die(errno, "error masking \"%s\"", a[0]);
		if (!S_ISCHR(null.st_mode) || null.st_rdev != makedev(1, 3))
			die(0, "error masking \"%s\": /dev/null is not what it should be", a[0]);
		if (mount(by_fd(src), by_fd(fd), NULL, MS_BIND, NULL))
			die(errno, "error masking \"%s\"", a[0]);
		close(src);
		close(fd);
		fd = open_there(a[0], O_PATH, NO_MAGICLINKS);
		if (fd < 0)
			die(errno, "error masking \"%s\"", a[0]);
		apply(a[0], fd, MS_NOSUID | MS_NOEXEC, 0, 1);
	}
	close(fd);
}

/* readonly PATH */
static void do_readonly(char **a)
{
	int fd = open_there(a[0], O_PATH, NO_MAGICLINKS);

	if (fd < 0) {
		if (errno == ENOENT || errno == ENOTDIR)
			return;
		die(errno, "error making \"%s\" read-only", a[0]);
	}
	if (mount(by_fd(fd), by_fd(fd), NULL, MS_BIND | MS_REC, NULL))
		die(errno, "error making \"%s\" read-only", a[0]);
	close(fd);
	fd = open_there(a[0], O_PATH, NO_MAGICLINKS);
	if (fd < 0)
		die(errno, "error making \"%s\" read-only", a[0]);
	apply(a[0], fd, MS_RDONLY, 0, 1);
	close(fd);
}

/* remount TARGET FLAGS: add flags to a mount that is there */
static void do_remount(char **a)
{
	int fd = open_there(a[0], O_PATH, NO_MAGICLINKS);

	if (fd < 0)
		die(errno, "error remounting \"%s\"", a[0]);
	apply(a[0], fd, number(a[1]), 0, 1);
	close(fd);
}

static int old_root = -1, new_root = -1;

/* root PATH: from now on "/" is the container's, relative paths are the machine's */
static void do_root(char **a)
{
	if (mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL))
		die(errno, "error making mounts private");
	if (mount(a[0], a[0], NULL, MS_BIND | MS_REC, NULL))
		die(errno, "error mounting rootfs \"%s\"", a[0]);
	old_root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	new_root = open(a[0], O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (old_root < 0 || new_root < 0)
		die(errno, "error opening rootfs \"%s\"", a[0]);
	if (fchdir(new_root) || mount(NULL, ".", NULL, MS_PRIVATE | MS_REC, NULL))
		die(errno, "error making rootfs \"%s\" private", a[0]);
	if (chroot(".") || fchdir(old_root))
		die(errno, "error entering rootfs \"%s\"", a[0]);
}

/* pivot MOVE: leave the old root for good; MOVE for a root on a ramdisk, which cannot be pivoted */
static void do_pivot(char **a)
{
	if (fchdir(old_root) || chroot(".") || fchdir(new_root))
		die(errno, "error leaving the old root");
	if (number(a[0])) {
		if (mount(".", "/", NULL, MS_MOVE, NULL) || chroot("."))
			die(errno, "error moving the root");
	} else {
		if (syscall(SYS_pivot_root, ".", "."))
			die(errno, "pivot_root");
		if (fchdir(old_root) || mount(NULL, ".", NULL, MS_SLAVE | MS_REC, NULL) || umount2(".", MNT_DETACH))
			die(errno, "error detaching the old root");
	}
	if (chdir("/"))
		die(errno, "error entering the root");
	close(old_root);
	close(new_root);
}

static void bring_up_loopback(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return; /* a kernel without IPv4 */
	if (!ioctl(fd, SIOCGIFFLAGS, &request)) {
		request.ifr_flags |= IFF_UP;
		if (ioctl(fd, SIOCSIFFLAGS, &request))
			die(errno, "error bringing up the loopback interface");
	}
	close(fd);
}

static int terminal = -1;

/* tty UID CONSOLE: a terminal of the container's own; its master goes to the engine */
static void do_tty(char **a)
{
	struct statfs info;
	int master, unlock = 0;

	/* What else may stand there is not for us to open for writing, nor to trust the names of. */
	master = open_there("/dev/pts/ptmx", O_PATH, NO_MAGICLINKS);
	if (master < 0 || fstatfs(master, &info))
		die(errno, "error opening a terminal");
	if ((unsigned long)info.f_type != DEVPTS_MAGIC)
		die(0, "error opening a terminal: /dev/pts is not what it should be");
	close(master);
	master = open_there("/dev/pts/ptmx", O_RDWR | O_NOCTTY, NO_MAGICLINKS);
	if (master < 0 || fstatfs(master, &info))
		die(errno, "error opening a terminal");
	if ((unsigned long)info.f_type != DEVPTS_MAGIC || ioctl(master, TIOCSPTLCK, &unlock))
		die(errno, "error opening a terminal");
	terminal = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (terminal < 0 || fchown(terminal, (uid_t)number(a[0]), (gid_t)-1))
		die(errno, "error opening the terminal");
	if (number(a[1])) {
		int fd = target_of("/dev/console", 0);
		if (mount(by_fd(terminal), by_fd(fd), NULL, MS_BIND, NULL))
			die(errno, "error mounting the console");
		close(fd);
	}
	if (send_with(to_parent, "T", 1, master) < 0)
		_exit(1);
	close(master);
}

/* What a program expects to begin with. The C library keeps two signals for itself and does not let go of them. */
static void reset_signals(void)
{
	static const char none[64];

	for (int i = 1; i < 65; i++)
		syscall(SYS_rt_sigaction, i, none, NULL, 8UL);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, none, NULL, 8UL);
}

static long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void execute_hook(struct record *hook, int input, int output, int outside)
{
	int argc = atoi(hook->argv[6]);
	char **argv = calloc((size_t)argc + 1, sizeof *argv), **envp = calloc((size_t)hook->argc, sizeof *envp);

	if (argv && envp) {
		memcpy(argv, hook->argv + 7, sizeof *argv * (size_t)argc);
		memcpy(envp, hook->argv + 7 + argc, sizeof *envp * (size_t)(hook->argc - 7 - argc));
	}
	setsid();
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (outside)
		umask(022);
	if (argv && envp && (!outside || (!fchdir(old_root) && !chroot(".") && !fchdir(new_root))) && dup2(input, 0) == 0 &&
	    dup2(output, 1) == 1 && dup2(output, 2) == 2) {
		close_from(3);
		reset_signals();
		execve(hook->argv[5], argv, envp);
	}
	dprintf(2, "%s: %s", hook->argv[5], reason(errno));
	_exit(127);
}

/* hook KIND NUMBER TIMEOUT_MS STATE STATE PATH ARGC ARG... ENV...: between the halves of the state, its input, stands our PID */
static void run_hook(struct record *hook, int outside)
{
	char **a = hook->argv, said[2048], state[PATH_MAX * 2], rest[512];
	long long end = now_ms() + (long long)number(a[2]);
	int in[2], out[2], status = 0, late = 0, size = snprintf(state, sizeof state, "%s%d%s", a[3], getpid(), a[4]);
	size_t used = 0;
	pid_t child;

	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
		die(errno, "error running %s hook #%s", a[0], a[1]);
	child = fork();
	if (child == 0)
		execute_hook(hook, in[0], out[1], outside);
	if (child < 0)
		die(errno, "error running %s hook #%s", a[0], a[1]);
	close(in[0]);
	close(out[1]);
	if (write(in[1], state, (size_t)size) < 0 && errno != EPIPE)
		die(errno, "error running %s hook #%s", a[0], a[1]);
	close(in[1]);
	for (;;) {
		struct pollfd wait = {.fd = out[0], .events = POLLIN};
		long long left = end - now_ms();
		ssize_t got;

		if (number(a[2]) && left <= 0) {
			late = 1;
			break;
		}
		if (poll(&wait, 1, number(a[2]) ? (int)left : -1) <= 0)
			continue;
		got = used < sizeof said ? read(out[0], said + used, sizeof said - used) : read(out[0], rest, sizeof rest);
		if (got <= 0)
			break;
		if (used < sizeof said)
			used += (size_t)got;
	}
	close(out[0]);
	for (;;) { /* it may have closed its output before it ends */
		pid_t ended;

		late |= number(a[2]) && now_ms() >= end;
		if (late)
			kill(-child, SIGKILL);
		ended = waitpid(child, &status, late || !number(a[2]) ? 0 : WNOHANG);
		if (ended == child || (ended < 0 && errno != EINTR))
			break;
		if (!ended)
			usleep(2000);
	}
	if (late)
		die(0, "error running %s hook #%s: it ran past its timeout of %.1f s", a[0], a[1], (double)number(a[2]) / 1000);
	if (status)
		die(0, "error running %s hook #%s: %s %d, output: %.*s", a[0], a[1], WIFEXITED(status) ? "exit status" : "signal",
		    WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status), (int)used, said);
}

/* pause: the engine has something to do before we go on */
static void do_pause(void)
{
	char text[8];

	if (send(to_parent, "H", 1, MSG_NOSIGNAL) < 0 || recv(to_parent, text, sizeof text, 0) != 1)
		_exit(1);
}

static void run_hooks(const char *kind, int outside)
{
	for (int i = 0; i < record_count; i++)
		if (!strcmp(records[i].op, "hook") && !strcmp(records[i].argv[0], kind))
			run_hook(&records[i], outside);
}

static void set_up(void)
{
	umask(0);
	for (int i = 0; i < record_count; i++) {
		const char *op = records[i].op;
		char **a = records[i].argv;

		if (!strcmp(op, "netns")) {
			int fd = open(a[0], O_RDONLY | O_CLOEXEC);
			if (fd < 0 || setns(fd, CLONE_NEWNET))
				die(errno, "error joining network namespace \"%s\"", a[0]);
			close(fd);
		} else if (!strcmp(op, "cgroupns")) {
			if (unshare(CLONE_NEWCGROUP))
				die(errno, "error making a cgroup namespace");
		} else if (!strcmp(op, "loopback")) {
			bring_up_loopback();
		} else if (!strcmp(op, "hostname")) {
			if (sethostname(a[0], strlen(a[0])))
				die(errno, "error setting the host name");
		} else if (!strcmp(op, "root")) {
			do_root(a);
		} else if (!strcmp(op, "mount")) {
			do_mount(a);
		} else if (!strcmp(op, "bind")) {
			do_bind(a);
		} else if (!strcmp(op, "node")) {
			do_node(a);
		} else if (!strcmp(op, "symlink")) {
			if (symlink(a[0], a[1]) && errno != EEXIST)
				die(errno, "error making link \"%s\"", a[1]);
		} else if (!strcmp(op, "mask")) {
			do_mask(a);
		} else if (!strcmp(op, "readonly")) {
			do_readonly(a);
		} else if (!strcmp(op, "remount")) {
			do_remount(a);
		} else if (!strcmp(op, "tty")) {
			do_tty(a);
		} else if (!strcmp(op, "pause")) {
			do_pause();
		} else if (!strcmp(op, "pivot")) {
			run_hooks("createContainer", 1);
			do_pivot(a);
		} else if (!strcmp(op, "mkdir")) {
			make_path(a[0], 1);
		}
	}
}

/* enter PID KIND...: become a neighbour of a running container; `alive` proves that the PID is still that one */
static void enter(struct record *record, int alive)
{
	int fds[16], count = 0;
	struct pollfd ended = {.fd = alive, .events = POLLIN};

	for (int i = 1; i < record->argc && count < 16; i++) {
		char path[64];
		snprintf(path, sizeof path, "/proc/%s/ns/%s", record->argv[0], record->argv[i]);
		fds[count] = open(path, O_RDONLY | O_CLOEXEC);
		if (fds[count] < 0)
			die(errno, "container has stopped");
		count++;
	}
	if (alive >= 0 && poll(&ended, 1, 0) != 0)
		die(0, "container has stopped");
	for (int i = 0; i < count; i++)
		if (setns(fds[i], 0))
			die(errno, "error joining the container's %s namespace", record->argv[i + 1]);
	for (int i = 0; i < count; i++)
		close(fds[i]);
}

/* ---- the step ---- */

static unsigned long long capability_mask(struct record *caps, int index)
{
	return caps ? number(caps->argv[index]) : 0;
}

static void limit_bounding(unsigned long long keep)
{
	for (int cap = 0; cap < 64; cap++) {
		if (prctl(PR_CAPBSET_READ, cap) < 0)
			break;
		if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap) && errno != EPERM)
			die(errno, "error dropping capability %d", cap);
	}
	/* EPERM: we never had CAP_SETPCAP, nor then what it would let through */
}

static void set_capabilities(unsigned long long effective, unsigned long long permitted, unsigned long long inheritable,
			     unsigned long long ambient)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	unsigned long long have;

	if (syscall(SYS_capget, &header, data))
		die(errno, "error reading capabilities");
	have = data[0].permitted | (unsigned long long)data[1].permitted << 32;
	permitted &= have;
	effective &= permitted;
	inheritable &= have;
	for (int i = 0; i < 2; i++) {
		data[i].effective = (uint32_t)(effective >> 32 * i);
		data[i].permitted = (uint32_t)(permitted >> 32 * i);
		data[i].inheritable = (uint32_t)(inheritable >> 32 * i);
	}
	if (syscall(SYS_capset, &header, data))
		die(errno, "error setting capabilities");
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (int cap = 0; cap < 64; cap++)
		if (ambient >> cap & 1 & permitted >> cap & inheritable >> cap)
			if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0))
				die(errno, "error raising ambient capability %d", cap);
}

static void load_seccomp(struct record *record)
{
	struct sock_filter *filter;
	struct sock_fprog program;
	size_t size = strlen(record->argv[0]) / 2;
	unsigned char *bytes = malloc(size + 8);

	if (!bytes)
		die(ENOMEM, "error loading the seccomp filter");
	for (size_t i = 0; i < size; i++) {
		unsigned value = 0;
		sscanf(record->argv[0] + 2 * i, "%2x", &value);
		bytes[i] = (unsigned char)value;
	}
	filter = (struct sock_filter *)(void *)bytes;
	program.len = (unsigned short)(size / sizeof *filter);
	program.filter = filter;
	/* Flag: no slower speculation than everything else has (spec_store_bypass); older kernels know no flags. */
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 4UL, &program) &&
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0))
		die(errno, "error loading the seccomp filter");
	free(bytes);
}

static void write_label(struct record *record)
{
	struct statfs info;
	int fd = open(record->argv[0], O_WRONLY | O_CLOEXEC);

	if (fd < 0 || fstatfs(fd, &info))
		die(errno, "error applying profile \"%s\"", record->argv[1]);
	if ((unsigned long)info.f_type != PROC_MAGIC)
		die(0, "error applying profile \"%s\": /proc is not what it should be", record->argv[1]);
	if (write(fd, record->argv[1], strlen(record->argv[1])) < 0)
		die(errno, "error applying profile \"%s\"", record->argv[1]);
	close(fd);
}

/* The pipes are root's; a step that opens /dev/stderr by name must be allowed to. */
static void give_stdio(uid_t uid)
{
	struct stat null, info;
	int known = !stat("/dev/null", &null);

	for (int fd = 0; fd < 3; fd++) {
		if (fstat(fd, &info) || info.st_uid == uid)
			continue;
		if (S_ISCHR(info.st_mode) && known && info.st_rdev == null.st_rdev)
			continue;
		if (fchown(fd, uid, (gid_t)-1) && errno != EINVAL && errno != EPERM && errno != EROFS)
			die(errno, "error giving away descriptor %d", fd);
	}
}

static int runnable(const char *path)
{
	struct stat info;

	if (stat(path, &info))
		return -errno;
	if (S_ISDIR(info.st_mode))
		return -EISDIR;
	if (!(info.st_mode & 0111) || faccessat(AT_FDCWD, path, X_OK, AT_EACCESS))
		return -EACCES;
	return 0;
}

/* Where a program lies, by PATH of the step's own environment. Messages are those of Go's exec.LookPath. */
static const char *look_up(const char *name, char **env)
{
	static char found[PATH_MAX];
	const char *path = "";

	if (strchr(name, '/')) {
		int wrong = runnable(name);
		if (wrong == -EACCES || wrong == -EISDIR)
			die(-wrong, "exec: \"%s\"", name);
		if (wrong)
			die(-wrong, "exec: \"%s\": stat %s", name, name);
		return name;
	}
	for (; *env; env++)
		if (!strncmp(*env, "PATH=", 5))
			path = *env + 5;
	while (*path) {
		size_t length = strcspn(path, ":");
		if (length && length + strlen(name) + 2 < sizeof found) {
			snprintf(found, sizeof found, "%.*s/%s", (int)length, path, name);
			if (!runnable(found))
				return found;
		}
		path += length + (path[length] == ':');
	}
	die(0, "exec: \"%s\": executable file not found in $PATH", name);
	return NULL;
}

/* process UID GID CWD NO_NEW_PRIVILEGES UMASK */
static void run_step(int errors, int guarded)
{
	struct record *process = find("process"), *caps = find("caps"), *groups = find("groups"), *filter = find("seccomp");
	struct record *args = find("args"), *env = find("env"), *label = find("label");
	uid_t uid = (uid_t)number(process->argv[0]);
	gid_t gid = (gid_t)number(process->argv[1]);
	const char *cwd = process->argv[2], *program;
	int quiet = number(process->argv[3]) != 0, later = 0, is_shut;
	char **argv, **envp, place[PATH_MAX];

	to_guard = guarded;
	to_parent = errors;
	setsid();
	if (terminal >= 0) {
		if (ioctl(terminal, TIOCSCTTY, 0))
			die(errno, "error taking the terminal");
		for (int fd = 0; fd < 3; fd++)
			dup2(terminal, fd);
	} else {
		give_stdio(uid);
	}
	/* Everything else is ours, not the step's. */
	if (errors != 3) {
		if (dup2(errors, 3) < 0)
			die(errno, "error moving a descriptor");
		to_parent = 3;
	}
	fcntl(3, F_SETFD, FD_CLOEXEC);
	close_from(4);
	for (int i = 0; i < record_count; i++)
		if (!strcmp(records[i].op, "rlimit")) {
			char **a = records[i].argv;
			struct rlimit limit = {number(a[1]), number(a[2])};
			if (setrlimit((unsigned)number(a[0]), &limit))
				die(errno, "error setting rlimit type %s", a[0]);
		}
	umask((mode_t)number(process->argv[4]));
	if (chdir(cwd)) {
		if (errno != EACCES)
			die(errno, "chdir to cwd (\"%s\") set in config.json failed", cwd);
		later = 1;
	}
	if (label)
		write_label(label);
	if (quiet && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		die(errno, "error setting no_new_privs");
	if (filter && !quiet)
		load_seccomp(filter);
	limit_bounding(capability_mask(caps, 0));
	prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
	if (groups) {
		gid_t *list = calloc((size_t)groups->argc + 1, sizeof *list);
		for (int i = 0; i < groups->argc; i++)
			list[i] = (gid_t)number(groups->argv[i]);
		if (setgroups((size_t)groups->argc, list))
			die(errno, "error setting groups");
		free(list);
	}
	if (setresgid(gid, gid, gid))
		die(errno, "error setting group %u", gid);
	if (setresuid(uid, uid, uid))
		die(errno, "error setting user %u", uid);
	prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0);
	set_capabilities(capability_mask(caps, 2), capability_mask(caps, 1), capability_mask(caps, 3), capability_mask(caps, 4));
	if (!guarded) {
		/* If the monitor is killed. A change of user takes this away: it comes after. */
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		if (recv(3, &is_shut, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
			_exit(1);
	}
	if (later && chdir(cwd))
		die(errno, "chdir to cwd (\"%s\") set in config.json failed", cwd);
	/* A path that is not below the root says that a descriptor of the machine has got in here. */
	is_shut = !getcwd(place, sizeof place) || place[0] != '/';
	if (is_shut)
		die(0, "current working directory is outside of container mount namespace root");
	argv = calloc((size_t)args->argc + 1, sizeof *argv);
	envp = calloc((size_t)(env ? env->argc : 0) + 1, sizeof *envp);
	memcpy(argv, args->argv, sizeof *argv * (size_t)args->argc);
	if (env)
		memcpy(envp, env->argv, sizeof *envp * (size_t)env->argc);
	program = look_up(argv[0], envp);
	if (filter && quiet)
		load_seccomp(filter);
	if (!guarded)
		run_hooks("startContainer", 0);
	reset_signals();
	execve(program, argv, envp);
	die(errno, "exec %s", program);
}

/* ---- the first process, and the guard of a neighbour ---- */

static int code_of(int status)
{
	return WIFEXITED(status) ? WEXITSTATUS(status) : WIFSIGNALED(status) ? 128 + WTERMSIG(status) : 255;
}

static void watch_step(int parent, int signals, pid_t step)
{
	struct pollfd wait[2] = {{.fd = parent, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
	char text[64];

	for (;;) {
		if (poll(wait, 2, -1) < 0 && errno != EINTR)
			_exit(255);
		if (wait[1].revents & POLLIN) {
			struct signalfd_siginfo info;
			if (read(signals, &info, sizeof info) == sizeof info && info.ssi_signo != SIGCHLD)
				kill(step, (int)info.ssi_signo);
			for (int status;;) {
				pid_t ended = waitpid(-1, &status, WNOHANG);
				if (ended <= 0)
					break;
				if (ended == step) {
					int size = snprintf(text, sizeof text, "X%d", code_of(status));
					send(parent, text, (size_t)size, MSG_NOSIGNAL);
					_exit(0);
				}
			}
		}
		if (wait[0].revents) {
			ssize_t got = recv(parent, text, sizeof text - 1, MSG_DONTWAIT);
			if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
				kill(step, SIGKILL);
				_exit(137);
			}
			if (got > 1 && text[0] == 'S') {
				text[got] = 0;
				kill(step, atoi(text + 1));
			}
		}
	}
}

/* The step of a container that runs: it is in that one's pid namespace, so it is our child. */
static void run_guarded(int parent, int alive)
{
	char text[3900];
	size_t used = 0;
	int errors[2], signals;
	sigset_t all;
	pid_t step;

	if (pipe2(errors, O_CLOEXEC))
		die(errno, "error making a pipe");
	sigfillset(&all);
	signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0)
		die(errno, "error watching signals");
	step = fork();
	if (step < 0)
		die(errno, "error starting the process");
	if (step == 0)
		run_step(errors[1], 1);
	close(errors[1]);
	for (int fd = 0; fd < 3; fd++)
		close(fd);
	if (terminal >= 0)
		close(terminal);
	if (alive >= 0)
		close(alive);
	for (;;) {
		ssize_t got = read(errors[0], text + used, sizeof text - used);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		used += (size_t)got;
	}
	if (used)
		die(0, "%.*s", (int)used, text);
	close(errors[0]);
	explicit_bzero(plan_text, plan_size); /* it may hold secrets, and a privileged step could look */
	limit_bounding(0);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	set_capabilities(1ULL << CAP_KILL, 1ULL << CAP_KILL, 0, 0);
	send(parent, "R", 1, MSG_NOSIGNAL);
	watch_step(parent, signals, step);
}

static void run_first(int parent, int alive)
{
	struct record *into = find("enter");
	char text[8];

	to_parent = parent;
	prctl(PR_SET_NAME, "chantier-first", 0, 0, 0);
	setsid();
	if (!into)
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	/* Told when we are in our cgroups; or the monitor is gone. Where there are none to join, nothing is waited for. */
	if ((find("group") || find("join")) && recv(parent, text, 1, 0) != 1)
		_exit(1);
	/* The engine's session keyring is not the step's. Where there are no keys, or none for us, there is none to hide. */
	if (syscall(SYS_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, NULL) < 0 && errno != ENOSYS && errno != EPERM && errno != EACCES)
		die(errno, "error making a session keyring");
	if (into) {
		enter(into, alive);
		if (find("tty"))
			do_tty(find("tty")->argv);
		run_guarded(parent, alive);
	}
	set_up();
	run_step(parent, 0);
}

/* ---- the monitor ---- */

static pid_t clone_first(unsigned long flags, const char *group)
{
	if (group) {
		struct {
			uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
		} args = {.flags = flags | INTO_CGROUP, .exit_signal = SIGCHLD};
		int fd = open(group, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (fd >= 0) {
			long pid;
			args.cgroup = (uint64_t)fd;
			pid = syscall(SYS_clone3, &args, sizeof args);
			if (pid == 0)
				return 0;
			close(fd);
			if (pid > 0)
				return (pid_t)pid;
		}
		/* an older kernel, or one that wants it done by writing: the caller does */
		errno = ENOSYS;
		return -1;
	}
#if defined(__s390x__)
	return (pid_t)syscall(SYS_clone, NULL, flags | SIGCHLD, NULL, NULL, NULL);
#else
	return (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
#endif
}

static int join(const char *group, pid_t pid)
{
	char path[PATH_MAX], text[24];
	int fd, size, wrong = 0;

	snprintf(path, sizeof path, "%s/cgroup.procs", group);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	size = snprintf(text, sizeof text, "%d", pid);
	if (write(fd, text, (size_t)size) < 0)
		wrong = errno;
	close(fd);
	return wrong;
}

static int was_out_of_memory(void)
{
	struct record *record = find("oom");
	char text[4096], *at;
	ssize_t size;
	int fd;

	if (!record)
		return 0;
	fd = open(record->argv[0], O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	size = read(fd, text, sizeof text - 1);
	close(fd);
	if (size <= 0)
		return 0;
	text[size] = 0;
	at = strstr(text, "oom_kill ");
	return at && atoi(at + 9) > 0;
}

/* Without a pid namespace: whatever is left of the container is our child by now, since we are its reaper. */
static void kill_children(void)
{
	for (;;) {
		DIR *directory = opendir("/proc");
		struct dirent *entry;
		pid_t ended;

		while (directory && (entry = readdir(directory))) {
			char path[300], text[512], *at;
			ssize_t size;
			int fd, parent = 0;

			if (!isdigit((unsigned char)entry->d_name[0]))
				continue;
			snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
			fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd < 0)
				continue;
			size = read(fd, text, sizeof text - 1);
			close(fd);
			if (size <= 0)
				continue;
			text[size] = 0;
			at = strrchr(text, ')');
			if (at && sscanf(at + 1, " %*c %d", &parent) == 1 && parent == getpid())
				kill(atoi(entry->d_name), SIGKILL);
		}
		if (directory)
			closedir(directory);
		ended = waitpid(-1, NULL, 0);
		if (ended < 0 && errno == ECHILD)
			return;
	}
}

/* A privileged step may have made groups below its own. */
static void remove_group(const char *path, int depth)
{
	struct dirent *entry;
	DIR *directory;

	if (rmdir(path) == 0 || errno != EBUSY)
		return;
	directory = depth < DEPTH ? opendir(path) : NULL;
	while (directory && (entry = readdir(directory))) {
		char below[PATH_MAX];
		if (entry->d_type != DT_DIR || !strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (snprintf(below, sizeof below, "%s/%s", path, entry->d_name) < (int)sizeof below)
			remove_group(below, depth + 1);
	}
	if (directory)
		closedir(directory);
	/* What has just died may be counted there for a moment. */
	for (int attempt = 0; attempt < 100 && rmdir(path) && errno == EBUSY; attempt++)
		usleep(2000);
}

static void remove_groups(void)
{
	for (int i = 0; i < record_count; i++)
		if (!strcmp(records[i].op, "group"))
			remove_group(records[i].argv[0], 0);
}

static void say_begun(int control, pid_t first, int pidfd)
{
	char text[32];
	int size = snprintf(text, sizeof text, "R%d", first);

	send_with(control, text, (size_t)size, pidfd);
}

static void monitor(int control, int plan, int alive)
{
	struct record *flags, *own_pids;
	int pair[2], signals, code = -1, open_pair = 1, pidfd, failed = 0;
	char text[4096];
	pid_t first;
	sigset_t all;
	const char *into = NULL;
	int entered;

	to_parent = control;
	signal(SIGCHLD, SIG_DFL);
	setsid();
	load_plan(plan);
	close(plan);
	flags = find("clone");
	own_pids = find("pids");
	if (!own_pids)
		prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		die(errno, "error making a socket");
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	sigemptyset(&all);
	sigaddset(&all, SIGCHLD);
	signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0)
		die(errno, "error watching signals");
	if (find("group") && number(find("group")->argv[1]))
		into = find("group")->argv[0];
	first = clone_first(number(flags->argv[0]), into);
	if (first < 0 && into) {
		into = NULL;
		first = clone_first(number(flags->argv[0]), NULL);
	}
	if (first < 0)
		die(errno, "error making namespaces");
	if (first == 0) {
		close(control);
		close(pair[0]);
		close(signals);
		run_first(pair[1], alive);
		_exit(255);
	}
	entered = find("enter") != NULL;
	pidfd = (int)syscall(SYS_pidfd_open, first, 0);
	close(pair[1]);
	for (int fd = 0; fd < 3; fd++)
		close(fd);
	for (int i = 0; i < record_count; i++) {
		int wrong;
		if (strcmp(records[i].op, "group") && strcmp(records[i].op, "join"))
			continue;
		if (into == records[i].argv[0])
			continue;
		wrong = join(records[i].argv[0], first);
		if (wrong) {
			int size = snprintf(text, sizeof text, "Eerror joining cgroup %s: %s", records[i].argv[0], reason(wrong));
			send(control, text, (size_t)size, MSG_NOSIGNAL);
			kill(first, SIGKILL);
			code = 1;
			break;
		}
	}
	if (find("group") || find("join"))
		send(pair[0], "G", 1, MSG_NOSIGNAL);
	for (int ended = 0; !ended;) {
		struct pollfd wait[3] = {
			{.fd = signals, .events = POLLIN},
			{.fd = open_pair ? pair[0] : -1, .events = POLLIN},
			{.fd = control, .events = POLLIN},
		};
		int status, fd, count;
		ssize_t got;

		if (poll(wait, 3, -1) < 0 && errno != EINTR)
			break;
		if (wait[2].revents) {
			got = control < 0 ? -1 : recv(control, text, sizeof text - 1, MSG_DONTWAIT);
			if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR) || (got > 0 && text[0] == 'K')) {
				/* A neighbour is killed by the one who has started it: it may not have done so yet. */
				if (entered)
					send(pair[0], "S9", 2, MSG_NOSIGNAL);
				else
					kill(first, SIGKILL);
				if (got <= 0) {
					close(control);
					control = -1;
				}
			} else if (got == 1 && text[0] == 'G') {
				send(pair[0], text, 1, MSG_NOSIGNAL);
			} else if (got > 1 && text[0] == 'S') {
				text[got] = 0;
				if (entered)
					send(pair[0], text, (size_t)got, MSG_NOSIGNAL);
				else
					kill(first, atoi(text + 1));
			}
		}
		if (wait[0].revents) {
			struct signalfd_siginfo info;
			while (read(signals, &info, sizeof info) == sizeof info)
				;
			for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
				if (pid == first) {
					ended = 1;
					/* A guard has said how its step ended; if it says nothing and ends well, something is wrong. */
					if (code < 0 && (!entered || code_of(status)))
						code = code_of(status);
				}
		}
		while (open_pair) {
			count = 1;
			got = receive_with(pair[0], text, sizeof text - 1, &fd, &count, MSG_DONTWAIT);
			if (got < 0 && (errno == EAGAIN || errno == EINTR))
				break;
			if (got <= 0) {
				open_pair = 0;
				if (!entered && !failed) /* it is closed as the step is executed */
					say_begun(control, first, pidfd);
				break;
			}
			text[got] = 0;
			if (text[0] == 'X') {
				code = atoi(text + 1);
			} else if (text[0] == 'R') {
				say_begun(control, first, pidfd);
			} else if (text[0] == 'H') {
				int size = snprintf(text, sizeof text, "H%d", first);
				send(control, text, (size_t)size, MSG_NOSIGNAL);
			} else {
				failed |= text[0] == 'E';
				send_with(control, text, (size_t)got, count ? fd : -1);
			}
			if (count)
				close(fd);
		}
	}
	if (!own_pids && !entered)
		kill_children();
	if (control >= 0) {
		int size = snprintf(text, sizeof text, "X%d %d", code < 0 ? 255 : code, was_out_of_memory());
		remove_groups();
		send(control, text, (size_t)size, MSG_NOSIGNAL);
	} else {
		remove_groups();
	}
	_exit(0);
}

/* ---- the server ---- */

int main(void)
{
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* what we hold is nobody's to read, in a container or out of it */
	prctl(PR_SET_NAME, "chantier", 0, 0, 0);
	setsid();
	if (chdir("/"))
		return 1;
	signal(SIGCHLD, SIG_IGN); /* monitors are reaped by the kernel */
	signal(SIGPIPE, SIG_IGN);
	close_from(4);
	for (;;) {
		int fds[8], count = 8;
		char text[16];
		ssize_t got = receive_with(3, text, sizeof text, fds, &count, 0);
		pid_t pid;

		if (got <= 0)
			return 0;
		if (count < 5) {
			for (int i = 0; i < count; i++)
				close(fds[i]);
			continue;
		}
		pid = fork();
		if (pid == 0) {
			int place[6];
			/* Out of the way first: the five are to stand where others may stand now. */
			for (int i = 0; i < 6; i++)
				place[i] = i < count ? fcntl(fds[i], F_DUPFD_CLOEXEC, 20) : -1;
			for (int i = 0; i < 5; i++)
				if (dup3(place[i], i, i < 3 ? 0 : O_CLOEXEC) < 0 && place[i] != i)
					_exit(1);
			if (place[5] >= 0)
				dup3(place[5], 5, O_CLOEXEC);
			close_from(place[5] >= 0 ? 6 : 5);
			monitor(3, 4, place[5] >= 0 ? 5 : -1);
		}
		if (pid < 0) {
			int size = snprintf(text, sizeof text, "E%s", "fork failed");
			send(fds[3], text, (size_t)size, MSG_NOSIGNAL);
		}
		for (int i = 0; i < count; i++)
			close(fds[i]);
	}
}
