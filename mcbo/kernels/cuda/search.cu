// Coupled optimization on costs: convex.py, masked_search.py, deformable_search.py.
//
// To be compiled without fused products and sums: an argmin is decided by the same roundings as in the reference.
// SIDE: candidates along an axis, 2R + 1.

#include "common.cuh"

#define RADIUS (SIDE / 2)

// The candidate that minimizes cost + weight·|c − u|², of equals the first, as its steps from 0 to 2R along the axes. In lines
// along axis 0 and in the order of the reference's additions, so that what is equal there is equal here.
static __device__ inline Place best_candidate(const float* __restrict__ cost, long long step, const float* u, float weight) {
    float apart[SIDE];
#pragma unroll
    for (int c = 0; c < SIDE; ++c) {
        const float off = (c - RADIUS) - u[0];
        apart[c] = weight * (off * off);
    }
    float best = INFINITE;
    Place found = {0, 0, 0};
    for (int c2 = 0; c2 < SIDE; ++c2) {
        const float off_2 = (c2 - RADIUS) - u[2];
        const float apart_2 = weight * (off_2 * off_2);
        for (int c1 = 0; c1 < SIDE; ++c1) {
            const float off_1 = (c1 - RADIUS) - u[1];
            const float apart_1 = weight * (off_1 * off_1);
            const float* line = cost + (long long)((c2 * SIDE + c1) * SIDE) * step;
            float least = INFINITE;
            int where = 0;
#pragma unroll
            for (int c0 = 0; c0 < SIDE; ++c0) {
                const float one = line[c0 * step] + apart[c0];
                if (one < least) {
                    least = one;
                    where = c0;
                }
            }
            const float coupled = (least + apart_1) + apart_2;
            if (coupled < best) {
                best = coupled;
                found = {where, c1, c2};
            }
        }
    }
    return found;
}

// Picks a candidate per cell. cost: (SIDE^3, step), of which `cells` from `first` on are looked at; u, picked: (3, cells).
// Without coupling, weight is 0 and u any field of that size.
extern "C" __global__ void pick(const float* __restrict__ cost, const float* __restrict__ u, float* __restrict__ picked, int step,
                                int first, int cells, float weight) {
    const int cell = thread_number();
    if (cell >= cells) return;
    float its_u[3];
    for (int axis = 0; axis < 3; ++axis) its_u[axis] = weight == 0.0f ? 0.0f : u[axis * cells + cell];
    const Place best = best_candidate(cost + first + cell, step, its_u, weight);
    picked[cell] = best.i - RADIUS;
    picked[cells + cell] = best.j - RADIUS;
    picked[2 * cells + cell] = best.k - RADIUS;
}

// One pass over the rows [first, last): u is the box mean of what the pass before picked; it is added to total (if `adds`);
// then the pass picks (if `picks`). before, after: (3, height, width, depth) whole cells; total: of the same shape;
// cost: (SIDE^3, ring, width, depth), row i of the grid being row i % ring there. The first pass has no `before`.
extern "C" __global__ void advance(const float* __restrict__ cost, const signed char* __restrict__ before,
                                   signed char* __restrict__ after, float* __restrict__ total, int height, int width, int depth,
                                   int ring, int first, int last, float weight, int has_before, int adds, int picks) {
    const int plane = width * depth;
    const int number = thread_number();
    if (number >= (last - first) * plane) return;
    const int cell = first * plane + number;
    const Place at = place_of(cell, width, depth);
    const int volume = height * plane;
    float u[3] = {0.0f, 0.0f, 0.0f};
    if (has_before) {
        int sums[3] = {0, 0, 0};
        for (int i = max(at.i - 1, 0); i <= min(at.i + 1, height - 1); ++i)
            for (int j = max(at.j - 1, 0); j <= min(at.j + 1, width - 1); ++j)
                for (int k = max(at.k - 1, 0); k <= min(at.k + 1, depth - 1); ++k) {
                    const int neighbor = i * plane + j * depth + k;
                    for (int axis = 0; axis < 3; ++axis) sums[axis] += before[axis * volume + neighbor];
                }
        for (int axis = 0; axis < 3; ++axis) u[axis] = sums[axis] * (1.0f / 27.0f);
    }
    if (adds)
        for (int axis = 0; axis < 3; ++axis) total[axis * volume + cell] += u[axis];
    if (!picks) return;
    const long long offset = (long long)(at.i % ring) * plane + at.j * depth + at.k;
    const Place best = best_candidate(cost + offset, (long long)ring * plane, u, weight);
    after[cell] = best.i - RADIUS;
    after[volume + cell] = best.j - RADIUS;
    after[2 * volume + cell] = best.k - RADIUS;
}

// The index of a candidate in the cost, of its steps from 0 to 2R along axes 0, 1, 2.
static __device__ inline int index_of(const int* at) {
    return (at[2] * SIDE + at[1]) * SIDE + at[0];
}

// Moves picked candidates to the minimum of a parabola through them and their neighbors, per axis, by half a cell at most.
// cost: (SIDE^3, cells); picked, u, moved: (3, cells).
extern "C" __global__ void move_between(const float* __restrict__ cost, const float* __restrict__ picked,
                                        const float* __restrict__ u, float* __restrict__ moved, int cells, float weight) {
    const int cell = thread_number();
    if (cell >= cells) return;
    int at[3];
    for (int axis = 0; axis < 3; ++axis) at[axis] = (int)picked[axis * cells + cell] + RADIUS;
    const float center = cost[(long long)index_of(at) * cells + cell];
    int stride = 1;
    for (int axis = 0; axis < 3; ++axis, stride *= SIDE) {
        const float here = picked[axis * cells + cell];
        float step = 0.0f;
        if (at[axis] > 0 && at[axis] < SIDE - 1) {
            const float apart = here - u[axis * cells + cell];
            const float below = cost[(long long)(index_of(at) - stride) * cells + cell] - center + weight * (1.0f - 2.0f * apart);
            const float above = cost[(long long)(index_of(at) + stride) * cells + cell] - center + weight * (1.0f + 2.0f * apart);
            const float bend = below + above;
            if (bend > 1e-9f) step = fminf(fmaxf(0.5f * (below - above) / bend, -0.5f), 0.5f);
        }
        moved[axis * cells + cell] = here + step;
    }
}

// The second difference of the cost at picked candidates along each axis, at least 0; at the edge of the search cube that of the
// neighbor, times edge_trust. cost: (SIDE^3, cells); picked, sharp: (3, cells). R is at least 1.
extern "C" __global__ void sharpen(const float* __restrict__ cost, const float* __restrict__ picked, float* __restrict__ sharp,
                                   int cells, float edge_trust) {
    const int cell = thread_number();
    if (cell >= cells) return;
    int stride = 1;
    for (int axis = 0; axis < 3; ++axis, stride *= SIDE) {
        int at[3];
        for (int other = 0; other < 3; ++other) at[other] = (int)picked[other * cells + cell] + RADIUS;
        const bool at_edge = at[axis] == 0 || at[axis] == SIDE - 1;
        at[axis] = min(max(at[axis], 1), SIDE - 2);
        const long long center = index_of(at);
        const float below = cost[(center - stride) * cells + cell], above = cost[(center + stride) * cells + cell];
        const float bend = below + above - 2.0f * cost[center * cells + cell];
        sharp[axis * cells + cell] = fmaxf(bend, 0.0f) * (at_edge ? edge_trust : 1.0f);
    }
}
