/* No file can be locked, as on a file system without locks: NO_LOCKS is the error's number. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>

static int refused(void) {
    errno = atoi(getenv("NO_LOCKS"));
    return -1;
}

static int locks(int command) { return command == F_SETLK || command == F_SETLKW; }

#define CONTROL(name) \
    int name(int descriptor, int command, ...) { \
        static int (*real)(int, int, ...); \
        va_list rest; \
        va_start(rest, command); \
        void *argument = va_arg(rest, void *); \
        va_end(rest); \
        if (locks(command)) return refused(); \
        if (!real) real = (int (*)(int, int, ...))dlsym(RTLD_NEXT, #name); \
        return real(descriptor, command, argument); \
    }

CONTROL(fcntl)
CONTROL(fcntl64)

int flock(int descriptor, int operation) {
    (void)descriptor, (void)operation;
    return refused();
}
