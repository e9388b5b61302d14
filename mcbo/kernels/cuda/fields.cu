// Displacements and grids of cells: sampling (consistency.py, adam.py), box means (field.py), pooling (cells.py).

#include "common.cuh"

// The corners of the cube around a point, and the point's place in it.
struct Corners {
    int i, j, k;
    float bi, bj, bk;
};

static __device__ inline Corners corners_of(float x, float y, float z) {
    const float i = floorf(x), j = floorf(y), k = floorf(z);
    return {(int)i, (int)j, (int)k, x - i, y - j, z - k};
}

static __device__ inline float value_at(const float* volume, int i, int j, int k, int height, int width, int depth) {
    return within(i, height) && within(j, width) && within(k, depth) ? volume[(i * width + j) * depth + k] : 0.0f;
}

// ½(ours − theirs∘(id + ours·stretch)), for both directions at once (blockIdx.y), to the pair `after`; each field is
// (3, height, width, depth) cells, zero outside.
extern "C" __global__ void half_step(const float* __restrict__ forward, const float* __restrict__ backward,
                                     float* __restrict__ forward_after, float* __restrict__ backward_after, int height, int width,
                                     int depth, float stretch_0, float stretch_1, float stretch_2) {
    const int volume = height * width * depth;
    const int cell = thread_number();
    if (cell >= volume) return;
    const float* ours = blockIdx.y == 0 ? forward : backward;
    const float* theirs = blockIdx.y == 0 ? backward : forward;
    float* after = blockIdx.y == 0 ? forward_after : backward_after;
    const Place at = place_of(cell, width, depth);
    const Corners c = corners_of(at.i + ours[cell] * stretch_0, at.j + ours[volume + cell] * stretch_1,
                                 at.k + ours[2 * volume + cell] * stretch_2);
    for (int axis = 0; axis < 3; ++axis) {
        const float* one = theirs + axis * volume;
        float there = 0.0f;
#pragma unroll
        for (int corner = 0; corner < 8; ++corner) {
            const int a = corner >> 2, b = corner >> 1 & 1, d = corner & 1;
            const float weight = (a ? c.bi : 1.0f - c.bi) * (b ? c.bj : 1.0f - c.bj) * (d ? c.bk : 1.0f - c.bk);
            there += weight * value_at(one, c.i + a, c.j + b, c.k + d, height, width, depth);
        }
        after[axis * volume + cell] = 0.5f * (ours[axis * volume + cell] - there);
    }
}

// The gradient of the mean over cells of Σ over channels of (M(p + u·stretch) − F(p))² with respect to u, M zero outside.
// Features are (channels, height, width, depth); u and its gradient (3, height, width, depth) cells.
extern "C" __global__ void distance_gradient(const float* __restrict__ fixed, const float* __restrict__ moving,
                                             const float* __restrict__ u, float* __restrict__ gradient, int channels, int height,
                                             int width, int depth, float stretch_0, float stretch_1, float stretch_2) {
    const int volume = height * width * depth;
    const int cell = thread_number();
    if (cell >= volume) return;
    const Place at = place_of(cell, width, depth);
    const Corners c = corners_of(at.i + u[cell] * stretch_0, at.j + u[volume + cell] * stretch_1,
                                 at.k + u[2 * volume + cell] * stretch_2);
    float sum_0 = 0.0f, sum_1 = 0.0f, sum_2 = 0.0f;
    for (int channel = 0; channel < channels; ++channel) {
        const float* one = moving + (long long)channel * volume;
        float m[8];
#pragma unroll
        for (int corner = 0; corner < 8; ++corner)
            m[corner] = value_at(one, c.i + (corner >> 2), c.j + (corner >> 1 & 1), c.k + (corner & 1), height, width, depth);
        // Interpolated along axis 2, then 1, then 0; the slopes of each axis on the way.
        const float m00 = m[0] + c.bk * (m[1] - m[0]), m01 = m[2] + c.bk * (m[3] - m[2]);
        const float m10 = m[4] + c.bk * (m[5] - m[4]), m11 = m[6] + c.bk * (m[7] - m[6]);
        const float m0 = m00 + c.bj * (m01 - m00), m1 = m10 + c.bj * (m11 - m10);
        const float error = m0 + c.bi * (m1 - m0) - fixed[(long long)channel * volume + cell];
        const float s0 = m[1] - m[0] + c.bj * (m[3] - m[2] - m[1] + m[0]), s1 = m[5] - m[4] + c.bj * (m[7] - m[6] - m[5] + m[4]);
        sum_0 += error * (m1 - m0);
        sum_1 += error * (m01 - m00 + c.bi * (m11 - m10 - m01 + m00));
        sum_2 += error * (s0 + c.bi * (s1 - s0));
    }
    const float scale = 2.0f / volume;
    gradient[cell] = scale * stretch_0 * sum_0;
    gradient[volume + cell] = scale * stretch_1 * sum_1;
    gradient[2 * volume + cell] = scale * stretch_2 * sum_2;
}

// Means over windows of 2·reach + 1 along one axis, zero outside: `values` are (count, length, stride).
extern "C" __global__ void line_mean(const float* __restrict__ values, float* __restrict__ result, int count, int length, int stride,
                                     int reach) {
    const long long number = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= (long long)count * length * stride) return;
    const int at = number / stride % length;
    float sum = 0.0f;
    for (int step = max(-reach, -at); step <= min(reach, length - 1 - at); ++step) sum += values[number + (long long)step * stride];
    result[number] = sum * (1.0f / (2 * reach + 1));
}

// Which voxels a cell covers along an axis: g of them from `first` on, or g + 1, the outermost by half.
struct Span {
    int first, taps;
    bool halves;
};

static __device__ inline Span span_of(int cell, int cells, int size, int g) {
    const int over = cells * g - size;  // voxels that the cells reach over the volume, half of them on either side
    return {cell * g - (over + 1) / 2, over % 2 == 0 ? g : g + 1, over % 2 != 0};
}

static __device__ inline float tap_weight(const Span& span, int tap) {
    return span.halves && (tap == 0 || tap == span.taps - 1) ? 0.5f : 1.0f;
}

// Means of features over the known part of each cell of g³ voxels, unknown voxels counting `weight_floor`, and (in the last
// blockIdx.y) how much of a cell is known. mask: bool (height, width, depth); features: (channels, rows, width, depth), rows of
// the volume from `first_row` on; means: (channels, h, w, d), known: (h, w, d), of which `cells` from `first_cell` on are made.
extern "C" __global__ void pool_known(const float* __restrict__ features, const unsigned char* __restrict__ mask,
                                      float* __restrict__ means, float* __restrict__ known, int channels, int height, int width,
                                      int depth, int rows, int first_row, int h, int w, int d, int first_cell, int cells, int g,
                                      float weight_floor) {
    if (thread_number() >= cells) return;
    const int cell = first_cell + thread_number();
    const int channel = blockIdx.y;
    const Place at = place_of(cell, w, d);
    const Span si = span_of(at.i, h, height, g), sj = span_of(at.j, w, width, g), sk = span_of(at.k, d, depth, g);
    const float* its = features + ((long long)channel * rows - first_row) * width * depth;
    float sum = 0.0f, covered = 0.0f, seen = 0.0f;
    for (int a = 0; a < si.taps; ++a)
        for (int b = 0; b < sj.taps; ++b)
            for (int c = 0; c < sk.taps; ++c) {
                const int i = si.first + a, j = sj.first + b, k = sk.first + c;
                if (!within(i, height) || !within(j, width) || !within(k, depth)) continue;
                const int voxel = (i * width + j) * depth + k;
                const float share = tap_weight(si, a) * tap_weight(sj, b) * tap_weight(sk, c);
                const float weight = share * ((mask[voxel] ? 1.0f : 0.0f) + weight_floor);
                if (channel < channels) sum += weight * its[voxel];
                covered += weight;
                seen += mask[voxel] ? share : 0.0f;
            }
    if (channel < channels)
        means[(long long)channel * h * w * d + cell] = sum / fmaxf(covered, 1e-6f);
    else
        known[cell] = fminf(seen / (g * g * g), 1.0f);
}
