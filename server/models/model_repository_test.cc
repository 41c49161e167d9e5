#include "server/models/model_repository.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "base/notification.h"
#include "server/models/testing.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

const ModelOption kTwo = {"two", "synthetic:dim=8,hidden=8,experts=4,topk=2,layers=2"};

// A host without worker processes: loads models at once, unless Wait() was called, and fails when a test says so.
class FakeHost final : public ModelHost {
 public:
  void Load(const std::shared_ptr<ServedModel>& model, std::function<void(absl::Status)> done) override {
    MutexLock lock(&mu_);
    ++num_loads_;
    held_.insert(model->id);
    changed_.SignalAll();
    if (waits_ && (waits_for_.empty() || waits_for_ == model->name)) {
      waiting_ = std::move(done);
    } else {
      done(result_);
    }
  }
  absl::Status WarmUp(const std::shared_ptr<ServedModel>&, const std::function<absl::Status()>& should_stop) override {
    MutexLock lock(&mu_);
    const absl::Status stop = should_stop();
    return stop.ok() ? warm_up_ : stop;
  }
  void Release(const ServedModel& model) override {
    MutexLock lock(&mu_);
    released_.insert(model.id);
    changed_.SignalAll();
  }
  void Unload(const ServedModel& model, std::function<void()> done) override {
    MutexLock lock(&mu_);
    held_.erase(model.id);
    changed_.SignalAll();
    done();
  }

  void FailWith(absl::Status result) {
    MutexLock lock(&mu_);
    result_ = std::move(result);
  }
  void FailWarmUpWith(absl::Status result) {
    MutexLock lock(&mu_);
    warm_up_ = std::move(result);
  }
  // Loads wait until EndLoad: all, or those of one checkpoint.
  void Wait(const std::string& checkpoint = "") {
    MutexLock lock(&mu_);
    waits_ = true;
    waits_for_ = checkpoint;
  }
  void WaitNoMore() {
    MutexLock lock(&mu_);
    waits_ = false;
  }
  void WaitForLoads(int count) {
    MutexLock lock(&mu_);
    while (num_loads_ < count) changed_.Wait(&mu_);
  }
  void WaitForRelease(ModelId id) {
    MutexLock lock(&mu_);
    while (!released_.contains(id)) changed_.Wait(&mu_);
  }
  void EndLoad() {
    MutexLock lock(&mu_);
    waiting_(result_);
  }
  size_t num_released() {
    MutexLock lock(&mu_);
    return released_.size();
  }
  size_t num_held() {
    MutexLock lock(&mu_);
    return held_.size();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  absl::Status result_ ABSL_GUARDED_BY(mu_), warm_up_ ABSL_GUARDED_BY(mu_);
  bool waits_ ABSL_GUARDED_BY(mu_) = false;
  std::string waits_for_ ABSL_GUARDED_BY(mu_);
  int num_loads_ ABSL_GUARDED_BY(mu_) = 0;
  std::set<ModelId> held_ ABSL_GUARDED_BY(mu_), released_ ABSL_GUARDED_BY(mu_);
  std::function<void(absl::Status)> waiting_ ABSL_GUARDED_BY(mu_);
};

class ModelRepositoryTest : public testing::Test {
 protected:
  ModelRepositoryTest() : folder_(fs::path(testing::TempDir()) / "repository") {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }

  // `slash` ends the folder's path.
  void Start(const std::vector<ModelOption>& served, const std::string& slash = "") {
    std::vector<std::shared_ptr<ServedModel>> models;
    // The folders hold no real checkpoints; the open function makes up their contents.
    for (const ModelOption& option : served) {
      models.push_back(OpenModel({option.name, kTwo.location}));
      models.back()->location = option.location;
    }
    const auto open = [this](const ModelOption& option) -> absl::StatusOr<std::shared_ptr<ServedModel>> {
      if (!open_status_.ok()) return open_status_;
      auto model = OpenModel({option.name, kTwo.location});
      if (const auto name = layer_names_.find(option.name); name != layer_names_.end()) {
        model->spec.layers[0].name = name->second;
      }
      return model;
    };
    repository_ = std::make_unique<ModelRepository>(models, folder_.string() + slash, open, &host_);
  }
  void AddFolder(const std::string& name) {
    fs::create_directory(folder_ / name);
    std::ofstream(folder_ / name / "config.json") << "{}";
  }

  // One change, to its end.
  absl::Status Change(void (ModelRepository::*change)(const std::string&, ModelRepository::DoneFn,
                                                      ModelRepository::IsWantedFn),
                      const std::string& name) {
    Notification done;
    absl::Status result;
    (*repository_.*change)(
        name,
        [&](absl::Status status) {
          result = std::move(status);
          done.Notify();
        },
        nullptr);
    done.WaitForNotification();
    return result;
  }
  absl::Status Load(const std::string& name) { return Change(&ModelRepository::Load, name); }
  absl::Status Unload(const std::string& name) { return Change(&ModelRepository::Unload, name); }

  std::vector<std::string> ServedNames() const {
    std::vector<std::string> names;
    const auto table = repository_->table();
    for (const auto& entry : table->layers()) names.push_back(entry->name);
    return names;
  }
  KnownModel Known(size_t index) const { return repository_->table()->models()[index]; }
  LayerId IdOf(const std::string& layer) const { return (*repository_->table()->Find("two", layer))->id; }

  const fs::path folder_;
  absl::Status open_status_;
  std::map<std::string, std::string> layer_names_;  // of the first layers, by checkpoint; others have their usual ones
  FakeHost host_;
  std::unique_ptr<ModelRepository> repository_;
};

TEST_F(ModelRepositoryTest, FoldersAreKnownAndLoadedByName) {
  AddFolder("b");
  AddFolder("a");
  AddFolder(".hidden");
  fs::create_directory(folder_ / "empty");
  Start({});
  EXPECT_TRUE(ServedNames().empty());
  EXPECT_EQ(Known(0).name, "a");
  EXPECT_EQ(Known(1).reason, "not loaded");
  EXPECT_EQ(repository_->table()->models().size(), 2u);
  EXPECT_EQ(Load("b"), absl::OkStatus());
  EXPECT_THAT(ServedNames(), ElementsAre("b.0", "b.1"));
  AddFolder("c");  // while it runs
  EXPECT_EQ(Load("c.1"), absl::OkStatus());
  EXPECT_THAT(ServedNames(), ElementsAre("b.0", "b.1", "c.1"));
  fs::remove_all(folder_ / "a");
  EXPECT_TRUE(absl::IsNotFound(Load("a")));
}

TEST_F(ModelRepositoryTest, ModelsOfTheFlagStayKnown) {
  AddFolder("x");
  const ModelOption named = {"m", folder_ / "x"};
  Start({named});
  EXPECT_EQ(Unload("m"), absl::OkStatus());
  EXPECT_EQ(Load("m"), absl::OkStatus());
  EXPECT_EQ(Unload("m"), absl::OkStatus());
  fs::remove_all(folder_ / "x");
  EXPECT_TRUE(absl::IsNotFound(Load("x")));
  EXPECT_EQ(Known(0).name, "m");
  EXPECT_EQ(repository_->table()->models().size(), 1u);
}

TEST_F(ModelRepositoryTest, FoldersThatAreGoneAreForgottenHoweverTheirFolderIsWritten) {
  AddFolder("a");
  AddFolder("b");
  Start({}, "/");
  EXPECT_EQ(Load("a"), absl::OkStatus());
  EXPECT_EQ(Unload("a"), absl::OkStatus());
  fs::remove_all(folder_ / "a");
  EXPECT_TRUE(absl::IsNotFound(Load("a")));
  EXPECT_EQ(repository_->table()->models().size(), 1u);
  fs::remove_all(folder_);
  EXPECT_TRUE(absl::IsNotFound(Load("b")));
  EXPECT_TRUE(repository_->table()->models().empty());
}

TEST_F(ModelRepositoryTest, AFolderThatCannotBeNamedIsLeftOut) {
  AddFolder("a\xff");
  AddFolder("b");
  Start({});
  ASSERT_EQ(repository_->table()->models().size(), 1u);
  EXPECT_EQ(Known(0).name, "b");
  EXPECT_TRUE(absl::IsNotFound(Load("a\xff")));
}

TEST_F(ModelRepositoryTest, ListingLooksAtTheFolderAnew) {
  AddFolder("a");
  Start({});
  AddFolder("b");
  fs::remove_all(folder_ / "a");
  const auto listed = [&] {
    std::vector<std::string> names;
    Notification done;
    repository_->List([&](const ModelTable& table) {
      for (const KnownModel& model : table.models()) names.push_back(model.name);
      done.Notify();
    });
    done.WaitForNotification();
    return names;
  };
  EXPECT_THAT(listed(), ElementsAre("b"));
  repository_->Stop();
  AddFolder("c");
  EXPECT_THAT(listed(), ElementsAre("b"));
}

TEST_F(ModelRepositoryTest, ALayerWithTheNameOfAnotherIsNotLoaded) {
  AddFolder("m");
  AddFolder("m.x");
  Start({});
  layer_names_ = {{"m", "x.0"}, {"m.x", "0"}};
  EXPECT_EQ(Load("m"), absl::OkStatus());
  const absl::Status same = Load("m.x");
  EXPECT_TRUE(absl::IsFailedPrecondition(same)) << same;
  EXPECT_THAT(std::string(same.message()),
              AllOf(HasSubstr("layer '0' of model 'm.x'"), HasSubstr("'x.0' of model 'm'")));
  EXPECT_EQ(host_.num_held(), 1u);
  EXPECT_EQ(Load("m"), absl::OkStatus()) << "a reload has its own names";
  EXPECT_EQ(Unload("m"), absl::OkStatus());
  EXPECT_EQ(Load("m.x"), absl::OkStatus());
  EXPECT_TRUE(absl::IsFailedPrecondition(Load("m")));
}

TEST_F(ModelRepositoryTest, NamesAreTakenWhileALoadWaits) {
  AddFolder("m");
  AddFolder("m.x");
  Start({});
  layer_names_ = {{"m", "x.0"}, {"m.x", "0"}};
  host_.Wait("m");
  Notification done;
  absl::Status result;
  repository_->Load("m", [&](absl::Status status) {
    result = std::move(status);
    done.Notify();
  });
  host_.WaitForLoads(1);
  EXPECT_TRUE(absl::IsFailedPrecondition(Load("m.x")));
  host_.FailWith(absl::UnavailableError("x"));
  host_.EndLoad();
  done.WaitForNotification();
  EXPECT_FALSE(result.ok());
  host_.FailWith(absl::OkStatus());
  EXPECT_EQ(Load("m.x"), absl::OkStatus());
}

TEST_F(ModelRepositoryTest, OnlyKnownNamesAreLoaded) {
  AddFolder("a");
  Start({});
  for (const char* name : {"../repository/a", "/etc", ".", "..", "b", "a/../a", "a/", "A"}) {
    const absl::Status status = Load(name);
    EXPECT_TRUE(absl::IsNotFound(status)) << name << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("there are: a"));
  }
  EXPECT_LT(Load(std::string(1 << 20, 'x')).message().size(), 500u);
  EXPECT_EQ(host_.num_held(), 0u);
}

TEST_F(ModelRepositoryTest, AReloadTakesTheOldOnesPlaceAndTheOldOneGoesWithItsLastRequest) {
  Start({kTwo});
  const LayerId old_id = IdOf("1");
  std::shared_ptr<ServedLayer> request = *repository_->table()->Find("two", "1");
  EXPECT_EQ(Load("two"), absl::OkStatus());
  EXPECT_NE(IdOf("1"), old_id);
  EXPECT_EQ(request->id, old_id) << "the old layer answers its own requests";
  Notification done;
  repository_->Unload("two", [&](const absl::Status& status) {
    EXPECT_EQ(status, absl::OkStatus());
    done.Notify();
  });
  EXPECT_FALSE(done.HasBeenNotified()) << "the change after waits for it";
  request = nullptr;
  done.WaitForNotification();
  EXPECT_TRUE(ServedNames().empty());
  EXPECT_EQ(Known(0).reason, "unloaded");
  EXPECT_EQ(Unload("two"), absl::OkStatus()) << "it is";
  EXPECT_EQ(Load("two"), absl::OkStatus());
  EXPECT_EQ(ServedNames().size(), 2u);
}

TEST_F(ModelRepositoryTest, LayersComeAndGoAlone) {
  Start({kTwo});
  const LayerId id = IdOf("1");
  EXPECT_EQ(Unload("two.0"), absl::OkStatus());
  EXPECT_THAT(ServedNames(), ElementsAre("two.1"));
  EXPECT_EQ(Load("two.0"), absl::OkStatus());
  EXPECT_EQ(IdOf("1"), id) << "nothing was loaded for that";
  EXPECT_EQ(Unload("two.0"), absl::OkStatus());
  EXPECT_EQ(Load("two.1"), absl::OkStatus());
  EXPECT_THAT(ServedNames(), ElementsAre("two.1")) << "a reload leaves the unserved layer unserved";
  EXPECT_NE(IdOf("1"), id);
  EXPECT_EQ(Unload("two.1"), absl::OkStatus());
  EXPECT_EQ(host_.num_held(), 0u) << "that was the last one";
  EXPECT_EQ(Load("two.1"), absl::OkStatus());
  EXPECT_THAT(ServedNames(), ElementsAre("two.1"));
  for (const absl::Status& status : {Load("two.2"), Unload("two.2")}) {
    EXPECT_TRUE(absl::IsNotFound(status));
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("no MoE layer '2'"), HasSubstr("it has: 0, 1")));
  }
  EXPECT_THAT(ServedNames(), ElementsAre("two.1"));
}

TEST_F(ModelRepositoryTest, AFailedLoadLeavesWhatWasServed) {
  Start({kTwo});
  const LayerId id = IdOf("0");
  open_status_ = absl::NotFoundError("model.safetensors: no tensor x");
  EXPECT_EQ(Load("two"), absl::NotFoundError("model two: model.safetensors: no tensor x"));
  EXPECT_EQ(Known(0).reason, "not reloaded: model two: model.safetensors: no tensor x");
  open_status_ = absl::OkStatus();
  host_.FailWith(absl::ResourceExhaustedError("rank 1: full"));
  EXPECT_EQ(Load("two"), absl::ResourceExhaustedError("rank 1: full"));
  EXPECT_EQ(host_.num_held(), 0u) << "the ranks that loaded it have freed it";
  EXPECT_EQ(IdOf("0"), id);
  host_.FailWith(absl::OkStatus());
  host_.FailWarmUpWith(absl::InternalError("warm-up of two.0: cannot be computed"));
  EXPECT_EQ(Load("two"), absl::InternalError("warm-up of two.0: cannot be computed"));
  EXPECT_EQ(IdOf("0"), id);
  host_.FailWarmUpWith(absl::OkStatus());
  EXPECT_EQ(Load("two"), absl::OkStatus());
  EXPECT_EQ(Known(0).reason, "");
}

TEST_F(ModelRepositoryTest, AnAbandonedModelIsOutOfTheTable) {
  Start({kTwo});
  host_.Wait();
  Notification done;
  repository_->Load("two", [&](const absl::Status& status) {
    EXPECT_EQ(status, absl::OkStatus());
    done.Notify();
  });
  host_.WaitForLoads(1);
  EXPECT_EQ(repository_->Abandon(ModelId{-1}), nullptr);
  EXPECT_EQ(repository_->Abandon(Known(0).loaded->id)->name, "two");
  EXPECT_TRUE(ServedNames().empty());
  EXPECT_EQ(host_.num_held(), 1u) << "no request kept the old one";
  host_.EndLoad();
  done.WaitForNotification();
  EXPECT_EQ(ServedNames().size(), 2u);
}

TEST_F(ModelRepositoryTest, WhatAnUnloadedModelStillAnswersCanBeAbandoned) {
  Start({kTwo});
  const ModelId id = Known(0).loaded->id;
  std::shared_ptr<ServedLayer> request = *repository_->table()->Find("two", "1");
  Notification done;
  repository_->Unload("two", [&](const absl::Status& status) {
    EXPECT_EQ(status, absl::OkStatus());
    done.Notify();
  });
  host_.WaitForRelease(id);
  std::shared_ptr<ServedModel> abandoned = repository_->Abandon(id);
  EXPECT_TRUE(abandoned != nullptr && abandoned->id == id) << "its requests are to be failed";
  EXPECT_FALSE(done.HasBeenNotified());
  abandoned = nullptr;
  request = nullptr;
  done.WaitForNotification();
  EXPECT_EQ(repository_->Abandon(id), nullptr);
}

TEST_F(ModelRepositoryTest, ModelsThatAreReplacedOrCannotBeBroughtAreReleased) {
  Start({kTwo});
  const ModelId first = Known(0).loaded->id;
  EXPECT_EQ(Load("two"), absl::OkStatus());
  host_.WaitForRelease(first);
  host_.FailWarmUpWith(absl::InternalError("warm-up of two.0: cannot be computed"));
  EXPECT_FALSE(Load("two").ok());
  EXPECT_EQ(host_.num_released(), 2u);
  EXPECT_EQ(Unload("two.0"), absl::OkStatus());
  EXPECT_EQ(host_.num_released(), 2u) << "the other layer is served";
}

TEST_F(ModelRepositoryTest, StatesShowWhatIsUnderWay) {
  Start({kTwo});
  ASSERT_EQ(Unload("two"), absl::OkStatus());
  host_.Wait();
  Notification done;
  repository_->Load("two", [&](const absl::Status& status) {
    EXPECT_EQ(status, absl::OkStatus());
    done.Notify();
  });
  host_.WaitForLoads(1);
  EXPECT_EQ(Known(0).change, KnownModel::Change::kLoading);
  EXPECT_EQ(repository_->table()->Find("two", "0").status(), absl::UnavailableError("model 'two.0' is being loaded"));
  host_.EndLoad();
  done.WaitForNotification();
  EXPECT_EQ(Known(0).change, KnownModel::Change::kNone);
  EXPECT_EQ(ServedNames().size(), 2u);
}

TEST_F(ModelRepositoryTest, ChangesOfOtherCheckpointsDoNotWait) {
  AddFolder("a");
  AddFolder("b");
  Start({kTwo});
  host_.Wait("a");
  Notification done;
  repository_->Load("a", [&](const absl::Status& status) {
    EXPECT_EQ(status, absl::OkStatus());
    done.Notify();
  });
  host_.WaitForLoads(1);
  EXPECT_EQ(Load("b"), absl::OkStatus());
  EXPECT_EQ(Load("two"), absl::OkStatus());
  EXPECT_EQ(Unload("two.0"), absl::OkStatus());
  EXPECT_EQ(Unload("b"), absl::OkStatus());
  EXPECT_TRUE(absl::IsNotFound(Load("c")));
  fs::remove_all(folder_ / "a");
  EXPECT_TRUE(absl::IsNotFound(Load("c"))) << "the folder is listed anew";
  EXPECT_FALSE(done.HasBeenNotified());
  host_.EndLoad();
  done.WaitForNotification();
  EXPECT_THAT(ServedNames(), ElementsAre("two.1", "a.0", "a.1")) << "its folder went when it was being loaded";
}

TEST_F(ModelRepositoryTest, AnUnloadCallsOffTheLoadsBeforeIt) {
  Start({kTwo});
  ASSERT_EQ(Unload("two"), absl::OkStatus());
  host_.Wait();
  Notification running, queued;
  const auto expect_cancelled = [](Notification& done) {
    return [&done](const absl::Status& status) {
      EXPECT_TRUE(absl::IsCancelled(status)) << status;
      done.Notify();
    };
  };
  repository_->Load("two", expect_cancelled(running));
  repository_->Load("two.1", expect_cancelled(queued));
  host_.WaitForLoads(1);
  EXPECT_EQ(Unload("two"), absl::OkStatus());
  running.WaitForNotification();
  queued.WaitForNotification();
  EXPECT_EQ(host_.num_held(), 0u) << "the workers are told";
  EXPECT_TRUE(ServedNames().empty());
  EXPECT_EQ(Known(0).change, KnownModel::Change::kNone);
  host_.WaitNoMore();
  EXPECT_EQ(Load("two"), absl::OkStatus()) << "a load after it is none of those";
}

TEST_F(ModelRepositoryTest, TheUnloadOfALayerLeavesTheLoadOfItsCheckpointAlone) {
  Start({kTwo});
  ASSERT_EQ(Unload("two"), absl::OkStatus());
  host_.Wait();
  Notification loaded, unloaded;
  repository_->Load("two", [&](const absl::Status& status) {
    EXPECT_EQ(status, absl::OkStatus());
    loaded.Notify();
  });
  host_.WaitForLoads(1);
  repository_->Unload("two.0", [&](const absl::Status& status) {
    EXPECT_EQ(status, absl::OkStatus());
    unloaded.Notify();
  });
  host_.EndLoad();
  loaded.WaitForNotification();
  unloaded.WaitForNotification();
  EXPECT_THAT(ServedNames(), ElementsAre("two.1"));
}

TEST_F(ModelRepositoryTest, AChangeWhoseCallerIsGoneIsNotBegun) {
  Start({kTwo});
  const ModelId served = Known(0).loaded->id;
  host_.Wait();
  Notification running, queued;
  std::atomic<bool> is_there{true};
  const auto is_wanted = [&] { return is_there.load(); };
  repository_->Load(
      "two",
      [&](const absl::Status& status) {
        EXPECT_EQ(status, absl::InternalError("cannot")) << "it goes on when its caller goes";
        running.Notify();
      },
      is_wanted);
  host_.WaitForLoads(1);
  repository_->Load(
      "two",
      [&](const absl::Status& status) {
        EXPECT_TRUE(absl::IsCancelled(status)) << status;
        queued.Notify();
      },
      is_wanted);
  is_there = false;
  host_.FailWith(absl::InternalError("cannot"));
  host_.EndLoad();
  running.WaitForNotification();
  queued.WaitForNotification();
  host_.WaitForLoads(1);
  EXPECT_EQ(Known(0).loaded->id, served);
}

TEST_F(ModelRepositoryTest, StoppingEndsWhatWaits) {
  Start({kTwo});
  host_.Wait();
  Notification running, queued;
  const auto expect_unavailable = [](Notification& done) {
    return [&done](const absl::Status& status) {
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      done.Notify();
    };
  };
  repository_->Load("two", expect_unavailable(running));
  repository_->Load("two", expect_unavailable(queued));
  host_.WaitForLoads(1);
  repository_->Stop();
  running.WaitForNotification();
  queued.WaitForNotification();
  EXPECT_TRUE(absl::IsUnavailable(Load("two")));
  EXPECT_EQ(ServedNames().size(), 2u);
  repository_ = nullptr;
  host_.EndLoad();  // ends after the repository has stopped
}

TEST_F(ModelRepositoryTest, ManyThreadsMayChangeAndLook) {
  Start({kTwo});
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([this, i] {
      for (int j = 0; j < 10; ++j) {
        const absl::Status changed = i == 0   ? Load("two")
                                     : i == 1 ? Unload("two.0")
                                     : i == 2 ? Load("two.0")
                                              : absl::OkStatus();
        EXPECT_TRUE(changed.ok() || (i == 2 && absl::IsCancelled(changed))) << changed;
        const auto layer = repository_->table()->Find("two", "1");
        ASSERT_TRUE(layer.ok()) << layer.status();
        EXPECT_EQ((*layer)->spec.name, "1");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Load("two"), absl::OkStatus());
  EXPECT_EQ(ServedNames().size(), 2u);
}

}  // namespace
}  // namespace switchyard
