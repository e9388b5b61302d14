// Normal equations and the products of conjugate gradients: gauss_newton.py, deformable_search.py, linear_solver.py.

#include "common.cuh"

// The slope of a volume along an axis at a flat index, one-sided at the ends: of (m + f)/2.
static __device__ inline float mean_slope(const float* f, const float* m, int cell, int at, int size, int stride) {
    if (size < 2) return 0.0f;
    const int below = at > 0 ? cell - stride : cell, above = at < size - 1 ? cell + stride : cell;
    const float slope = (m[above] + f[above]) / 2.0f - (m[below] + f[below]) / 2.0f;
    return at > 0 && at < size - 1 ? 0.5f * slope : slope;
}

// Gradient, Hessian (00, 01, 02, 11, 12, 22) and Σ (M − F)² per cell. Features: (channels, height, width, depth).
extern "C" __global__ void data_terms(const float* __restrict__ fixed, const float* __restrict__ moved,
                                      float* __restrict__ gradient, float* __restrict__ hessian, float* __restrict__ distance,
                                      int channels, int height, int width, int depth) {
    const int plane = width * depth;
    const int volume = height * plane;
    const int cell = thread_number();
    if (cell >= volume) return;
    const Place at = place_of(cell, width, depth);
    float g[3] = {0.0f, 0.0f, 0.0f}, h[6] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}, sum = 0.0f;
    for (int channel = 0; channel < channels; ++channel) {
        const float* f = fixed + (long long)channel * volume;
        const float* m = moved + (long long)channel * volume;
        const float error = m[cell] - f[cell];
        const float s0 = mean_slope(f, m, cell, at.i, height, plane);
        const float s1 = mean_slope(f, m, cell, at.j, width, depth);
        const float s2 = mean_slope(f, m, cell, at.k, depth, 1);
        sum += error * error;
        g[0] += error * s0, g[1] += error * s1, g[2] += error * s2;
        h[0] += s0 * s0, h[1] += s0 * s1, h[2] += s0 * s2, h[3] += s1 * s1, h[4] += s1 * s2, h[5] += s2 * s2;
    }
    for (int entry = 0; entry < 3; ++entry) gradient[entry * volume + cell] = g[entry];
    for (int entry = 0; entry < 6; ++entry) hessian[entry * volume + cell] = h[entry];
    distance[cell] = sum;
}

// Σ over face neighbors of (u − neighbor) of a volume at a cell: the negative Laplacian with reflecting borders.
static __device__ inline float laplacian_at(const float* u, int cell, int height, int width, int depth) {
    const Place at = place_of(cell, width, depth);
    const int plane = width * depth;
    const float here = u[cell];
    float sum = 0.0f;
    if (at.i > 0) sum += here - u[cell - plane];
    if (at.i < height - 1) sum += here - u[cell + plane];
    if (at.j > 0) sum += here - u[cell - depth];
    if (at.j < width - 1) sum += here - u[cell + depth];
    if (at.k > 0) sum += here - u[cell - 1];
    if (at.k < depth - 1) sum += here - u[cell + 1];
    return sum;
}

// Of each of the volumes (blockIdx.y).
extern "C" __global__ void laplacian(const float* __restrict__ field, float* __restrict__ result, int height, int width, int depth) {
    const int volume = height * width * depth;
    const int cell = thread_number();
    if (cell >= volume) return;
    result[blockIdx.y * volume + cell] = laplacian_at(field + blockIdx.y * volume, cell, height, width, depth);
}

// hessian·field + bending·(Laplacian of the field's Laplacian, which is given) + ridge·field. field, its Laplacian, result:
// (3, height, width, depth).
extern "C" __global__ void bend(const float* __restrict__ field, const float* __restrict__ its_laplacian,
                                const float* __restrict__ hessian, float* __restrict__ result, int height, int width, int depth,
                                float bending, float ridge) {
    const int volume = height * width * depth;
    const int cell = thread_number();
    if (cell >= volume) return;
    float u[3], h[6];
    for (int axis = 0; axis < 3; ++axis) u[axis] = field[axis * volume + cell];
    for (int entry = 0; entry < 6; ++entry) h[entry] = hessian[entry * volume + cell];
    const float product[3] = {h[0] * u[0] + h[1] * u[1] + h[2] * u[2], h[1] * u[0] + h[3] * u[1] + h[4] * u[2],
                              h[2] * u[0] + h[4] * u[1] + h[5] * u[2]};
    for (int axis = 0; axis < 3; ++axis) {
        const float smooth = laplacian_at(its_laplacian + axis * volume, cell, height, width, depth);
        result[axis * volume + cell] = product[axis] + bending * smooth + ridge * u[axis];
    }
}

// (trust + ridge)·field + stretching·Laplacian, of each of the three volumes (blockIdx.y).
extern "C" __global__ void stretch(const float* __restrict__ field, const float* __restrict__ trust, float* __restrict__ result,
                                   int height, int width, int depth, float stretching, float ridge) {
    const int volume = height * width * depth;
    const int cell = thread_number();
    if (cell >= volume) return;
    const float* its = field + blockIdx.y * volume;
    const int at = blockIdx.y * volume + cell;
    result[at] = (trust[at] + ridge) * its[cell] + stretching * laplacian_at(its, cell, height, width, depth);
}
