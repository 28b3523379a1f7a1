// Fibers of the emulated device, and the sort and prefix sum that CUB provides on a real one.
#include "dgr_emulation.h"

#include <numeric>

#include "cuda/sort.h"

namespace emulation {

State state;

#if !defined(__x86_64__)
#error "the emulation switches stacks in x86-64 assembly"
#endif

// Saves the registers a function must keep, switches the stack, restores the other side's.
asm(R"(
.globl dgr_switch
.hidden dgr_switch
dgr_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

static void fiber_main() {
  (*state.body)();
  const int me = state.current;
  state.finished[me] = true;
  --state.alive;
  yield();
  std::abort();
}

static void prepare(int thread) {
  if (state.memory[thread] == nullptr) state.memory[thread] = static_cast<char*>(aligned_alloc(64, kStack));
  void** top = reinterpret_cast<void**>(state.memory[thread] + kStack - 64);
  *--top = nullptr;  // keeps the stack at 8 modulo 16 on entry, as after a call
  *--top = reinterpret_cast<void*>(fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  state.stack[thread] = top;
}

void run_block(const std::function<void()>& body, int threads) {
  if (threads % 32 != 0 || threads > kMaxThreads) std::abort();
  state.body = &body;
  state.alive = threads;
  state.block_barrier = {0, threads, 0};
  for (int w = 0; w < threads / 32; ++w) state.warp_barrier[w] = {0, 32, 0};
  for (int t = 0; t < threads; ++t) state.finished[t] = false, prepare(t);
  for (int idle = 0; state.alive > 0;) {
    const int before = state.alive;
    // a whole round in which nobody finished is normal; a thousand million switches are a deadlock
    for (int t = 0; t < threads; ++t) {
      if (state.finished[t]) continue;
      state.current = t, state.thread = {unsigned(t), 0, 0};
      dgr_switch(&state.scheduler, state.stack[t]);
    }
    idle = state.alive == before ? idle + 1 : 0;
    if (idle > 20000000) std::fprintf(stderr, "emulation: deadlock\n"), std::abort();
  }
}

}  // namespace emulation

namespace dgr {

template <class Key>
static int sort(void* scratch, size_t& bytes, const Key* keys, Key* keys_out, const uint32_t* values, uint32_t* values_out,
                int64_t count, int bits) {
  if (scratch == nullptr) return bytes = 256, 0;
  const uint64_t mask = (uint64_t(1) << bits) - 1;
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return (keys[a] & mask) < (keys[b] & mask); });
  for (int64_t i = 0; i < count; ++i) keys_out[i] = keys[order[i]], values_out[i] = values[order[i]];
  return 0;
}

int sort_pairs(void* scratch, size_t& bytes, const uint32_t* keys, uint32_t* keys_out, const uint32_t* values,
               uint32_t* values_out, int64_t count, int bits, void*) {
  return sort(scratch, bytes, keys, keys_out, values, values_out, count, bits);
}

int sort_pairs(void* scratch, size_t& bytes, const uint16_t* keys, uint16_t* keys_out, const uint32_t* values,
               uint32_t* values_out, int64_t count, int bits, void*) {
  return sort(scratch, bytes, keys, keys_out, values, values_out, count, bits);
}

int running_sum(void* scratch, size_t& bytes, const uint32_t* in, int64_t* out, int64_t count, void*) {
  if (scratch == nullptr) return bytes = 256, 0;
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) out[i] = sum, sum += in[i];
  return 0;
}

}  // namespace dgr
