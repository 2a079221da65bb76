#define _GNU_SOURCE
#include "team.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

enum { MAX_THREADS = 255 };

/* A barrier comes every few microseconds while a token is made, and a wake-up by the kernel takes 10 to 50: members
 * spin, but where a processor is shared with other programs they must give it away. */
enum { SPINS_BEFORE_YIELD = 1000, SPINS_BEFORE_SLEEP = 20000 };

static pthread_mutex_t call_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;

static struct {
    int started; /* workers that exist */
    pid_t owner; /* threads do not survive a fork */
    pthread_t threads[MAX_THREADS];
#if defined(__linux__)
    int caller_cpu;
    cpu_set_t allowed; /* of the process */
#endif
    void (*work)(lb_member *, void *);
    void *argument;
} team;

/* Number of the call times 256, plus its members. One word, so that a worker that is not among them, and is not waited
 * for, can never take the number of one call and the members of another. */
static _Alignas(64) atomic_uint call;
static _Alignas(64) atomic_int running;     /* workers that have not finished the call */
static _Alignas(64) atomic_int arrived;
static _Alignas(64) atomic_int sense;

static void wait_while(atomic_int *flag, int value) {
    for (int spins = 0; atomic_load_explicit(flag, memory_order_acquire) == value; spins++) {
        if (spins < SPINS_BEFORE_YIELD)
            PAUSE();
        else
            sched_yield();
    }
}

void lb_barrier(lb_member *member) {
    if (member->count == 1) return;
    int mine = member->sense = !member->sense;
    if (atomic_fetch_add_explicit(&arrived, 1, memory_order_acq_rel) == member->count - 1) {
        atomic_store_explicit(&arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&sense, mine, memory_order_release);
    } else {
        wait_while(&sense, !mine);
    }
}

static unsigned next_call(unsigned seen) {
    for (int spins = 0; spins < SPINS_BEFORE_SLEEP; spins++) {
        unsigned now = atomic_load_explicit(&call, memory_order_acquire);
        if (now != seen) return now;
        if (spins < SPINS_BEFORE_YIELD)
            PAUSE();
        else
            sched_yield();
    }
    pthread_mutex_lock(&sleep_lock);
    unsigned now;
    while ((now = atomic_load_explicit(&call, memory_order_acquire)) == seen)
        pthread_cond_wait(&wake, &sleep_lock);
    pthread_mutex_unlock(&sleep_lock);
    return now;
}

typedef struct {
    int index;
    unsigned seen;
} worker;

#if defined(__linux__)
/* A worker that was woken by the caller is often put on the caller's processor, where it waits until the caller waits
 * for it. Where there are enough others, workers are kept off it; the system chooses among the rest. */
static void keep_off_caller(void) {
    int cpu = sched_getcpu();
    if (cpu < 0 || cpu == team.caller_cpu || team.started >= CPU_COUNT(&team.allowed)) return;
    cpu_set_t others = team.allowed;
    CPU_CLR(cpu, &others);
    for (int i = 0; i < team.started; i++) pthread_setaffinity_np(team.threads[i], sizeof others, &others);
    team.caller_cpu = cpu;
}
#else
static void keep_off_caller(void) {}
#endif

static void *serve(void *argument) {
    worker self = *(worker *)argument;
    free(argument);
    for (;;) {
        self.seen = next_call(self.seen);
        int count = (int)(self.seen & 255);
        if (self.index >= count) continue;
        lb_member member = {self.index, count, 0};
        team.work(&member, team.argument);
        atomic_fetch_sub_explicit(&running, 1, memory_order_release);
    }
    return NULL;
}

static int start_workers(int wanted) {
    if (team.owner != getpid()) {
        team.owner = getpid();
        team.started = 0;
#if defined(__linux__)
        if (sched_getaffinity(0, sizeof team.allowed, &team.allowed)) CPU_ZERO(&team.allowed);
#endif
        atomic_store(&running, 0);
    }
    while (team.started < wanted) {
#if defined(__linux__)
        team.caller_cpu = -1;
#endif
        worker *self = malloc(sizeof *self);
        if (!self) return -1;
        *self = (worker){team.started + 1, atomic_load(&call)};
        pthread_t *thread = &team.threads[team.started];
        if (pthread_create(thread, NULL, serve, self)) {
            free(self);
            return -1;
        }
        pthread_detach(*thread);
        team.started++;
    }
    return 0;
}

int lb_team_run(void (*work)(lb_member *, void *), void *argument, int threads) {
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads <= 1) {
        lb_member alone = {0, 1, 0};
        work(&alone, argument);
        return 0;
    }
    pthread_mutex_lock(&call_lock);
    int failed = start_workers(threads - 1);
    if (!failed) {
        keep_off_caller();
        team.work = work;
        team.argument = argument;
        atomic_store(&arrived, 0);
        atomic_store(&sense, 0);
        atomic_store(&running, threads - 1);
        pthread_mutex_lock(&sleep_lock);
        unsigned number = (atomic_load_explicit(&call, memory_order_relaxed) >> 8) + 1;
        atomic_store_explicit(&call, number << 8 | (unsigned)threads, memory_order_release);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleep_lock);
        lb_member caller = {0, threads, 0};
        work(&caller, argument);
        for (int spins = 0; atomic_load_explicit(&running, memory_order_acquire) > 0; spins++) {
            if (spins < SPINS_BEFORE_YIELD)
                PAUSE();
            else
                sched_yield();
        }
    }
    pthread_mutex_unlock(&call_lock);
    return failed;
}
