// Exact assignment with the largest total score, one to one, on the device (shortest augmenting paths, after Jonker and
// Volgenant 1987): scores become integer costs, rows that agree at once are settled together, some rounds of bidding
// settle most of the others, and each row that is still free then searches the shortest path to a free column.
#include "workspace.h"
#include "dgr_cuda.h"
#include "group.cuh"
#include "platform.cuh"

namespace dgr {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / int(kWarp);
constexpr int kMaxCost = 1 << 29;  // sums and differences of a few costs fit 32 bits
constexpr int kNever = 0x7fffffff;
constexpr int kOut = 0x7fffffff;  // column number of the way out
constexpr int kRounds = 2;        // of bidding
constexpr int kHere = 2048;       // columns whose state fits shared memory

// ---- from scores to costs -----------------------------------------------------------------------------------------

// Maps floats to unsigned numbers of the same order.
DGR_DEVICE unsigned ordered(float a) {
  const uint32_t bits = __float_as_uint(a);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DGR_DEVICE float from_ordered(unsigned a) { return __uint_as_float(a & 0x80000000u ? a ^ 0x80000000u : ~a); }

// NaN counts as 0, infinity as the largest number.
DGR_DEVICE float tame(float a) { return a == a ? fminf(fmaxf(a, -3.402823466e38f), 3.402823466e38f) : 0.0f; }

// Largest score, and smallest as the largest complement; both start at zero.
struct Extent {
  unsigned high, low;
};

__global__ void __launch_bounds__(kThreads)
    assign_extent_kernel(const float* scores, int64_t count, const float* floors, int64_t num_floors, Extent* extent) {
  unsigned not_high = ~0u, low = ~0u;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count + num_floors;
       i += int64_t(gridDim.x) * kThreads) {
    const unsigned score = ordered(tame(i < count ? scores[i] : floors[i - count]));
    not_high = min(not_high, ~score), low = min(low, score);
  }
  not_high = warp_min(not_high), low = warp_min(low);
  if (threadIdx.x % kWarp == 0) atomicMax(&extent->high, ~not_high), atomicMax(&extent->low, ~low);
}

DGR_DEVICE int cost_of(float score, const Extent& extent) {
  const double high = from_ordered(extent.high), range = high - from_ordered(~extent.low);
  return range > 0.0 ? int(rint((high - tame(score)) * (kMaxCost / range))) : 0;
}

// The problem: every row gets a column of its own, at the least total cost. There are enough columns, or ways out.
struct Problem {
  int rows, columns;
  int32_t* cost;           // [rows, columns]
  int32_t* out;            // [rows], cost of staying without column; null if that is not allowed
  int32_t *least, *first;  // [rows]: least cost of each row, and its column
};

// cost, out, least and first. A warp a row; `transposed`: the rows of the problem are the columns of the scores.
__global__ void __launch_bounds__(kThreads)
    assign_costs_kernel(const float* scores, const float* floors, bool transposed, const Extent* extent, Problem p) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= p.rows) return;
  const int lane = threadIdx.x % kWarp;
  int least = kNever, first = kOut;
  for (int j = lane; j < p.columns; j += int(kWarp)) {
    const int cost = cost_of(scores[transposed ? int64_t(j) * p.rows + row : row * p.columns + j], *extent);
    p.cost[row * p.columns + j] = cost;
    if (cost < least) least = cost, first = j;
  }
  const int all = warp_min(least);
  first = warp_min(least == all ? first : kOut);
  if (lane != 0) return;
  const int out = p.out == nullptr ? kNever : cost_of(floors[row], *extent);
  if (p.out != nullptr) p.out[row] = out;
  p.least[row] = min(all, out), p.first[row] = out <= all ? kOut : first;
}

// ---- solution -----------------------------------------------------------------------------------------------------

// State of the one block that solves the problem. Prices are at most 0, and 0 for columns that are free, so a row's
// cheapest column by cost - price is a best one for it. Thread t looks after the columns t, t + kThreads, ...
struct State {
  int *price, *distance, *from, *row_of;    // [columns]; row_of -1 = free
  int *column_of, *waiting, *waiting_next;  // [rows]; column_of kOut = stays out
};

constexpr int kSeen = 1 << 30;  // flag in `from`: the search has left this column behind

// The smallest value of the block and the least key among its equals.
struct Least {
  int value;
  unsigned key;
};

DGR_DEVICE Least warp_least(Least a) {
  const int value = warp_min(a.value);
  return {value, warp_min(a.value == value ? a.key : ~0u)};
}

// One barrier: calls take turns with the two slots.
DGR_DEVICE Least block_least(Least mine, Least (&slots)[2][kWarps], int& turn) {
  const int lane = threadIdx.x % kWarp;
  mine = warp_least(mine), turn ^= 1;
  if (lane == 0) slots[turn][threadIdx.x / kWarp] = mine;
  __syncthreads();
  return warp_least(lane < kWarps ? slots[turn][lane] : Least{kNever, ~0u});
}

// Rows whose cheapest column no row before them wants get it; the others wait, dearest scores first. Returns their
// number.
DGR_DEVICE int settle_agreed(const Problem& p, const State& s) {
  int* winner = s.distance;
  for (int j = threadIdx.x; j < p.columns; j += kThreads) winner[j] = kNever, s.price[j] = 0, s.row_of[j] = -1;
  for (int i = threadIdx.x; i < p.rows; i += kThreads) {  // waiting[rank] = row
    int rank = 0;
    for (int k = 0; k < p.rows; ++k) rank += p.least[k] < p.least[i] || (p.least[k] == p.least[i] && k < i);
    s.waiting[rank] = i;
  }
  __syncthreads();
  for (int rank = threadIdx.x; rank < p.rows; rank += kThreads) {
    const int column = p.first[s.waiting[rank]];
    if (column != kOut) atomicMin(winner + column, rank);
  }
  __syncthreads();
  int count = 0;
  for (int begin = 0; begin < p.rows; begin += kThreads) {
    const int rank = begin + int(threadIdx.x), row = rank < p.rows ? s.waiting[rank] : -1;
    const int column = row < 0 ? kOut : p.first[row];
    const bool waits = column != kOut && winner[column] != rank;
    const int place = block_place<kWarps>(waits, count);
    if (waits) s.waiting_next[place] = row;
    if (row >= 0) s.column_of[row] = waits ? -1 : column;
    if (row >= 0 && column != kOut && !waits) s.row_of[column] = row;
  }
  __syncthreads();
  return count;
}

// The two cheapest choices of a row, one of which may be the way out.
struct Choice {
  Least best, second;
};

DGR_DEVICE void offer(Choice& c, int value, unsigned key) {
  if (value < c.best.value || (value == c.best.value && key < c.best.key)) {
    c.second = c.best, c.best = {value, key};
  } else if (value < c.second.value || (value == c.second.value && key < c.second.key)) {
    c.second = {value, key};
  }
}

DGR_DEVICE Choice choices_of(const Problem& p, const State& s, int row, Least (&slots)[2][kWarps], int& turn) {
  Choice mine = {{kNever, ~0u}, {kNever, ~0u}};
  const int32_t* cost = p.cost + int64_t(row) * p.columns;
  for (int j = threadIdx.x; j < p.columns; j += kThreads) offer(mine, __ldg(cost + j) - s.price[j], unsigned(j));
  if (threadIdx.x == 0 && p.out != nullptr) offer(mine, p.out[row], unsigned(kOut));
  Choice all;
  all.best = block_least(mine.best, slots, turn);
  all.second = block_least(mine.best.key == all.best.key ? mine.second : mine.best, slots, turn);
  return all;
}

// Rows bid for their cheapest column, paying as much as makes their second choice as good, and displace who was there.
// Returns the number of rows that wait afterwards, in waiting_next. The number of bids is bounded.
DGR_DEVICE int bid(const Problem& p, State& s, int count, Least (&slots)[2][kWarps], int& turn) {
  int* swap = s.waiting;
  s.waiting = s.waiting_next, s.waiting_next = swap;
  int next = 0, budget = 2 * p.rows;
  for (int k = 0; k < count; ++k) {
    for (int row = s.waiting[k]; row >= 0;) {
      const Choice choice = choices_of(p, s, row, slots, turn);
      const int gain = choice.second.value == kNever ? 0 : choice.second.value - choice.best.value;
      int column = int(choice.best.key);
      if (gain == 0 && column != kOut && s.row_of[column] >= 0 && choice.second.value == choice.best.value) {
        column = int(choice.second.key);  // just as good, and perhaps free
      }
      const int displaced = column == kOut ? -1 : s.row_of[column];
      const bool at_once = gain > 0 && --budget > 0;  // a row that pays nothing might go round in circles
      __syncthreads();                                // all have read row_of
      if (column != kOut && int(threadIdx.x) == column % kThreads) s.price[column] -= gain, s.row_of[column] = row;
      if (threadIdx.x == 0) {
        s.column_of[row] = column;
        if (displaced >= 0) s.column_of[displaced] = -1;
        if (displaced >= 0 && !at_once) s.waiting_next[next] = displaced;
      }
      next += displaced >= 0 && !at_once;
      row = at_once ? displaced : -1;
    }
  }
  __syncthreads();
  return next;
}

// Where a search ended: at a free column, or at a row that takes its way out.
struct Goal {
  int distance, column, leaving;
};

// Dijkstra from a free row over reduced costs; afterwards distance and from are set for the columns that were seen.
DGR_DEVICE Goal search(const Problem& p, const State& s, int start, Least (&slots)[2][kWarps], int& turn) {
  int row = start, base = 0;  // base: what makes cost - price a distance from the start
  Goal out = {kNever, kOut, start};
  for (int steps = 0; steps <= p.columns; ++steps) {
    const int32_t* cost = p.cost + int64_t(row) * p.columns;
    if (p.out != nullptr && p.out[row] - base < out.distance) out.distance = p.out[row] - base, out.leaving = row;
    Least mine = {kNever, ~0u};
    for (int j = threadIdx.x; j < p.columns; j += kThreads) {
      const bool fresh = steps == 0;
      if (!fresh && s.from[j] & kSeen) continue;
      const int distance = __ldg(cost + j) - s.price[j] - base;
      if (fresh || distance < s.distance[j]) s.distance[j] = distance, s.from[j] = row;
      const unsigned key = unsigned(j) | (s.row_of[j] < 0 ? 0u : 0x80000000u);  // a free column ends the search: first
      if (s.distance[j] < mine.value || (s.distance[j] == mine.value && key < mine.key)) mine = {s.distance[j], key};
    }
    const Least all = block_least(mine, slots, turn);
    if (out.distance <= all.value) return out;
    const int column = int(all.key & 0x7fffffffu);
    if (s.row_of[column] < 0) return {all.value, column, -1};
    if (int(threadIdx.x) == column % kThreads) s.from[column] |= kSeen;
    row = s.row_of[column];
    base = __ldg(p.cost + int64_t(row) * p.columns + column) - s.price[column] - all.value;
  }
  return out;
}

// Follows the path back from its goal and hands every column on it to the row before. One thread.
DGR_DEVICE void augment(const State& s, int start, const Goal& goal) {
  int column = goal.column;
  if (goal.leaving >= 0) {
    column = s.column_of[goal.leaving], s.column_of[goal.leaving] = kOut;
    if (goal.leaving == start) return;
  }
  for (int row = -1; row != start;) {
    row = s.from[column] & ~kSeen;
    const int before = s.column_of[row];
    s.row_of[column] = row, s.column_of[row] = column, column = before;
  }
}

// One block. codes [segments] = column of each row, or, `transposed`, row of each column; -1 = none.
__global__ void __launch_bounds__(kThreads) assign_solve_kernel(Problem p, State s, bool transposed, int64_t* codes) {
  __shared__ int here[4][kHere];
  __shared__ Least slots[2][kWarps];
  if (p.columns <= kHere) s.price = here[0], s.distance = here[1], s.from = here[2], s.row_of = here[3];
  int turn = 0, count = settle_agreed(p, s);
  for (int round = 0; round < kRounds && count > 0; ++round) count = bid(p, s, count, slots, turn);
  for (int k = 0; k < count; ++k) {
    const int start = s.waiting_next[k];
    const Goal goal = search(p, s, start, slots, turn);
    __syncthreads();
    for (int j = threadIdx.x; j < p.columns; j += kThreads) {
      if (s.from[j] & kSeen) s.price[j] += s.distance[j] - goal.distance;
    }
    if (threadIdx.x == 0) augment(s, start, goal);
    __syncthreads();
  }
  for (int i = threadIdx.x; i < p.rows; i += kThreads) {
    const int column = s.column_of[i];
    if (!transposed) codes[i] = column == kOut ? -1 : column;
    if (transposed && column != kOut) codes[column] = i;
  }
}

struct Work {
  Problem problem;
  State state;
  Extent* extent;
  size_t total;
  Work(void* base, int rows, int columns, bool floors) {
    Workspace workspace(base);
    problem = {rows,
               columns,
               workspace.take<int32_t>(int64_t(rows) * columns),
               floors ? workspace.take<int32_t>(rows) : nullptr,
               workspace.take<int32_t>(rows),
               workspace.take<int32_t>(rows)};
    const int elsewhere = columns <= kHere ? 0 : columns;
    state = {workspace.take<int>(elsewhere), workspace.take<int>(elsewhere), workspace.take<int>(elsewhere),
             workspace.take<int>(elsewhere), workspace.take<int>(rows),      workspace.take<int>(rows),
             workspace.take<int>(rows)};
    extent = workspace.take<Extent>(1);
    total = workspace.used();
  }
};

// Without ways out there must be at least as many columns as rows: with more segments than codes, codes choose
// segments.
bool turned(int segments, int codes, bool floors) { return segments > codes && !floors; }

Work work_for(void* base, int segments, int codes, bool floors) {
  const bool transposed = turned(segments, codes, floors);
  return Work(base, transposed ? codes : segments, transposed ? segments : codes, floors);
}

}  // namespace
}  // namespace dgr

using namespace dgr;

// Bytes of workspace; host memory.
DGR_API void dgr_cuda_assign_bytes(int32_t segments, int32_t codes, int32_t with_floors, int64_t* bytes) {
  *bytes = int64_t(work_for(nullptr, segments, codes, with_floors != 0).total);
}

// result [segments] = the code of each segment, or -1, such that the total of scores [segments, codes] is largest and
// no code is given twice. With floors [segments] a segment may stay without code, which counts as much as its floor;
// else as many segments get one as there are codes.
DGR_API int dgr_cuda_assign(const float* scores, const float* floors, int32_t segments, int32_t codes, void* workspace,
                            int64_t* result, int32_t device, void* stream) {
  if (segments == 0) return 0;
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const bool transposed = turned(segments, codes, floors != nullptr);
  if (transposed || codes == 0) {
    if (cudaError_t status = cudaMemsetAsync(result, 0xff, sizeof(int64_t) * size_t(segments), queue))
      return int(status);
    if (codes == 0) return 0;
  }
  const Work work = work_for(workspace, segments, codes, floors != nullptr);
  if (cudaError_t status = cudaMemsetAsync(work.extent, 0, sizeof(Extent), queue)) return int(status);
  const int64_t count = int64_t(segments) * codes, num_floors = floors == nullptr ? 0 : segments;
  DGR_LAUNCH(assign_extent_kernel, min(blocks_for(count + num_floors, kThreads), int64_t(256)), kThreads, stream,
             scores, count, floors, num_floors, work.extent);
  DGR_LAUNCH(assign_costs_kernel, blocks_for(work.problem.rows, kWarps), kThreads, stream, scores, floors, transposed,
             work.extent, work.problem);
  DGR_LAUNCH(assign_solve_kernel, 1, kThreads, stream, work.problem, work.state, transposed, result);
  return int(cudaGetLastError());
}
