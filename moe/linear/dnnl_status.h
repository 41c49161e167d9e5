// The one place that turns oneDNN's exceptions into statuses.
//
//   SY_RETURN_IF_ERROR(SY_DNNL_CALL(primitive.execute(stream, arguments)));
#pragma once

#include <exception>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "dnnl.hpp"
#include "dnnl_debug.h"

// Runs `expr` and returns an absl::Status that names it when the library throws.
#define SY_DNNL_CALL(expr) ::switchyard::CallDnnl(#expr, [&] { expr; })

namespace switchyard {

inline absl::StatusCode DnnlStatusCode(dnnl_status_t status) {
  switch (status) {
    case dnnl_out_of_memory:
      return absl::StatusCode::kResourceExhausted;
    case dnnl_unimplemented:
      return absl::StatusCode::kUnimplemented;
    default:
      return absl::StatusCode::kInternal;
  }
}

template <typename Call>
absl::Status CallDnnl(const char* expression, const Call& call) {
  try {
    call();
    return absl::OkStatus();
  } catch (const dnnl::error& error) {
    return absl::Status(DnnlStatusCode(error.status), absl::StrCat("oneDNN: ", error.message, " (",
                                                                   dnnl_status2str(error.status), ") in ", expression));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("oneDNN: ", error.what(), " in ", expression));
  }
}

}  // namespace switchyard
