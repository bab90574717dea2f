// The scheduler under shim.h.
#include "shim.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <vector>
#ifdef SHIM_THREADS
#include <condition_variable>
#include <thread>
#elif !defined(__x86_64__)
#include <ucontext.h>
#endif

#if !defined(SHIM_THREADS) && defined(__x86_64__)
// Keeps the registers that a function must keep on the stack of who calls, and goes on where `to` was left. swapcontext does the
// same with two system calls, which were nine tenths of the time that kernels took here.
extern "C" void shim_switch(void **from, void *to);
asm(R"(
    .text
    .globl shim_switch
    .type shim_switch, @function
shim_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size shim_switch, . - shim_switch
)");
#endif

namespace shim {

thread_local Thread *self = nullptr;
Geometry geometry;

namespace {

constexpr unsigned LANES = 32, MOST_THREADS = 1024, MOST_WORDS = 6;

#ifndef SHIM_THREADS
constexpr size_t STACK = 128 * 1024;

// Where a fiber, or the scheduler, was left.
#ifdef __x86_64__
using Place = void *;

void leave(Place &from, Place &to) { shim_switch(&from, to); }

// A fiber that begins with `entry`, which never returns: six registers, the address to go to, and a return address that is none,
// which leaves the stack as a call would.
void make(Place &place, char *stack, void (*entry)()) {
    auto *top = reinterpret_cast<void **>((reinterpret_cast<uintptr_t>(stack) + STACK) & ~uintptr_t(15));
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void *>(entry);
    std::memset(top - 8, 0, 6 * sizeof(void *));
    place = top - 8;
}
#else
using Place = ucontext_t;

void leave(Place &from, Place &to) { swapcontext(&from, &to); }

void make(Place &place, char *stack, void (*entry)()) {
    getcontext(&place);
    place.uc_stack.ss_sp = stack;
    place.uc_stack.ss_size = STACK;
    place.uc_link = nullptr;
    makecontext(&place, entry, 0);
}
#endif
#endif

struct Barrier {
    unsigned expected = 0, arrived = 0, generation = 0;
#ifdef SHIM_THREADS
    std::mutex lock;
    std::condition_variable turned;
#endif
};

struct Exchange {
    Barrier barrier;
    uint32_t slots[2][LANES][MOST_WORDS + 1]; // a count, and so many words
};

struct Worker : Thread {
    unsigned number = 0;
    unsigned operations = 0; // of its warp, so far
    bool done = false;
    Barrier *waits = nullptr;
    unsigned since = 0;
#ifndef SHIM_THREADS
    Place place;
    std::unique_ptr<char[]> stack;
#endif
};

std::mutex one_launch;
std::vector<std::unique_ptr<Worker>> workers;
std::vector<std::unique_ptr<Exchange>> exchanges; // (warps)
std::unique_ptr<Barrier> whole;
std::vector<double> memory;               // aligned for anything that is kept there
void (*entry)(const void *);
const void *entry_args;

Worker &me() { return *static_cast<Worker *>(self); }

#ifdef SHIM_THREADS
void wait(Barrier &b) {
    std::unique_lock<std::mutex> held(b.lock);
    const unsigned since = b.generation;
    if (++b.arrived == b.expected) {
        b.arrived = 0;
        b.generation++;
        b.turned.notify_all();
    } else {
        b.turned.wait(held, [&] { return b.generation != since; });
    }
}
#else
Place scheduler;
std::mt19937 dice(20261124);

void wait(Barrier &b) {
    Worker &w = me();
    w.since = b.generation;
    if (++b.arrived == b.expected) {
        b.arrived = 0;
        b.generation++;
        return;
    }
    w.waits = &b;
    leave(w.place, scheduler);
    w.waits = nullptr;
}

bool runnable(const Worker &w) { return !w.done && (w.waits == nullptr || w.waits->generation != w.since); }

void begin() {
    entry(entry_args);
    me().done = true;
    leave(me().place, scheduler);
}

// The thread to run after `last`; null when none can.
Worker *next(unsigned last) {
    const unsigned n = unsigned(workers.size());
    unsigned start = last, step = 1; // in turn
    if (geometry.schedule == 1)
        step = n - 1;
    else if (geometry.schedule == 2)
        start = unsigned(dice() % n);
    else if (geometry.schedule == 3)
        start = last / LANES * LANES;
    for (unsigned i = 0; i < n; i++) {
        Worker &w = *workers[(start + size_t(i) * step) % n];
        if (runnable(w))
            return &w;
    }
    return nullptr;
}
#endif

void poison() { std::memset(memory.data(), 0xff, memory.size() * sizeof(double)); }

bool prepare() {
    const Index b = geometry.block, g = geometry.grid;
    const uint64_t threads = uint64_t(b.x) * b.y * b.z;
    if (threads == 0 || threads > MOST_THREADS || threads % LANES != 0 || g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffu ||
        g.y > 65535 || g.z > 65535 || geometry.shared_bytes > 48 * 1024)
        return false;
    workers.resize(threads);
    exchanges.resize(threads / LANES);
    memory.assign((geometry.shared_bytes + 7) / 8, 0.0);
    for (auto &e : exchanges) {
        e = std::make_unique<Exchange>();
        e->barrier.expected = LANES;
    }
    whole = std::make_unique<Barrier>();
    whole->expected = unsigned(threads);
    for (unsigned i = 0; i < threads; i++) {
        if (!workers[i])
            workers[i] = std::make_unique<Worker>();
        workers[i]->number = i;
        workers[i]->operations = 0;
        workers[i]->thread = {i % b.x, i / b.x % b.y, i / b.x / b.y};
    }
    return true;
}

template <typename F> int each_block(F run) {
    for (unsigned z = 0; z < geometry.grid.z; z++)
        for (unsigned y = 0; y < geometry.grid.y; y++)
            for (unsigned x = 0; x < geometry.grid.x; x++)
                if (const int failed = run(Index{x, y, z}))
                    return failed;
    return 0;
}

} // namespace

uint32_t lane() { return me().number % LANES; }

// Exactly what the launch asked for, so that AddressSanitizer sees a kernel that takes more.
void *shared() { return memory.data(); }

void block_sync() { wait(*whole); }

namespace {

using Slots = uint32_t[LANES][MOST_WORDS + 1];

// What every lane of the warp has, once all have asked for as much.
const Slots &gathered(const uint32_t *mine, unsigned count) {
    Worker &w = me();
    Exchange &e = *exchanges[w.number / LANES];
    // Two rounds of slots: a lane can be one operation ahead of its warp, never two.
    Slots &slots = e.slots[w.operations++ % 2];
    slots[lane()][0] = count;
    std::memcpy(&slots[lane()][1], mine, sizeof(uint32_t) * count);
    wait(e.barrier);
    return slots;
}

const uint32_t *slot(const Slots &slots, uint32_t lane, unsigned count) {
    if (slots[lane][0] != count) {
        std::fprintf(stderr, "shim: lanes of a warp are at different operations\n");
        std::abort();
    }
    return &slots[lane][1];
}

} // namespace

void gather(const uint32_t *mine, unsigned count, uint32_t *all) {
    const Slots &slots = gathered(mine, count);
    for (unsigned i = 0; i < LANES; i++)
        std::memcpy(all + size_t(i) * count, slot(slots, i, count), sizeof(uint32_t) * count);
}

uint32_t exchange(uint32_t value, uint32_t from) { return *slot(gathered(&value, 1), from, 1); }

uint32_t ballot(bool set) {
    uint32_t all[LANES], word = 0;
    const uint32_t mine = set;
    gather(&mine, 1, all);
    for (unsigned i = 0; i < LANES; i++)
        word |= all[i] << i;
    return word;
}

int launch(void (*kernel)(const void *), const void *args, const Geometry &asked) {
    const std::lock_guard<std::mutex> held(one_launch);
    geometry = asked;
    entry = kernel;
    entry_args = args;
    if (!prepare())
        return 1;
#ifdef SHIM_THREADS
    std::vector<std::thread> threads;
    Barrier turn; // not the block's own: a kernel that returns early must not be waited for there
    turn.expected = unsigned(workers.size());
    for (auto &worker : workers)
        threads.emplace_back([w = worker.get(), &turn] {
            self = w;
            each_block([&](Index block) {
                if (w->number == 0)
                    poison();
                w->block = block;
                wait(turn);
                entry(entry_args);
                wait(turn);
                return 0;
            });
        });
    for (auto &t : threads)
        t.join();
    return 0;
#else
    return each_block([&](Index block) {
        poison();
        for (auto &w : workers) {
            w->block = block;
            w->done = false;
            w->operations = 0;
            w->waits = nullptr;
            if (!w->stack)
                w->stack.reset(new char[STACK]);
            make(w->place, w->stack.get(), begin);
        }
        unsigned last = geometry.schedule == 1 ? unsigned(workers.size()) - 1 : 0;
        while (Worker *w = next(last)) {
            last = w->number;
            self = w;
            leave(scheduler, w->place);
        }
        for (auto &w : workers)
            if (!w->done) {
                std::fprintf(stderr, "shim: block (%u, %u, %u): thread %u waits for threads that do not come\n", block.x, block.y,
                             block.z, w->number);
                workers.clear(); // their stacks hold frames that will never be left
                return 2;
            }
        return 0;
    });
#endif
}

} // namespace shim
