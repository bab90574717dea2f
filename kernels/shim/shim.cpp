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
#else
#include <ucontext.h>
#endif

namespace shim {

thread_local Thread *self = nullptr;
Geometry geometry;

namespace {

constexpr unsigned LANES = 32, MOST_THREADS = 1024, MOST_WORDS = 6;

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
    ucontext_t context;
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
ucontext_t scheduler;
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
    swapcontext(&w.context, &scheduler);
    w.waits = nullptr;
}

bool runnable(const Worker &w) { return !w.done && (w.waits == nullptr || w.waits->generation != w.since); }

void begin() {
    entry(entry_args);
    me().done = true;
    swapcontext(&me().context, &scheduler);
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

void gather(const uint32_t *mine, unsigned count, uint32_t *all) {
    Worker &w = me();
    Exchange &e = *exchanges[w.number / LANES];
    // Two rounds of slots: a lane can be one operation ahead of its warp, never two.
    uint32_t(&slots)[LANES][MOST_WORDS + 1] = e.slots[w.operations++ % 2];
    slots[lane()][0] = count;
    std::memcpy(&slots[lane()][1], mine, sizeof(uint32_t) * count);
    wait(e.barrier);
    for (unsigned i = 0; i < LANES; i++) {
        if (slots[i][0] != count) {
            std::fprintf(stderr, "shim: lanes of a warp are at different operations\n");
            std::abort();
        }
        std::memcpy(all + size_t(i) * count, &slots[i][1], sizeof(uint32_t) * count);
    }
}

uint32_t exchange(uint32_t value, uint32_t from) {
    uint32_t all[LANES];
    gather(&value, 1, all);
    return all[from];
}

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
    constexpr size_t STACK = 128 * 1024;
    return each_block([&](Index block) {
        poison();
        for (auto &w : workers) {
            w->block = block;
            w->done = false;
            w->operations = 0;
            w->waits = nullptr;
            if (!w->stack)
                w->stack.reset(new char[STACK]);
            getcontext(&w->context);
            w->context.uc_stack.ss_sp = w->stack.get();
            w->context.uc_stack.ss_size = STACK;
            w->context.uc_link = nullptr;
            makecontext(&w->context, begin, 0);
        }
        unsigned last = geometry.schedule == 1 ? unsigned(workers.size()) - 1 : 0;
        while (Worker *w = next(last)) {
            last = w->number;
            self = w;
            swapcontext(&scheduler, &w->context);
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
