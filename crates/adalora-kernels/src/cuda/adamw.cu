// AdamW over a flat buffer whose ranges decay differently.

// Ranges that follow each other from 0: each ends where `ends` says and its weights shrink by the factor in `shrink`.
// Passed by value, so nothing is copied to the device for it.
struct Decay {
    i64 ends[RUNS];
    float shrink[RUNS];
};

struct Moments {
    float take1, keep2, take2, rate, root, eps;

    __device__ void step(float& w, float g, float& m, float& v, float shrink) const {
        m += take1 * (g - m);
        v = keep2 * v + take2 * (g * g);
        w = w * shrink - rate * (m / (sqrtf(v) / root + eps));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) adamw(
    float* param, const float* grad, float* exp_avg, float* exp_avg_sq, i64 count, Decay decay, float take1,
    float keep2, float take2, float rate, float root, float eps) {
    Moments moments{take1, keep2, take2, rate, root, eps};
    bool alike = aligned_alike(param, grad) && aligned_alike(param, exp_avg) && aligned_alike(param, exp_avg_sq);
    // What a thread asks for grows within each of the three loops of `share_out`, and from one to the next.
    int run = 0;
    auto shrink = [&](i64 i) {
        while (i >= decay.ends[run]) ++run;
        return decay.shrink[run];
    };
    share_out(
        count, alike ? values_to_boundary(param) : count, grid_rank(), grid_ranks(),
        [&](i64 i) {
            float w = param[i], m = exp_avg[i], v = exp_avg_sq[i];
            moments.step(w, grad[i], m, v, shrink(i));
            param[i] = w;
            exp_avg[i] = m;
            exp_avg_sq[i] = v;
        },
        [&](i64 i) {
            float4 w = four_at(param, i), m = four_at(exp_avg, i), v = four_at(exp_avg_sq, i);
            float4 g = four_at(grad, i);
            moments.step(w.x, g.x, m.x, v.x, shrink(i));
            moments.step(w.y, g.y, m.y, v.y, shrink(i + 1));
            moments.step(w.z, g.z, m.z, v.z, shrink(i + 2));
            moments.step(w.w, g.w, m.w, v.w, shrink(i + 3));
            four_at(param, i) = w;
            four_at(exp_avg, i) = m;
            four_at(exp_avg_sq, i) = v;
        });
}
