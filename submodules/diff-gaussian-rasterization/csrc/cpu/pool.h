// A small persistent thread pool: parallel(threads, tasks, fn) calls fn(task, worker) for every task once.
// Torch's own OpenMP threads were tried instead: equal on an idle machine, ten times slower on a busy one, because an
// OpenMP region ends only when every thread has been scheduled.
#pragma once

#include <type_traits>

namespace dgr {

using TaskFunction = void (*)(void* context, int task, int worker);

// Tasks are handed out in order to free workers, so a task must not depend on its worker. Nested or concurrent calls
// run on the calling thread alone.
void run_parallel(int threads, int tasks, TaskFunction function, void* context);

template <class F>
void parallel(int threads, int tasks, F&& body) {
  using Body = typename std::remove_reference<F>::type;
  run_parallel(
      threads, tasks, [](void* context, int task, int worker) { (*static_cast<Body*>(context))(task, worker); }, &body);
}

}  // namespace dgr
