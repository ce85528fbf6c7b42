// The Euclidean norm of a flat buffer, and its scaling by a factor that stays on the device.

// Each block's sum of squares.
extern "C" __global__ void __launch_bounds__(THREADS) square_sums(const float* values, i64 count, float* sums) {
    float own = 0.0f;
    share_out(
        count, values_to_boundary(values), grid_rank(), grid_ranks(), [&](i64 i) { own += values[i] * values[i]; },
        [&](i64 i) {
            float4 x = four_at(values, i);
            own += (x.x * x.x + x.y * x.y) + (x.z * x.z + x.w * x.w);
        });
    float sum = block_sum(own);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block.
extern "C" __global__ void __launch_bounds__(THREADS) root_of_sum(const float* sums, i64 count, float* root) {
    float own = 0.0f;
    for (i64 i = threadIdx.x; i < count; i += THREADS) own += sums[i];
    float sum = block_sum(own);
    if (threadIdx.x == 0) *root = sqrtf(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) clip(
    float* values, i64 count, const float* norm, float max_norm, float* factor) {
    float by = max_norm / (*norm + 1e-6f);
    // Not fminf, which would turn the NaN of a diverged run into 1.
    if (by > 1.0f) by = 1.0f;
    if (grid_rank() == 0) *factor = by;
    if (by == 1.0f) return;
    share_out(
        count, values_to_boundary(values), grid_rank(), grid_ranks(), [&](i64 i) { values[i] *= by; },
        [&](i64 i) {
            float4 x = four_at(values, i);
            x.x *= by;
            x.y *= by;
            x.z *= by;
            x.w *= by;
            four_at(values, i) = x;
        });
}
