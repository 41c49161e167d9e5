#include "server/group/membership/load_display.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/logging/logging.h"

namespace switchyard {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr int64_t kMiB = 1 << 20;

// The state of the models "a", "b" and so on on one rank. Empty for a rank that is absent or has not reported.
using Rank = std::vector<RankLoad>;

Rank With(RankLoad::State state, const std::vector<std::pair<int64_t, int64_t>>& mib_by_model) {
  Rank rank;
  for (const auto& [done, total] : mib_by_model) rank.push_back({state, true, done * kMiB, total * kMiB});
  while (rank.size() < 2) rank.push_back({state});
  return rank;
}
Rank Loading(const std::vector<std::pair<int64_t, int64_t>>& mib_by_model) {
  return With(RankLoad::State::kLoading, mib_by_model);
}
Rank Loaded(const std::vector<std::pair<int64_t, int64_t>>& mib_by_model) {
  return With(RankLoad::State::kLoaded, mib_by_model);
}

class LoadDisplayTest : public testing::Test {
 protected:
  void Start(bool draws) {
    LoadOutput output;
    const auto add = [this](std::string_view text) { shown_.emplace_back(text); };
    if (draws) {
      output.draw = add;
      output.num_columns = [] { return 100; };
    } else {
      output.log = add;
    }
    display_ = std::make_unique<LoadDisplay>(output);
  }
  // Returns what the display shows for these ranks; `later` is the time since the previous call.
  std::vector<std::string> Update(std::chrono::milliseconds later, const std::vector<Rank>& ranks) {
    std::vector<ModelLoad> models = {{ModelId{1}, "a", {}}, {ModelId{2}, "b", {}}};
    for (const Rank& rank : ranks) {
      for (size_t i = 0; i < models.size(); ++i) models[i].ranks.push_back(rank.empty() ? RankLoad{} : rank[i]);
    }
    return UpdateModels(later, models);
  }
  std::vector<std::string> UpdateModels(std::chrono::milliseconds later, const std::vector<ModelLoad>& models) {
    shown_.clear();
    clock_.Advance(later);
    display_->Update(models, clock_.Now());
    return shown_;
  }
  static std::string Erased(const std::string& text) { return std::string(kEraseLine) + text; }

  FakeClock clock_;
  std::vector<std::string> shown_;
  std::unique_ptr<LoadDisplay> display_;  // declared last, because its destructor may draw
};

TEST_F(LoadDisplayTest, BarOfAllRanksInOneLinePerModel) {
  Start(/*draws=*/true);
  EXPECT_THAT(Update(seconds(0), {{}, {}}), IsEmpty()) << "no worker has joined";
  EXPECT_THAT(Update(seconds(0), {Loading({}), {}}), IsEmpty()) << "the sizes are not known yet";
  EXPECT_THAT(Update(seconds(0), {Loading({{0, 40}, {0, 10}}), Loading({{0, 40}, {0, 10}})}),
              ElementsAre(Erased("a  [" + std::string(40, '-') + "]    0 %  0 B of 80.0 MiB")));
  EXPECT_THAT(Update(seconds(2), {Loading({{30, 40}, {0, 10}}), Loading({{10, 40}, {0, 10}})}),
              ElementsAre(Erased("a  [" + std::string(20, '#') + std::string(20, '-') +
                                 "]   50 %  40.0 MiB of 80.0 MiB, 20.0 MiB/s, 2 s left")));
  const auto both = Update(seconds(2), {Loading({{40, 40}, {5, 10}}), Loading({{40, 40}, {0, 10}})});
  EXPECT_THAT(both, ElementsAre(Erased("a  [" + std::string(40, '#') + "]  100 %  80.0 MiB in 4 s, 20.0 MiB/s\n"),
                                Erased("b  [" + std::string(10, '#') + std::string(30, '-') +
                                       "]   25 %  5.0 MiB of 20.0 MiB")));
  EXPECT_THAT(Update(seconds(1), {Loaded({{40, 40}, {10, 10}}), Loading({{40, 40}, {10, 10}})}),
              ElementsAre(Erased("b  [" + std::string(40, '#') + "]  100 %  20.0 MiB in 1 s, 20.0 MiB/s\n")));
  EXPECT_THAT(Update(seconds(1), {Loaded({{40, 40}, {10, 10}}), Loaded({{40, 40}, {10, 10}})}), IsEmpty());
  display_.reset();
  EXPECT_THAT(shown_, IsEmpty()) << "the line was ended already";
}

TEST_F(LoadDisplayTest, ALineThatIsOpenAtTheEndIsEnded) {
  Start(/*draws=*/true);
  Update(seconds(0), {Loading({{1, 40}, {0, 10}})});
  shown_.clear();
  display_.reset();
  EXPECT_THAT(shown_, ElementsAre("\n"));
}

TEST_F(LoadDisplayTest, NotDoneWhileARankHasNotJoined) {
  Start(/*draws=*/true);
  Update(seconds(0), {Loading({{0, 40}, {0, 10}}), {}});
  EXPECT_THAT(Update(seconds(1), {Loaded({{40, 40}, {10, 10}}), {}}), IsEmpty());
  EXPECT_THAT(Update(seconds(1), {Loaded({{40, 40}, {10, 10}}), Loading({{0, 40}, {0, 10}})}).size(), 1);
}

TEST_F(LoadDisplayTest, LinesEveryFewSecondsWithoutATerminal) {
  Start(/*draws=*/false);
  EXPECT_THAT(Update(seconds(0), {Loading({{0, 40}, {0, 10}})}), IsEmpty());
  EXPECT_THAT(Update(milliseconds(4900), {Loading({{1, 40}, {0, 10}})}), IsEmpty());
  EXPECT_THAT(Update(milliseconds(100), {Loading({{10, 40}, {0, 10}})}),
              ElementsAre("model a: 10.0 MiB of 40.0 MiB, 2.0 MiB/s, 15 s left"));
  EXPECT_THAT(Update(seconds(1), {Loading({{20, 40}, {0, 10}})}), IsEmpty());
  EXPECT_THAT(Update(seconds(4), {Loaded({{40, 40}, {10, 10}})}),
              ElementsAre("model a: loaded 40.0 MiB in 10 s, 4.0 MiB/s", "model b: loaded 10.0 MiB in 0 s"));
}

TEST_F(LoadDisplayTest, AWorkerThatReplacesALostOneCountsAlone) {
  Start(/*draws=*/false);
  const Rank kept = Loaded({{40, 40}, {10, 10}});
  EXPECT_THAT(Update(seconds(0), {kept, {}, kept}), IsEmpty());
  EXPECT_THAT(Update(seconds(1), {kept, Loading({{0, 40}, {0, 10}}), kept}), IsEmpty());
  EXPECT_THAT(Update(seconds(2), {kept, kept, kept}),
              ElementsAre("model a on 1 of 3 ranks: loaded 40.0 MiB in 2 s, 20.0 MiB/s",
                          "model b on 1 of 3 ranks: loaded 10.0 MiB in 0 s"));
}

TEST_F(LoadDisplayTest, AModelThatComesLaterIsShownAndOneThatIsGivenUpIsNot) {
  Start(/*draws=*/true);
  const auto loading = [](int64_t done) { return RankLoad{RankLoad::State::kLoading, true, done * kMiB, 40 * kMiB}; };
  const ModelLoad old = {ModelId{1}, "a", {{RankLoad::State::kLoaded, true, kMiB, kMiB}}};
  EXPECT_THAT(UpdateModels(seconds(0), {old}), IsEmpty());
  const auto shown = UpdateModels(seconds(0), {old, {ModelId{7}, "a", {loading(10)}}});
  EXPECT_THAT(shown, ElementsAre(testing::HasSubstr("10.0 MiB of 40.0 MiB")));
  EXPECT_THAT(UpdateModels(seconds(1), {old}), ElementsAre("\n"));
  EXPECT_THAT(UpdateModels(seconds(1), {old}), IsEmpty());
}

}  // namespace
}  // namespace switchyard
