// The triplets that live: the `budget` largest keys.
//
// A key is unique and orders triplets as they are chosen, from its highest bit: whether the triplet is among the
// min_r best of its adapter; its importance in 32 bits; 2^31 - 1 less its index, so that of equal ones the earlier is
// larger.

// As whole numbers, floats keep their order; -0 equals 0, and a NaN is less than all numbers.
static __device__ u32 order_of(float x) {
    if (x != x) return 0;
    if (x == 0.0f) x = 0.0f;
    u32 bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ u64 key_of(const float* importance, i64 triplet) {
    return (u64)order_of(importance[triplet]) << 31 | (u64)(0x7fffffff - triplet);
}

// `adapters` has for each triplet the first triplet of its adapter and the one behind its last.
extern "C" __global__ void __launch_bounds__(THREADS) selection_keys(
    const float* importance, const i64* adapters, i64 count, i64 min_r, u64* keys) {
    i64 triplet = grid_rank();
    if (triplet >= count) return;
    u64 key = key_of(importance, triplet);
    if (min_r > 0) {
        i64 better = 0;
        for (i64 other = adapters[2 * triplet]; other < adapters[2 * triplet + 1] && better < min_r; ++other)
            better += key_of(importance, other) > key;
        if (better < min_r) key |= 1ull << 63;
    }
    keys[triplet] = key;
}

// One block of CHOICE threads, 0 < budget < count. Finds the least key that lives, eight bits at a time from the top:
// counts the digits of the keys whose higher digits are those found, and takes the digit with which enough live.
extern "C" __global__ void __launch_bounds__(CHOICE) keep_top(const u64* keys, i64 count, i64 budget, bool* masked) {
    __shared__ u32 counts[256];
    // Of each digit, the keys with it or a larger one.
    __shared__ u32 from[256];
    __shared__ u32 found_digit, found_above, found_all;
    const int thread = threadIdx.x;
    u64 least = 0, decided = 0;
    // Keys that live of those that agree with `least` in the decided bits.
    u32 left = (u32)budget;
    bool all = false;
    for (int shift = 56; !all; shift -= 8) {
        if (thread < 256) counts[thread] = 0;
        __syncthreads();
        for (i64 triplet = thread; triplet < count; triplet += CHOICE) {
            u64 key = keys[triplet];
            if ((key & decided) == least) atomicAdd(&counts[(key >> shift) & 255], 1u);
        }
        __syncthreads();
        if (thread < 256) from[thread] = counts[thread];
        __syncthreads();
        for (int reach = 1; reach < 256; reach *= 2) {
            u32 beyond = thread + reach < 256 ? from[thread + reach] : 0;
            __syncthreads();
            if (thread < 256) from[thread] += beyond;
            __syncthreads();
        }
        if (thread < 256) {
            u32 above = from[thread] - counts[thread];
            if (above < left && left <= from[thread]) {
                found_digit = thread;
                found_above = above;
                found_all = left == from[thread];
            }
        }
        __syncthreads();
        least |= (u64)found_digit << shift;
        decided |= 255ull << shift;
        left -= found_above;
        // Where all that are left live, the digits below do not matter. In the last digit it is so, as keys are unique.
        all = found_all;
    }
    for (i64 triplet = thread; triplet < count; triplet += CHOICE) masked[triplet] = keys[triplet] < least;
}
