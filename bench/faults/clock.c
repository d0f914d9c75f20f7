// Moves the clock of one process while it runs: LD_PRELOAD, and CLOCK_FILE with the seconds to add as text.
// libfaketime does not know cnd_timedwait: with a clock that is behind, librdkafka's threads spun, and the process hung.
// A wait that has begun is not moved.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
enum { UNIX_TIME = 1000000000 }; // a monotonic time is smaller

static const char *text;

__attribute__((constructor)) static void begin(void) {
    text = mmap(NULL, 16, PROT_READ, MAP_SHARED, open(getenv("CLOCK_FILE"), O_RDONLY), 0);
}

static time_t moved(void) { return text ? atol(text) : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = REAL(clock_gettime)(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += moved();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = REAL(gettimeofday)(now, zone);
    now->tv_sec += moved();
    return failed;
}

time_t time(time_t *at) {
    time_t now = REAL(time)(NULL) + moved();
    return at ? *at = now : now;
}

static struct timespec real(const struct timespec *until) {
    struct timespec found = *until;
    if (found.tv_sec > UNIX_TIME) found.tv_sec -= moved();
    return found;
}

int pthread_cond_timedwait(pthread_cond_t *restrict c, pthread_mutex_t *restrict m, const struct timespec *restrict t) {
    struct timespec until = real(t);
    return REAL(pthread_cond_timedwait)(c, m, &until);
}

int cnd_timedwait(cnd_t *restrict c, mtx_t *restrict m, const struct timespec *restrict t) {
    struct timespec until = real(t);
    return REAL(cnd_timedwait)(c, m, &until);
}
