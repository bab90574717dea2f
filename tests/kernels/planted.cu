// Kernels with bugs, which the shim has to find: a check that cannot fail is none.
#include "../../kernels/primitives.cuh"

struct PlantedArgs {
    uint64_t out; // float (threads)
};

// A lane is missing from a shuffle.
KERNEL(64, planted_divergence, PlantedArgs) {
    if (threadIdx.x != 3)
        out<float>(args.out)[threadIdx.x] = warp_sum(1.0f);
}

// Nothing stands between what one warp writes and another reads.
KERNEL(64, planted_race, PlantedArgs) {
    float *shared = shared_floats();
    shared[threadIdx.x] = 1.0f;
    out<float>(args.out)[threadIdx.x] = shared[63 - threadIdx.x];
}

// The same between two barriers.
KERNEL(64, planted_between, PlantedArgs) {
    float *shared = shared_floats();
    block_sync();
    shared[threadIdx.x] = 1.0f;
    const float other = shared[63 - threadIdx.x];
    block_sync();
    out<float>(args.out)[threadIdx.x] = other;
}

// One round's readers are overtaken by the next round's writers: only a warp that runs ahead shows it.
KERNEL(64, planted_loop, PlantedArgs) {
    float *shared = shared_floats();
    float sum = 0.0f;
    for (uint32_t round = 0; round < 2; round++) {
        if (threadIdx.x == 0)
            shared[0] = static_cast<float>(round + 1);
        block_sync();
        sum += warp_sum(0.0f) + shared[0];
    }
    out<float>(args.out)[threadIdx.x] = sum;
}
