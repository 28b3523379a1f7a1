// Which blocks of which tiles each Gaussian meets, exactly: the ellipse alpha >= 1/255 against bands of block rows.
// Included by kernels.cpp only.

constexpr int kBlockWidth = 4, kBlockHeight = kLanes / kBlockWidth;  // pixels of one vector
constexpr int kColumns = kTile / kBlockWidth, kBands = kTile / kBlockHeight, kBlocks = kColumns * kBands;
static_assert(kBlocks <= 64, "the blocks of a tile are a 64-bit mask");

constexpr int kAhead = 8;  // list entries between prefetch and use: hides a miss of the second-level cache

struct Ellipse {  // a dx^2 + 2 h dx dy + c dy^2 <= reach, in the scaled units of Splat
  float u, v, a, h, c, det, reach, half_x, half_y, tip, margin;
};

DGR_INLINE Ellipse make_ellipse(const Splat& s) {
  Ellipse e;
  e.u = s.u, e.v = s.v, e.a = s.a, e.h = 0.5f * s.b, e.c = s.c;
  e.det = e.a * e.c - e.h * e.h;
  e.reach = s.log2_opacity + kLog2Of255;
  e.margin = 0.01f + 1e-4f * (s.half_x + s.half_y);  // px; ranges may be too large, never too small
  e.half_x = s.half_x + e.margin, e.half_y = s.half_y + e.margin;
  e.tip = -e.h / e.c * s.half_x;  // dy of the rightmost point; the leftmost is at -tip
  return e;
}

// Block columns [first, last] met in kLanes bands from `band` on; first > last where there are none.
DGR_INLINE void band_columns(const Ellipse& e, int band, int width, int height, int* first, int* last) {
  alignas(64) float index[kLanes];
  for (int i = 0; i < kLanes; ++i) index[i] = float((band + i) * kBlockHeight);
  const vf top = load(index);
  const vf bottom = vmin(top + (kBlockHeight - 0.5f), set1(height - 0.5f));
  const vf y0 = vmax((top + 0.5f) - e.v, set1(-e.half_y)), y1 = vmin(bottom - e.v, set1(e.half_y));
  const vf dy_right = vmin(vmax(set1(e.tip), y0), y1), dy_left = vmin(vmax(set1(-e.tip), y0), y1);
  const vf scale = set1(1.0f / e.a);
  const vf right = (root(vmax(zero(), e.a * e.reach - e.det * dy_right * dy_right)) - e.h * dy_right) * scale;
  const vf left = (-root(vmax(zero(), e.a * e.reach - e.det * dy_left * dy_left)) - e.h * dy_left) * scale;
  // a needle whose determinant was lost to rounding keeps its whole box
  const bool lost = !(e.det > 1e-5f * e.a * e.c);
  const vf x1 = lost ? set1(e.half_x) : vmin(right + e.margin, set1(e.half_x));
  const vf x0 = lost ? set1(-e.half_x) : vmax(left - e.margin, set1(-e.half_x));
  // pixel i has its centre at i + 0.5: first is ceil, last is floor
  const vf low = vmax(-vfloor(-(x0 + (e.u - 0.5f))), zero());
  const vf high = vmin(vfloor(x1 + (e.u - 0.5f)), set1(width - 1.0f));
  const vm empty = without(from_bits((1u << kLanes) - 1), both(ge(high, low), ge(y1, y0)));
  alignas(64) float a[kLanes], b[kLanes];
  store(a, select(empty, set1(kBlockWidth), low)), store(b, select(empty, zero(), high));
  for (int i = 0; i < kLanes; ++i) first[i] = int(a[i]) / kBlockWidth, last[i] = int(b[i]) / kBlockWidth;
}

// Appends the pairs of one tile row whose bands have the given column ranges.
DGR_INLINE int64_t push_tile_row(const int* first, const int* last, uint32_t index, int tile_row_begin, TilePair* out) {
  int low = 1 << 30, high = -1;
  for (int b = 0; b < kBands; ++b) {
    if (first[b] > last[b]) continue;
    low = first[b] < low ? first[b] : low, high = last[b] > high ? last[b] : high;
  }
  if (high < 0) return 0;
  int64_t count = 0;
  for (int tile = low / kColumns; tile <= high / kColumns; ++tile) {
    uint64_t blocks = 0;
    for (int b = 0; b < kBands; ++b) {
      int from = first[b] - tile * kColumns, to = last[b] - tile * kColumns;
      from = from < 0 ? 0 : from, to = to > kColumns - 1 ? kColumns - 1 : to;
      if (from <= to) blocks |= uint64_t((2u << to) - (1u << from)) << (kColumns * b);
    }
    if (blocks != 0) out[count++] = TilePair{index, uint32_t(tile_row_begin + tile), blocks};
  }
  return count;
}

static void bin_chunk(const DgrScene& s, Frame& frame, int chunk) {
  constexpr int kGroup = kLanes > kBands ? kLanes : kBands;  // bands handled together: whole tile rows
  uint32_t* histogram = frame.histogram + int64_t(chunk) * frame.tiles_x * frame.tiles_y;
  memset(histogram, 0, sizeof(uint32_t) * frame.tiles_x * frame.tiles_y);
  Buffer& buffer = frame.chunk_buffers[chunk];
  int64_t count = 0;
  const int64_t end = chunk_begin(frame, chunk + 1);
  for (int64_t rank = chunk_begin(frame, chunk); rank < end; ++rank) {
    const uint32_t index = frame.order[rank];
    if (rank + kAhead < end) __builtin_prefetch(frame.splats + frame.order[rank + kAhead]);
    const Splat& splat = frame.splats[index];
    const int64_t count_before = count;
    frame.slot_begin[index] = 0;
    const Ellipse e = make_ellipse(splat);
    const float top = __builtin_ceilf(e.v - e.half_y - 0.5f), bottom = __builtin_floorf(e.v + e.half_y - 0.5f);
    const int row0 = top > 0.0f ? int(top < 1e6f ? top : 1e6f) : 0;
    const int row1 = bottom < s.height - 1.0f ? int(bottom > -1.0f ? bottom : -1.0f) : s.height - 1;
    if (row0 > row1) continue;
    const int64_t most = int64_t(row1 / kTile - row0 / kTile + 1) * frame.tiles_x;
    TilePair* pairs = static_cast<TilePair*>(
        reserve_keeping(buffer, sizeof(TilePair) * (count + most), sizeof(TilePair) * count));
    for (int group = row0 / kTile * kBands; group <= row1 / kBlockHeight; group += kGroup) {
      int first[kGroup], last[kGroup];
      for (int i = 0; i < kGroup; i += kLanes) band_columns(e, group + i, s.width, s.height, first + i, last + i);
      for (int i = 0; i < kGroup; i += kBands) {
        const int tile_row = (group + i) / kBands;
        if (tile_row > row1 / kTile) break;
        const int64_t added = push_tile_row(first + i, last + i, index, tile_row * frame.tiles_x, pairs + count);
        for (int64_t p = count; p < count + added; ++p) ++histogram[pairs[p].tile];
        count += added;
      }
    }
    frame.slot_begin[index] = uint32_t(count - count_before);
  }
  frame.chunk_pairs[chunk] = static_cast<TilePair*>(buffer.data);
  frame.chunk_count[chunk] = count;
}
