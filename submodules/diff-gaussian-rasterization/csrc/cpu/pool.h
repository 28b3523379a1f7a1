// parallel(threads, tasks, fn) calls fn(task, worker) for every task once, on torch's threads or on a pool of our own.
#pragma once

#include <type_traits>

namespace dgr {

using TaskFunction = void (*)(void* context, int task, int worker);

// Tasks are handed out in order to whoever is free, so a task must not depend on its worker. Nested or concurrent calls
// run on the calling thread alone.
void run_parallel(int threads, int tasks, TaskFunction function, void* context);

// Whether torch's OpenMP threads are used where they can be found (the default). Two pools on one machine hamper each
// other: after a torch operation its threads keep spinning on the cores that ours would need.
void share_openmp(bool share);

template <class F>
void parallel(int threads, int tasks, F&& body) {
  using Body = typename std::remove_reference<F>::type;
  run_parallel(threads, tasks, [](void* context, int task, int worker) { (*static_cast<Body*>(context))(task, worker); },
               &body);
}

}  // namespace dgr
