// The cost of every candidate displacement in every cell, smoothed by zero-padded box sums: cost_volume.py, masked_search.py.
//
// A block has a tile of cells along axes 1 and 2 and a line of candidates along axis 2 (all of one c0 and c1, or CHUNK of them),
// and marches along axis 0. Squared differences and their sums along axes 2 and 1 pass through shared memory; the sums along
// axis 0 are kept in registers. So each feature comes from the caches, and each cost is written once.
//
// SIDE: candidates along an axis, 2R + 1. CHUNK: of them per block. ROUNDS: box sums of three cells, 1 or 2. MASKED: 0 or 1.

#include "common.cuh"

#define TILE_1 16
#define TILE_2 32
#define THREADS (TILE_1 * TILE_2)
#define WIDE_1 (TILE_1 + 2 * ROUNDS)
#define WIDE_2 (TILE_2 + 2 * ROUNDS)
#define PLANES (MASKED ? 2 * CHUNK : CHUNK)  // with masks: differences, and the shares that are known
#define RADIUS (SIDE / 2)
#define CHUNKS ((SIDE + CHUNK - 1) / CHUNK)
#define MIN_SUPPORT 0.1f
#define UNJUDGED (-1.0f)

// ROUNDS zero-padded sums of three at once; `edges` is how many ends of the axis this cell is at.
static __device__ inline float window_sum(const float* line, int stride, int edges) {
#if ROUNDS == 1
    return line[0] + line[stride] + line[2 * stride];
#else
    return line[0] + 2.0f * line[stride] + (3 - edges) * line[2 * stride] + 2.0f * line[3 * stride] + line[4 * stride];
#endif
}

// cost: (SIDE^3, ring, width, depth), axis 0 fastest among candidates; row i of the grid is row i % ring there. Rows
// [start, stop) are made. Features are (channels, height, width, depth). With masks: the known share of each cell of either
// image, and what is known in the window without displacement; a cost is a mean over what is known, or UNJUDGED.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
fill_costs(const float* __restrict__ fixed, const float* __restrict__ moving, const float* __restrict__ fixed_known,
           const float* __restrict__ moving_known, const float* __restrict__ support, float* __restrict__ cost, int channels,
           int height, int width, int depth, int start, int stop, int ring) {
    __shared__ float squares[PLANES][WIDE_1][WIDE_2];
    __shared__ float lines[PLANES][WIDE_1][TILE_2];
    const int tiles = (depth + TILE_2 - 1) / TILE_2;
    const int first_j = blockIdx.x / tiles * TILE_1, first_k = blockIdx.x % tiles * TILE_2;
    const int c0 = blockIdx.y % SIDE, c1 = blockIdx.y / SIDE;
    const int c2 = blockIdx.z * CHUNK;
    const int thread = threadIdx.x;
    const int own_j = thread / TILE_2, own_k = thread % TILE_2;
    const int j = first_j + own_j, k = first_k + own_k;
    const int plane = width * depth;
    const int volume = height * plane;
    const int edges_j = (j == 0) + (j == width - 1);
    float last[PLANES], before[PLANES];  // sums along axes 1 and 2 of the two rows before
#if ROUNDS == 2
    float sum_last[PLANES], sum_before[PLANES];  // of three rows each
#endif
    for (int p = 0; p < PLANES; ++p) {
        last[p] = before[p] = 0.0f;
#if ROUNDS == 2
        sum_last[p] = sum_before[p] = 0.0f;
#endif
    }
    for (int row = start - ROUNDS; row < stop + ROUNDS; ++row) {
        const bool is_row = within(row, height);  // the same for all threads of a block
        if (is_row) {
            const int there_i = row + c0 - RADIUS;
            for (int spot = thread; spot < WIDE_1 * WIDE_2; spot += THREADS) {
                const int wide_j = spot / WIDE_2, wide_k = spot % WIDE_2;
                const int here_j = first_j - ROUNDS + wide_j, here_k = first_k - ROUNDS + wide_k;
                const int there_j = here_j + c1 - RADIUS, there_k = here_k + c2 - RADIUS;
                float sums[CHUNK];
                for (int c = 0; c < CHUNK; ++c) sums[c] = 0.0f;
                const bool is_cell = within(here_j, width) && within(here_k, depth);
                const bool is_line = within(there_i, height) && within(there_j, width);
                const int here = row * plane + here_j * depth + here_k;
                const int there = there_i * plane + there_j * depth + there_k;
                if (is_cell && (is_line || !MASKED)) {
                    for (int channel = 0; channel < channels; ++channel) {
                        const float f = fixed[(long long)channel * volume + here];
                        const float* m = moving + (long long)channel * volume + there;
#pragma unroll
                        for (int c = 0; c < CHUNK; ++c) {
                            const float difference = f - (is_line && within(there_k + c, depth) ? m[c] : 0.0f);
                            sums[c] += difference * difference;
                        }
                    }
                }
#pragma unroll
                for (int c = 0; c < CHUNK; ++c) {
#if MASKED
                    float known = 0.0f;
                    if (is_cell && is_line && within(there_k + c, depth)) known = fixed_known[here] * moving_known[there + c];
                    squares[CHUNK + c][wide_j][wide_k] = known;
                    sums[c] *= known;
#endif
                    squares[c][wide_j][wide_k] = sums[c];
                }
            }
            __syncthreads();
            for (int spot = thread; spot < WIDE_1 * TILE_2; spot += THREADS) {
                const int wide_j = spot / TILE_2, tile_k = spot % TILE_2;
                const int at = first_k + tile_k;
                const int edges_k = (at == 0) + (at == depth - 1);
#pragma unroll
                for (int p = 0; p < PLANES; ++p)
                    lines[p][wide_j][tile_k] = window_sum(&squares[p][wide_j][tile_k], 1, edges_k);
            }
            __syncthreads();
        }
        const int done = row - ROUNDS;  // the row that has all its neighbors now
        const bool is_written = done >= start && j < width && k < depth;
        const long long to = ((long long)(done >= 0 ? done % ring : 0) * width + j) * depth + k;
        const long long step = (long long)ring * plane;
#pragma unroll
        for (int c = 0; c < CHUNK; ++c) {
            float result[2];
#pragma unroll
            for (int part = 0; part <= MASKED; ++part) {
                const int p = part * CHUNK + c;
                const float now = is_row ? window_sum(&lines[p][own_j][own_k], TILE_2, edges_j) : 0.0f;
                const float sum = within(row - 1, height) ? before[p] + last[p] + now : 0.0f;
                before[p] = last[p];
                last[p] = now;
#if ROUNDS == 2
                result[part] = sum_before[p] + sum_last[p] + sum;
                sum_before[p] = sum_last[p];
                sum_last[p] = sum;
#else
                result[part] = sum;
#endif
            }
            if (!is_written || c2 + c >= SIDE) continue;
            float* target = cost + ((long long)((c2 + c) * SIDE + c1) * SIDE + c0) * step + to;
#if MASKED
            const float least = fmaxf(MIN_SUPPORT * support[(done * width + j) * depth + k], 1e-6f);
            *target = result[1] > least ? result[0] / fmaxf(result[1], 1e-6f) : UNJUDGED;
#else
            *target = result[0] * (1.0f / 729.0f);
#endif
        }
    }
}

// Gives candidates that compare too little the mean cost of the others. cost: (SIDE^3, cells).
extern "C" __global__ void fill_unjudged(float* __restrict__ cost, int cells) {
    const int cell = thread_number();
    if (cell >= cells) return;
    float total = 0.0f;
    int count = 0;
    for (int c = 0; c < SIDE * SIDE * SIDE; ++c) {
        const float one = cost[(long long)c * cells + cell];
        if (one != UNJUDGED) {
            total += one;
            ++count;
        }
    }
    if (count == SIDE * SIDE * SIDE) return;
    const float mean = total / (count > 0 ? count : 1);
    for (int c = 0; c < SIDE * SIDE * SIDE; ++c) {
        float* one = cost + (long long)c * cells + cell;
        if (*one == UNJUDGED) *one = mean;
    }
}
