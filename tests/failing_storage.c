/* Reads, writes and syncs of state files fail now and then, as on a disk that is about to die. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned state = 1;

static int fails(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, ".sqlite") || strstr(path, "-queue")) return 0;
    const char *per_mille = getenv("FAILING_STORAGE");
    state = state * 1103515245u + 12345u;
    if ((int)((state >> 8) % 1000) >= (per_mille ? atoi(per_mille) : 0)) return 0;
    errno = EIO;
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name); if (fails(descriptor)) return -1
ssize_t pread(int descriptor, void *to, size_t size, off_t at) { REAL(pread); return real(descriptor, to, size, at); }
ssize_t pread64(int descriptor, void *to, size_t size, off64_t at) { REAL(pread64); return real(descriptor, to, size, at); }
ssize_t pwrite(int descriptor, const void *from, size_t size, off_t at) { REAL(pwrite); return real(descriptor, from, size, at); }
ssize_t pwrite64(int descriptor, const void *from, size_t size, off64_t at) { REAL(pwrite64); return real(descriptor, from, size, at); }
int fdatasync(int descriptor) { REAL(fdatasync); return real(descriptor); }
int ftruncate64(int descriptor, off64_t to) { REAL(ftruncate64); return real(descriptor, to); }
