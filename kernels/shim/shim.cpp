// The scheduler under shim.h.
#include "shim.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>
#ifdef __x86_64__
#define OWN_SWITCH
#else
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif
#ifdef SHIM_RACES
#include <sanitizer/tsan_interface.h>
#endif

#ifdef OWN_SWITCH
// Keeps what a function must keep on the stack that is left, and takes it from the stack that is entered. swapcontext does the
// same and asks the system for the signal mask, which was two thirds of the time of a launch; AddressSanitizer's swapcontext clears what
// it knows of the whole stack besides, which made minutes of seconds.
extern "C" void shim_switch(void **left, void *entered);
asm(R"(
    .text
    .hidden shim_switch
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

__thread Thread *self = nullptr;
Geometry geometry;

namespace {

constexpr unsigned LANES = 32, MOST_THREADS = 1024, MOST_WORDS = 6;

struct Barrier {
    unsigned expected = 0, arrived = 0, generation = 0;
    // Where one generation tells and hears, in turn: of one place a thread that wakes late would also hear what others told on their
    // way to the next. Two are enough, because nobody reaches a generation before all have heard the one before.
    char turns[2] = {};
};

struct Exchange {
    Barrier barrier;
    uint32_t slots[2][LANES][MOST_WORDS + 1]; // a count, and so many words
};

constexpr size_t STACK = 128 * 1024;

// What happens before what: all that was done before `tell(at)` before all that is done after `hear(at)`. Switches from fiber to
// fiber order nothing.
#ifdef SHIM_RACES
void tell(void *at) { __tsan_release(at); }
void hear(void *at) { __tsan_acquire(at); }
#else
void tell(void *) {}
void hear(void *) {}
#endif

// Where a thread of control was left.
struct Fiber {
#ifdef OWN_SWITCH
    void *top;
#ifdef __SANITIZE_ADDRESS__
    const void *stack = nullptr;
    size_t size = 0;
#endif
#ifdef SHIM_RACES
    void *seen = nullptr; // as a thread, to ThreadSanitizer
    bool own = false;
    ~Fiber() {
        if (own)
            __tsan_destroy_fiber(seen);
    }
#endif

    // Makes it one that begins with `entry`, which never returns.
    void start(char *stack, void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
        // Frames of the block before, which were never left.
        __asan_unpoison_memory_region(stack, STACK);
#endif
        // As if `entry` were being called: the registers, where to go, where it would return to; aligned as a call leaves it.
        void **frame = reinterpret_cast<void **>(reinterpret_cast<uintptr_t>(stack + STACK) / 16 * 16) - 8;
        std::memset(frame, 0, 8 * sizeof *frame);
        frame[6] = reinterpret_cast<void *>(entry);
        top = frame;
#ifdef __SANITIZE_ADDRESS__
        this->stack = stack;
        size = STACK;
#endif
#ifdef SHIM_RACES
        if (!own)
            seen = __tsan_create_fiber(0);
        own = true;
#endif
    }
    void leave_for(Fiber &other) {
#ifdef SHIM_RACES
        __tsan_switch_to_fiber(other.seen, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
        void *of_this = nullptr;
        __sanitizer_start_switch_fiber(&of_this, other.stack, other.size);
        shim_switch(&top, other.top);
        __sanitizer_finish_switch_fiber(of_this, nullptr, nullptr);
#else
        shim_switch(&top, other.top);
#endif
    }
#else
    ucontext_t context;

    void start(char *stack, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    void leave_for(Fiber &other) { swapcontext(&context, &other.context); }
#endif
};

struct Worker : Thread {
    unsigned number = 0;
    unsigned operations = 0; // of its warp, so far
    bool done = false;
    Barrier *waits = nullptr;
    unsigned since = 0;
    Fiber fiber;
    std::unique_ptr<char[]> stack;
};

std::mutex one_launch;
std::vector<std::unique_ptr<Worker>> workers;
std::vector<std::unique_ptr<Exchange>> exchanges; // (warps)
std::unique_ptr<Barrier> whole;
std::vector<double> memory;               // aligned for anything that is kept there
void (*entry)(const void *);
const void *entry_args;

Worker &me() { return *static_cast<Worker *>(self); }

Fiber scheduler;
// What the threads of a block hear of its launch, and the launch of them.
char begun, ended;
uint64_t dice = 20261124;

bool runnable(const Worker &w) { return !w.done && (w.waits == nullptr || w.waits->generation != w.since); }

// The thread to run after `last`; null when none can.
Worker *next(unsigned last) {
    const unsigned n = unsigned(workers.size());
    unsigned at = last, step = 1; // in turn
    if (geometry.schedule == 1)
        step = n - 1;
    else if (geometry.schedule == 2) {
        // A linear congruential generator, because the library's are templates: ThreadSanitizer would see them used by many threads.
        dice = dice * 6364136223846793005u + 1442695040888963407u;
        at = unsigned(dice >> 33) % n;
    } else if (geometry.schedule == 3)
        at = last / LANES * LANES;
    for (unsigned i = 0; i < n; i++) {
        Worker &w = *workers[at];
        if (runnable(w))
            return &w;
        at += step;
        if (at >= n)
            at -= n;
    }
    return nullptr;
}

// Runs another thread, or the launch when none can. From one to the other without the launch between: half of the switches, and
// returns that the processor foresees, because all are to the same place.
void rest() {
    Worker &w = me();
    Worker *const other = next(w.number);
    self = other;
    w.fiber.leave_for(other != nullptr ? other->fiber : scheduler);
}

void wait(Barrier &b) {
    Worker &w = me();
    w.since = b.generation;
    char *const turn = &b.turns[b.generation % 2];
    tell(turn);
    if (++b.arrived == b.expected) {
        b.arrived = 0;
        b.generation++;
    } else {
        w.waits = &b;
        rest();
        w.waits = nullptr;
    }
    hear(turn);
}

void begin() {
#if defined(OWN_SWITCH) && defined(__SANITIZE_ADDRESS__)
    const void *stack;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &size);
    // The first to begin comes from the launch.
    if (scheduler.stack == nullptr)
        scheduler.stack = stack, scheduler.size = size;
#endif
    hear(&begun);
    entry(entry_args);
    tell(&ended);
    me().done = true;
    rest();
}

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

// What every lane of the warp has put down for this operation, each behind a count of words; after all of them have.
const uint32_t (&meet(const uint32_t *mine, unsigned count))[LANES][MOST_WORDS + 1] {
    Worker &w = me();
    Exchange &e = *exchanges[w.number / LANES];
    // Two rounds of slots: a lane can be one operation ahead of its warp, never two.
    uint32_t(&slots)[LANES][MOST_WORDS + 1] = e.slots[w.operations++ % 2];
    uint32_t(&slot)[MOST_WORDS + 1] = slots[lane()];
    slot[0] = count;
    if (count == 1)
        slot[1] = *mine; // most of them; calls of memcpy were 6% of a model's time
    else
        std::memcpy(slot + 1, mine, sizeof(uint32_t) * count);
    wait(e.barrier);
    return slots;
}

void agree(const uint32_t (&slot)[MOST_WORDS + 1], unsigned count) {
    if (slot[0] != count) {
        std::fprintf(stderr, "shim: lanes of a warp are at different operations\n");
        std::abort();
    }
}

} // namespace

void gather(const uint32_t *mine, unsigned count, uint32_t *all) {
    const auto &slots = meet(mine, count);
    for (unsigned i = 0; i < LANES; i++) {
        agree(slots[i], count);
        std::memcpy(all + size_t(i) * count, &slots[i][1], sizeof(uint32_t) * count);
    }
}

uint32_t exchange(uint32_t value, uint32_t from) {
    const auto &slots = meet(&value, 1);
    agree(slots[from], 1);
    return slots[from][1];
}

uint32_t ballot(bool set) {
    const uint32_t mine = set;
    const auto &slots = meet(&mine, 1);
    uint32_t word = 0;
    for (unsigned i = 0; i < LANES; i++) {
        agree(slots[i], 1);
        word |= slots[i][1] << i;
    }
    return word;
}

int launch(void (*kernel)(const void *), const void *args, const Geometry &asked) {
    const std::lock_guard<std::mutex> held(one_launch);
    geometry = asked;
    entry = kernel;
    entry_args = args;
    if (!prepare())
        return 1;
#ifdef SHIM_RACES
    scheduler.seen = __tsan_get_current_fiber();
#endif
#if defined(OWN_SWITCH) && defined(__SANITIZE_ADDRESS__)
    scheduler.stack = nullptr; // each launch may be another thread's
#endif
    return each_block([&](Index block) {
        poison();
        for (auto &w : workers) {
            w->block = block;
            w->done = false;
            w->operations = 0;
            w->waits = nullptr;
            if (!w->stack)
                w->stack.reset(new char[STACK]);
            w->fiber.start(w->stack.get(), begin);
        }
        tell(&begun);
        Worker &first = *next(geometry.schedule == 1 ? unsigned(workers.size()) - 1 : 0);
        self = &first;
        scheduler.leave_for(first.fiber);
        for (auto &w : workers)
            if (!w->done) {
                std::fprintf(stderr, "shim: block (%u, %u, %u): thread %u waits for threads that do not come\n", block.x, block.y,
                             block.z, w->number);
                workers.clear(); // their stacks hold frames that will never be left
                return 2;
            }
        hear(&ended);
        return 0;
    });
}

} // namespace shim
