// Importance of each triplet: its rows' means and its lambda entry.

// Which values of a flat buffer belong to a triplet; tables.rs makes the arrays.
struct Triplets {
    // Of each triplet its first row among `rows`, and the number of all rows at the end.
    const i64* first;
    // Offset and length of each row.
    const i64* rows;
    // The first lambda; negative if there are none.
    i64 lambda;
};

// The mean over each row of a triplet and its lambda entry, added up. one(i) gives the value at i, four(i) the sum of
// those from i to i + 3; each value is asked for once, which may change it. head(i) is what share_out needs for a row
// that begins at i. To be called by a whole block; its first thread is told the sum.
template <class Head, class One, class Four>
static __device__ float triplet_sum(const Triplets& triplets, i64 triplet, Head head, One one, Four four) {
    float own = 0.0f;
    for (i64 row = triplets.first[triplet]; row < triplets.first[triplet + 1]; ++row) {
        i64 offset = triplets.rows[2 * row];
        i64 cols = triplets.rows[2 * row + 1];
        float part = 0.0f;
        share_out(
            cols, head(offset, cols), threadIdx.x, THREADS,
            [&](i64 i) { part += one(offset + i); }, [&](i64 i) { part += four(offset + i); });
        own += part / (float)cols;
    }
    float sum = block_sum(own);
    if (threadIdx.x == 0 && triplets.lambda >= 0) sum += one(triplets.lambda + triplet);
    return sum;
}

// One block for each triplet.
extern "C" __global__ void __launch_bounds__(THREADS) triplet_mean(
    const float* entries, const i64* first, const i64* rows, i64 lambda, float* mean) {
    float sum = triplet_sum(
        Triplets{first, rows, lambda}, blockIdx.x, [&](i64 offset, i64) { return values_to_boundary(entries + offset); },
        [&](i64 i) { return entries[i]; },
        [&](i64 i) {
            float4 x = four_at(entries, i);
            return (x.x + x.y) + (x.z + x.w);
        });
    if (threadIdx.x == 0) mean[blockIdx.x] = sum;
}
