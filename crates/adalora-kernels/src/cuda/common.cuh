// What the kernels share. All of them are one program, this file first; mod.rs defines THREADS, TILE, DEPTH, CHOICE
// and RUNS. Products are not contracted with sums unless fmaf says so, hence one rounding for each operator, as in
// the plain references.

typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#define WARP 32
#define ALL_LANES 0xffffffffu

// The sum over the threads of a block of THREADS, told to each of them. One order, whatever is scheduled when. No
// thread may be missing.
static __device__ float block_sum(float own) {
    __shared__ float warps[THREADS / WARP];
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) own += __shfl_xor_sync(ALL_LANES, own, lanes);
    // Another sum of this block may still be read.
    __syncthreads();
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = own;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < THREADS / WARP; ++warp) sum += warps[warp];
    return sum;
}

// Values from `p` to the next 16-byte boundary.
static __device__ i64 values_to_boundary(const float* p) { return (16 - (i64)((u64)p & 15)) % 16 / 4; }

// Whether boundaries of 16 bytes fall on the same values of both buffers.
static __device__ bool aligned_alike(const float* p, const float* q) { return (((u64)p ^ (u64)q) & 15) == 0; }

// Shares the values 0 to count - 1 out among `ranks` threads, of which the caller is `rank`: four(i) takes i to i + 3,
// which lie at a boundary if 0 lies `head` values before one; one(i) takes a single value before or behind those.
template <class One, class Four>
static __device__ void share_out(i64 count, i64 head, i64 rank, i64 ranks, One one, Four four) {
    if (head > count) head = count;
    i64 tail = head + (count - head) / 4 * 4;
    for (i64 i = rank; i < head; i += ranks) one(i);
    for (i64 i = head + 4 * rank; i < tail; i += 4 * ranks) four(i);
    for (i64 i = tail + rank; i < count; i += ranks) one(i);
}

// This thread among those of all blocks, and how many they are.
static __device__ i64 grid_rank() { return (i64)blockIdx.x * THREADS + threadIdx.x; }
static __device__ i64 grid_ranks() { return (i64)gridDim.x * THREADS; }

static __device__ float4& four_at(float* p, i64 i) { return *reinterpret_cast<float4*>(p + i); }
static __device__ float4 four_at(const float* p, i64 i) { return *reinterpret_cast<const float4*>(p + i); }
