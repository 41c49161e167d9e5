// Status plumbing: every fallible function returns absl::Status or absl::StatusOr<T>; no exception crosses our
// interfaces.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

// Returns the status of `expr` from the enclosing function unless it is OK.
#define SY_RETURN_IF_ERROR(expr)                                            \
  do {                                                                      \
    if (absl::Status sy_status = (expr); !sy_status.ok()) return sy_status; \
  } while (false)

#define SY_CONCAT_INNER(a, b) a##b
#define SY_CONCAT(a, b) SY_CONCAT_INNER(a, b)

// `SY_ASSIGN_OR_RETURN(auto x, MakeX());` assigns the value, or returns the status from the enclosing function.
#define SY_ASSIGN_OR_RETURN(lhs, expr) SY_ASSIGN_OR_RETURN_IMPL(SY_CONCAT(sy_result_, __LINE__), lhs, expr)
#define SY_ASSIGN_OR_RETURN_IMPL(result, lhs, expr)    \
  auto result = (expr);                                \
  if (!result.ok()) return std::move(result).status(); \
  lhs = std::move(result).value()

namespace switchyard {

// The same code with `context` put before the message. Callers add context to an error on its way up; OK stays OK.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

}  // namespace switchyard
