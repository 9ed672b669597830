// runtime/cuda/kernels.cu compiled for the processor: every thread of a grid in turn, arguments unpacked from one buffer
// as the CUDA driver does, each at its own alignment. Rounding is that of the intrinsics it stands in for: compile
// with -ffp-contract=off.
#include <cmath>
#include <cstddef>
#include <cstring>
#include <tuple>
#include <utility>

#include <cuda_fp16.h>

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static double __dmul_rn(double a, double b) { return a * b; }
static double __dadd_rn(double a, double b) { return a + b; }
static unsigned __float_as_uint(float a) { unsigned b; std::memcpy(&b, &a, 4); return b; }
static long long __double_as_longlong(double a) { long long b; std::memcpy(&b, &a, 8); return b; }
static void atomicAdd(unsigned long long* at, unsigned long long value) { *at += value; }

#include KERNELS

template <class T> T next(const char*& at, const char* begin) {
    std::size_t offset = at - begin;
    offset = (offset + alignof(T) - 1) / alignof(T) * alignof(T);
    T value;
    std::memcpy(&value, begin + offset, sizeof(T));
    at = begin + offset + sizeof(T);
    return value;
}

template <class... A> int run(void (*kernel)(A...), const char* buffer) {
    const char* at = buffer;
    std::tuple<A...> arguments{next<A>(at, buffer)...};  // braces evaluate from left to right
    for (unsigned z = 0; z < gridDim.z; z++)
        for (unsigned y = 0; y < gridDim.y; y++)
            for (unsigned x = 0; x < gridDim.x; x++)
                for (unsigned v = 0; v < blockDim.y; v++)
                    for (unsigned u = 0; u < blockDim.x; u++) {
                        blockIdx = {x, y, z};
                        threadIdx = {u, v, 0};
                        std::apply(kernel, arguments);
                    }
    return int(at - buffer);
}

// Bytes of arguments that the kernel took, -1 for an unknown name.
extern "C" int launch(const char* name, const unsigned* grid, const unsigned* block, const char* arguments) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
#define VOXEL(T, WIDE) \
    if (!std::strcmp(name, "digest_" #T)) return run(digest_##T, arguments); \
    if (!std::strcmp(name, "gather_" #T "_half")) return run(gather_##T##_half, arguments); \
    if (!std::strcmp(name, "gather_" #T "_float")) return run(gather_##T##_float, arguments); \
    if (!std::strcmp(name, "slices_" #T)) return run(slices_##T, arguments); \
    if (!std::strcmp(name, "store_" #T)) return run(store_##T, arguments);
    FOR_EACH_VOXEL_TYPE(VOXEL)
#define NETWORK(NAME, N) if (!std::strcmp(name, "blend_" #NAME)) return run(blend_##NAME, arguments);
    FOR_EACH_NETWORK_TYPE(NETWORK)
#define ONE(NAME) if (!std::strcmp(name, #NAME)) return run(NAME, arguments);
    ONE(products) ONE(weighted) ONE(missing) ONE(corrected) ONE(mean_of_three)
    return -1;
}
