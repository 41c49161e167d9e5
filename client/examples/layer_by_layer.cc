// How an inference engine uses a stream: several sequences decode at the same time, and every token of each goes
// through the model's MoE layers one after the other. All of it shares one stream. An addition and a normalisation
// stand in for the engine's work between two MoE layers (attention, norms).
//
//   layer_by_layer HOST:PORT MODEL SEQUENCES TOKENS
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "client/forward_stream.h"

namespace switchyard {
namespace {

// Counts the sequences that have not ended, and keeps the first error. Thread-safe.
class Progress {
 public:
  explicit Progress(int num_sequences) : num_left_(num_sequences) {}

  void End(const absl::Status& status) {
    MutexLock lock(&mu_);
    status_.Update(status);
    if (--num_left_ == 0) ended_.SignalAll();
  }
  absl::Status Wait() {
    MutexLock lock(&mu_);
    while (num_left_ > 0) ended_.Wait(&mu_);
    return status_;
  }

 private:
  Mutex mu_;
  CondVar ended_;
  int num_left_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

// One sequence: a hidden state on its way through the layers. It has one request in flight at a time, so that it needs
// no lock of its own.
class Sequence {
 public:
  Sequence(ForwardStream* stream, const v1::Model* model, int num_tokens, int seed, Progress* progress)
      : stream_(stream), model_(model), num_left_(int64_t{num_tokens} * model->layers_size()), progress_(progress) {
    state_ = std::make_shared<HostMatrix>(HostMatrix::Allocate(DType::kF32, 1, model->layers(0).hidden_dim()));
    for (int64_t i = 0; i < state_->num_cols; ++i) element(i) = std::sin(static_cast<float>(i * (seed + 1)));
  }

  // Sends the state to the next layer; its answer sends the one after.
  void Next() {
    if (num_left_ == 0) return progress_->End(absl::OkStatus());
    const v1::Layer& layer = model_->layers(next_layer_);
    next_layer_ = (next_layer_ + 1) % model_->layers_size();
    --num_left_;
    stream_->Submit({.model = model_->name(), .layer = layer.name(), .rows = state_->view(), .rows_owner = state_},
                    [this](const absl::StatusOr<ForwardResult>& result) {
                      if (!result.ok()) return progress_->End(result.status());
                      Add(result->rows);
                      Next();
                    });
  }

 private:
  float& element(int64_t i) { return state_->view().as<float>()[i]; }

  // The residual connection. It makes a new state, because the stream keeps the sent one until it lets go of it.
  void Add(const HostMatrix& output) {
    auto sum = std::make_shared<HostMatrix>(HostMatrix::Allocate(DType::kF32, 1, state_->num_cols));
    float largest = 1;
    for (int64_t i = 0; i < state_->num_cols; ++i) {
      sum->view().as<float>()[i] = element(i) + output.view().as<float>()[i];
      largest = std::max(largest, std::abs(sum->view().as<float>()[i]));
    }
    state_ = std::move(sum);
    for (int64_t i = 0; i < state_->num_cols; ++i) element(i) /= largest;
  }

  ForwardStream* const stream_;
  const v1::Model* const model_;
  int64_t num_left_;
  Progress* const progress_;
  int next_layer_ = 0;
  std::shared_ptr<HostMatrix> state_;
};

absl::StatusOr<v1::Model> FindModel(Client& client, const std::string& name) {
  SY_ASSIGN_OR_RETURN(const v1::ListModelsResponse served, client.ListModels());
  for (const v1::Model& model : served.models()) {
    if (model.name() == name) return model;
  }
  return absl::NotFoundError(absl::StrCat("no model '", name, "' is served"));
}

absl::Status Run(const std::string& target, const std::string& model_name, int num_sequences, int num_tokens) {
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Connect(target, {}));
  SY_ASSIGN_OR_RETURN(const v1::Model model, FindModel(*client, model_name));
  Progress progress(num_sequences);
  std::vector<std::unique_ptr<Sequence>> sequences;
  // Opened after the objects that its callbacks use, so that it ends before they do.
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<ForwardStream> stream, client->OpenStream({}));
  for (int i = 0; i < num_sequences; ++i) {
    sequences.push_back(std::make_unique<Sequence>(stream.get(), &model, num_tokens, i, &progress));
  }
  const SteadyTime start = Clock::Real().Now();
  for (const auto& sequence : sequences) sequence->Next();
  SY_RETURN_IF_ERROR(progress.Wait());
  const double seconds = static_cast<double>(MicrosBetween(start, Clock::Real().Now())) / 1e6;
  SY_RETURN_IF_ERROR(stream->Close());
  std::printf("%d tokens of %d sequences through %d layers in %.3f s: %.1f us for a layer\n",
              num_tokens * num_sequences, num_sequences, model.layers_size(), seconds,
              seconds * 1e6 / (num_tokens * model.layers_size()));
  return absl::OkStatus();
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  const int num_sequences = argc == 5 ? std::atoi(argv[3]) : 0, num_tokens = argc == 5 ? std::atoi(argv[4]) : 0;
  if (num_sequences < 1 || num_tokens < 1) {
    std::fprintf(stderr, "usage: layer_by_layer HOST:PORT MODEL SEQUENCES TOKENS\n");
    return 2;
  }
  const absl::Status status = switchyard::Run(argv[1], argv[2], num_sequences, num_tokens);
  if (status.ok()) return 0;
  std::fprintf(stderr, "layer_by_layer: %s\n", status.ToString().c_str());
  return 1;
}
