// Threads of a kernel that take turns on one of the system's: each runs until it waits for another. A thousand of them then
// meet in microseconds, where the system would take milliseconds to put them to sleep and wake them.
#pragma once

#include <csetjmp>
#include <cstdlib>
#include <vector>

#include <ucontext.h>

struct Fiber {
    static constexpr size_t STACK = 256 << 10;

    // Pages of it come as they are needed.
    void *stack = std::malloc(STACK);
    std::jmp_buf here;
    bool begun = false, ended = false;

    Fiber() = default;
    Fiber(const Fiber &) = delete;
    ~Fiber() { std::free(stack); }
};

// Those of a run, and which of them has its turn; a run has a thread of the system for itself.
struct Fibers {
    Fiber *now = nullptr;
    std::jmp_buf turns;
    void (*call)(const void *) = nullptr;
    const void *called = nullptr;

    // Has so many of them call `kernel`, until all have ended; `turn` is called with the number of whoever is next, before
    // it goes on.
    template <typename Kernel, typename Turn> void run(size_t count, const Kernel &kernel, Turn turn) {
        std::vector<Fiber> all(count);
        call = [](const void *one) { (*static_cast<const Kernel *>(one))(); };
        called = &kernel;
        unsigned drawn = 1;
        for (size_t left = count; left;) {
            left = count;
            // Another order each time, the same in each run: who needs that others went first has to wait for them.
            drawn = drawn * 1664525 + 1013904223;
            const size_t first = drawn % count, step = drawn >> 31 ? 1 : count - 1;
            for (size_t n = 0, i = first; n < count; n++, i = (i + step) % count) {
                now = &all[i];
                if (!now->ended) {
                    turn(i);
                    go_on();
                }
                left -= now->ended;
            }
        }
    }
    // Gives the turn to the next one.
    void yield() {
        if (!_setjmp(now->here)) _longjmp(turns, 1);
    }

  private:
    void go_on() {
        if (_setjmp(turns)) return;
        if (now->begun) _longjmp(now->here, 1);
        now->begun = true;
        ucontext_t first;
        getcontext(&first);
        first.uc_stack.ss_sp = now->stack;
        first.uc_stack.ss_size = Fiber::STACK;
        first.uc_link = nullptr;
        makecontext(&first, &Fibers::begin, 0);
        setcontext(&first);
    }
    static void begin();
};

inline thread_local Fibers lb_fibers;

inline void Fibers::begin() {
    lb_fibers.call(lb_fibers.called);
    lb_fibers.now->ended = true;
    _longjmp(lb_fibers.turns, 1);
}

// So many of them meet.
struct Meeting {
    unsigned size, there = 0, times = 0;

    explicit Meeting(unsigned size) : size(size) {}
    void wait() {
        const unsigned own = times;
        if (++there == size) {
            there = 0;
            times++;
        }
        while (times == own) lb_fibers.yield();
    }
};
