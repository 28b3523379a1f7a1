// Depth order and tile lists of a frame: the sorting between projection and blending.
#pragma once

#include "frame.h"

namespace dgr {

enum BufferName {
  kKey,
  kOrder,
  kSplats,
  kSlotBegin,
  kTileBegin,
  kList,
  kHistogram,
  kPairGeometry,
  kPairFeatures,
  kBackgroundParts,
  kPixelCounts,
  kSortScratch
};

// Projects, sorts by depth (then index) and fills the tile lists.
void build_lists(const Kernels& kernels, const DgrScene& scene, const DgrImages& images, Frame& frame);

}  // namespace dgr
