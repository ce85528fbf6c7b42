// Running averages of sensitivity and uncertainty: 24 bytes of traffic a value, the score included.

struct Averages {
    float* sensitivity;
    float* uncertainty;
    const float* param;
    const float* grad;
    // Shares of the old average and of the new value.
    float keep1, take1, keep2, take2;

    __device__ void step(float& s, float& u, float w, float g) const {
        float now = fabsf(w * g);
        s = keep1 * s + take1 * now;
        u = keep2 * u + take2 * fabsf(now - s);
    }

    // Updates one value and gives the product of its averages.
    __device__ float one(i64 i) const {
        float s = sensitivity[i], u = uncertainty[i];
        step(s, u, param[i], grad[i]);
        sensitivity[i] = s;
        uncertainty[i] = u;
        return s * u;
    }

    // Updates four values and gives the sum of the products.
    __device__ float four(i64 i) const {
        float4 s = four_at(sensitivity, i), u = four_at(uncertainty, i);
        float4 w = four_at(param, i), g = four_at(grad, i);
        step(s.x, u.x, w.x, g.x);
        step(s.y, u.y, w.y, g.y);
        step(s.z, u.z, w.z, g.z);
        step(s.w, u.w, w.w, g.w);
        four_at(sensitivity, i) = s;
        four_at(uncertainty, i) = u;
        return (s.x * u.x + s.y * u.y) + (s.z * u.z + s.w * u.w);
    }

    // Values from `offset` to a boundary that all four buffers share; `count` if they share none.
    __device__ i64 head(i64 offset, i64 count) const {
        bool alike = aligned_alike(sensitivity, uncertainty) && aligned_alike(sensitivity, param) &&
                     aligned_alike(sensitivity, grad);
        return alike ? values_to_boundary(sensitivity + offset) : count;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) smooth(
    float* sensitivity, float* uncertainty, const float* param, const float* grad, float keep1, float take1,
    float keep2, float take2, i64 count) {
    Averages averages{sensitivity, uncertainty, param, grad, keep1, take1, keep2, take2};
    share_out(
        count, averages.head(0, count), grid_rank(), grid_ranks(), [&](i64 i) { averages.one(i); },
        [&](i64 i) { averages.four(i); });
}

// One block for each triplet.
extern "C" __global__ void __launch_bounds__(THREADS) smooth_and_score(
    float* sensitivity, float* uncertainty, const float* param, const float* grad, float keep1, float take1,
    float keep2, float take2, const i64* first, const i64* rows, i64 lambda, float* score) {
    Averages averages{sensitivity, uncertainty, param, grad, keep1, take1, keep2, take2};
    float sum = triplet_sum(
        Triplets{first, rows, lambda}, blockIdx.x,
        [&](i64 offset, i64 cols) { return averages.head(offset, cols); }, [&](i64 i) { return averages.one(i); },
        [&](i64 i) { return averages.four(i); });
    if (threadIdx.x == 0) score[blockIdx.x] = sum;
}
