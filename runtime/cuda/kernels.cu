// The CUDA pipeline's kernels: hash, gather, blend and store windows. Driven by workspace.py.
//
// Arithmetic is the host pipeline's, operation by operation: products and sums are rounded apart (no fused
// multiply-add), windows are blended in one fixed order by one thread a voxel. So an identity network gives the
// volume back bit for bit, whatever the number of streams. Thread x runs along columns, y along rows.
// A test compiles this very file for the CPU and holds it to the host pipeline.

#include <cuda_fp16.h>

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned char uint8;
typedef signed char int8;
typedef unsigned short uint16;
typedef short int16;
typedef unsigned int uint32;
typedef int int32;
typedef unsigned long long uint64;
typedef long long int64;
typedef float float32;
typedef double float64;

// An LR volume as it lies in memory: sizes in voxels, steps in elements.
struct Volume {
    int rows, columns, slices;
    i64 row, column, slice;
};

// Sizes of one window, LR.
struct Window {
    int slices, rows, columns;
};

// One axis of the plan, HR voxels: where each window begins to count, where earlier windows end, where it ends,
// and where its voxel 0 lies. share: of the voxels from low to seen, those of all windows one after the other,
// which of a window begin at offset.
struct Span {
    int low, seen, high, skip, offset;
};

// Voxel numbers outside 0..size-1 replaced by their mirror image about the end voxels' centres.
static __device__ int reflect(int index, int size) {
    if (size == 1) return 0;
    int period = 2 * size - 2;
    int folded = (index < 0 ? -index : index) % period;
    return folded < period - folded ? folded : period - folded;
}

template <class T>
static __device__ T voxel(const T* volume, const Volume& v, const int* start, int slice, int row, int column) {
    return volume[reflect(start[0] + row, v.rows) * v.row + reflect(start[1] + column, v.columns) * v.column +
                  reflect(start[2] + slice, v.slices) * v.slice];
}

static __device__ u64 mix(u64 x) {  // splitmix64's finaliser
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

template <class T> static __device__ u64 bits(T value) { return (u64)value; }
template <> __device__ u64 bits(float value) { return (u64)__float_as_uint(value); }
template <> __device__ u64 bits(double value) { return (u64)__double_as_longlong(value); }

// 128 bits that tell windows apart: two sums of hashed (value, place), which no order of threads changes.
template <class T>
static __device__ void digest(const T* volume, Volume v, const int* starts, Window w, u64* digests) {
    int window = blockIdx.x;
    int size = w.slices * w.rows * w.columns;
    u64 first = 0, second = 0;
    for (int n = blockIdx.y * blockDim.x + threadIdx.x; n < size; n += gridDim.y * blockDim.x) {
        int column = n % w.columns, row = n / w.columns % w.rows, slice = n / (w.columns * w.rows);
        u64 value = mix(bits(voxel(volume, v, starts + 3 * window, slice, row, column)) + 0x9e3779b97f4a7c15ULL);
        first += mix(value + (u64)n);
        second += mix(value ^ mix((u64)n + 1));
    }
    atomicAdd(digests + 2 * window, first);
    atomicAdd(digests + 2 * window + 1, second);
}

static __device__ void put(float* out, float value) { *out = value; }
static __device__ void put(__half* out, float value) { *out = __float2half_rn(value); }
static __device__ float get(float value) { return value; }
static __device__ float get(__half value) { return __half2float(value); }

// Windows (N, slices, rows, columns) in the network's range: voxel * gain + offset.
template <class T, class N>
static __device__ void gather(const T* volume, Volume v, const int* starts, Window w, float gain, float offset,
                              N* out) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    int slice = blockIdx.z % w.slices, window = blockIdx.z / w.slices;
    if (column >= w.columns || row >= w.rows) return;
    float value = (float)voxel(volume, v, starts + 3 * window, slice, row, column);
    value = __fadd_rn(__fmul_rn(value, gain), offset);
    put(out + (((i64)window * w.slices + slice) * w.rows + row) * w.columns + column, value);
}

static __device__ float toward(float mean, float value, float share) {
    return __fadd_rn(mean, __fmul_rn(__fsub_rn(value, mean), share));
}

// One slab's windows into the mean so far: columns into a band, bands into the slab, the slab into the volume.
// pool: outputs (·, depth, rows, columns) of HR windows; at: which of them each window of the slab has, row by
// row. mean: (depth, rows, columns) of the HR volume, HR slice z at z modulo depth.
template <class N>
static __device__ void blend(const N* pool, const int* at, Window w, const Span* rows, int row_count,
                             const float* row_shares, const Span* columns, int column_count,
                             const float* column_shares, Span slab, const float* slab_shares, int height, int width,
                             float* mean) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    int z = slab.low + blockIdx.z;
    if (x >= width || y >= height || z >= slab.high) return;
    float value = 0;
    for (int i = 0; i < row_count; i++) {
        Span r = rows[i];
        if (y < r.low || y >= r.high) continue;
        float band = 0;
        for (int j = 0; j < column_count; j++) {
            Span c = columns[j];
            if (x < c.low || x >= c.high) continue;
            i64 place = ((i64)at[i * column_count + j] * w.slices + (z - slab.skip)) * w.rows + (y - r.skip);
            float fresh = get(pool[place * w.columns + (x - c.skip)]);
            band = x < c.seen ? toward(band, fresh, column_shares[c.offset + x - c.low]) : fresh;
        }
        value = y < r.seen ? toward(value, band, row_shares[r.offset + y - r.low]) : band;
    }
    float* here = mean + ((i64)(z % w.slices) * height + y) * width + x;
    *here = z < slab.seen ? toward(*here, value, slab_shares[slab.offset + z - slab.low]) : value;
}

static __device__ float product(float a, float b) { return __fmul_rn(a, b); }
static __device__ double product(double a, double b) { return __dmul_rn(a, b); }
static __device__ float sum(float a, float b) { return __fadd_rn(a, b); }
static __device__ double sum(double a, double b) { return __dadd_rn(a, b); }
static __device__ float whole(float value) { return rintf(value); }
static __device__ double whole(double value) { return rint(value); }

// Finished HR slices first.. as stored voxels, in an order of their own; wide: the type to compute in.
// flaw becomes 1 where a value is NaN or infinite.
template <class T, class Wide>
static __device__ void store(const float* mean, int depth, int height, int width, int first, i64 row, i64 column,
                             i64 slice, double gain, double offset, double low, double high, int rounded, T* out,
                             int* flaw) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    float found = mean[((i64)((first + blockIdx.z) % depth) * height + y) * width + x];
    if (!(fabsf(found) < INFINITY)) *flaw = 1;
    Wide value = sum(product((Wide)found, (Wide)gain), (Wide)offset);
    value = value < (Wide)low ? (Wide)low : value > (Wide)high ? (Wide)high : value;
    out[y * row + x * column + blockIdx.z * slice] = (T)(rounded ? whole(value) : value);
}

// The measured band: what pipeline/consistency.py does to planes (rows, columns), in its order. Planes lie in rings:
// number n at n modulo the ring's size.

template <int PASSES>
static __device__ float smooth(const float* plane, int rows, int columns, int y, int x) {
    int size = PASSES % 2 ? rows : columns, place = PASSES % 2 ? y : x;
    int before = place > 0 ? place - 1 : 0, after = place + 1 < size ? place + 1 : place;
    float found[3];
    for (int i = 0; i < 3; i++) {
        int there = i == 0 ? before : i == 1 ? place : after;
        found[i] = PASSES % 2 ? smooth<PASSES - 1>(plane, rows, columns, there, x)
                              : smooth<PASSES - 1>(plane, rows, columns, y, there);
    }
    return sum(sum(product(0.25f, found[0]), product(0.5f, found[1])), product(0.25f, found[2]));
}
template <> __device__ float smooth<0>(const float* plane, int rows, int columns, int y, int x) {
    return fabsf(plane[(i64)y * columns + x]);
}

// How far a voxel is tissue, 0 to 1; span 0: all is.
static __device__ float tissue(const float* plane, int rows, int columns, int y, int x, float air, float span) {
    if (span <= 0) return 1;
    float found = __fsub_rn(smooth<4>(plane, rows, columns, y, x), air) / span;
    return found < 0 ? 0 : found > 1 ? 1 : found;
}

// LR slices first.. in the network's range.
template <class T>
static __device__ void slices(const T* volume, Volume v, int first, float gain, float offset, float* out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= v.columns || y >= v.rows) return;
    float value = (float)volume[y * v.row + x * v.column + (i64)(first + blockIdx.z) * v.slice];
    out[((i64)blockIdx.z * v.rows + y) * v.columns + x] = sum(product(value, gain), offset);
}

// Products of planes (rows, inner) and (inner, columns), either of which may be one matrix for all, a ring of one. A
// thread has several rows, so that it reads the voxels of a column once for all of them.
#define ROWS_OF_A_THREAD 4
extern "C" __global__ void products(const float* left, int left_ring, int left_first, const float* right,
                                    int right_ring, int right_first, int rows, int inner, int columns, float* out,
                                    int ring, int first) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, z = blockIdx.z;
    int y = (blockIdx.y * blockDim.y + threadIdx.y) * ROWS_OF_A_THREAD;
    if (x >= columns || y >= rows) return;
    const float* row[ROWS_OF_A_THREAD];
#pragma unroll
    for (int i = 0; i < ROWS_OF_A_THREAD; i++)  // beyond the last row, that one again
        row[i] = left + ((i64)((left_first + z) % left_ring) * rows + (y + i < rows ? y + i : rows - 1)) * inner;
    const float* column = right + (i64)((right_first + z) % right_ring) * inner * columns + x;
    float total[ROWS_OF_A_THREAD] = {};
    for (int n = 0; n < inner; n++) {
        float value = column[(i64)n * columns];
#pragma unroll
        for (int i = 0; i < ROWS_OF_A_THREAD; i++) total[i] = sum(total[i], product(row[i][n], value));
    }
    float* place = out + ((i64)((first + z) % ring) * rows + y) * columns + x;
#pragma unroll
    for (int i = 0; i < ROWS_OF_A_THREAD; i++)
        if (y + i < rows) place[(i64)i * columns] = total[i];
}

// Weighted sums of planes of `size` voxels: number first.. has those from ends[number] to ends[number + 1].
extern "C" __global__ void weighted(const float* planes, int ring, int size, const int* numbers, const float* weights,
                                    const int* ends, int first, float* out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= size) return;
    int number = first + blockIdx.z;
    float total = 0;
    for (int n = ends[number]; n < ends[number + 1]; n++)
        total = sum(total, product(planes[(i64)(numbers[n] % ring) * size + x], weights[n]));
    out[(i64)blockIdx.z * size + x] = total;
}

// What the scan has and the SR volume, seen by the scanner, has not.
extern "C" __global__ void missing(const float* lr, const float* seen, int rows, int columns, float share, float air,
                                   float span, float detail, float* out, int ring, int first) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y, z = blockIdx.z;
    if (x >= columns || y >= rows) return;
    i64 size = (i64)rows * columns, place = z * size + (i64)y * columns + x;
    float found = product(__fsub_rn(lr[place], seen[place]), share);
    found = product(found, tissue(lr + z * size, rows, columns, y, x, air, span));
    out[((first + z) % ring) * size + (i64)y * columns + x] = __fsub_rn(found, product(detail, seen[place]));
}

extern "C" __global__ void corrected(const float* sr, int ring, int first, const float* added, int rows, int columns,
                                     float air, float span, float detail, float* out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y, z = blockIdx.z;
    if (x >= columns || y >= rows) return;
    i64 size = (i64)rows * columns, at = (i64)y * columns + x;
    const float* plane = sr + ((first + z) % ring) * size;
    float more = sum(added[z * size + at], product(detail, plane[at]));
    out[z * size + at] = sum(plane[at], product(more, tissue(plane, rows, columns, y, x, air, span)));
}

// The mean over slabs along three axes: of finished HR slices first.. and those of volumes (slices, rows, columns).
extern "C" __global__ void mean_of_three(float* mean, int depth, int height, int width, int first, const float* second,
                                         const float* third) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    int slice = first + blockIdx.z;
    if (x >= width || y >= height) return;
    i64 size = (i64)height * width, at = (i64)y * width + x, whole = slice * size + at;
    float* here = mean + (slice % depth) * size + at;
    *here = sum(sum(*here, second[whole]), third[whole]) / 3;
}

#define FOR_EACH_NETWORK_TYPE(X) X(half, __half) X(float, float)
#define FOR_EACH_VOXEL_TYPE(X) \
    X(uint8, float) X(int8, float) X(uint16, float) X(int16, float) X(uint32, double) X(int32, double) \
    X(uint64, double) X(int64, double) X(float32, float) X(float64, float)

#define VOXEL_KERNELS(T, WIDE) \
    extern "C" __global__ void digest_##T(const T* volume, Volume v, const int* starts, Window w, u64* digests) { \
        digest(volume, v, starts, w, digests); \
    } \
    extern "C" __global__ void gather_##T##_half(const T* volume, Volume v, const int* starts, Window w, \
                                                 float gain, float offset, __half* out) { \
        gather(volume, v, starts, w, gain, offset, out); \
    } \
    extern "C" __global__ void gather_##T##_float(const T* volume, Volume v, const int* starts, Window w, \
                                                  float gain, float offset, float* out) { \
        gather(volume, v, starts, w, gain, offset, out); \
    } \
    extern "C" __global__ void slices_##T(const T* volume, Volume v, int first, float gain, float offset, \
                                          float* out) { \
        slices(volume, v, first, gain, offset, out); \
    } \
    extern "C" __global__ void store_##T(const float* mean, int depth, int height, int width, int first, i64 row, \
                                         i64 column, i64 slice, double gain, double offset, double low, double high, \
                                         int rounded, T* out, int* flaw) { \
        store<T, WIDE>(mean, depth, height, width, first, row, column, slice, gain, offset, low, high, rounded, out, \
                       flaw); \
    }
FOR_EACH_VOXEL_TYPE(VOXEL_KERNELS)

#define BLEND_KERNEL(NAME, N) \
    extern "C" __global__ void blend_##NAME( \
        const N* pool, const int* at, Window w, const Span* rows, int row_count, const float* row_shares, \
        const Span* columns, int column_count, const float* column_shares, Span slab, const float* slab_shares, \
        int height, int width, float* mean) { \
        blend(pool, at, w, rows, row_count, row_shares, columns, column_count, column_shares, slab, slab_shares, \
              height, width, mean); \
    }
FOR_EACH_NETWORK_TYPE(BLEND_KERNEL)
