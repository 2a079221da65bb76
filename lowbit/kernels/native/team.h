/* A team of threads that runs one function, and the barrier that its members meet at. */
#ifndef LOWBIT_TEAM_H
#define LOWBIT_TEAM_H

#include <stdint.h>

typedef struct {
    int index, count;
    int sense; /* of the barrier */
} lb_member;

/* Runs work(member, argument) on `threads` threads, the caller among them. One call at a time: others wait.
 * Returns 0, or -1 where threads could not be started. */
int lb_team_run(void (*work)(lb_member *, void *), void *argument, int threads);

/* Returns when all members of the running team have come. */
void lb_barrier(lb_member *member);

/* The part of `items` that is a member's: [begin, end). */
static inline void lb_share(const lb_member *member, int64_t items, int64_t *begin, int64_t *end) {
    *begin = items * member->index / member->count;
    *end = items * (member->index + 1) / member->count;
}

#endif
