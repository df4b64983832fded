// System calls that fail as on a file system that lacks something; failing_calls.py compiles and preloads this.
//
// FAILING_CALLS has a rule on each line, "CALL ERRNO TIMES PATH": a call on PATH or below it fails with ERRNO, the first
// TIMES times, or always where that is -1. ERRNO -2: it does not return while the rule is there. "clock SECONDS -1 /": the
// clock is set by so much. FAILING_CALLS is read anew at each call, so a process may change it; or the file that
// FAILING_CALLS_IN names, for who stands outside, who replaces it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define RULES 64
#define HANG -2
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL_WITH(code, result) do { int code_ = (code); if (code_) { errno = code_; return result; } } while (0)

static char counted[4096];  // the rules that `counts` is of
static int counts[RULES];

static int is_below(const char *path, const char *place) {
    size_t length = strlen(place);
    return !strncmp(path, place, length) && (length == 1 || !path[length] || path[length] == '/');
}

// The rules as they stand; room: for those of a file. Its calls are the kernel's own, which no rule meets.
static const char *rules_now(char *room, size_t size) {
    const char *file = getenv("FAILING_CALLS_IN");
    if (!file) return getenv("FAILING_CALLS");
    int before = errno, descriptor = syscall(SYS_openat, AT_FDCWD, file, O_RDONLY | O_CLOEXEC);
    long length = descriptor < 0 ? 0 : syscall(SYS_read, descriptor, room, size - 1);
    if (descriptor >= 0) syscall(SYS_close, descriptor);
    errno = before;
    room[length < 0 ? 0 : length] = 0;
    return room;
}

// What a call on a path is to fail with, or 0.
static int matched(const char *call, const char *path) {
    char room[sizeof counted];
    const char *rules = rules_now(room, sizeof room);
    if (!rules || !*rules || !path) return 0;
    if (strncmp(counted, rules, sizeof counted - 1)) {
        strncpy(counted, rules, sizeof counted - 1);
        memset(counts, 0, sizeof counts);
    }
    for (int rule = 0; rules && rule < RULES; rule++) {
        char name[32], place[1024];
        int code, times;
        if (sscanf(rules, "%31s %d %d %1023[^\n]", name, &code, &times, place) == 4 && !strcmp(name, call) &&
            is_below(path, place) && (times < 0 || counts[rule]++ < times))
            return code;
        rules = strchr(rules, '\n');
        if (rules) rules++;
    }
    return 0;
}

// The same, once it does not hang any more.
static int failure(const char *call, const char *path) {
    int code;
    while ((code = matched(call, path)) == HANG) syscall(SYS_nanosleep, &(struct timespec){0, 20000000}, NULL);
    return code;
}

static int failure_at(const char *call, int descriptor) {
    char link[64], path[1024];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return failure(call, path);
}

int fsync(int descriptor) {
    struct stat found;
    int folder = !fstat(descriptor, &found) && S_ISDIR(found.st_mode);
    FAIL_WITH(failure_at(folder ? "fsync_folder" : "fsync", descriptor), -1);
    return NEXT(fsync)(descriptor);
}

int flock(int descriptor, int operation) {
    FAIL_WITH(failure_at("flock", descriptor), -1);
    return NEXT(flock)(descriptor, operation);
}

void *mmap(void *address, size_t size, int protection, int flags, int descriptor, off_t offset) {
    if (descriptor >= 0) FAIL_WITH(failure_at("mmap", descriptor), MAP_FAILED);
    return NEXT(mmap)(address, size, protection, flags, descriptor, offset);
}

void *mmap64(void *address, size_t size, int protection, int flags, int descriptor, off64_t offset) {
    return mmap(address, size, protection, flags, descriptor, offset);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    FAIL_WITH(failure_at("write", descriptor), -1);
    return NEXT(write)(descriptor, data, size);
}

ssize_t pread64(int descriptor, void *data, size_t size, off64_t offset) {
    FAIL_WITH(failure_at("pread", descriptor), -1);
    return NEXT(pread64)(descriptor, data, size, offset);
}

ssize_t pread(int descriptor, void *data, size_t size, off_t offset) {
    return pread64(descriptor, data, size, offset);
}

int rename(const char *from, const char *to) {
    FAIL_WITH(failure("rename", to), -1);
    return NEXT(rename)(from, to);
}

int mkdir(const char *path, mode_t mode) {
    FAIL_WITH(failure("mkdir", path), -1);
    return NEXT(mkdir)(path, mode);
}

int unlink(const char *path) {
    FAIL_WITH(failure("unlink", path), -1);
    return NEXT(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    if (folder >= 0) FAIL_WITH(failure_at("unlink", folder), -1);
    return NEXT(unlinkat)(folder, path, flags);
}

int open64(const char *path, int flags, ...) {
    if (flags & O_DIRECTORY) FAIL_WITH(failure("open_folder", path), -1);
    if (flags & (O_WRONLY | O_RDWR | O_CREAT)) FAIL_WITH(failure("open_to_write", path), -1);
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    return NEXT(open64)(path, flags, mode);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = NEXT(clock_gettime)(clock, now);
    if (!result && clock == CLOCK_REALTIME) now->tv_sec += matched("clock", "/");
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    int result = NEXT(gettimeofday)(now, zone);
    if (!result) now->tv_sec += matched("clock", "/");
    return result;
}

time_t time(time_t *to) {
    time_t now = NEXT(time)(NULL) + matched("clock", "/");
    return to ? *to = now : now;
}

int statvfs64(const char *path, struct statvfs64 *found) {
    int code = failure("statvfs", path), result = NEXT(statvfs64)(path, found);
    if (code < 0) found->f_blocks = found->f_bfree = found->f_bavail = 0;  // it does not know how large it is
    FAIL_WITH(code > 0 ? code : 0, -1);
    return result;
}

sem_t *sem_open(const char *name, int flags, ...) {
    FAIL_WITH(failure("sem_open", name), SEM_FAILED);
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    unsigned value = va_arg(more, unsigned);
    va_end(more);
    return NEXT(sem_open)(name, flags, mode, value);
}
