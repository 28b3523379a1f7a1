#include "pool.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
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

class Pool {
 public:
  explicit Pool(pid_t owner) : owner_(owner) {}

  pid_t owner() const { return owner_; }

  void run(int threads, int tasks, TaskFunction function, void* context) {
    while (int(workers_.size()) < threads - 1) {
      const int id = int(workers_.size()) + 1;
      const uint64_t seen = generation_.load();
      workers_.emplace_back([this, id, seen] { work(id, seen); });
    }
    function_ = function, context_ = context, tasks_ = tasks, active_ = threads;
    next_.store(0, std::memory_order_relaxed);
    pending_.store(int(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    drain(0);
    while (pending_.load(std::memory_order_acquire) != 0) relax_or_yield();
    spins_ = 0;
  }

 private:
  void relax_or_yield() {
    if (++spins_ < kSpins) return relax();
    std::this_thread::yield();  // the worker may need this core
  }

  void drain(int worker) {
    for (int task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) function_(context_, task, worker);
  }

  void work(int id, uint64_t seen) {
    for (;;) {
      int spins = 0;
      while (generation_.load(std::memory_order_acquire) == seen && ++spins < kSpins) relax();
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
      }
      ++seen;
      if (id < active_) drain(id);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  const pid_t owner_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> next_{0}, pending_{0};
  TaskFunction function_ = nullptr;
  void* context_ = nullptr;
  int tasks_ = 0, active_ = 0, spins_ = 0;
};

// The entry of the OpenMP runtime that torch has loaded; its signature is part of that runtime's stable interface.
using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

OpenMpParallel find_openmp() { return reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel")); }

std::atomic<bool> openmp_wanted{true};

struct Job {
  TaskFunction function;
  void* context;
  int tasks;
  std::atomic<int> next_task{0}, next_worker{0};
};

void work_on_job(void* pointer) {
  Job& job = *static_cast<Job*>(pointer);
  const int worker = job.next_worker.fetch_add(1, std::memory_order_relaxed);
  for (int task; (task = job.next_task.fetch_add(1, std::memory_order_relaxed)) < job.tasks;) {
    job.function(job.context, task, worker);
  }
}

std::atomic<bool> busy{false};
Pool* pool = nullptr;  // never destroyed: its threads sleep until the process ends
pid_t busy_owner = 0;

}  // namespace

void share_openmp(bool share) { openmp_wanted.store(share); }

void run_parallel(int threads, int tasks, TaskFunction function, void* context) {
  const pid_t self = getpid();
  static const pid_t first = self;  // OpenMP threads do not survive a fork; ours are made anew
  static const OpenMpParallel openmp = find_openmp();
  if (busy_owner != self) {  // first use, or the child of a fork, which has no worker threads and may have a stale flag
    busy_owner = self;
    busy.store(false);
  }
  if (threads > tasks) threads = tasks;
  if (threads <= 1 || busy.exchange(true, std::memory_order_acquire)) {
    for (int task = 0; task < tasks; ++task) function(context, task, 0);
    return;
  }
  if (openmp != nullptr && openmp_wanted.load() && self == first) {
    Job job{function, context, tasks};
    openmp(work_on_job, &job, unsigned(threads), 0);
    busy.store(false, std::memory_order_release);
    return;
  }
  if (pool == nullptr || pool->owner() != self) pool = new Pool(self);
  pool->run(threads, tasks, function, context);
  busy.store(false, std::memory_order_release);
}

}  // namespace dgr
