// SPDX-License-Identifier: Apache-2.0
// Whole directories at a time: what would cost a Python call for each file of a large tree. `trees.py` says what each does, and
// everything here is also done in Python where this library is not to be had.

#include "rows.h"

#include <dirent.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

API void chantier_free(struct buffer *b) {
    free(b->data);
    memset(b, 0, sizeof *b);
}

// -- listing a directory ---------------------------------------------------------------------------------------------------

struct names {
    struct buffer text;  // NUL-terminated names
    char **sorted;
    size_t count;
};

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// All names but . and .., in the order of their bytes. 0 or -1 with errno; `names` is to be freed either way.
static int list(int fd, struct names *names) {
    struct entry { uint64_t ino; int64_t off; uint16_t len; uint8_t type; char name[]; };
    memset(names, 0, sizeof *names);
    char *chunk = malloc(65536);
    if (!chunk) { errno = ENOMEM; return -1; }
    long got;
    while ((got = syscall(SYS_getdents64, fd, chunk, 65536)) > 0) {
        for (long at = 0; at < got;) {
            struct entry *e = (struct entry *)(chunk + at);
            at += e->len;
            if (e->name[0] == '.' && (!e->name[1] || (e->name[1] == '.' && !e->name[2]))) continue;
            if (add(&names->text, e->name, strlen(e->name) + 1)) { free(chunk); return -1; }
            names->count++;
        }
    }
    int failed = got < 0 ? errno : 0;
    free(chunk);
    if (failed) { errno = failed; return -1; }
    names->sorted = malloc((names->count + 1) * sizeof *names->sorted);
    if (!names->sorted) { errno = ENOMEM; return -1; }
    char *at = names->text.data;
    for (size_t i = 0; i < names->count; i++, at += strlen(at) + 1) names->sorted[i] = at;
    qsort(names->sorted, names->count, sizeof *names->sorted, by_bytes);
    return 0;
}

static void free_names(struct names *names) {
    free(names->text.data);
    free(names->sorted);
}

// -- the first names of files that have several ------------------------------------------------------------------------------

struct firsts {
    struct first { uint64_t dev, ino, row; } *slots;  // row + 1; 0 is empty
    size_t used, room;
};

static struct first *slot(struct firsts *f, uint64_t dev, uint64_t ino) {
    size_t at = (ino * 0x9E3779B97F4A7C15u ^ dev) & (f->room - 1);
    while (f->slots[at].row && (f->slots[at].ino != ino || f->slots[at].dev != dev)) at = (at + 1) & (f->room - 1);
    return &f->slots[at];
}

// The row of the first name of a file, or `row` itself and it is noted; NONE without memory.
static uint64_t first_of(struct firsts *f, uint64_t dev, uint64_t ino, uint64_t row) {
    if (f->used * 2 >= f->room) {
        struct firsts wider = {calloc(f->room ? f->room * 2 : 256, sizeof *f->slots), f->used, f->room ? f->room * 2 : 256};
        if (!wider.slots) return NONE;
        for (size_t i = 0; i < f->room; i++)
            if (f->slots[i].row) *slot(&wider, f->slots[i].dev, f->slots[i].ino) = f->slots[i];
        free(f->slots);
        *f = wider;
    }
    struct first *found = slot(f, dev, ino);
    if (!found->row) {
        *found = (struct first){dev, ino, row + 1};
        f->used++;
    }
    return found->row - 1;
}

// -- the walk ----------------------------------------------------------------------------------------------------------------

struct frame {
    int fd;
    size_t path, next;  // length of the directory's path with its slash; the name that comes next
    struct names names;
};

static int64_t nanoseconds(struct timespec t) { return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec; }

// The row of one entry. 1 if it is gone meanwhile, 0, or -1 with errno.
static int add_row(struct buffer *rows, struct firsts *firsts, int fd, const char *name, const char *path, size_t length,
                   const struct stat *info) {
    char target[4096];
    const char *link = target;
    ssize_t link_size = 0;
    uint32_t mode = info->st_mode;
    uint64_t size = 0, rdev = 0, row = rows->size;
    uint8_t hard = 0;
    if (S_ISLNK(mode)) {
        link_size = readlinkat(fd, name, target, sizeof target);
        if (link_size < 0) return 1;
        size = link_size;
    } else if (S_ISREG(mode)) {
        size = info->st_size;
        if (info->st_nlink > 1) {
            uint64_t other = first_of(firsts, info->st_dev, info->st_ino, row);
            if (other == NONE) { errno = ENOMEM; return -1; }
            if (other != row) {
                hard = 1;
                link_size = strlen(rows->data + other);
                if (link_size > 60000) { errno = ENAMETOOLONG; return -1; }
            }
            if (grow(rows, length + 3 + SIGNATURE + link_size)) return -1;
            if (hard) link = rows->data + other;
        }
    } else if (S_ISSOCK(mode)) {
        mode = S_IFREG | (mode & 07777);
    } else if (S_ISCHR(mode) || S_ISBLK(mode)) {
        rdev = info->st_rdev;
    }
    if (grow(rows, length + 3 + SIGNATURE + link_size)) return -1;
    char *at = rows->data + rows->size;
    uint16_t signature = SIGNATURE + link_size;
    int64_t mtime = nanoseconds(info->st_mtim), ctime = nanoseconds(info->st_ctim);
    uint64_t ino = info->st_ino;
    memcpy(at, path, length + 1), at += length + 1;
    memcpy(at, &signature, 2), at += 2;
    memcpy(at, &mode, 4), at += 4;
    memcpy(at, &size, 8), at += 8;
    memcpy(at, &mtime, 8), at += 8;
    memcpy(at, &ctime, 8), at += 8;
    memcpy(at, &ino, 8), at += 8;
    memcpy(at, &rdev, 8), at += 8;
    *at++ = hard;
    memcpy(at, link, link_size), at += link_size;
    rows->size = at - rows->data;
    return 0;
}

// Rows of all that is in the directory open as `root`, which stays open: depth first, a directory before what it holds, siblings
// by their bytes. `cancelled` is asked in each directory. 0, or an errno with the path in `failed`: what could not be read.
API int chantier_walk(int root, struct buffer *rows, struct buffer *failed, int (*cancelled)(void)) {
    struct firsts firsts = {0};
    struct buffer path = {0};
    struct frame *stack = NULL;
    size_t depth = 0, room = 0;
    int error = 0, fd = openat(root, ".", DIRECTORY);
    if (fd < 0 || add(&path, "", 1)) error = errno;
    path.size = 0;
    while (!error) {
        if (fd >= 0) {  // a directory to go into
            if (depth == room) {
                struct frame *wider = realloc(stack, (room ? room * 2 : 32) * sizeof *stack);
                if (!wider) { error = ENOMEM; break; }
                stack = wider;
                room = room ? room * 2 : 32;
            }
            struct frame *frame = &stack[depth++];
            frame->fd = fd;
            frame->path = path.size;
            frame->next = 0;
            fd = -1;
            if (list(frame->fd, &frame->names)) {
                error = errno;
                if (path.size) path.size--;
                break;
            }
            if (cancelled()) { error = ECANCELED; break; }
        }
        struct frame *frame = &stack[depth - 1];
        if (frame->next == frame->names.count) {
            close(frame->fd);
            free_names(&frame->names);
            if (!--depth) break;
            continue;
        }
        const char *name = frame->names.sorted[frame->next++];
        struct stat info;
        path.size = frame->path;
        if (add(&path, name, strlen(name) + 1)) { error = errno; break; }
        path.size--;
        if (fstatat(frame->fd, name, &info, AT_SYMLINK_NOFOLLOW)) {
            if (errno == ENOENT) continue;
            error = errno;
            break;
        }
        int said = add_row(rows, &firsts, frame->fd, name, path.data, path.size, &info);
        if (said < 0) { error = errno; break; }
        if (said || !S_ISDIR(info.st_mode)) continue;
        fd = openat(frame->fd, name, DIRECTORY);
        if (fd < 0) {
            if (errno == ENOENT || errno == ENOTDIR) continue;
            error = errno;
            break;
        }
        if (add(&path, "/", 2)) { error = errno; break; }
        path.size--;
    }
    if (fd >= 0) close(fd);
    while (depth) {
        close(stack[--depth].fd);
        free_names(&stack[depth].names);
    }
    if (error) add(failed, path.data, path.size);
    free(stack);
    free(firsts.slots);
    free(path.data);
    return error;
}

// -- comparing two walks -----------------------------------------------------------------------------------------------------

// Where two walks differ: pairs of offsets of the row after and the row before, of which one may be NONE, in the walk's order.
// `directories` gets the offsets of all directories of the walk after. 0, or an errno: EINVAL if one of the two is no walk.
API int chantier_compare(const char *before, uint64_t before_size, const char *after, uint64_t after_size, struct buffer *pairs,
                         struct buffer *directories) {
    struct row old, new;
    int has_old = row_at(before, before_size, 0, &old), has_new = row_at(after, after_size, 0, &new);
    while (has_old > 0 || has_new > 0) {
        int order = has_old <= 0 ? 1 : has_new <= 0 ? -1 : compare(&old, &new);
        if (has_old < 0 || has_new < 0) break;
        if (order >= 0 && S_ISDIR(mode_of(&new)) && add_number(directories, new.at)) return ENOMEM;
        if (order || old.size != new.size || memcmp(old.signature, new.signature, new.size))
            if (add_number(pairs, order >= 0 ? new.at : NONE) || add_number(pairs, order <= 0 ? old.at : NONE)) return ENOMEM;
        if (order <= 0) has_old = row_at(before, before_size, old.end - before, &old);
        if (order >= 0) has_new = row_at(after, after_size, new.end - after, &new);
    }
    return has_old < 0 || has_new < 0 ? EINVAL : 0;
}

// The rows to keep of a walk that began at `started`: of a file that changed later than a tick before, the path alone, since the
// same signature may stand for other bytes next time.
API int chantier_settled(const char *rows, uint64_t size, int64_t started, int64_t tick, int64_t coarse_tick, struct buffer *out) {
    struct row row;
    int has;
    if (grow(out, size)) return ENOMEM;
    for (has = row_at(rows, size, 0, &row); has > 0; has = row_at(rows, size, row.end - rows, &row)) {
        int64_t changed = 0;
        uint16_t none = 0;
        if (row.size) memcpy(&changed, row.signature + 20, 8);
        int racy = row.size && !S_ISDIR(mode_of(&row)) && changed >= started - (changed % 1000000000 ? tick : coarse_tick);
        if (add(out, row.path, racy ? row.length + 1 : (size_t)(row.end - row.path)) || (racy && add(out, &none, 2))) return ENOMEM;
    }
    return has < 0 ? EINVAL : 0;
}

// -- copying many small files ------------------------------------------------------------------------------------------------

// One file; false leaves everything to Python, which will meet the same trouble and say it.
static int copy_one(int from, int to, const char *name, const struct row *row, int replace, int64_t uid, int64_t gid,
                    const struct sha256 *sha, char *data, struct copied *done) {
    uint32_t mode = mode_of(row);
    uint64_t size;
    memcpy(&size, row->signature + 4, 8);
    if (!S_ISREG(mode) || row->signature[44] || size > MOST_SMALL) return 0;
    int read_fd = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (read_fd < 0) return 0;
    ssize_t count = flistxattr(read_fd, NULL, 0) > 0 ? -1 : read(read_fd, data, size + 1);
    close(read_fd);
    if (count < 0 || (uint64_t)count != size) return 0;
    return make_small(to, name, row, replace, uid, gid, sha, data, size, done);
}

// Make the files of some rows below `to` as they are below `from`; `flags` says of each whether something is in its place.
// What is done is told in `results`, one for each; the rest (large files, attributes, whatever fails) is the caller's.
API int chantier_copy(int from, int to, const char *rows, uint64_t rows_size, const uint64_t *offsets, const uint8_t *replace,
                      uint64_t count, int64_t uid, int64_t gid, const struct sha256 *sha, struct copied *results) {
    char *data = malloc(MOST_SMALL + 1), *above = NULL, name[256];
    size_t above_length = 0;
    int from_fd = -1, to_fd = -1;
    if (!data) return ENOMEM;
    for (uint64_t i = 0; i < count; i++) {
        struct row row;
        memset(&results[i], 0, sizeof results[i]);
        if (row_at(rows, rows_size, offsets[i], &row) <= 0 || row.size < SIGNATURE) { free(data); return EINVAL; }
        const char *slash = memrchr(row.path, '/', row.length);
        size_t head = slash ? (size_t)(slash - row.path) : 0, tail = row.length - (slash ? head + 1 : 0);
        if (from_fd < 0 || to_fd < 0 || head != above_length || memcmp(row.path, above, head)) {
            if (from_fd >= 0) close(from_fd);
            if (to_fd >= 0) close(to_fd);
            from_fd = open_above(from, row.path, head);
            to_fd = open_above(to, row.path, head);
            above = (char *)row.path;
            above_length = head;
        }
        if (from_fd < 0 || to_fd < 0 || tail >= sizeof name) continue;
        memcpy(name, row.path + row.length - tail, tail + 1);
        results[i].done = copy_one(from_fd, to_fd, name, &row, replace[i], uid, gid, sha && sha->init ? sha : NULL, data, &results[i]);
    }
    if (from_fd >= 0) close(from_fd);
    if (to_fd >= 0) close(to_fd);
    free(data);
    return 0;
}

// -- further names for the files of a directory ------------------------------------------------------------------------------

static int by_number(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

// Give each regular file in `from` a further name in `to`, but for those whose inode is among the sorted `taken` and, if `uid` is
// not negative, those of other owners. `inodes` gets those of the files linked, `rest` the names (NUL after each) of everything
// else, in the order of their bytes. 0 or an errno.
API int chantier_link(int from, int to, int64_t uid, int64_t gid, const uint64_t *taken, uint64_t taken_count,
                      struct buffer *inodes, struct buffer *rest) {
    struct names names;
    int error = list(from, &names) ? errno : 0, linking = 1;
    for (size_t i = 0; !error && i < names.count; i++) {
        const char *name = names.sorted[i];
        struct stat info;
        if (fstatat(from, name, &info, AT_SYMLINK_NOFOLLOW)) { error = errno; break; }
        uint64_t ino = info.st_ino;
        int same = uid < 0 || (info.st_uid == (uid_t)uid && info.st_gid == (gid_t)gid);
        if (linking && same && S_ISREG(info.st_mode) && !bsearch(&ino, taken, taken_count, sizeof ino, by_number)) {
            if (!linkat(from, name, to, name, 0)) {
                if (add_number(inodes, ino)) error = ENOMEM;
                continue;
            }
            linking = errno == EMLINK || errno == EEXIST;  // of this file; else none can be linked
        }
        if (add(rest, name, strlen(name) + 1)) error = ENOMEM;
    }
    free_names(&names);
    return error;
}

#include "packets.c"
