// Threads of a kernel that take turns on one of the system's: each runs until it waits for another. A thousand of them then
// meet in microseconds, where the system would take milliseconds to put them to sleep and wake them.
#pragma once

#include <csetjmp>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

struct Fiber {
    static constexpr size_t STACK = 256 << 10;

    std::function<void()> run;
    // Not written before it is used: pages of it come as they are needed.
    std::unique_ptr<char[]> stack{new char[STACK]};
    std::jmp_buf here;
    bool begun = false, ended = false;
};

// Those of a run, and which of them has its turn; a run has a thread of the system for itself.
struct Fibers {
    std::vector<std::unique_ptr<Fiber>> all;
    Fiber *now = nullptr;
    std::jmp_buf turns;

    void add(std::function<void()> run) {
        all.push_back(std::make_unique<Fiber>());
        all.back()->run = std::move(run);
    }
    // Calls `turn` with the number of whoever is next, before it goes on, until all have ended.
    template <typename F> void run(F turn) {
        size_t left = all.size();
        while (left) {
            left = all.size();
            for (size_t i = 0; i < all.size(); i++) {
                now = all[i].get();
                if (!now->ended) {
                    turn(i);
                    go_on();
                }
                left -= now->ended;
            }
        }
        all.clear();
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
        first.uc_stack.ss_sp = now->stack.get();
        first.uc_stack.ss_size = Fiber::STACK;
        first.uc_link = nullptr;
        makecontext(&first, &Fibers::begin, 0);
        setcontext(&first);
    }
    static void begin();
};

inline thread_local Fibers lb_fibers;

inline void Fibers::begin() {
    lb_fibers.now->run();
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
