// Lets g++ compile CUDA kernels as C++ and run them on the CPU: each thread of a block is a coroutine, and a barrier passes
// control to the next one. Blocks are shared out among the processor's cores.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <thread>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct Index {
    int x, y, z;
};

static thread_local Index threadIdx, blockIdx;
static Index blockDim, gridDim;

using std::max;
using std::min;

struct Coroutine {
    void* stack_pointer = nullptr;
    Index index{};
    bool is_done = false;
};

static thread_local void* scheduler;
static thread_local Coroutine* current;

#if defined(__x86_64__)
// Keeps the registers that a call preserves on the stack, and goes on with another stack.
extern "C" void switch_stack(void** from, void* to);
asm(R"(
.text
.globl switch_stack
.hidden switch_stack
switch_stack:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");
#define STACK_BYTES 16384

static void prepare(Coroutine& one, char* stack, int number, void (*body)()) {
    // Stacks that begin at multiples of a page would compete for the same lines of the cache.
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES - 64 * (1 + number % 31));
    *--top = nullptr;  // where a call would have put its return address: keeps the stack aligned
    *--top = reinterpret_cast<void*>(body);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    one.stack_pointer = top;
}
#else
static void switch_stack(void** from, void* to) {
    ucontext_t here;
    *from = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to));
}
#define STACK_BYTES 65536

static void prepare(Coroutine& one, char* stack, int, void (*body)()) {
    auto* context = new (stack) ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = stack + sizeof(ucontext_t);
    context->uc_stack.ss_size = STACK_BYTES - sizeof(ucontext_t);
    context->uc_link = nullptr;
    makecontext(context, body, 0);
    one.stack_pointer = context;
}
#endif

static void give_way() {
    switch_stack(&current->stack_pointer, scheduler);
    threadIdx = current->index;
}

[[maybe_unused]] static void __syncthreads() {
    give_way();
}

template <class Kernel>
struct Block {
    static thread_local const Kernel* kernel;

    static void body() {
        threadIdx = current->index;
        (*kernel)();
        current->is_done = true;
        give_way();
    }

    static void run(const Kernel& one, std::vector<Coroutine>& threads, char* stacks) {
        kernel = &one;
        int number = 0;
        for (int z = 0; z < blockDim.z; ++z)
            for (int y = 0; y < blockDim.y; ++y)
                for (int x = 0; x < blockDim.x; ++x, ++number) {
                    prepare(threads[number], stacks + size_t(number) * STACK_BYTES, number, body);
                    threads[number].index = {x, y, z};
                    threads[number].is_done = false;
                }
        for (bool is_running = true; is_running;) {
            is_running = false;
            for (Coroutine& thread : threads) {
                if (thread.is_done) continue;
                current = &thread;
                switch_stack(&scheduler, thread.stack_pointer);
                is_running = is_running || !thread.is_done;
            }
        }
    }
};

template <class Kernel>
thread_local const Kernel* Block<Kernel>::kernel;

template <class Kernel>
void run_grid(Index grid, Index block, const Kernel& kernel) {
    gridDim = grid;
    blockDim = block;
    const long blocks = long(grid.x) * grid.y * grid.z;
    const int threads = block.x * block.y * block.z;
    std::atomic<long> next{0};
    auto work = [&] {
        std::vector<Coroutine> own(threads);
        std::unique_ptr<char, decltype(&free)> stacks(static_cast<char*>(aligned_alloc(4096, size_t(threads) * STACK_BYTES)), free);
        for (long number; (number = next++) < blocks;) {
            blockIdx = {int(number % grid.x), int(number / grid.x % grid.y), int(number / grid.x / grid.y)};
            Block<Kernel>::run(kernel, own, stacks.get());
        }
    };
    const int workers = std::max(1L, std::min<long>(blocks, std::thread::hardware_concurrency()));
    std::vector<std::thread> others;
    for (int other = 1; other < workers; ++other) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
}
