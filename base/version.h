// The one version number of every Switchyard binary. Workers and fronts of different versions do not form a group.
#pragma once

#include <string_view>

namespace switchyard {

inline constexpr std::string_view kVersion = "0.1.0";

}  // namespace switchyard
