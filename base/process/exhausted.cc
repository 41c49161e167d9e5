#include "base/process/exhausted.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "base/notification.h"
#include "base/process/container_limits.h"

namespace switchyard {
namespace {

const char* program_name = "";  // set before any thread starts

std::string SoftLimit(__rlimit_resource resource) {
  rlimit limit;
  if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "none";
  return std::to_string(limit.rlim_cur);
}

std::string ThreadLimits() {
  const auto processes = ReadContainerLimits().processes;
  return absl::StrCat("limits of processes and threads: ulimit -u is ", SoftLimit(RLIMIT_NPROC),
                      ", the container's pids limit is ", processes.has_value() ? std::to_string(*processes) : "none");
}

std::string WhyEnded() {
  try {
    std::rethrow_exception(std::current_exception());
  } catch (const std::system_error& error) {
    const bool is_thread = error.code() == std::errc::resource_unavailable_try_again;
    return is_thread ? absl::StrCat("cannot start a thread: ", DescribeStartErrno(EAGAIN)) : error.what();
  } catch (const std::bad_alloc&) {
    return absl::StrCat("no memory is left; this process may use ", MemoryLimit() >> 20, " MiB (ulimit -v is ",
                        SoftLimit(RLIMIT_AS), ")");
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an unknown exception";
  }
}

[[noreturn]] void EndWithReason() {
  if (std::current_exception() == nullptr) abort();
  std::fprintf(stderr, "%s: %s\n", program_name, WhyEnded().c_str());
  _exit(1);
}

}  // namespace

std::string DescribeErrno(int error_number) {
  const std::string text = std::strerror(error_number);
  switch (error_number) {
    case EFBIG:
      return absl::StrCat(text, " (ulimit -f, the limit of a file's size in bytes, is ", SoftLimit(RLIMIT_FSIZE), ")");
    case EMFILE:
      return absl::StrCat(text, " (ulimit -n is ", SoftLimit(RLIMIT_NOFILE), ")");
    default:
      return text;
  }
}

std::string DescribeStartErrno(int error_number) {
  if (error_number != EAGAIN) return DescribeErrno(error_number);
  return absl::StrCat(std::strerror(error_number), " (", ThreadLimits(), ")");
}

absl::Status CheckThreads(int count) {
  Notification ended;
  std::vector<std::thread> threads;
  absl::Status status;
  try {
    while (static_cast<int>(threads.size()) < count) {
      threads.emplace_back([&ended] { ended.WaitForNotification(); });
    }
  } catch (const std::system_error& error) {
    status = absl::ResourceExhaustedError(absl::StrCat(
        "only ", threads.size(), " of ", count, " threads can be started: ", DescribeStartErrno(error.code().value())));
  }
  ended.Notify();
  for (std::thread& thread : threads) thread.join();
  return status;
}

void NameLimitsAtTheEnd(const char* program) {
  program_name = program;
  std::set_terminate(EndWithReason);
}

}  // namespace switchyard
