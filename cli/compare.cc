#include "cli/compare.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <vector>

#include "base/tensor/convert.h"

namespace switchyard {
namespace {

double AbsError(double actual, double expected) {
  if (actual == expected || (std::isnan(actual) && std::isnan(expected))) return 0;
  const double error = std::abs(actual - expected);
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

void AddElement(double actual, double expected, const Tolerance& tolerance, int64_t row, int64_t col,
                Comparison* comparison) {
  const double error = AbsError(actual, expected);
  ++comparison->num_elements;
  if (error == 0) return;
  if (error > comparison->max_abs_error) {
    comparison->max_abs_error = error;
    comparison->worst_row = row;
    comparison->worst_col = col;
  }
  // An infinite error counts as an infinite relative error, also where the expected value is infinite.
  const double relative = std::isfinite(error) ? error / std::abs(expected) : error;
  if (expected != 0) comparison->max_rel_error = std::max(comparison->max_rel_error, relative);
  const bool agrees = std::isfinite(error) && error <= tolerance.absolute + tolerance.relative * std::abs(expected);
  if (!agrees) ++comparison->num_beyond;
}

void ReadRow(ConstMatrixView matrix, int64_t row, std::vector<double>* values) {
  ConvertElements(matrix.dtype, matrix.row(row), DType::kF64, reinterpret_cast<std::byte*>(values->data()),
                  values->size());
}

}  // namespace

Comparison Compare(ConstMatrixView actual, ConstMatrixView expected, const Tolerance& tolerance) {
  assert(actual.num_rows == expected.num_rows && actual.num_cols == expected.num_cols);
  Comparison comparison;
  std::vector<double> actual_row(actual.num_cols), expected_row(actual.num_cols);
  for (int64_t row = 0; row < actual.num_rows; ++row) {
    ReadRow(actual, row, &actual_row);
    ReadRow(expected, row, &expected_row);
    for (int64_t col = 0; col < actual.num_cols; ++col) {
      AddElement(actual_row[col], expected_row[col], tolerance, row, col, &comparison);
    }
  }
  return comparison;
}

}  // namespace switchyard
