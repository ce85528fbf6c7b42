// Value and gradient of the regularizer for all factors at once, in two launches: the residuals M = A A^T - I, tile by
// tile, then M A into the gradient.

// A factor with rows; tables.rs writes the six numbers.
struct Factor {
    // In the flat buffer.
    i64 offset, rows, cols;
    // Of its residual among the residuals, and of its tiles among the tiles.
    i64 residual, first_tile, tiles;

    __device__ Factor(const i64* factors, i64 index)
        : offset(factors[6 * index]), rows(factors[6 * index + 1]), cols(factors[6 * index + 2]),
          residual(factors[6 * index + 3]), first_tile(factors[6 * index + 4]), tiles(factors[6 * index + 5]) {}
};

// Columns `from` to from + DEPTH - 1 of the TILE rows from `row` on, 0 where there are none.
static __device__ void load_rows(float (*into)[DEPTH + 1], const float* a, i64 row, i64 rows, i64 from, i64 cols) {
#pragma unroll
    for (int i = 0; i < TILE * DEPTH / THREADS; ++i) {
        int r = (i * THREADS + threadIdx.x) / DEPTH, c = (i * THREADS + threadIdx.x) % DEPTH;
        into[r][c] = row + r < rows && from + c < cols ? a[(row + r) * cols + from + c] : 0.0f;
    }
}

// One block for each tile of a residual on or below the diagonal: `tiles` has its factor, row and column. Writes the
// tile and its mirror image, and the sum of their squares.
//
// Each TILE threads add up every sixteenth column, each of them for four times four entries. Four blocks fit into a
// multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 4) residuals(
    const float* param, const i64* factors, const i64* tiles, float* residual, float* squares) {
    __shared__ float left[TILE][DEPTH + 1];
    __shared__ float right[TILE][DEPTH + 1];
    Factor factor(factors, tiles[3 * blockIdx.x]);
    i64 row = tiles[3 * blockIdx.x + 1], col = tiles[3 * blockIdx.x + 2];
    const float* a = param + factor.offset;
    const int share = threadIdx.x / TILE, y = threadIdx.x % TILE / 4, x = threadIdx.x % 4;
    float(*other)[DEPTH + 1] = row == col ? left : right;
    float sums[4][4] = {};
    for (i64 from = 0; from < factor.cols; from += DEPTH) {
        load_rows(left, a, row, factor.rows, from, factor.cols);
        if (row != col) load_rows(right, a, col, factor.rows, from, factor.cols);
        __syncthreads();
#pragma unroll 2
        for (int k = share; k < DEPTH; k += THREADS / TILE) {
            float l[4], r[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                l[i] = left[y + 4 * i][k];
                r[i] = other[x + 4 * i][k];
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(l[i], r[j], sums[i][j]);
        }
        __syncthreads();
    }
    // The shares of each entry stand in `left`, which is no longer needed.
    static_assert(sizeof left >= sizeof(float) * THREADS * TILE, "one share for each thread and entry");
    float* shares = &left[0][0];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) shares[share * TILE * TILE + (y + 4 * i) * TILE + x + 4 * j] = sums[i][j];
    __syncthreads();
    i64 i = row + threadIdx.x / TILE, j = col + threadIdx.x % TILE;
    float square = 0.0f;
    if (i < factor.rows && j < factor.rows) {
        float entry = 0.0f;
        for (int k = 0; k < THREADS / TILE; ++k) entry += shares[k * TILE * TILE + threadIdx.x];
        if (i == j) entry -= 1.0f;
        square = entry * entry;
        residual[factor.residual + i * factor.rows + j] = entry;
        if (row != col) {
            residual[factor.residual + j * factor.rows + i] = entry;
            square *= 2.0f;
        }
    }
    square = block_sum(square);
    if (threadIdx.x == 0) squares[blockIdx.x] = square;
}

// One block for each strip of TILE rows and THREADS columns of a factor: `strips` has the factor, its first row and
// column. One block more for the value.
//
// With `norms` the value is the sum of norms times `share` and the gradient is divided by the norm of its factor;
// without, it is the sum of squares.
extern "C" __global__ void __launch_bounds__(THREADS) residual_gradient(
    const float* param, float* grad, const i64* factors, i64 count, const i64* strips, const float* residual,
    const float* squares, i64 norms, float share, float scale, float* value) {
    __shared__ float part[TILE][TILE];
    if (blockIdx.x == gridDim.x - 1) {
        float own = 0.0f;
        for (i64 index = threadIdx.x; index < count; index += THREADS) {
            Factor factor(factors, index);
            float square = 0.0f;
            for (i64 tile = 0; tile < factor.tiles; ++tile) square += squares[factor.first_tile + tile];
            own += norms ? sqrtf(square) * share : square;
        }
        float sum = block_sum(own);
        if (threadIdx.x == 0) *value = sum;
        return;
    }
    Factor factor(factors, strips[3 * blockIdx.x]);
    i64 row = strips[3 * blockIdx.x + 1], col = strips[3 * blockIdx.x + 2] + threadIdx.x;
    // Rows of the strip; of the tile of M, the place that this thread fills.
    const int rows = (int)(factor.rows - row < TILE ? factor.rows - row : TILE);
    const int y = threadIdx.x / TILE, x = threadIdx.x % TILE;
    const float* m = residual + factor.residual + (row + y) * factor.rows + x;
    const bool inside = col < factor.cols;
    const float* column = param + factor.offset + col;
    float sums[TILE] = {};
    for (i64 from = 0; from < factor.rows; from += TILE) {
        const int terms = (int)(factor.rows - from < TILE ? factor.rows - from : TILE);
        part[y][x] = y < rows && x < terms ? m[from] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            float entry = inside && k < terms ? *column : 0.0f;
            column += factor.cols;
#pragma unroll
            for (int i = 0; i < TILE; ++i) sums[i] = fmaf(part[i][k], entry, sums[i]);
        }
        __syncthreads();
    }
    if (norms) {
        float own = 0.0f;
        for (i64 tile = threadIdx.x; tile < factor.tiles; tile += THREADS) own += squares[factor.first_tile + tile];
        float norm = sqrtf(block_sum(own));
        scale = norm == 0.0f ? 0.0f : scale / norm;
    }
    float* into = grad + factor.offset + row * factor.cols + col;
#pragma unroll
    for (int i = 0; i < TILE; ++i) {
        if (inside && i < rows) *into += scale * sums[i];
        into += factor.cols;
    }
}
