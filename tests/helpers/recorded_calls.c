// Records the system calls that change a folder, for recorded_calls.py, which compiles and preloads this.
//
// RECORDED_BELOW is the folder, RECORDED_IN the file that gets a line for each call that succeeded, in their order:
// its name, then what it changed, separated by tabs. Files are named by their inodes, bytes are in hexadecimal.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define LONGEST 4096

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

static int is_recorded(const char *path) {
    const char *below = getenv("RECORDED_BELOW");
    size_t length = below ? strlen(below) : 0;
    return length && !strncmp(path, below, length) && (!path[length] || path[length] == '/');
}

static int path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, LONGEST - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_recorded(path);
}

// The whole path of a name that a call is given with a folder's descriptor.
static int path_at(int folder, const char *name, char *path) {
    if (name[0] == '/') {
        snprintf(path, LONGEST, "%s", name);
    } else {
        char base[LONGEST];
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            path_of(folder, base);
        }
        snprintf(path, LONGEST, "%.2000s/%.2000s", base, name);
    }
    return is_recorded(path);
}

static void append(const char *line, size_t length) {
    int file = NEXT(open64)(getenv("RECORDED_IN"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) abort();
    while (length) {
        ssize_t done = NEXT(write)(file, line, length);
        if (done < 0) abort();
        line += done;
        length -= done;
    }
    NEXT(close)(file);
}

static void record(const char *format, ...) {
    char line[2 * LONGEST + 256];
    va_list parts;
    va_start(parts, format);
    int length = vsnprintf(line, sizeof line, format, parts);
    va_end(parts);
    append(line, length);
}

static unsigned long inode(int descriptor) {
    struct stat found;
    return fstat(descriptor, &found) ? 0 : found.st_ino;
}

static void record_write(int descriptor, const unsigned char *data, size_t size, off64_t offset) {
    char *line = malloc(2 * size + 128);
    size_t length = sprintf(line, "write\t%lu\t%lld\t", inode(descriptor), (long long)offset);
    for (size_t i = 0; i < size; i++) length += sprintf(line + length, "%02x", data[i]);
    line[length++] = '\n';
    append(line, length);
    free(line);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    char path[LONGEST];
    if (!path_of(descriptor, path)) return NEXT(write)(descriptor, data, size);
    pthread_mutex_lock(&order);
    ssize_t done = NEXT(write)(descriptor, data, size);
    int code = errno;
    if (done > 0) record_write(descriptor, data, done, lseek64(descriptor, 0, SEEK_CUR) - done);
    pthread_mutex_unlock(&order);
    errno = code;
    return done;
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    char path[LONGEST];
    if (!path_of(descriptor, path)) return NEXT(pwrite64)(descriptor, data, size, offset);
    pthread_mutex_lock(&order);
    ssize_t done = NEXT(pwrite64)(descriptor, data, size, offset);
    if (done > 0) record_write(descriptor, data, done, offset);
    pthread_mutex_unlock(&order);
    return done;
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    char path[LONGEST];
    if (!path_of(descriptor, path)) return NEXT(writev)(descriptor, parts, count);
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = write(descriptor, parts[i].iov_base, parts[i].iov_len);
        if (done < 0) return total ? total : done;
        total += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return total;
}

int ftruncate64(int descriptor, off64_t size) {
    char path[LONGEST];
    if (!path_of(descriptor, path)) return NEXT(ftruncate64)(descriptor, size);
    pthread_mutex_lock(&order);
    int result = NEXT(ftruncate64)(descriptor, size);
    if (!result) record("truncate\t%lu\t%lld\n", inode(descriptor), (long long)size);
    pthread_mutex_unlock(&order);
    return result;
}

static int opened(int folder, const char *name, int flags, mode_t mode) {
    char path[LONGEST];
    if (!(flags & (O_CREAT | O_TRUNC)) || !path_at(folder, name, path))
        return NEXT(openat64)(folder, name, flags, mode);
    pthread_mutex_lock(&order);
    struct stat before;
    int is_new = stat(path, &before);
    int descriptor = NEXT(openat64)(folder, name, flags, mode), code = errno;
    if (descriptor >= 0 && is_new) record("create\t%s\t%lu\n", path, inode(descriptor));
    if (descriptor >= 0 && !is_new && (flags & O_TRUNC)) record("truncate\t%lu\t0\n", inode(descriptor));
    pthread_mutex_unlock(&order);
    errno = code;
    return descriptor;
}

#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return opened(folder, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return opened(folder, path, flags, mode); }

// Within the lock, because what another thread writes meanwhile is not durable by it.
static int synced(int descriptor, int (*sync)(int)) {
    char path[LONGEST];
    if (!path_of(descriptor, path)) return sync(descriptor);
    pthread_mutex_lock(&order);
    int result = sync(descriptor), code = errno;
    if (!result) record("sync\t%lu\n", inode(descriptor));
    pthread_mutex_unlock(&order);
    errno = code;
    return result;
}

int fsync(int descriptor) { return synced(descriptor, NEXT(fsync)); }
int fdatasync(int descriptor) { return synced(descriptor, NEXT(fdatasync)); }

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    char old[LONGEST], new[LONGEST];
    if (!path_at(to_folder, to, new) | !path_at(from_folder, from, old))
        return NEXT(renameat)(from_folder, from, to_folder, to);
    pthread_mutex_lock(&order);
    int result = NEXT(renameat)(from_folder, from, to_folder, to), code = errno;
    if (!result) record("rename\t%s\t%s\n", old, new);
    pthread_mutex_unlock(&order);
    errno = code;
    return result;
}

int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    char old[LONGEST], new[LONGEST];
    if (!path_at(to_folder, to, new) | !path_at(from_folder, from, old))
        return NEXT(linkat)(from_folder, from, to_folder, to, flags);
    pthread_mutex_lock(&order);
    int result = NEXT(linkat)(from_folder, from, to_folder, to, flags), code = errno;
    if (!result) record("link\t%s\t%s\n", old, new);
    pthread_mutex_unlock(&order);
    errno = code;
    return result;
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int folder, const char *name, int flags) {
    char path[LONGEST];
    if (!path_at(folder, name, path)) return NEXT(unlinkat)(folder, name, flags);
    pthread_mutex_lock(&order);
    int result = NEXT(unlinkat)(folder, name, flags), code = errno;
    if (!result) record("remove\t%s\n", path);
    pthread_mutex_unlock(&order);
    errno = code;
    return result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t mode) {
    char path[LONGEST];
    if (!path_at(folder, name, path)) return NEXT(mkdirat)(folder, name, mode);
    pthread_mutex_lock(&order);
    int result = NEXT(mkdirat)(folder, name, mode), code = errno;
    struct stat found;
    if (!result && !stat(path, &found)) record("mkdir\t%s\t%lu\n", path, (unsigned long)found.st_ino);
    pthread_mutex_unlock(&order);
    errno = code;
    return result;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
