#include "rpc/library_logs.h"

#include <gmock/gmock.h>
#include <grpc/support/log.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "base/logging/logging.h"

namespace switchyard {
namespace {

TEST(LibraryLogs, ALineOfGrpcThatStrangersCauseComesOnceASecond) {
  testing::internal::CaptureStderr();
  ASSERT_TRUE(SetUpLogging({.process = "front"}).ok());
  gpr_log_verbosity_init();  // as gRPC does when it is first used
  TakeOverLibraryLogs();
  for (int i = 0; i < 1000; ++i) gpr_log(GPR_ERROR, "handshake %d failed\nwith \033[31m", i);
  gpr_log(GPR_ERROR, "accept failed");
  EXPECT_TRUE(FlushLog());
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_THAT(lines, testing::HasSubstr(R"(W [front] gRPC: handshake 0 failed\nwith \x1b[31m)"));
  EXPECT_THAT(lines, testing::HasSubstr("gRPC: accept failed"));
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 2) << lines;
}

}  // namespace
}  // namespace switchyard
