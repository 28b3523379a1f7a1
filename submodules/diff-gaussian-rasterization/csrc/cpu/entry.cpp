// The functions Python calls: choice of instruction set, frames, and the phases of a render.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#include "../constants.h"
#include "order.h"
#include "pool.h"

#define DGR_API extern "C" __attribute__((visibility("default")))

namespace dgr {

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

namespace {

// The kernels of an instruction set, or null if this build or this machine lacks it.
const Kernels* find_kernels(const char* isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (std::strcmp(isa, "avx512") == 0) return avx512 ? &kernels_avx512 : nullptr;
  if (std::strcmp(isa, "avx2") == 0) return avx2 ? &kernels_avx2 : nullptr;
#endif
  return std::strcmp(isa, "baseline") == 0 ? &kernels_baseline : nullptr;
}

const Kernels*& current() {
  static const Kernels* chosen = nullptr;
  for (const char* isa : {"avx512", "avx2", "baseline"}) {
    if (chosen == nullptr) chosen = find_kernels(isa);
  }
  return chosen;
}

const Kernels& kernels() { return *current(); }

constexpr int kMaxFreeFrames = 4;  // enough for a batch of views in a training loop; more would only hold memory
std::mutex frames_mutex;
Frame* free_frames = nullptr;
int num_free_frames = 0;

Frame* take_frame() {
  std::lock_guard<std::mutex> lock(frames_mutex);
  Frame* frame = free_frames;
  if (frame == nullptr) return new Frame();
  free_frames = frame->next_free;
  --num_free_frames;
  return frame;
}

void give_frame(Frame* frame) {
  {
    std::lock_guard<std::mutex> lock(frames_mutex);
    if (num_free_frames < kMaxFreeFrames) {
      frame->next_free = free_frames;
      free_frames = frame;
      ++num_free_frames;
      return;
    }
  }
  destroy(frame);
}

float* scratch_of(Frame& frame, int worker) {
  return reinterpret_cast<float*>(static_cast<char*>(frame.scratch.data) + frame.scratch_stride * worker);
}

void reserve_scratch(Frame& frame, size_t bytes, int threads) {
  frame.scratch_stride = (bytes + 127) / 64 * 64;
  reserve(frame.scratch, frame.scratch_stride * std::max(threads, 1));
}

int tiles_of(const Frame& frame) { return frame.tiles_x * frame.tiles_y; }

// Pixels grouped by tile, and their row ranges: state between the two halves of pixel_weights.
struct Weights {
  Frame* frame;
  std::vector<int64_t> tile_begin;
  std::vector<int64_t> order;  // rows of the request, tile by tile
  const int64_t* pixels;
  float min_weight;
};

int pixel_in_tile(const int64_t* pixel) { return int(pixel[1] % kTile * kTile + pixel[0] % kTile); }

// Copies the rows of one tile from a packed local buffer to where the request wants them.
void deliver_tile(const Weights& w, const DgrScene& scene, int tile, const int64_t* offsets, int32_t* ids,
                  float* weights) {
  const int64_t begin = w.tile_begin[tile], end = w.tile_begin[tile + 1];
  if (begin == end) return;
  const uint32_t* counts = w.frame->pixel_counts + int64_t(tile) * kTile * kTile;
  uint32_t local[kTile * kTile], total = 0;
  for (int p = 0; p < kTile * kTile; ++p) local[p] = total, total += counts[p];
  std::vector<int32_t> tile_ids(total);
  std::vector<float> tile_weights(total);
  kernels().fill_weights(scene, *w.frame, tile, w.min_weight, local, tile_ids.data(), tile_weights.data());
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = w.order[i];
    const int p = pixel_in_tile(w.pixels + 2 * row);
    std::copy_n(tile_ids.data() + local[p], counts[p], ids + offsets[row]);
    std::copy_n(tile_weights.data() + local[p], counts[p], weights + offsets[row]);
  }
}

}  // namespace
}  // namespace dgr

using namespace dgr;

DGR_API const char* dgr_isa() { return kernels().isa; }

// Switches instruction set for the calls that follow; returns 0 and changes nothing if this machine lacks it. A frame
// must be finished with the kernels that began it.
DGR_API int dgr_use_isa(const char* isa) {
  const Kernels* found = find_kernels(isa);
  if (found != nullptr) current() = found;
  return found != nullptr;
}

DGR_API void dgr_constants(float* out) {
  const float values[] = {kAlphaMin, kAlphaMax, kTransmittanceMin, kLowPass, kFrustumMargin};
  std::copy(std::begin(values), std::end(values), out);
}

// Returns a frame for backward, or null when memory ran out.
DGR_API void* dgr_forward(const DgrScene* scene, const DgrImages* images, int64_t* num_pairs) {
  try {
    Frame* frame = take_frame();
    build_lists(kernels(), *scene, *images, *frame);
    reserve_scratch(*frame, kernels().scratch_bytes(scene->feature_dim), scene->threads);
    parallel(scene->threads, tiles_of(*frame), [&](int tile, int worker) {
      kernels().forward(*scene, *images, *frame, tile, scratch_of(*frame, worker));
    });
    *num_pairs = frame->pairs;
    return frame;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

DGR_API int dgr_backward(void* handle, const DgrScene* scene, const DgrGradients* gradients) {
  try {
    Frame& frame = *static_cast<Frame*>(handle);
    const size_t pairs = size_t(frame.pairs) + 1, stride = kernels().feature_stride(scene->feature_dim);
    frame.pair_geometry =
        static_cast<float*>(reserve(frame.buffers[kPairGeometry], sizeof(float) * kPairFloats * pairs));
    frame.pair_features = static_cast<float*>(reserve(frame.buffers[kPairFeatures], sizeof(float) * stride * pairs));
    frame.background_parts =
        static_cast<float*>(reserve(frame.buffers[kBackgroundParts], sizeof(float) * 4 * tiles_of(frame)));
    reserve_scratch(frame, kernels().scratch_bytes(scene->feature_dim), scene->threads);
    parallel(scene->threads, tiles_of(frame), [&](int tile, int worker) {
      kernels().backward(*scene, *gradients, frame, tile, scratch_of(frame, worker));
    });
    parallel(scene->threads, int((frame.n + kProjectChunk - 1) / kProjectChunk),
             [&](int task, int) { kernels().project_backward(*scene, *gradients, frame, task); });
    if (gradients->background != nullptr) {
      for (int c = 0; c < 3; ++c) {
        double sum = 0.0;
        for (int tile = 0; tile < tiles_of(frame); ++tile) sum += frame.background_parts[4 * int64_t(tile) + c];
        gradients->background[c] = float(sum);
      }
    }
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

DGR_API void dgr_release(void* frame) { give_frame(static_cast<Frame*>(frame)); }

// First half: fills offsets[count + 1]; returns a handle for dgr_weights_fill, or null when memory ran out.
DGR_API void* dgr_weights_count(const DgrScene* scene, const int64_t* pixels, int64_t count, float min_weight,
                                int64_t* offsets) {
  try {
    Weights* w = new Weights{take_frame(), {}, {}, pixels, min_weight};
    Frame& frame = *w->frame;
    build_lists(kernels(), *scene, DgrImages{}, frame);
    const int tiles = tiles_of(frame);
    const auto tile_of = [&](int64_t row) {
      return pixels[2 * row + 1] / kTile * frame.tiles_x + pixels[2 * row] / kTile;
    };
    w->tile_begin.assign(tiles + 1, 0);
    w->order.resize(count);
    for (int64_t row = 0; row < count; ++row) ++w->tile_begin[tile_of(row) + 1];
    for (int tile = 0; tile < tiles; ++tile) w->tile_begin[tile + 1] += w->tile_begin[tile];
    std::vector<int64_t> at(w->tile_begin.begin(), w->tile_begin.end() - 1);
    for (int64_t row = 0; row < count; ++row) w->order[at[tile_of(row)]++] = row;
    frame.pixel_counts =
        static_cast<uint32_t*>(reserve(frame.buffers[kPixelCounts], sizeof(uint32_t) * size_t(tiles) * kTile * kTile));
    parallel(scene->threads, tiles, [&](int tile, int) {
      if (w->tile_begin[tile] != w->tile_begin[tile + 1]) kernels().count_weights(*scene, frame, tile, min_weight);
    });
    offsets[0] = 0;
    for (int64_t row = 0; row < count; ++row) {
      const uint32_t* counts = frame.pixel_counts + tile_of(row) * kTile * kTile;
      offsets[row + 1] = offsets[row] + counts[pixel_in_tile(pixels + 2 * row)];
    }
    return w;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

// Second half: fills ids and weights, and frees the handle.
DGR_API void dgr_weights_fill(void* handle, const DgrScene* scene, const int64_t* offsets, int32_t* ids,
                              float* weights) {
  Weights* w = static_cast<Weights*>(handle);
  parallel(scene->threads, tiles_of(*w->frame),
           [&](int tile, int) { deliver_tile(*w, *scene, tile, offsets, ids, weights); });
  give_frame(w->frame);
  delete w;
}

// Row i of the result is row chosen[i] of the weights; null means all rows in order.
DGR_API void dgr_blend(const int64_t* offsets, const int32_t* ids, const float* weights, const int64_t* chosen,
                       const float* features, int32_t dim, int64_t count, int32_t threads, float* out) {
  const int64_t chunk = 256;
  parallel(threads, int((count + chunk - 1) / chunk), [&](int task, int) {
    kernels().blend(offsets, ids, weights, chosen, features, dim, task * chunk, std::min(count, (task + 1) * chunk), out);
  });
}

// out [n, dim] must be zero; copies [parts - 1, n, dim] must be zero too and are used as per-part sums.
DGR_API void dgr_splat(const int64_t* offsets, const int32_t* ids, const float* weights, const int64_t* chosen,
                       const float* values, int32_t dim, int64_t count, int64_t n, int32_t parts, float* copies,
                       float* out) {
  std::vector<int64_t> before(count + 1, 0);  // entries of the rows before each
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = chosen == nullptr ? i : chosen[i];
    before[i + 1] = before[i] + offsets[row + 1] - offsets[row];
  }
  parallel(parts, parts, [&](int part, int) {
    // equal shares of the entries, not of the rows
    const auto first_of = [&](int p) {
      return p == parts ? count : std::lower_bound(before.begin(), before.end() - 1, before[count] * p / parts) - before.begin();
    };
    float* target = part == 0 ? out : copies + int64_t(part - 1) * n * dim;
    kernels().splat(offsets, ids, weights, chosen, values, dim, first_of(part), first_of(part + 1), target);
  });
  const int64_t chunk = 1 << 16, floats = n * dim;
  if (parts < 2) return;
  parallel(parts, int((floats + chunk - 1) / chunk), [&](int task, int) {
    const int64_t begin = task * chunk, size = std::min(chunk, floats - begin);
    for (int part = 1; part < parts; ++part) {
      kernels().add(copies + int64_t(part - 1) * floats + begin, out + begin, size);
    }
  });
}

DGR_API void dgr_adam(float* param, const float* grad, float* m, float* v, int64_t count, double lr, double beta1,
                      double beta2, double eps, int64_t step, int32_t threads) {
  const float size = float(lr / (1.0 - std::pow(beta1, double(step))));
  const float correction = float(1.0 / std::sqrt(1.0 - std::pow(beta2, double(step))));
  const int64_t chunk = 1 << 15;
  parallel(threads, int((count + chunk - 1) / chunk), [&](int task, int) {
    const int64_t at = task * chunk;
    kernels().adam(param + at, grad + at, m + at, v + at, std::min(chunk, count - at), float(beta1), float(beta2), size,
                   correction, float(eps));
  });
}

// Sum of SSIM over all values; maps may be null when no gradient is wanted. NaN when memory ran out.
DGR_API double dgr_ssim(const float* x, const float* y, int32_t width, int32_t height, int32_t threads, float* maps) {
  try {
    Frame* frame = take_frame();
    reserve_scratch(*frame, kernels().ssim_scratch_bytes(width), threads);
    std::vector<double> rows(height);
    parallel(threads, height, [&](int row, int worker) {
      rows[row] = kernels().ssim_row(x, y, width, height, row, maps, scratch_of(*frame, worker));
    });
    give_frame(frame);
    double sum = 0.0;
    for (double row : rows) sum += row;
    return sum;
  } catch (const std::bad_alloc&) {
    return std::nan("");
  }
}

// grad = scale * d(sum of SSIM) / dx.
DGR_API int dgr_ssim_backward(const float* x, const float* y, const float* maps, int32_t width, int32_t height,
                              int32_t threads, float scale, float* grad) {
  try {
    Frame* frame = take_frame();
    reserve_scratch(*frame, kernels().ssim_scratch_bytes(width), threads);
    parallel(threads, height, [&](int row, int worker) {
      kernels().ssim_row_backward(x, y, maps, width, height, row, scale, grad, scratch_of(*frame, worker));
    });
    give_frame(frame);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// For each of `count` rows of bytes the most alike of the `count2` others within reach, and how alike the next is; on
// the calling thread, since views are matched side by side.
DGR_API void dgr_nearest_two(const float* angle, const uint8_t* rows, const float* angle2, const float* reach2,
                             const uint8_t* rows2, int32_t count, int32_t width, int32_t count2, int32_t* index,
                             int32_t* best, int32_t* second) {
  kernels().nearest(angle, rows, angle2, reach2, rows2, count, width, count2, index, best, second);
}
