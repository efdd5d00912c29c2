#include "srht.hpp"

#include <bit>
#include <vector>

#include "fwht.hpp"

namespace qexp {
namespace {

using namespace fwht_parts;

// The kept outputs, listed panel by panel of the transform's last step, so that they are picked out
// of each panel while it is in cache and the finished row is never written to memory.
struct Picks {
  struct Pick {
    std::size_t in_panel;  // where the output stands in its panel
    std::size_t in_out;    // where it goes
  };
  std::vector<std::size_t> first;  // panel i owns picks[first[i]] .. picks[first[i + 1] - 1]
  std::vector<Pick> picks;

  Picks(const Srht& map, const Split& s, std::size_t width)
      : first(s.stride / width + 1), picks(map.k()) {
    const auto column = [&](std::size_t j) {
      return static_cast<std::size_t>(map.kept[j]) % s.stride;
    };
    for (std::size_t j = 0; j < map.k(); ++j) ++first[column(j) / width + 1];
    for (std::size_t i = 1; i < first.size(); ++i) first[i] += first[i - 1];
    std::vector<std::size_t> next(first.begin(), first.end() - 1);
    for (std::size_t j = 0; j < map.k(); ++j) {
      const std::size_t row = static_cast<std::size_t>(map.kept[j]) / s.stride;
      picks[next[column(j) / width]++] = {row * width + column(j) % width, j};
    }
  }
};

// Everything one call computes once and all its rows share.
template <class T>
struct Plan {
  const Srht& map;
  std::size_t n = map.padded();
  Split s = split<T>(n);
  std::size_t width = s.panel_width<T>();
  // Sub-transforms that hold more than padding.
  std::size_t given = (map.p + s.stride - 1) / s.stride;
  T scale = static_cast<T>(map.scale);
};

// Calls body over [0, count), by all threads or by this one.
template <class Body>
void for_range(bool threaded, std::size_t count, const Body& body) {
  if (threaded) {
    parallel_for_balanced(count, 1, body);
  } else {
    body(std::size_t{0}, count);
  }
}

// Runs one(row, scratch, threaded) for m rows: rows by threads where there are enough of them, else
// one row after another by all threads.
template <class T, class One>
void for_rows(const Plan<T>& plan, std::size_t m, const One& one) {
  const std::size_t threads = static_cast<std::size_t>(num_threads());
  const bool inside = m < threads && plan.s.rows > 1 && plan.n * sizeof(T) >= threads * grain_bytes;
  const std::size_t worth = m * plan.n * sizeof(T) / grain_bytes;
  const std::size_t slots = inside ? 1 : std::clamp<std::size_t>(worth, 1, std::min(m, threads));
  const Buffer<T> scratch = make_buffer<T>(slots * plan.n);
  if (inside) {
    for (std::size_t i = 0; i < m; ++i) one(i, scratch.get(), true);
    return;
  }
  parallel_for(slots, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t slot = begin; slot < end; ++slot) {
      const std::size_t stop = (slot + 1) * m / slots;
      for (std::size_t i = slot * m / slots; i < stop; ++i) {
        one(i, scratch.get() + slot * plan.n, false);
      }
    }
  });
}

// The first `count` sub-transforms of what fill() supplies.
template <class T, class Fill>
void sub_transforms(const Split& s, std::size_t count, T* scratch, bool threaded,
                    const Fill& fill) {
  for_range(threaded, count, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      transform(scratch + i * s.stride, s.stride, i * s.stride, fill);
    }
  });
}

template <class T>
void forward_row(const Plan<T>& plan, const Picks& picks, const T* x, T* out, T* scratch,
                 bool threaded) {
  const Srht& map = plan.map;
  const Split& s = plan.s;
  const auto signed_leaf = [&](std::size_t offset, std::size_t count, T* leaf) {
    const std::size_t given = offset < map.p ? std::min(count, map.p - offset) : 0;
    if (given > 0) {
      QEXP_DISPATCH(signed_scale<T>)(x + offset, map.signs.data(), offset, given, T(1), leaf);
    }
    std::fill(leaf + given, leaf + count, T(0));
  };
  if (s.rows == 1) {
    transform(scratch, plan.n, 0, signed_leaf);
    for (std::size_t j = 0; j < map.k(); ++j) out[j] = scratch[map.kept[j]] * plan.scale;
    return;
  }
  sub_transforms(s, plan.given, scratch, threaded, signed_leaf);
  std::fill(scratch + plan.given * s.stride, scratch + plan.n, T(0));
  for_range(threaded, s.stride / plan.width, [&](std::size_t begin, std::size_t end) {
    Panel<T> panel;
    for (std::size_t i = begin; i < end; ++i) {
      if (picks.first[i] == picks.first[i + 1]) continue;
      QEXP_DISPATCH(fwht_columns<T>)
      (scratch + i * plan.width, s.stride, panel.values, plan.width, s.rows, plan.width);
      for (std::size_t j = picks.first[i]; j < picks.first[i + 1]; ++j) {
        const auto& pick = picks.picks[j];
        out[pick.in_out] = panel.values[pick.in_panel] * plan.scale;
      }
    }
  });
}

template <class T>
void adjoint_row(const Plan<T>& plan, const T* u, T* out, T* scratch, bool threaded) {
  const Srht& map = plan.map;
  const Split& s = plan.s;
  const auto scattered_leaf = [&](std::size_t offset, std::size_t count, T* leaf) {
    std::fill(leaf, leaf + count, T(0));
    const auto index = [](std::size_t i) { return static_cast<std::int64_t>(i); };
    auto at = std::lower_bound(map.kept.begin(), map.kept.end(), index(offset));
    for (; at != map.kept.end() && *at < index(offset + count); ++at) {
      leaf[*at - index(offset)] = u[at - map.kept.begin()];
    }
  };
  if (s.rows == 1) {
    transform(scratch, plan.n, 0, scattered_leaf);
    QEXP_DISPATCH(signed_scale<T>)(scratch, map.signs.data(), 0, map.p, plan.scale, out);
    return;
  }
  sub_transforms(s, s.rows, scratch, threaded, scattered_leaf);
  for_range(threaded, s.stride / plan.width, [&](std::size_t begin, std::size_t end) {
    Panel<T> panel;
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t column = i * plan.width;
      QEXP_DISPATCH(fwht_columns<T>)
      (scratch + column, s.stride, panel.values, plan.width, s.rows, plan.width);
      for (std::size_t r = 0; r < s.rows; ++r) {
        const std::size_t at = r * s.stride + column;
        if (at >= map.p) break;
        QEXP_DISPATCH(signed_scale<T>)
        (panel.values + r * plan.width, map.signs.data(), at, std::min(plan.width, map.p - at),
         plan.scale, out + at);
      }
    }
  });
}

}  // namespace

std::size_t Srht::padded() const {
  return std::bit_ceil(p);
}

template <class T>
void srht_forward(const Srht& map, const T* rows, std::size_t m, std::ptrdiff_t row_stride,
                  T* out) {
  if (m == 0 || map.k() == 0) return;
  Plan<T> plan{map};
  // So few outputs that most narrow panels hold none: those are never computed.
  constexpr std::size_t narrow = 128 / sizeof(T);
  if (map.k() <= plan.s.stride / narrow / 4) plan.width = std::min(plan.width, narrow);
  const Picks picks(map, plan.s, plan.width);
  for_rows(plan, m, [&](std::size_t i, T* scratch, bool threaded) {
    forward_row(plan, picks, rows + static_cast<std::ptrdiff_t>(i) * row_stride, out + i * map.k(),
                scratch, threaded);
  });
}

template <class T>
void srht_adjoint(const Srht& map, const T* u, std::size_t m, T* out) {
  if (m == 0) return;
  const Plan<T> plan{map};
  for_rows(plan, m, [&](std::size_t i, T* scratch, bool threaded) {
    adjoint_row(plan, u + i * map.k(), out + i * map.p, scratch, threaded);
  });
}

template void srht_forward<float>(const Srht&, const float*, std::size_t, std::ptrdiff_t, float*);
template void srht_forward<double>(const Srht&, const double*, std::size_t, std::ptrdiff_t,
                                   double*);
template void srht_adjoint<float>(const Srht&, const float*, std::size_t, float*);
template void srht_adjoint<double>(const Srht&, const double*, std::size_t, double*);

}  // namespace qexp
