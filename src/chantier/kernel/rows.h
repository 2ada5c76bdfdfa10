// SPDX-License-Identifier: Apache-2.0
// What `trees.c` and `packets.c`, one after the other, have in common. A row is one entry of a walk, as `session/sync.py` keeps it: the path, NUL, the length of
// the signature (2 bytes), the signature: mode 4, size 8, mtime 8, ctime 8, inode 8, device 8, hard 1 (all little endian), then a
// link's target.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "rows are written as the machine has its numbers: little endian"
#endif

#define API __attribute__((visibility("default")))
#define DIRECTORY (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define SIGNATURE 45
#define MOST_SMALL (256 * 1024)
#define NONE UINT64_MAX

struct buffer {
    char *data;
    uint64_t size, room;
};

static int grow(struct buffer *b, uint64_t more) {
    if (b->size + more <= b->room) return 0;
    uint64_t room = b->room ? b->room * 2 : 1 << 16;
    while (room < b->size + more) room *= 2;
    char *data = realloc(b->data, room);
    if (!data) { errno = ENOMEM; return -1; }
    b->data = data;
    b->room = room;
    return 0;
}

static int add(struct buffer *b, const void *data, uint64_t size) {
    if (!size) return 0;
    if (grow(b, size)) return -1;
    memcpy(b->data + b->size, data, size);
    b->size += size;
    return 0;
}

static int add_number(struct buffer *b, uint64_t number) { return add(b, &number, sizeof number); }

// -- rows ------------------------------------------------------------------------------------------------------------------

struct row {
    const char *path, *signature, *end;
    uint64_t at;
    size_t length;
    uint16_t size;
};

// The row at `at`: 1, 0 at the end, -1 if this is none.
static int row_at(const char *rows, uint64_t size, uint64_t at, struct row *row) {
    if (at == size) return 0;
    const char *nul = memchr(rows + at, 0, size - at);
    if (!nul || nul + 3 > rows + size) return -1;
    row->at = at;
    row->path = rows + at;
    row->length = nul - row->path;
    memcpy(&row->size, nul + 1, 2);
    row->signature = nul + 3;
    row->end = row->signature + row->size;
    return row->end > rows + size || (row->size && row->size < SIGNATURE) ? -1 : 1;
}

static uint32_t mode_of(const struct row *row) {
    uint32_t mode = 0;
    if (row->size) memcpy(&mode, row->signature, 4);
    return mode;
}

// As the walk orders paths: by the bytes of their components.
static int compare(const struct row *a, const struct row *b) {
    size_t least = a->length < b->length ? a->length : b->length;
    for (size_t i = 0; i < least; i++) {
        unsigned char x = a->path[i], y = b->path[i];
        if (x == y) continue;
        return x == '/' ? -1 : y == '/' ? 1 : x < y ? -1 : 1;
    }
    return a->length < b->length ? -1 : a->length > b->length;
}

// -- small files -------------------------------------------------------------------------------------------------------------

struct sha256 {
    int (*init)(void *), (*update)(void *, const void *, size_t), (*final)(unsigned char *, void *);
};

struct copied {
    uint64_t ino;
    uint32_t done, hashed;
    unsigned char digest[32];
};

// Open the directory part of a path below `root`, no link followed.
static int open_above(int root, const char *path, size_t length) {
    char name[256];
    int fd = openat(root, ".", DIRECTORY);
    while (fd >= 0 && length) {
        const char *slash = memchr(path, '/', length);
        size_t part = slash ? (size_t)(slash - path) : length;
        if (part >= sizeof name) { close(fd); errno = ENAMETOOLONG; return -1; }
        memcpy(name, path, part);
        name[part] = 0;
        int below = openat(fd, name, DIRECTORY);
        close(fd);
        fd = below;
        length -= slash ? part + 1 : part;
        path += slash ? part + 1 : part;
    }
    return fd;
}

static int write_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t count = write(fd, data, size);
        if (count < 0) return -1;
        data += count;
        size -= count;
    }
    return 0;
}

// A small file that a row describes, of these bytes, in the place of what is there if `replace`. False, and nothing is there, if
// that fails in any way: Python will meet the same trouble and say it.
static int make_small(int to, const char *name, const struct row *row, int replace, int64_t uid, int64_t gid,
                      const struct sha256 *sha, const char *data, uint64_t size, struct copied *done) {
    uint32_t mode = mode_of(row);
    int64_t mtime;
    int ok = 0;
    memcpy(&mtime, row->signature + 12, 8);
    if (replace && unlinkat(to, name, 0) && errno != ENOENT) return 0;
    int fd = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode & 0777);
    if (fd < 0) return 0;
    struct stat info;
    struct timespec times[2] = {{mtime / 1000000000, mtime % 1000000000}, {0}};
    if (times[0].tv_nsec < 0) times[0].tv_sec--, times[0].tv_nsec += 1000000000;
    times[1] = times[0];
    if (fstat(fd, &info)) goto out;
    if (uid >= 0 && (info.st_uid != (uid_t)uid || info.st_gid != (gid_t)gid) && fchown(fd, uid, gid)) goto out;
    if ((info.st_mode & 07777) != (mode & 07777) && fchmod(fd, mode & 07777)) goto out;
    if (write_all(fd, data, size) || futimens(fd, times)) goto out;
    ok = 1;
    done->ino = info.st_ino;
    if (sha) {
        char state[512] __attribute__((aligned(16))), head[256];
        int length = snprintf(head, sizeof head, "namemode%uuid0gid0size%llutypeflag0linknameunamegnamedevmajor0devminor0",
                              mode & 07777, (unsigned long long)size);
        done->hashed = sha->init(state) == 1 && sha->update(state, head, length) == 1 && sha->update(state, data, size) == 1 &&
                       sha->final(done->digest, state) == 1;
    }
out:
    if (close(fd)) ok = 0;
    if (!ok) unlinkat(to, name, 0);
    return ok;
}
