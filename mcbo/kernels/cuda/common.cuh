// Shared by all kernels. Volumes are (height, width, depth), axis 2 fastest; tensors are contiguous float32 unless the type
// of an argument says otherwise. A kernel is launched by the host code of the same name beside its source.

#pragma once

#define INFINITE 3.402823466e38f

// The coordinates of a flat index in a volume.
struct Place {
    int i, j, k;
};

static __device__ inline Place place_of(int index, int width, int depth) {
    const int row = index / depth;
    return {row / width, row % width, index % depth};
}

static __device__ inline int clamped(int value, int size) {
    return value < 0 ? 0 : (value < size ? value : size - 1);
}

static __device__ inline bool within(int value, int size) {
    return value >= 0 && value < size;
}

// The index of this thread among all threads along x.
static __device__ inline int thread_number() {
    return blockIdx.x * blockDim.x + threadIdx.x;
}
