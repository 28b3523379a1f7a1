// Which blocks of which tiles each Gaussian meets, exactly: the ellipse alpha >= 1/255 against bands of block rows.
// kLanes Gaussians are handled together, one per lane. Included by kernels.cpp only.

constexpr int kBlockWidth = 4, kBlockHeight = kLanes / kBlockWidth;  // pixels of one vector
constexpr int kColumns = kTile / kBlockWidth, kBands = kTile / kBlockHeight, kBlocks = kColumns * kBands;
static_assert(kBlocks <= 64, "the blocks of a tile are a 64-bit mask");

constexpr int kAhead = 8;  // list entries between prefetch and use: hides a miss of the second-level cache

constexpr int kGroupRows = 64;  // tile rows whose column ranges are held at a time: 1024 pixels
constexpr int kGroup = kGroupRows * kBands;

// The regions a dx^2 + 2 h dx dy + c dy^2 <= reach of kLanes splats, in the scaled units of Splat.
struct Ellipses {
  vf u, v, h, inv_a, a_reach, det, half_x, half_y, tip, margin, first_band;
  vm lost;  // needles whose determinant drowned in rounding: they keep their whole box
  alignas(64) int row0[kLanes], row1[kLanes];  // pixel rows; row0 > row1 where there are none
};

DGR_INLINE void load_ellipses(const Frame& frame, const uint32_t* order, int count, int height, Ellipses& e) {
  alignas(64) float t[8][kLanes] = {};
  for (int i = 0; i < count; ++i) {
    const Splat& s = frame.splats[order[i]];
    t[0][i] = s.u, t[1][i] = s.v, t[2][i] = s.a, t[3][i] = s.b, t[4][i] = s.c, t[5][i] = s.log2_opacity;
    t[6][i] = s.half_x, t[7][i] = s.half_y;
  }
  const vf a = load(t[2]), c = load(t[4]), half_x = load(t[6]), half_y = load(t[7]);
  e.u = load(t[0]), e.v = load(t[1]), e.h = 0.5f * load(t[3]);
  e.det = a * c - e.h * e.h;
  e.lost = without(from_bits((1u << kLanes) - 1), lt(1e-5f * a * c, e.det));
  e.inv_a = 1.0f / a;
  e.a_reach = a * (load(t[5]) + kLog2Of255);
  e.margin = 0.01f + 1e-4f * (half_x + half_y);  // px; ranges may be too large, never too small
  e.half_x = half_x + e.margin, e.half_y = half_y + e.margin;
  e.tip = -(e.h * half_x) / c;  // dy of the rightmost point; the leftmost is at -tip
  // pixel i has its centre at i + 0.5: the first is a ceil, the last a floor
  const vf low = vmax(-vfloor((0.5f - e.v) + e.half_y), zero());
  const vf high = vmin(vfloor(e.v + e.half_y - 0.5f), set1(height - 1.0f));
  alignas(64) float row0[kLanes], row1[kLanes];
  store(row0, vmin(low, set1(float(height)))), store(row1, vmax(high, set1(-1.0f)));
  alignas(64) float first_band[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    e.row0[i] = int(row0[i]), e.row1[i] = i < count ? int(row1[i]) : -1;
    first_band[i] = float(e.row0[i] / kTile * kBands);
  }
  e.first_band = load(first_band);
}

// Block columns met in band number `band` of each splat, counted from the top of its first tile; first > last for none.
DGR_INLINE void band_columns(const Ellipses& e, int band, int width, int height, int* first, int* last) {
  const vf top = (e.first_band + float(band)) * float(kBlockHeight);
  const vf bottom = vmin(top + (kBlockHeight - 0.5f), set1(height - 0.5f));
  const vf y0 = vmax((top + 0.5f) - e.v, -e.half_y), y1 = vmin(bottom - e.v, e.half_y);
  const vf dy_right = vmin(vmax(e.tip, y0), y1), dy_left = vmin(vmax(-e.tip, y0), y1);
  const vf right = (root(vmax(zero(), e.a_reach - e.det * dy_right * dy_right)) - e.h * dy_right) * e.inv_a;
  const vf left = (-root(vmax(zero(), e.a_reach - e.det * dy_left * dy_left)) - e.h * dy_left) * e.inv_a;
  const vf x1 = select(e.lost, e.half_x, vmin(right + e.margin, e.half_x));
  const vf x0 = select(e.lost, -e.half_x, vmax(left - e.margin, -e.half_x));
  const vf low = vmax(-vfloor(-(x0 + (e.u - 0.5f))), zero());
  const vf high = vmin(vfloor(x1 + (e.u - 0.5f)), set1(width - 1.0f));
  const vm some = both(ge(high, low), ge(y1, y0));
  alignas(64) float a[kLanes], b[kLanes];
  store(a, select(some, low * (1.0f / kBlockWidth), set1(1.0f)));
  store(b, keep(some, high * (1.0f / kBlockWidth)));
  for (int i = 0; i < kLanes; ++i) first[i] = int(a[i]), last[i] = int(b[i]);
}

// Appends the pairs of one tile row of one lane; `first` and `last` point at the lane's top band, bands kLanes apart.
DGR_INLINE int64_t push_tile_row(const int* first, const int* last, uint32_t index, int tile_row_begin, TilePair* out) {
  int low = 1 << 30, high = -1;
  for (int b = 0; b < kBands; ++b) {
    const int from = first[b * kLanes], to = last[b * kLanes];
    if (from > to) continue;
    low = from < low ? from : low, high = to > high ? to : high;
  }
  if (high < 0) return 0;
  int64_t count = 0;
  for (int tile = low / kColumns; tile <= high / kColumns; ++tile) {
    uint64_t blocks = 0;
    for (int b = 0; b < kBands; ++b) {
      int from = first[b * kLanes] - tile * kColumns, to = last[b * kLanes] - tile * kColumns;
      from = from < 0 ? 0 : from, to = to > kColumns - 1 ? kColumns - 1 : to;
      if (from <= to) blocks |= uint64_t((2u << to) - (1u << from)) << (kColumns * b);
    }
    if (blocks != 0) out[count++] = TilePair{index, uint32_t(tile_row_begin + tile), blocks};
  }
  return count;
}

static void bin_chunk(const DgrScene& s, Frame& frame, int chunk) {
  const int tiles = frame.tiles_x * frame.tiles_y;
  uint32_t* histogram = frame.histogram + int64_t(chunk) * tiles;
  memset(histogram, 0, sizeof(uint32_t) * tiles);
  Buffer& buffer = frame.chunk_buffers[chunk];
  int64_t count = 0;
  const int64_t end = chunk_begin(frame, chunk + 1);
  alignas(64) int first[kGroup * kLanes], last[kGroup * kLanes];
  for (int64_t rank = chunk_begin(frame, chunk); rank < end; rank += kLanes) {
    const int lanes = end - rank < kLanes ? int(end - rank) : kLanes;
    const uint32_t* order = frame.order + rank;
    for (int i = 0; i < kLanes && rank + kLanes + i < end; ++i) __builtin_prefetch(frame.splats + order[kLanes + i]);
    Ellipses e;
    load_ellipses(frame, order, lanes, s.height, e);
    int rows = 0, most = 0;  // tile rows of the tallest splat; upper bound of the pairs of all
    for (int i = 0; i < lanes; ++i) {
      const int tall = e.row0[i] > e.row1[i] ? 0 : e.row1[i] / kTile - e.row0[i] / kTile + 1;
      rows = tall > rows ? tall : rows, most += tall * frame.tiles_x;
    }
    TilePair* pairs =
        static_cast<TilePair*>(reserve_keeping(buffer, sizeof(TilePair) * (count + most), sizeof(TilePair) * count));
    if (rows <= kGroupRows) {
      const int bands = rows * kBands;
      for (int b = 0; b < bands; ++b) band_columns(e, b, s.width, s.height, first + b * kLanes, last + b * kLanes);
    }
    for (int i = 0; i < lanes; ++i) {
      const int64_t before = count;
      for (int row = e.row0[i] / kTile, k = 0; e.row0[i] <= e.row1[i] && row <= e.row1[i] / kTile; ++row, ++k) {
        if (rows > kGroupRows && k % kGroupRows == 0) {  // a tall splat among these: refill the group for this lane
          for (int b = 0; b < kGroup; ++b) {
            band_columns(e, k * kBands + b, s.width, s.height, first + b * kLanes, last + b * kLanes);
          }
        }
        const int at = k % kGroupRows * kBands * kLanes + i;
        count += push_tile_row(first + at, last + at, order[i], row * frame.tiles_x, pairs + count);
      }
      for (int64_t p = before; p < count; ++p) ++histogram[pairs[p].tile];
      frame.slot_begin[order[i]] = uint32_t(count - before);
    }
  }
  frame.chunk_pairs[chunk] = static_cast<TilePair*>(buffer.data);
  frame.chunk_count[chunk] = count;
}
