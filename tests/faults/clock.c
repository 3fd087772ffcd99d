/* The time of day, moved by the number of seconds that the file $GPT_TEST_CLOCK holds (int64).
   Preloaded into one process: a clock that is set while it runs. The clock that never jumps
   (CLOCK_MONOTONIC) stays; a wait until a time of day ends earlier or later, as Linux would do it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *moved;
static int64_t none;

__attribute__((constructor)) static void map_clock(void) {
    const char *name = getenv("GPT_TEST_CLOCK");
    int file = name ? open(name, O_RDONLY) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(0, sizeof none, PROT_READ, MAP_SHARED, file, 0);
    moved = page == MAP_FAILED ? &none : page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && moved && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *moved;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec time;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

/* A deadline of the monotonic clock is small: the machine has not been up for thirty years. */
static struct timespec real(const struct timespec *end) {
    struct timespec until = *end;
    if (until.tv_sec > 1000000000) until.tv_sec -= *moved;
    return until;
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *lock, const struct timespec *end) {
    static int (*original)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec until = real(end);
    if (!original) original = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!original) original = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    return original(cond, lock, &until);
}

int sem_timedwait(sem_t *sem, const struct timespec *end) {
    static int (*original)(sem_t *, const struct timespec *);
    struct timespec until = real(end);
    if (!original) original = dlsym(RTLD_NEXT, "sem_timedwait");
    return original(sem, &until);
}
