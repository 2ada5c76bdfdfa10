// SPDX-License-Identifier: Apache-2.0
// A directory that comes in fsutil's packets (`session/intake.py`): lists become rows and are compared with those kept, files are
// asked for and small ones written, many packets in a call. Python takes back whatever is not plain: a packet with a field too many,
// attributes, devices, large files, all that fails, all that is not allowed. It decides what that means, and says it.
//
// A chunk is gRPC messages as they come: a byte 0, the size (4 bytes, big endian), the packet (protobuf: chantier/pb/fsutil_raw.proto).
// Included by `trees.c`, after `rows.h`.

#define PREFIX 5
#define MOST_LINK 60000

enum { STAT, REQUEST, DATA };
enum { CLOSED, ASKED, ELSEWHERE };                                      // may data come for it? ELSEWHERE: to Python
enum { SAME, DIFFERS, BAD_PATH, BAD_ORDER, NO_DIRECTORY, NO_TARGET };  // what `put` says of a row
enum { AT_END, ODD, FILES_FIRST };                                      // why `chantier_take` stopped

struct place {  // of an id: the place of an entry in the sender's list
    uint64_t row;
    uint32_t pending;  // 1 + index in this call's list of packets that have a file's bytes
    uint8_t state, replace;
};

struct intake {
    struct buffer rows, starts, differs, places;  // starts: where each row begins; differs: a byte for each row
    const char *before;                           // the rows kept; the caller's
    uint64_t before_size, waiting;
    struct row old;  // the next of those kept
    int has_old, last_is_directory, listed;
};

struct text {
    const char *data;
    uint64_t size;
};

struct packet {
    uint64_t kind, id;
    struct text stat, data;
    int has_stat;
};

struct sent {  // fsutil's Stat
    struct text path, link;
    uint64_t mode, size, mtime;
};

struct taken {
    uint64_t at, packets, waiting;  // packets: how many were taken; waiting: files that were asked for and are not complete
    uint32_t stop, error;
};

struct done {
    uint64_t row;
    struct copied file;
};

// -- protobuf ----------------------------------------------------------------------------------------------------------------

static int varint(const char **at, const char *end, uint64_t *value) {
    *value = 0;
    for (int shift = 0; shift < 64 && *at < end; shift += 7) {
        unsigned char byte = *(*at)++;
        if (shift == 63 && byte > 1) return 0;
        *value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return 1;
    }
    return 0;
}

static int text(const char **at, const char *end, struct text *found) {
    if (!varint(at, end, &found->size) || found->size > (uint64_t)(end - *at)) return 0;
    found->data = *at;
    *at += found->size;
    return 1;
}

// Fields one by one, in their order, none twice; 0 for all else, which is Python's to read.
static int parse_packet(const char *at, const char *end, struct packet *found) {
    memset(found, 0, sizeof *found);
    for (int before = 0; at < end;) {
        unsigned char tag = *at++;
        int ok = 0;
        if (tag >> 3 <= before) return 0;
        before = tag >> 3;
        if (tag == (1 << 3 | 0)) ok = varint(&at, end, &found->kind);
        else if (tag == (2 << 3 | 2)) ok = found->has_stat = text(&at, end, &found->stat);
        else if (tag == (3 << 3 | 0)) ok = varint(&at, end, &found->id) && found->id <= UINT32_MAX;
        else if (tag == (4 << 3 | 2)) ok = text(&at, end, &found->data);
        if (!ok) return 0;
    }
    if (found->kind == STAT) return found->has_stat && !found->id && !found->data.size;
    return found->kind == DATA && !found->has_stat;
}

// As above; 0 as well for what is no file, directory or symbolic link, or has attributes.
static int parse_stat(struct text stat, struct sent *found) {
    const char *at = stat.data, *end = at + stat.size;
    uint64_t ignored, device = 0;
    memset(found, 0, sizeof *found);
    for (int before = 0; at < end;) {
        unsigned char tag = *at++;
        int ok = 0;
        if (tag >> 3 <= before) return 0;
        before = tag >> 3;
        if (tag == (1 << 3 | 2)) ok = text(&at, end, &found->path);
        else if (tag == (2 << 3 | 0)) ok = varint(&at, end, &found->mode) && found->mode <= UINT32_MAX;
        else if (tag == (3 << 3 | 0) || tag == (4 << 3 | 0)) ok = varint(&at, end, &ignored) && ignored <= UINT32_MAX;
        else if (tag == (5 << 3 | 0)) ok = varint(&at, end, &found->size) && found->size <= INT64_MAX;
        else if (tag == (6 << 3 | 0)) ok = varint(&at, end, &found->mtime);
        else if (tag == (7 << 3 | 2)) ok = text(&at, end, &found->link);
        else if (tag == (8 << 3 | 0) || tag == (9 << 3 | 0)) ok = varint(&at, end, &device) && !device;
        if (!ok) return 0;
    }
    return !(found->path.size && memchr(found->path.data, 0, found->path.size)) && found->link.size <= MOST_LINK &&
           !(found->link.size && memchr(found->link.data, 0, found->link.size));
}

// Go's os.FileMode to st_mode; 0 for types that are Python's.
static uint32_t posix_mode(uint32_t go) {
    uint32_t kind = go & (1u << 31 | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21);
    uint32_t mode = kind == 0 ? S_IFREG : kind == 1u << 31 ? S_IFDIR : kind == 1 << 27 ? S_IFLNK : 0;
    if (!mode) return 0;
    return mode | (go & 0777) | (go & 1 << 23 ? S_ISUID : 0) | (go & 1 << 22 ? S_ISGID : 0) | (go & 1 << 20 ? S_ISVTX : 0);
}

// -- the list ----------------------------------------------------------------------------------------------------------------

static struct place *places(struct intake *in) { return (struct place *)in->places.data; }

static uint64_t count_of(const struct buffer *b, size_t each) { return b->size / each; }

static struct row last_row(const struct intake *in) {
    struct row row = {0};
    uint64_t count = count_of(&in->starts, 8);
    if (count) row_at(in->rows.data, in->rows.size, ((uint64_t *)in->starts.data)[count - 1], &row);
    return row;
}

// The number of the row with this path, or NONE.
static uint64_t find(const struct intake *in, const char *path, size_t length) {
    struct row wanted = {.path = path, .length = length}, row;
    uint64_t low = 0, high = count_of(&in->starts, 8);
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (row_at(in->rows.data, in->rows.size, ((uint64_t *)in->starts.data)[middle], &row) <= 0) return NONE;
        int order = compare(&row, &wanted);
        if (!order) return middle;
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NONE;
}

// A sender's paths are clean, relative and in order, and their directories come first.
static int check(const struct intake *in, const struct row *new) {
    for (size_t at = 0;;) {
        const char *part = new->path + at, *slash = memchr(part, '/', new->length - at);
        size_t size = slash ? (size_t)(slash - part) : new->length - at;
        if (!size || (part[0] == '.' && (size == 1 || (size == 2 && part[1] == '.')))) return BAD_PATH;
        if (!slash) break;
        at += size + 1;
    }
    struct row last = last_row(in);
    if (last.path && compare(new, &last) <= 0) return BAD_ORDER;
    const char *slash = memrchr(new->path, '/', new->length);
    if (!slash) return SAME;
    // In this order all that lies in a directory follows it at once, so the directory is the last entry, or above that.
    size_t head = slash - new->path;
    if (!last.path || last.length < head || memcmp(last.path, new->path, head)) return NO_DIRECTORY;
    return (last.length == head ? in->last_is_directory : last.path[head] == '/') ? SAME : NO_DIRECTORY;
}

// Take note of an entry, and say where it differs from what was kept: pairs of offsets as in `chantier_compare`.
static int put(struct intake *in, const char *data, uint64_t size, struct buffer *pairs, struct buffer *directories,
               struct place *place) {
    struct row new;
    if (row_at(data, size, 0, &new) <= 0 || new.size < SIGNATURE || new.end != data + size) return BAD_PATH;
    int found = check(in, &new), directory = S_ISDIR(mode_of(&new)), hard = new.signature[44], renewed = 0;
    if (found) return found;
    uint64_t at = in->rows.size, target = NONE;
    if (hard) {
        target = find(in, new.signature + SIGNATURE, new.size - SIGNATURE);
        if (target != NONE) renewed = in->differs.data[target];
    }
    int order = 1;
    while (in->has_old > 0 && (order = compare(&in->old, &new)) < 0) {
        if (add_number(pairs, NONE) || add_number(pairs, in->old.at)) return -1;
        in->has_old = row_at(in->before, in->before_size, in->old.end - in->before, &in->old);
        order = 1;
    }
    uint64_t old = order ? NONE : in->old.at;
    int differs = renewed || order || in->old.size != new.size || memcmp(in->old.signature, new.signature, new.size);
    if (!order) in->has_old = row_at(in->before, in->before_size, in->old.end - in->before, &in->old);
    if (differs && hard && target == NONE) return NO_TARGET;
    if (add(&in->rows, data, size) || add_number(&in->starts, at)) return -1;
    char mark = differs && !directory;  // of a further name: was its file made anew?
    if (add(&in->differs, &mark, 1)) return -1;
    in->last_is_directory = directory;
    if (directory && add_number(directories, at)) return -1;
    if (differs && (add_number(pairs, at) || add_number(pairs, old))) return -1;
    *place = (struct place){at, 0, CLOSED, old != NONE};
    return differs ? DIFFERS : SAME;
}

static int ask(struct intake *in, struct place *place, int state, struct buffer *answers) {
    uint64_t id = count_of(&in->places, sizeof *place);
    unsigned char request[PREFIX + 16] = {0, 0, 0, 0, 0, 1 << 3, REQUEST};
    size_t size = PREFIX + 2;
    if (id) request[size++] = 3 << 3;
    for (uint64_t rest = id; rest; rest >>= 7) request[size++] = (rest & 127) | (rest > 127 ? 128 : 0);
    request[PREFIX - 1] = size - PREFIX;
    place->state = state;
    in->waiting++;
    return add(answers, request, size);
}

static int put_sent(struct intake *in, const struct sent *sent, uint32_t mode, struct buffer *work, struct buffer *pairs,
                    struct buffer *directories, struct buffer *answers) {
    struct place place = {NONE, 0, CLOSED, 0};
    uint64_t size = S_ISDIR(mode) ? 0 : sent->size;
    uint16_t signature = SIGNATURE + sent->link.size;
    char fixed[SIGNATURE] = {0};
    memcpy(fixed, &mode, 4);
    memcpy(fixed + 4, &size, 8);
    memcpy(fixed + 12, &sent->mtime, 8);
    fixed[44] = S_ISREG(mode) && sent->link.size;
    work->size = 0;
    if (add(work, sent->path.data, sent->path.size) || add(work, "", 1) || add(work, &signature, 2) ||
        add(work, fixed, SIGNATURE) || add(work, sent->link.data, sent->link.size))
        return -1;
    int found = put(in, work->data, work->size, pairs, directories, &place);
    if (found != SAME && found != DIFFERS) return found;
    if (found == DIFFERS && S_ISREG(mode) && !fixed[44] && ask(in, &place, ASKED, answers)) return -1;
    return add(&in->places, &place, sizeof place) ? -1 : found;
}

API void chantier_intake_free(struct intake *in) {
    free(in->rows.data);
    free(in->starts.data);
    free(in->differs.data);
    free(in->places.data);
    free(in);
}

// What receives a directory of which the rows `before`, which stay the caller's, were kept; NULL without memory.
API struct intake *chantier_intake(const char *before, uint64_t size) {
    struct intake *in = calloc(1, sizeof *in);
    if (!in) return NULL;
    in->before = before;
    in->before_size = size;
    in->has_old = row_at(before, size, 0, &in->old);
    return in;
}

// One entry that Python read, as a row; an empty one is only counted. If it is `wanted` and differs, it is asked for, and its data go
// to Python. What `put` says, or -1 without memory.
API int chantier_intake_put(struct intake *in, const char *row, uint64_t size, int wanted, struct buffer *pairs,
                            struct buffer *directories, struct buffer *answers) {
    struct place place = {NONE, 0, CLOSED, 0};
    int found = size ? put(in, row, size, pairs, directories, &place) : SAME;
    if (found != SAME && found != DIFFERS) return found;
    if (found == DIFFERS && wanted && ask(in, &place, ELSEWHERE, answers)) return -1;
    return add(&in->places, &place, sizeof place) ? -1 : found;
}

// The list is complete: what was kept and did not come.
API int chantier_intake_rest(struct intake *in, struct buffer *pairs) {
    in->listed = 1;
    for (; in->has_old > 0; in->has_old = row_at(in->before, in->before_size, in->old.end - in->before, &in->old))
        if (add_number(pairs, NONE) || add_number(pairs, in->old.at)) return ENOMEM;
    return in->has_old < 0 ? EINVAL : 0;
}

// Data for `id` have come to Python: the offset of its row, or NONE if it was not asked for. With `done` they are complete.
API uint64_t chantier_intake_file(struct intake *in, uint64_t id, int done) {
    if (id >= count_of(&in->places, sizeof(struct place)) || places(in)[id].state == CLOSED) return NONE;
    places(in)[id].state = done ? CLOSED : ELSEWHERE;
    if (done) in->waiting--;
    return places(in)[id].row;
}

// -- files -------------------------------------------------------------------------------------------------------------------

struct files {  // of one call
    int root, above;    // the directory that is open
    uint64_t above_row;  // a row that lies in it
    size_t above_length;
    int64_t uid, gid;
    const struct sha256 *sha;
    struct buffer pending;  // struct message
    struct buffer *left, *done;
};

struct message {
    uint64_t at, size;  // in the chunk, without its prefix
    uint64_t id;
    struct text data;
};

static int leave(struct files *files, const struct message *message) {
    return add_number(files->left, message->at) || add_number(files->left, message->size) ? -1 : 0;
}

static int make(struct intake *in, struct files *files, const struct place *place, struct text data, struct copied *copied) {
    struct row row;
    char name[256];
    if (row_at(in->rows.data, in->rows.size, place->row, &row) <= 0) return 0;
    const char *slash = memrchr(row.path, '/', row.length), *above = in->rows.data + files->above_row;
    size_t head = slash ? (size_t)(slash - row.path) : 0, tail = row.length - (slash ? head + 1 : 0);
    if (files->above < 0 || head != files->above_length || memcmp(row.path, above, head)) {
        if (files->above >= 0) close(files->above);
        files->above = open_above(files->root, row.path, head);
        files->above_row = place->row;
        files->above_length = head;
    }
    if (files->above < 0 || tail >= sizeof name) return 0;
    memcpy(name, row.path + row.length - tail, tail + 1);
    return make_small(files->above, name, &row, place->replace, files->uid, files->gid, files->sha, data.data, data.size, copied);
}

// A packet of data for a file that was asked for. A file that comes in one packet and is as large as its entry said is made once
// the empty packet after it ends it; all packets of any other go to Python.
static int take_data(struct intake *in, struct files *files, const struct message *message) {
    struct place *place = &places(in)[message->id];
    struct row row;
    uint64_t size = 0;
    if (place->state == ELSEWHERE) return leave(files, message);
    if (row_at(in->rows.data, in->rows.size, place->row, &row) > 0) memcpy(&size, row.signature + 4, 8);
    if (!place->pending && message->data.size && message->data.size == size && size <= MOST_SMALL) {
        if (add(&files->pending, message, sizeof *message)) return -1;
        place->pending = count_of(&files->pending, sizeof *message);
        return 0;
    }
    struct message *pending = place->pending ? &((struct message *)files->pending.data)[place->pending - 1] : NULL;
    struct text data = pending ? pending->data : message->data;
    place->pending = 0;
    if (!message->data.size && data.size == size) {
        struct done done = {.row = place->row};
        if (make(in, files, place, data, &done.file)) {
            place->state = CLOSED;
            in->waiting--;
            return add(files->done, &done, sizeof done);
        }
    }
    place->state = ELSEWHERE;
    return (pending && leave(files, pending)) || leave(files, message) ? -1 : 0;
}

// Take the whole messages of a chunk from `taken->at` on, until its end, or until one that is Python's to read, or data come for what
// was asked for in this same call: first Python has to make the directories. `answers` gets messages to send, `pairs` and
// `directories` are those of `chantier_compare`, of all rows so far, of which `fresh` gets the new ones. Files go below `root`;
// `done` gets a struct done of each, `left` offset and size of packets of data that go to Python.
API void chantier_take(struct intake *in, int root, int64_t uid, int64_t gid, const struct sha256 *sha, const char *chunk,
                       uint64_t size, struct taken *taken, struct buffer *answers, struct buffer *pairs,
                       struct buffer *directories, struct buffer *fresh, struct buffer *left, struct buffer *done) {
    struct files files = {.root = root, .above = -1, .uid = uid, .gid = gid, .sha = sha, .left = left, .done = done};
    struct buffer work = {0};
    uint64_t known = count_of(&in->places, sizeof(struct place)), rows = in->rows.size, at = taken->at;
    int failed = 0;
    taken->stop = AT_END;
    taken->packets = 0;
    while (!failed && at < size) {
        struct packet packet;
        struct sent sent;
        const unsigned char *prefix = (const unsigned char *)chunk + at;
        taken->stop = ODD;
        if (size - at < PREFIX || prefix[0]) break;
        uint64_t length = (uint64_t)prefix[1] << 24 | prefix[2] << 16 | prefix[3] << 8 | prefix[4], start = at + PREFIX;
        if (length > size - start || !parse_packet(chunk + start, chunk + start + length, &packet)) break;
        if (packet.kind == STAT) {
            uint32_t mode = parse_stat(packet.stat, &sent) ? posix_mode(sent.mode) : 0;
            if (!mode || in->listed) break;
            int found = put_sent(in, &sent, mode, &work, pairs, directories, answers);
            failed = found < 0;
            if (found != SAME && found != DIFFERS) break;
        } else {
            if (packet.id >= count_of(&in->places, sizeof(struct place)) || places(in)[packet.id].state == CLOSED) break;
            taken->stop = FILES_FIRST;
            if (packet.id >= known) break;
            struct message message = {start, length, packet.id, packet.data};
            failed = take_data(in, &files, &message);
        }
        taken->stop = AT_END;
        taken->packets++;
        at = start + length;
    }
    for (uint64_t i = 0; !failed && i < count_of(&files.pending, sizeof(struct message)); i++) {
        struct message *message = &((struct message *)files.pending.data)[i];
        struct place *place = &places(in)[message->id];
        if (place->pending != i + 1) continue;  // ended meanwhile
        place->pending = 0;
        place->state = ELSEWHERE;
        failed = leave(&files, message);
    }
    if (!failed) failed = add(fresh, in->rows.data + rows, in->rows.size - rows);
    if (files.above >= 0) close(files.above);
    free(files.pending.data);
    free(work.data);
    taken->at = at;
    taken->waiting = in->waiting;
    taken->error = failed ? ENOMEM : 0;
}
