// Just enough of a GPU to run the kernels on a processor: one block at a time, each of its threads a fiber. With SHIM_RACES the
// shim, itself without instrumentation, tells ThreadSanitizer that fibers are threads, and what barriers order. Shared memory is
// poisoned (NaN) before each block. A warp operation or a barrier that some threads do not reach is an error, not a hang; so is
// one that lanes reach at different places.
#ifndef APL_FFI_KERNELS_SHIM_H
#define APL_FFI_KERNELS_SHIM_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace shim {

struct Index {
    unsigned x, y, z;
};
struct Thread {
    Index thread, block;
};
struct Geometry {
    Index grid, block;
    unsigned shared_bytes;
    int schedule; // 0 forward, 1 reverse, 2 random, 3 greedy: a warp runs as far as the barriers let it
};
extern __thread Thread *self; // not thread_local, which would have every use ask whether it is initialised
extern Geometry geometry;

uint32_t lane();
void *shared();
void block_sync();
// The values of all lanes, (32, count), count at most 6; all lanes must ask, for as many.
void gather(const uint32_t *mine, unsigned count, uint32_t *all);
uint32_t exchange(uint32_t value, uint32_t from);
uint32_t ballot(bool set);

// 0; 1 for a geometry that no device takes, 2 for threads that wait for each other for ever. One launch at a time.
int launch(void (*kernel)(const void *), const void *args, const Geometry &geometry);

} // namespace shim

#define DEVICE inline
#define threadIdx (shim::self->thread)
#define blockIdx (shim::self->block)
#define gridDim (shim::geometry.grid)
#define KERNEL_WITH(threads, blocks, name, Args)                                                                                 \
    static void name(const Args &args);                                                                                         \
    extern "C" unsigned name##_args_bytes() { return sizeof(Args); }                                                            \
    extern "C" int name##_host(const void *args, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,   \
                               unsigned shared_bytes, int schedule) {                                                           \
        if (bx * by * bz > threads)                                                                                              \
            return 1;                                                                                                            \
        return shim::launch([](const void *a) { name(*static_cast<const Args *>(a)); }, args,                                   \
                            {{gx, gy, gz}, {bx, by, bz}, shared_bytes, schedule});                                               \
    }                                                                                                                            \
    static void name(const Args &args)

#endif
