#include "rpc/wire_options.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(ParseWireArgs, ReadsNamesAndNumbers) {
  const auto args = ParseWireArgs("grpc.http2.max_frame_size=1048576,grpc.http2.bdp_probe=0");
  ASSERT_TRUE(args.ok()) << args.status();
  ASSERT_EQ(args->size(), 2u);
  EXPECT_EQ((*args)[0].name, "grpc.http2.max_frame_size");
  EXPECT_EQ((*args)[0].value, 1048576);
  EXPECT_EQ((*args)[1].name, "grpc.http2.bdp_probe");
  EXPECT_EQ((*args)[1].value, 0);
  EXPECT_TRUE(ParseWireArgs("")->empty());
}

TEST(ParseWireArgs, RefusesWhatIsNoNumber) {
  for (const char* text : {"a", "a=", "=1", "a=1,b", "a=1.5", "a=99999999999"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseWireArgs(text).status())) << text;
  }
}

}  // namespace
}  // namespace switchyard
