// Which Gaussians each tile blends, in which order; and the blending weights of single pixels.
// Compiled without contraction to fused multiply-add: counting and filling must take the same decisions.
#include "workspace.h"
#include "dgr_cuda.h"
#include "group.cuh"
#include "sort.h"
#include "tile.cuh"

namespace dgr {

int launch_project(const DgrCudaScene& s, const DgrCudaFrame& frame, uint32_t* keys, uint32_t* order);

namespace {

constexpr int kThreads = 256;
constexpr uint32_t kCulled = 0xffffffffu;
constexpr int kManyRows = 6;    // tile rows, or
constexpr int kManyTiles = 24;  // tiles, from which a warp shares the work on one splat

// The tiles of one splat in one tile row.
struct Run {
  int first, count;
};

DGR_DEVICE Run run_in_row(const Ellipse& e, int row, int width, int height) {
  const int top = row * kTile, bottom = min(top + kTile, height) - 1;
  int first, last;
  if (!columns_in_rows(e, top, bottom, width, first, last)) return {0, 0};
  return {first / kTile, last / kTile - first / kTile + 1};
}

DGR_DEVICE Ellipse load_ellipse(const float* splats, int64_t index, int height, int& first_row, int& last_row) {
  const Splat& s = reinterpret_cast<const Splat*>(splats)[index];
  const Ellipse e = make_ellipse(s.place, s.reach);
  int top, bottom;
  rows_of(e, height, top, bottom);
  first_row = top / kTile, last_row = bottom < 0 || bottom < top ? -1 : bottom / kTile;
  return e;
}

// counts[rank] = tiles of the Gaussian in that place of the depth order. One thread a Gaussian, but a warp for a tall one.
__global__ void __launch_bounds__(kThreads) count_kernel(const float* splats, const uint32_t* keys, const uint32_t* order,
                                                         int64_t n, int width, int height, uint32_t* counts) {
  const int64_t rank = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int lane = threadIdx.x % kWarp;
  const bool seen = rank < n && keys[rank] != kCulled;
  uint32_t index = 0, count = 0;
  bool tall = false;
  if (seen) {
    index = order[rank];
    int first, last;
    const Ellipse e = load_ellipse(splats, index, height, first, last);
    tall = last - first >= kManyRows;
    for (int row = first; !tall && row <= last; ++row) count += run_in_row(e, row, width, height).count;
  }
  for (unsigned rest = __ballot_sync(kAllLanes, tall); rest != 0; rest &= rest - 1) {
    const int owner = __ffs(rest) - 1;
    int first, last;
    const Ellipse e = load_ellipse(splats, __shfl_sync(kAllLanes, index, owner), height, first, last);
    uint32_t sum = 0;
    for (int row = first + lane; row <= last; row += kWarp) sum += run_in_row(e, row, width, height).count;
    sum = warp_sum(sum);
    if (lane == owner) count = sum;
  }
  if (rank < n) counts[rank] = count;
  if (rank == n) counts[n] = 0;
}

template <class Key>
DGR_DEVICE void write_run(Run run, int row, int tiles_x, uint32_t index, int64_t at, int start, int step, Key* keys,
                          uint32_t* values) {
  for (int i = start; i < run.count; i += step) {
    keys[at + i] = Key(row * tiles_x + run.first + i);
    values[at + i] = index;
  }
}

// One (tile, Gaussian) pair after another, in depth order.
template <class Key>
__global__ void __launch_bounds__(kThreads) emit_kernel(const float* splats, const uint32_t* keys, const uint32_t* order,
                                                        const int64_t* offsets, int64_t n, int width, int height,
                                                        int tiles_x, Key* tiles, uint32_t* values) {
  const int64_t rank = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int lane = threadIdx.x % kWarp;
  const bool seen = rank < n && keys[rank] != kCulled;
  uint32_t index = 0;
  int64_t at = 0;
  bool large = false;
  if (seen) {
    index = order[rank], at = offsets[rank];
    int first, last;
    const Ellipse e = load_ellipse(splats, index, height, first, last);
    large = last - first >= kManyRows || offsets[rank + 1] - at >= kManyTiles;
    for (int row = first; !large && row <= last; ++row) {
      const Run run = run_in_row(e, row, width, height);
      write_run(run, row, tiles_x, index, at, 0, 1, tiles, values);
      at += run.count;
    }
  }
  for (unsigned rest = __ballot_sync(kAllLanes, large); rest != 0; rest &= rest - 1) {
    const int owner = __ffs(rest) - 1;
    const uint32_t shared_index = __shfl_sync(kAllLanes, index, owner);
    int64_t start = __shfl_sync(kAllLanes, at, owner);
    int first, last;
    const Ellipse e = load_ellipse(splats, shared_index, height, first, last);
    for (int top = first; top <= last; top += kWarp) {  // each lane cuts one row, all write each row together
      const Run mine = top + lane <= last ? run_in_row(e, top + lane, width, height) : Run{0, 0};
      for (int i = 0; i < min(int(kWarp), last - top + 1); ++i) {
        const Run run = {__shfl_sync(kAllLanes, mine.first, i), __shfl_sync(kAllLanes, mine.count, i)};
        write_run(run, top + i, tiles_x, shared_index, start, lane, kWarp, tiles, values);
        start += run.count;
      }
    }
  }
}

// begin[t] = first pair of tile t in the sorted list; pairs >= 1.
template <class Key>
__global__ void __launch_bounds__(kThreads) ranges_kernel(const Key* tiles, int64_t pairs, int num_tiles, int64_t* begin) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= pairs) return;
  const int here = int(tiles[i]), before = i == 0 ? -1 : int(tiles[i - 1]);
  for (int t = before + 1; t <= here; ++t) begin[t] = i;
  if (i == pairs - 1) {
    for (int t = here + 1; t <= num_tiles; ++t) begin[t] = pairs;
  }
}

// Sum over this and earlier lanes.
DGR_DEVICE int sum_up_to_lane(int own) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int step = 1; step < int(kWarp); step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, own, step);
    if (lane >= step) own += other;
  }
  return own;
}

// chunk_begin and chunk_tile of a frame, by one block: tiles are few.
constexpr int kChunkThreads = 1024;
__global__ void __launch_bounds__(kChunkThreads) chunks_kernel(DgrCudaFrame frame, int tiles) {
  __shared__ int sums[kWarp];
  const int t = threadIdx.x, lane = t % kWarp, warp = t / kWarp;
  int before = 0;  // chunks of all tiles of earlier rounds
  for (int first = 0; first < tiles; first += kChunkThreads) {
    const int tile = first + t;
    int own = 0;
    if (tile < tiles) own = max(1, int((frame.tile_begin[tile + 1] - frame.tile_begin[tile] + kChunk - 1) / kChunk));
    const int sum = sum_up_to_lane(own);
    __syncthreads();  // no thread still reads the sums of the round before
    if (lane == int(kWarp) - 1) sums[warp] = sum;
    __syncthreads();
    const int of_warps = sum_up_to_lane(sums[lane]);  // every warp does the same
    const int begin = before + __shfl_sync(kAllLanes, of_warps, warp) - sums[warp] + sum - own;
    before += __shfl_sync(kAllLanes, of_warps, int(kWarp) - 1);
    if (tile >= tiles) continue;
    frame.chunk_begin[tile] = begin;
    for (int i = 0; i < own; ++i) frame.chunk_tile[begin + i] = tile;
  }
  if (t == 0) frame.chunk_begin[tiles] = before;
  for (int64_t i = before + t; i < frame.chunks; i += kChunkThreads) frame.chunk_tile[i] = -1;
}

// Bytes that the library primitives of the first half need. Asked several times in a row for the same n.
size_t order_scratch(int64_t n) {
  thread_local int64_t asked = -1;
  thread_local size_t answer = 0;
  if (n == asked) return answer;
  size_t sort_bytes = 0, sum_bytes = 0;
  const uint32_t* none = nullptr;
  sort_pairs(nullptr, sort_bytes, none, nullptr, none, nullptr, n, 32, nullptr);
  running_sum(nullptr, sum_bytes, none, nullptr, n + 1, nullptr);
  asked = n, answer = sort_bytes > sum_bytes ? sort_bytes : sum_bytes;
  return answer;
}

// Memory of the first half: the depth order.
struct OrderWork {
  uint32_t *keys, *order, *counts, *keys_in, *order_in;
  int64_t* offsets;
  char* scratch;
  size_t scratch_bytes, total;
  OrderWork(void* base, int64_t n) {
    scratch_bytes = order_scratch(n);
    Workspace workspace(base);
    offsets = workspace.take<int64_t>(n + 1);
    keys = workspace.take<uint32_t>(n), order = workspace.take<uint32_t>(n);
    keys_in = workspace.take<uint32_t>(n), order_in = workspace.take<uint32_t>(n), counts = workspace.take<uint32_t>(n + 1);
    scratch = workspace.take<char>(int64_t(scratch_bytes));
    total = workspace.used();
  }
};

int bits_for(int64_t values) {
  int bits = 1;
  while ((int64_t(1) << bits) < values) ++bits;
  return bits;
}

// Memory of the second half: the pairs.
template <class Key>
struct PairWork {
  Key *keys, *keys_in;
  uint32_t* values_in;
  char* scratch;
  size_t scratch_bytes, total;
  PairWork(void* base, int64_t pairs, int bits) {
    const Key* no_keys = nullptr;
    const uint32_t* none = nullptr;
    scratch_bytes = 0;
    sort_pairs(nullptr, scratch_bytes, no_keys, nullptr, none, nullptr, pairs, bits, nullptr);
    Workspace workspace(base);
    keys = workspace.take<Key>(pairs), keys_in = workspace.take<Key>(pairs), values_in = workspace.take<uint32_t>(pairs);
    scratch = workspace.take<char>(int64_t(scratch_bytes));
    total = workspace.used();
  }
};

bool is_narrow(const Grid& grid) { return grid.tiles <= 65536; }  // tile numbers fit 16 bits

int find_chunks(const DgrCudaScene& s, const DgrCudaFrame& frame) {
  if (frame.chunk_tile != nullptr) DGR_LAUNCH(chunks_kernel, 1, kChunkThreads, s.stream, frame, Grid(s).tiles);
  return int(cudaGetLastError());
}

template <class Key>
int fill_lists(const DgrCudaScene& s, const DgrCudaFrame& frame, const OrderWork& order, int64_t pairs, void* memory) {
  const Grid grid(s);
  const int bits = bits_for(grid.tiles);
  PairWork<Key> work(memory, pairs, bits);
  DGR_LAUNCH(emit_kernel<Key>, blocks_for(s.n, kThreads), kThreads, s.stream, frame.splats, order.keys, order.order,
             order.offsets, s.n, s.width, s.height, grid.tiles_x, work.keys_in, work.values_in);
  if (int status = sort_pairs(work.scratch, work.scratch_bytes, work.keys_in, work.keys, work.values_in, frame.list, pairs,
                              bits, s.stream)) {
    return status;
  }
  DGR_LAUNCH(ranges_kernel<Key>, blocks_for(pairs, kThreads), kThreads, s.stream, work.keys, pairs, grid.tiles,
             frame.tile_begin);
  return int(cudaGetLastError());
}

// ---- weights of single pixels -------------------------------------------------------------------------------------

// Pixels (x, y) whose weights are wanted; of a pixel outside the image there are none.
struct Wanted {
  const int64_t* pixels;
  int64_t count;
  int width, height, tiles_x;
  float min_weight;
};

// A warp walks the list of one pixel, 32 entries at a time. Calls visit(lane has an entry, its place among those of this
// step, number of them, Gaussian, weight).
template <class Visit>
DGR_DEVICE void walk_pixel(const DgrCudaFrame& frame, const Wanted& wanted, int64_t row, Visit visit) {
  const int64_t across = wanted.pixels[2 * row], down = wanted.pixels[2 * row + 1];
  if (across < 0 || across >= wanted.width || down < 0 || down >= wanted.height) return;
  const int lane = threadIdx.x % kWarp;
  const int x = int(across), y = int(down), tile = y / kTile * wanted.tiles_x + x / kTile;
  const int64_t end = frame.tile_begin[tile + 1];
  float transmittance = 1.0f;  // before this step
  bool open = true;
  for (int64_t i = frame.tile_begin[tile]; i < end && open; i += kWarp) {
    float alpha = 0.0f;
    uint32_t index = 0;
    if (i + lane < end) {
      index = frame.list[i + lane];
      const Splat& s = reinterpret_cast<const Splat*>(frame.splats)[index];
      const float4 place = s.place;
      const float2 shape = make_float2(s.reach.x, s.reach.y);
      if (!evaluate(place, shape, x + 0.5f - place.x, y + 0.5f - place.y, alpha)) alpha = 0.0f;
    }
    float after = 1.0f - alpha;  // product over this and earlier lanes
#pragma unroll
    for (int step = 1; step < int(kWarp); step *= 2) {
      const float other = __shfl_up_sync(kAllLanes, after, step);
      if (lane >= step) after *= other;
    }
    float before = __shfl_up_sync(kAllLanes, after, 1);
    before = transmittance * (lane == 0 ? 1.0f : before), after = transmittance * after;
    const unsigned dark = __ballot_sync(kAllLanes, alpha > 0.0f && after < kTransmittanceMin);
    open = dark == 0;
    const int stop = open ? int(kWarp) : __ffs(dark) - 1;
    const float weight = before * alpha;
    const bool mine = alpha > 0.0f && lane < stop && weight >= wanted.min_weight;
    const unsigned all = __ballot_sync(kAllLanes, mine);
    visit(mine, __popc(all & ((1u << lane) - 1)), __popc(all), index, weight);
    transmittance = __shfl_sync(kAllLanes, after, kWarp - 1);
  }
}

__global__ void __launch_bounds__(kThreads) count_weights_kernel(DgrCudaFrame frame, Wanted wanted, int64_t* counts) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= wanted.count) return;
  int64_t count = 0;
  walk_pixel(frame, wanted, row, [&count](bool, int, int found, uint32_t, float) { count += found; });
  if (threadIdx.x % kWarp == 0) counts[row] = count;
}

__global__ void __launch_bounds__(kThreads) fill_weights_kernel(DgrCudaFrame frame, Wanted wanted, const int64_t* offsets,
                                                                int32_t* ids, float* weights) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= wanted.count) return;
  int64_t at = offsets[row];
  walk_pixel(frame, wanted, row, [&at, ids, weights](bool mine, int place, int found, uint32_t index, float weight) {
    if (mine) ids[at + place] = int32_t(index), weights[at + place] = weight;
    at += found;
  });
}

}  // namespace
}  // namespace dgr

using namespace dgr;

// Bytes of workspace for dgr_cuda_order; host memory.
DGR_API void dgr_cuda_order_bytes(int64_t n, int64_t* bytes) { *bytes = int64_t(OrderWork(nullptr, n).total); }

DGR_API void dgr_cuda_lists_bytes(const DgrCudaScene* s, int64_t pairs, int64_t* bytes) {
  const Grid grid(*s);
  const int bits = bits_for(grid.tiles);
  *bytes = int64_t(is_narrow(grid) ? PairWork<uint16_t>(nullptr, pairs, bits).total
                                   : PairWork<uint32_t>(nullptr, pairs, bits).total);
}

// Second half: fills frame->list, frame->tile_begin and, if there is room for them, the chunks. `order` is the workspace of the first half.
DGR_API int dgr_cuda_lists(const DgrCudaScene* s, const DgrCudaFrame* frame, void* order, int64_t pairs, void* workspace) {
  if (cudaError_t status = cudaSetDevice(s->device)) return int(status);
  const Grid grid(*s);
  int status = 0;
  if (pairs == 0) {
    const size_t bytes = sizeof(int64_t) * size_t(grid.tiles + 1);
    status = int(cudaMemsetAsync(frame->tile_begin, 0, bytes, static_cast<cudaStream_t>(s->stream)));
  } else {
    const OrderWork work(order, s->n);
    status = is_narrow(grid) ? fill_lists<uint16_t>(*s, *frame, work, pairs, workspace)
                             : fill_lists<uint32_t>(*s, *frame, work, pairs, workspace);
  }
  return status != 0 ? status : find_chunks(*s, *frame);
}

// First half, n >= 1: projects, sorts by depth, counts. Copies the number of pairs to *pairs and waits for it: the one place
// where the host waits for the device. Where the pairs turn out to be no more than `capacity`, for which frame->list, the chunks
// and `lists` have room, the second half follows at once, so that the device need not wait in turn.
DGR_API int dgr_cuda_order(const DgrCudaScene* s, const DgrCudaFrame* frame, void* workspace, int64_t capacity, void* lists,
                           int64_t* pairs) {
  if (cudaError_t status = cudaSetDevice(s->device)) return int(status);
  OrderWork work(workspace, s->n);
  if (int status = launch_project(*s, *frame, work.keys_in, work.order_in)) return status;
  if (int status = sort_pairs(work.scratch, work.scratch_bytes, work.keys_in, work.keys, work.order_in, work.order, s->n, 32,
                              s->stream)) {
    return status;
  }
  DGR_LAUNCH(count_kernel, blocks_for(s->n + 1, kThreads), kThreads, s->stream, frame->splats, work.keys, work.order, s->n,
             s->width, s->height, work.counts);
  if (int status = running_sum(work.scratch, work.scratch_bytes, work.counts, work.offsets, s->n + 1, s->stream)) {
    return status;
  }
  thread_local int64_t* landing = nullptr;  // page-locked, which spares the copy a detour
  if (landing == nullptr) {
    if (cudaError_t status = cudaMallocHost(reinterpret_cast<void**>(&landing), sizeof(int64_t))) return int(status);
  }
  const cudaStream_t stream = static_cast<cudaStream_t>(s->stream);
  if (cudaError_t status =
          cudaMemcpyAsync(landing, work.offsets + s->n, sizeof(int64_t), cudaMemcpyDeviceToHost, stream)) {
    return int(status);
  }
  if (cudaError_t status = cudaStreamSynchronize(stream)) return int(status);
  *pairs = *landing;
  return *pairs <= capacity ? dgr_cuda_lists(s, frame, workspace, *pairs, lists) : 0;
}

// Entries of a chunk; floats of a state and of a partial result of all pixels of a tile. Host memory: [3].
DGR_API void dgr_cuda_chunk_sizes(int32_t* sizes) {
  sizes[0] = kChunk, sizes[1] = kState * kTileThreads, sizes[2] = kPartial * kTileThreads;
}

// counts [rows]: entries of each requested pixel (x, y).
DGR_API int dgr_cuda_weights_count(const DgrCudaScene* s, const DgrCudaFrame* frame, const int64_t* pixels, int64_t rows,
                                   float min_weight, int64_t* counts) {
  if (rows == 0) return 0;
  if (cudaError_t status = cudaSetDevice(s->device)) return int(status);
  const Wanted wanted = {pixels, rows, s->width, s->height, Grid(*s).tiles_x, min_weight};
  DGR_LAUNCH(count_weights_kernel, blocks_for(rows, kThreads / kWarp), kThreads, s->stream, *frame, wanted, counts);
  return int(cudaGetLastError());
}

DGR_API int dgr_cuda_weights_fill(const DgrCudaScene* s, const DgrCudaFrame* frame, const int64_t* pixels, int64_t rows,
                                  float min_weight, const int64_t* offsets, int32_t* ids, float* weights) {
  if (rows == 0) return 0;
  if (cudaError_t status = cudaSetDevice(s->device)) return int(status);
  const Wanted wanted = {pixels, rows, s->width, s->height, Grid(*s).tiles_x, min_weight};
  DGR_LAUNCH(fill_weights_kernel, blocks_for(rows, kThreads / kWarp), kThreads, s->stream, *frame, wanted, offsets, ids,
             weights);
  return int(cudaGetLastError());
}
