// Runs the kernels on the host, so that they can be tested without a GPU: stand-ins for what CUDA C++ adds to C++, and
// a launch that runs the threads of a block as fibers, switching where they wait for each other.
//
// What it checks beside the results: threads of a block that wait at different barriers, or end while others wait;
// undefined behaviour, misaligned vector loads among it (the sanitizer of the compiler); shared memory that is read
// before it is written (it begins as NaN). The order of blocks and threads is drawn from a seed, so a missing barrier
// shows as results that differ from seed to seed.
//
// KERNELS is the file with the kernels. What it does not show: whether the memory of a GPU is as patient as this one,
// and speed.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

struct alignas(16) float4 {
    float x, y, z, w;
};
struct Index {
    unsigned x;
};

namespace emulated {

constexpr unsigned LANES = 32;
// Words of a stack.
constexpr size_t STACK = 8 * 1024;

// What a fiber does next: go on; wait for its warp or its block; nothing more.
enum class State { Ready, AtWarp, AtBlock, Done };

struct Fiber {
    // Where its stack ends, while it does not run.
    void* stack;
    State state;
    // Where it waits.
    int line;
    // What it shows to its warp, by turns, so that the next exchange does not overwrite what is still being read.
    float shown[2];
    unsigned exchanges;
};

struct Random {
    uint64_t state;
    uint64_t next() {
        state += 0x9e3779b97f4a7c15;
        uint64_t z = state;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    template <class T> void shuffle(std::vector<T>& items) {
        for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[next() % i]);
    }
};

// Leaves one stack for another, with the registers that a call must keep. The C library's own way asks the kernel for
// each switch, of which there are millions.
extern "C" void switch_stack(void** leave, void* take);
asm(R"(
    .text
switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

void* scheduler;
std::vector<Fiber> fibers;
std::vector<void*> stacks;
Fiber* running;
void (*kernel)(void**);
void** arguments;
std::string failure;

void wait(State state, int line) {
    running->state = state;
    running->line = line;
    switch_stack(&running->stack, scheduler);
}

void enter() {
    kernel(arguments);
    wait(State::Done, 0);
}

} // namespace emulated

Index threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("kernel_shared")))
#define __syncthreads() emulated::wait(emulated::State::AtBlock, __LINE__)
#define __shfl_xor_sync(mask, value, lanes) emulated::exchange(mask, value, lanes, __LINE__)

namespace emulated {

float exchange(unsigned mask, float value, unsigned lanes, int line) {
    unsigned own = threadIdx.x, turn = running->exchanges++ % 2;
    if (mask != 0xffffffffu) failure = "an exchange between some lanes of a warp is not emulated";
    running->shown[turn] = value;
    wait(State::AtWarp, line);
    return fibers[own ^ lanes].shown[turn];
}

} // namespace emulated

static unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static unsigned atomicAdd(unsigned* p, unsigned more) {
    unsigned before = *p;
    *p += more;
    return before;
}

#include KERNELS

extern "C" char __start_kernel_shared, __stop_kernel_shared;

namespace emulated {

// One letter for each argument: a number by its kind, a pointer by what it points to, large if that may be written.
template <class T> char letter() { return 's'; }
template <> char letter<float>() { return 'v'; }
template <> char letter<i64>() { return 'n'; }
template <> char letter<float*>() { return 'F'; }
template <> char letter<const float*>() { return 'f'; }
template <> char letter<const i64*>() { return 'l'; }
template <> char letter<u64*>() { return 'L'; }
template <> char letter<const u64*>() { return 'l'; }
template <> char letter<bool*>() { return 'B'; }

template <class... A> std::string signature(void (*)(A...)) { return {letter<A>()...}; }

template <auto F, class... A, size_t... I> void call(void (*)(A...), void** arguments, std::index_sequence<I...>) {
    F(*static_cast<A*>(arguments[I])...);
}
template <auto F, class... A> void unpack(void (*f)(A...), void** arguments) {
    call<F>(f, arguments, std::index_sequence_for<A...>());
}
template <auto F> void with_arguments(void** arguments) { unpack<F>(F, arguments); }

struct Entry {
    const char* name;
    std::string signature;
    void (*call)(void**);
};
#define ENTRY(kernel) Entry{#kernel, signature(kernel), with_arguments<kernel>},
static const Entry ENTRIES[] = {NAMES};

// Releases those that wait for `state` among the fibers `from` to `to`, if all of them do.
bool release(State state, size_t from, size_t to) {
    for (size_t i = from; i < to; ++i)
        if (fibers[i].state != state) return false;
    for (size_t i = from; i < to; ++i) {
        if (fibers[i].line != fibers[from].line) {
            failure = "threads wait at different barriers: lines " + std::to_string(fibers[from].line) + " and " +
                      std::to_string(fibers[i].line);
            return false;
        }
        fibers[i].state = State::Ready;
    }
    return true;
}

void run_block(unsigned threads, Random& random) {
    char* shared = &__start_kernel_shared;
    memset(shared, 0xff, &__stop_kernel_shared - shared);
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; ++i) {
        order[i] = i;
        Fiber& fiber = fibers[i];
        fiber.state = State::Ready;
        fiber.exchanges = 0;
        // Six registers, then where to go on. A function begins eight bytes off a 16-byte boundary.
        uintptr_t end = reinterpret_cast<uintptr_t>(&stacks[(i + 1) * STACK - 1]) / 16 * 16;
        void** top = reinterpret_cast<void**>(end) - 2;
        *top = reinterpret_cast<void*>(enter);
        fiber.stack = top - 6;
    }
    for (unsigned left = threads; left > 0;) {
        random.shuffle(order);
        bool moved = false;
        for (unsigned i : order) {
            if (fibers[i].state != State::Ready) continue;
            moved = true;
            running = &fibers[i];
            threadIdx.x = i;
            switch_stack(&scheduler, running->stack);
            if (fibers[i].state == State::Done) --left;
        }
        for (unsigned warp = 0; warp < threads; warp += LANES) moved |= release(State::AtWarp, warp, warp + LANES);
        moved |= release(State::AtBlock, 0, threads);
        if (!moved && failure.empty()) failure = "some threads wait at a barrier that others never reach";
        if (!failure.empty()) return;
    }
}

} // namespace emulated

// Runs all blocks of a kernel. `what` says of each argument what the caller believes it is. Writes why not, if not.
extern "C" bool emulate(
    const char* name, const char* what, unsigned blocks, unsigned threads, void** arguments, uint64_t seed, char* why,
    size_t room) {
    using namespace emulated;
    failure.clear();
    const Entry* entry = nullptr;
    for (const Entry& each : ENTRIES)
        if (!strcmp(each.name, name)) entry = &each;
    if (!entry)
        failure = "there is no such kernel";
    else if (entry->signature != what)
        failure = std::string("called with arguments ") + what + ", declared with " + entry->signature;
    else {
        fibers.resize(threads);
        stacks.resize(threads * STACK);
        kernel = entry->call;
        emulated::arguments = arguments;
        blockDim.x = threads;
        gridDim.x = blocks;
        Random random{seed};
        std::vector<unsigned> order(blocks);
        for (unsigned i = 0; i < blocks; ++i) order[i] = i;
        random.shuffle(order);
        for (unsigned block : order) {
            blockIdx.x = block;
            run_block(threads, random);
            if (!failure.empty()) break;
        }
    }
    snprintf(why, room, "%s: %s", name, failure.c_str());
    return failure.empty();
}
