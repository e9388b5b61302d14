// MIND-SSC: mind.py. RADIUS: of the patches, voxels.

#include "common.cuh"

#define TILE_1 16
#define TILE_2 32
#define THREADS (TILE_1 * TILE_2)
#define WIDE_1 (TILE_1 + 2 * RADIUS)
#define WIDE_2 (TILE_2 + 2 * RADIUS)
#define SIZE (2 * RADIUS + 1)
#define PAIRS 12

// The voxel at an offset of whole dilations, (3,), beyond the border the nearest one.
static __device__ inline float neighbor(const float* image, const int* offset, int dilation, int i, int j, int k, int height,
                                        int width, int depth) {
    i = clamped(i + dilation * offset[0], height);
    j = clamped(j + dilation * offset[1], width);
    k = clamped(k + dilation * offset[2], depth);
    return image[(i * width + j) * depth + k];
}

// Mean squared difference of the patches at both ends of each pair of offsets. images: (batch, height, width, depth), each to
// be multiplied by its scale, (batch,); pairs: (PAIRS, 2, 3); distances: (batch, PAIRS, h, w, d), of the box of that size that
// begins at (i0, j0, k0). A block has a tile along axes 1 and 2 of one pair, and marches through `rows` rows.
extern "C" __global__ void __launch_bounds__(THREADS)
fill_distances(const float* __restrict__ images, const float* __restrict__ scales, const int* __restrict__ pairs,
               float* __restrict__ distances, int height, int width, int depth, int dilation,
               int i0, int j0, int k0, int h, int w, int d, int rows) {
    __shared__ float squares[WIDE_1][WIDE_2];
    __shared__ float lines[WIDE_1][TILE_2];
    const int tiles = (d + TILE_2 - 1) / TILE_2;
    const int first_j = blockIdx.x / tiles * TILE_1, first_k = blockIdx.x % tiles * TILE_2;  // in the box
    const int pair = blockIdx.y % PAIRS, number = blockIdx.y / PAIRS;
    const int first = blockIdx.z * rows, last = min(first + rows, h);
    const int thread = threadIdx.x;
    const int own_j = thread / TILE_2, own_k = thread % TILE_2;
    const int j = first_j + own_j, k = first_k + own_k;
    const long long volume = (long long)height * width * depth;
    const float* image = images + number * volume;
    float* result = distances + (number * (long long)PAIRS + pair) * h * w * d;
    const float scale = scales[number];
    float ring[SIZE];
    for (int r = 0; r < SIZE; ++r) ring[r] = 0.0f;
    for (int row = first - RADIUS; row < last + RADIUS; ++row) {
        const int i = clamped(i0 + row, height);
        for (int spot = thread; spot < WIDE_1 * WIDE_2; spot += THREADS) {
            const int wide_j = spot / WIDE_2, wide_k = spot % WIDE_2;
            const int at_j = clamped(j0 + first_j - RADIUS + wide_j, width);
            const int at_k = clamped(k0 + first_k - RADIUS + wide_k, depth);
            const float a = neighbor(image, pairs + 6 * pair, dilation, i, at_j, at_k, height, width, depth);
            const float b = neighbor(image, pairs + 6 * pair + 3, dilation, i, at_j, at_k, height, width, depth);
            const float difference = a * scale - b * scale;
            squares[wide_j][wide_k] = difference * difference;
        }
        __syncthreads();
        for (int spot = thread; spot < WIDE_1 * TILE_2; spot += THREADS) {
            const int wide_j = spot / TILE_2, tile_k = spot % TILE_2;
            float sum = squares[wide_j][tile_k];
#pragma unroll
            for (int step = 1; step < SIZE; ++step) sum += squares[wide_j][tile_k + step];
            lines[wide_j][tile_k] = sum;
        }
        __syncthreads();
        float sum = lines[own_j][own_k];
#pragma unroll
        for (int step = 1; step < SIZE; ++step) sum += lines[own_j + step][own_k];
        float patch = sum;
#pragma unroll
        for (int r = 0; r + 1 < SIZE; ++r) {
            ring[r] = ring[r + 1];
            patch += ring[r];
        }
        ring[SIZE - 1] = sum;
        const int done = row - RADIUS;
        if (done >= first && j < w && k < d)
            result[((long long)done * w + j) * d + k] = patch / (SIZE * SIZE * SIZE);
    }
}

#define SUM_THREADS 256

// Subtracts the least of the PAIRS distances of each voxel from them, in place; sums their means over a block's voxels to
// sums, (batch, blocks). distances: (batch, PAIRS, volume).
extern "C" __global__ void __launch_bounds__(SUM_THREADS) subtract_least(float* __restrict__ distances, double* __restrict__ sums,
                                                                        int volume) {
    __shared__ double shares[SUM_THREADS];
    float* its = distances + (long long)blockIdx.y * PAIRS * volume;
    const int stride = gridDim.x * SUM_THREADS;
    double share = 0.0;
    for (int voxel = thread_number(); voxel < volume; voxel += stride) {
        float least = INFINITE;
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) least = fminf(least, its[(long long)pair * volume + voxel]);
        float sum = 0.0f;
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            const float one = its[(long long)pair * volume + voxel] - least;
            its[(long long)pair * volume + voxel] = one;
            sum += one;
        }
        share += sum / PAIRS;
    }
    shares[threadIdx.x] = share;
    __syncthreads();
    for (int half = SUM_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shares[threadIdx.x] += shares[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = shares[0];
}

// exp(−distance / variance), in place; the variance is the mean over pairs, within low and high times its mean over the image.
// distances: (batch, PAIRS, volume), the least already subtracted; means: (batch,).
extern "C" __global__ void exponentiate(float* __restrict__ distances, const float* __restrict__ means, int volume, float low,
                                        float high) {
    const int voxel = thread_number();
    if (voxel >= volume) return;
    float* its = distances + (long long)blockIdx.y * PAIRS * volume + voxel;
    float one[PAIRS];
    float variance = 0.0f;
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) variance += one[pair] = its[(long long)pair * volume];
    const float mean = means[blockIdx.y];
    variance = fminf(fmaxf(variance / PAIRS, mean * low), mean * high);
    if (variance == 0.0f) variance = 1.0f;  // a constant image: exp(0)
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) its[(long long)pair * volume] = expf(-one[pair] / variance);
}
