// The most alike of those points that lie within reach. Included by kernels.cpp only.

// Sum of products of two rows of bytes; exact.
DGR_INLINE int32_t dot_bytes(const uint8_t* a, const uint8_t* b, int width) {
  int32_t sum = 0;
  for (int k = 0; k < width; ++k) sum += int32_t(a[k]) * int32_t(b[k]);
  return sum;
}

// For each row of the first set, of `count`: index, best and second, -1 where there is none.
static void nearest_rows(const float* angle, const uint8_t* rows, const float* angle2, const float* reach2,
                         const uint8_t* rows2, int count, int width, int count2, int32_t* index,
                         int32_t* best, int32_t* second) {
  for (int row = 0; row < count; ++row) {
    const vf place = set1(angle[row]);
    int32_t first = -1, next = -1, at = -1;
    for (int start = 0; start < count2; start += kLanes) {
      const int n = count2 - start < kLanes ? count2 - start : kLanes;
      const vf apart = place - (n == kLanes ? load(angle2 + start) : load_n(angle2 + start, n));
      const vf reach = n == kLanes ? load(reach2 + start) : load_n(reach2 + start, n);
      unsigned near = bits(ge(reach, vmax(apart, zero() - apart))) & ((1u << n) - 1);
      for (; near != 0; near &= near - 1) {
        const int column = start + __builtin_ctz(near);
        const int32_t alike = dot_bytes(rows + int64_t(row) * width, rows2 + int64_t(column) * width, width);
        if (alike > first) {
          next = first, first = alike, at = column;
        } else if (alike > next) {
          next = alike;
        }
      }
    }
    index[row] = at, best[row] = first, second[row] = next;
  }
}
