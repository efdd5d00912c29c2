#include "product_avx512.hpp"

#include "simd.hpp"

namespace qexp::avx512 {
namespace {

using Index = std::int64_t;

// A tile of 12 rows and two registers keeps 24 of the 32 registers as sums: enough of them to hide
// the latency of a fused multiply-add, and few enough loads to feed both units from the L1 cache.
constexpr Index tile_rows = 12;
template <class T>
constexpr Index tile_columns = 2 * static_cast<Index>(Vec<T>::width);
static_assert(product_rows % tile_rows == 0 && product_columns % tile_columns<float> == 0);

QEXP_INLINE Index least(Index a, Index b) {
  return a < b ? a : b;
}

// Strips of `Width` lines, each stored so that the lines' elements at one depth are neighbours;
// missing lines are zero.
template <Index Width, class T>
void pack(Index lines, Index depth, const T* from, Index line, Index step, T* to) {
  for (Index first = 0; first < lines; first += Width, to += Width * depth) {
    const Index count = least(Width, lines - first);
    const T* strip = from + first * line;
    if (count == Width && line == 1) {
      for (Index p = 0; p < depth; ++p) {
        for (Index i = 0; i < Width; ++i) to[p * Width + i] = strip[p * step + i];
      }
    } else {
      for (Index i = 0; i < count; ++i) {
        for (Index p = 0; p < depth; ++p) to[p * Width + i] = strip[i * line + p * step];
      }
      for (Index i = count; i < Width; ++i) {
        for (Index p = 0; p < depth; ++p) to[p * Width + i] = 0;
      }
    }
  }
}

// One tile of A B from packed strips. Not inlined: the sums then have the registers to themselves.
template <class T>
__attribute__((noinline)) void multiply_tile(Index depth, const T* a, const T* b, T* product) {
  using V = Vec<T>;
  constexpr Index width = static_cast<Index>(V::width);
  typename V::Register sum[tile_rows][2];
#pragma GCC unroll 16
  for (Index i = 0; i < tile_rows; ++i) sum[i][0] = sum[i][1] = V::broadcast(0);
  for (Index p = 0; p < depth; ++p) {
    const auto b0 = V::load(b), b1 = V::load(b + width);
#pragma GCC unroll 16
    for (Index i = 0; i < tile_rows; ++i) {
      const auto ai = V::broadcast(a[i]);
      sum[i][0] = V::fma(ai, b0, sum[i][0]);
      sum[i][1] = V::fma(ai, b1, sum[i][1]);
    }
    a += tile_rows;
    b += 2 * width;
  }
#pragma GCC unroll 16
  for (Index i = 0; i < tile_rows; ++i) {
    V::store(product + i * 2 * width, sum[i][0]);
    V::store(product + i * 2 * width + width, sum[i][1]);
  }
}

// Adds the part of a tile that lies within the matrix and its triangle.
template <class T, class Sum>
QEXP_INLINE void add_tile(const T* product, Sum alpha, Sum* c, Index ldc, Index rows, Index columns,
                          Index diagonal) {
  constexpr Index width = tile_columns<T>;
  const auto add = [&](Index i, Index count) {
    for (Index j = 0; j < count; ++j) {
      c[i * ldc + j] =
          __builtin_fma(alpha, static_cast<Sum>(product[i * width + j]), c[i * ldc + j]);
    }
  };
  if (columns == width && width - 1 <= diagonal) {
    for (Index i = 0; i < rows; ++i) add(i, width);
  } else {
    for (Index i = 0; i < rows; ++i) add(i, least(columns, i + diagonal + 1));
  }
}

// For each `leaf_chunk` rows: the negated coefficients of all earlier unknowns and of their own,
// with the diagonal inverted. Rows beyond n are those of the identity.
template <class T>
void write_coefficients(Index n, Index padded, Strided<const T> t, T* next) {
  for (Index first = 0; first < padded; first += leaf_chunk) {
    for (Index j = 0; j < first + leaf_chunk; ++j) {
      for (Index i = first; i < first + leaf_chunk; ++i, ++next) {
        if (i >= n) {
          *next = i == j;
        } else if (j < i) {
          *next = -t.data[i * t.row + j * t.column];
        } else {
          *next = i == j ? T{1} / t.data[i * t.row + i * t.column] : T{0};
        }
      }
    }
  }
}

// Some columns of X, at most a tile's, as a strip of a tile's width; missing columns are zero.
// Loops are unrolled where they are so short that their time hangs on where the linker puts them.
template <class T>
QEXP_INLINE void load_strip(Index n, Index count, Strided<T> x, T* strip) {
  constexpr Index width = tile_columns<T>;
  if (x.column == 1 && count == width) {
    for (Index i = 0; i < n; ++i) {
      for (Index c = 0; c < width; ++c) strip[i * width + c] = x.data[i * x.row + c];
    }
  } else {
    for (Index c = 0; c < count; ++c) {
#pragma GCC unroll 8
      for (Index i = 0; i < n; ++i) strip[i * width + c] = x.data[i * x.row + c * x.column];
    }
    for (Index c = count; c < width; ++c) {
      for (Index i = 0; i < n; ++i) strip[i * width + c] = 0;
    }
  }
}

template <class T>
QEXP_INLINE void store_strip(Index n, Index count, const T* strip, Strided<T> x) {
  constexpr Index width = tile_columns<T>;
  if (x.column == 1 && count == width) {
    for (Index i = 0; i < n; ++i) {
      for (Index c = 0; c < width; ++c) x.data[i * x.row + c] = strip[i * width + c];
    }
  } else {
    for (Index c = 0; c < count; ++c) {
#pragma GCC unroll 8
      for (Index i = 0; i < n; ++i) x.data[i * x.row + c * x.column] = strip[i * width + c];
    }
  }
}

// Forward substitution in the strip, `leaf_chunk` unknowns at a time in registers.
template <class T>
QEXP_INLINE void solve_strip(Index padded, const T* coefficient, T* strip) {
  using V = Vec<T>;
  constexpr Index width = tile_columns<T>, half = width / 2;
  for (Index first = 0; first < padded; first += leaf_chunk) {
    T* const rows = strip + first * width;
    typename V::Register unknown[leaf_chunk][2];
#pragma GCC unroll 8
    for (Index r = 0; r < leaf_chunk; ++r) {
      unknown[r][0] = V::load(rows + r * width);
      unknown[r][1] = V::load(rows + r * width + half);
    }
    for (Index j = 0; j < first; ++j, coefficient += leaf_chunk) {
      const auto x0 = V::load(strip + j * width), x1 = V::load(strip + j * width + half);
#pragma GCC unroll 8
      for (Index r = 0; r < leaf_chunk; ++r) {
        const auto factor = V::broadcast(coefficient[r]);
        unknown[r][0] = V::fma(factor, x0, unknown[r][0]);
        unknown[r][1] = V::fma(factor, x1, unknown[r][1]);
      }
    }
#pragma GCC unroll 8
    for (Index j = 0; j < leaf_chunk; ++j) {
      const auto inverse = V::broadcast(coefficient[j * leaf_chunk + j]);
      unknown[j][0] = V::mul(unknown[j][0], inverse);
      unknown[j][1] = V::mul(unknown[j][1], inverse);
#pragma GCC unroll 8
      for (Index r = j + 1; r < leaf_chunk; ++r) {
        const auto factor = V::broadcast(coefficient[j * leaf_chunk + r]);
        unknown[r][0] = V::fma(factor, unknown[j][0], unknown[r][0]);
        unknown[r][1] = V::fma(factor, unknown[j][1], unknown[r][1]);
      }
      V::store(rows + j * width, unknown[j][0]);
      V::store(rows + j * width + half, unknown[j][1]);
    }
    coefficient += leaf_chunk * leaf_chunk;
  }
}

}  // namespace

template <class T, class Sum>
void add_product(Index m, Index n, Index k, Sum alpha, Strided<const T> a, Strided<const T> b,
                 Sum* c, Index ldc, Index diagonal, T* workspace) {
  constexpr Index width = tile_columns<T>;
  T* const packed_b = workspace;
  alignas(64) T product[tile_rows * width];
  for (Index jc = 0; jc < n; jc += product_columns) {
    const Index nc = least(product_columns, n - jc);
    if (m - 1 + diagonal < jc) continue;
    for (Index pc = 0; pc < k; pc += product_depth<T>) {
      const Index kc = least(product_depth<T>, k - pc);
      T* const packed_a = packed_b + (nc + width - 1) / width * width * kc;
      pack<width>(nc, kc, b.data + pc * b.row + jc * b.column, b.column, b.row, packed_b);
      for (Index ic = 0; ic < m; ic += product_rows) {
        const Index mc = least(product_rows, m - ic);
        if (ic + mc - 1 + diagonal < jc) continue;
        pack<tile_rows>(mc, kc, a.data + ic * a.row + pc * a.column, a.row, a.column, packed_a);
        for (Index j = 0; j < nc; j += width) {
          for (Index i = 0; i < mc; i += tile_rows) {
            const Index rows = least(tile_rows, mc - i), columns = least(width, nc - j);
            const Index reach = ic + i + diagonal - (jc + j);
            if (rows - 1 + reach < 0) continue;
            Sum* const target = c + (ic + i) * ldc + jc + j;
            // The target arrives in the second-level cache while the products are summed.
            for (Index r = 0; r < rows; ++r) {
              for (Index s = 0; s < columns; s += 64 / static_cast<Index>(sizeof(Sum))) {
                __builtin_prefetch(target + r * ldc + s, 0, 2);
              }
            }
            multiply_tile(kc, packed_a + i * kc, packed_b + j * kc, product);
            add_tile(product, alpha, target, ldc, rows, columns, reach);
          }
        }
      }
    }
  }
}

template <class T>
void solve_leaf(Index n, Index columns, Strided<const T> t, Strided<T> x, T* workspace) {
  constexpr Index width = tile_columns<T>;
  static_assert(width <= leaf_columns);
  const Index padded = (n + leaf_chunk - 1) / leaf_chunk * leaf_chunk;
  T* const coefficients = workspace;
  T* const strip = workspace + leaf_size * (leaf_size + leaf_chunk);
  write_coefficients(n, padded, t, coefficients);
  for (Index i = n * width; i < padded * width; ++i) strip[i] = 0;
  for (Index column = 0; column < columns; column += width) {
    const Index count = least(width, columns - column);
    const Strided<T> part{x.data + column * x.column, x.row, x.column};
    load_strip(n, count, part, strip);
    solve_strip(padded, coefficients, strip);
    store_strip(n, count, strip, part);
  }
}

template void add_product(Index, Index, Index, double, Strided<const double>, Strided<const double>,
                          double*, Index, Index, double*);
template void add_product(Index, Index, Index, float, Strided<const float>, Strided<const float>,
                          float*, Index, Index, float*);
template void add_product(Index, Index, Index, double, Strided<const float>, Strided<const float>,
                          double*, Index, Index, float*);
template void solve_leaf(Index, Index, Strided<const double>, Strided<double>, double*);
template void solve_leaf(Index, Index, Strided<const float>, Strided<float>, float*);

}  // namespace qexp::avx512
