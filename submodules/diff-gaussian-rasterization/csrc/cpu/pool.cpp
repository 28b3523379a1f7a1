#include "pool.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace dgr {
namespace {

constexpr int kSpins = 4000;  // some tens of microseconds: the gap between two phases of one render

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// The caller publishes a job, works on it, closes it, and waits only for workers that are inside. A worker that the
// operating system has not woken in time finds the job closed and costs nothing: on a busy machine a render then takes
// as long as on one thread, not as long as a time slice.
class Pool {
 public:
  explicit Pool(pid_t owner) : owner_(owner) {}

  pid_t owner() const { return owner_; }

  void run(int threads, int tasks, TaskFunction function, void* context) {
    try {
      while (int(workers_.size()) < threads - 1) {
        const int id = int(workers_.size()) + 1;
        workers_.emplace_back([this, id] { work(id); });
      }
    } catch (const std::system_error&) {  // no more threads to be had: the caller does the work
    }
    function_ = function, context_ = context, tasks_ = tasks, threads_ = threads;
    next_.store(0, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1, std::memory_order_relaxed);
      inside_.store(kOpen, std::memory_order_release);
    }
    wake_.notify_all();
    drain(0);
    inside_.fetch_sub(kOpen, std::memory_order_acq_rel);
    for (int spins = 0; inside_.load(std::memory_order_acquire) != 0 && spins < kSpins; ++spins) relax();
    if (inside_.load(std::memory_order_acquire) != 0) {  // sleep: an interrupted worker can move to this core
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [&] { return inside_.load(std::memory_order_acquire) == 0; });
    }
  }

 private:
  static constexpr int kOpen = 1 << 20;  // added to the number of workers inside while the job takes workers

  void drain(int worker) {
    for (int task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) function_(context_, task, worker);
  }

  bool enter() {
    int inside = inside_.load(std::memory_order_relaxed);
    while (inside >= kOpen) {
      if (inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void work(int id) {
    for (uint64_t seen = 0;;) {
      for (int spins = 0; generation_.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) relax();
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
      }
      seen = generation_.load(std::memory_order_acquire);
      if (!enter()) continue;
      if (id < threads_) drain(id);
      if (inside_.fetch_sub(1, std::memory_order_acq_rel) == 1) {  // the last one out of a closed job
        std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  const pid_t owner_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> next_{0}, inside_{0};
  TaskFunction function_ = nullptr;
  void* context_ = nullptr;
  int tasks_ = 0, threads_ = 0;
};

std::atomic<bool> busy{false};
Pool* pool = nullptr;  // never destroyed: its threads sleep until the process ends
pid_t busy_owner = 0;

}  // namespace

void run_parallel(int threads, int tasks, TaskFunction function, void* context) {
  const pid_t self = getpid();
  if (busy_owner != self) {  // first use, or the child of a fork, which has no worker threads and may have a stale flag
    busy_owner = self;
    busy.store(false);
  }
  if (threads > tasks) threads = tasks;
  if (threads <= 1 || busy.exchange(true, std::memory_order_acquire)) {
    for (int task = 0; task < tasks; ++task) function(context, task, 0);
    return;
  }
  if (pool == nullptr || pool->owner() != self) pool = new Pool(self);
  pool->run(threads, tasks, function, context);
  busy.store(false, std::memory_order_release);
}

}  // namespace dgr
