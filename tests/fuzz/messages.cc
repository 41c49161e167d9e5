#include "tests/fuzz/messages.h"

#include "proto/inference.pb.h"
#include "proto/switchyard.pb.h"

namespace switchyard {
namespace {

inference::ModelInferRequest Infer(const char* datatype, int64_t num_rows) {
  inference::ModelInferRequest request;
  request.set_model_name("m.0");
  request.set_model_version("1");
  request.set_id("request-7");
  auto& input = *request.add_inputs();
  input.set_name("hidden_states");
  input.set_datatype(datatype);
  input.add_shape(num_rows);
  input.add_shape(kFuzzDim);
  return request;
}

std::string Raw(size_t element_size, int64_t num_rows) {
  std::string bytes(num_rows * kFuzzDim * element_size, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 37);
  return bytes;
}

inference::ModelInferRequest TypedInfer() {
  auto request = Infer("FP32", 2);
  auto& contents = *request.mutable_inputs(0)->mutable_contents();
  for (int i = 0; i < 2 * kFuzzDim; ++i) contents.add_fp32_contents(static_cast<float>(i) / 3);
  return request;
}

inference::ModelInferRequest Typed64Infer() {
  auto request = Infer("FP64", 1);
  auto& contents = *request.mutable_inputs(0)->mutable_contents();
  for (int i = 0; i < kFuzzDim; ++i) contents.add_fp64_contents(i / 3.0);
  return request;
}

inference::ModelInferRequest InferWithParameters() {
  auto request = Infer("BF16", 3);
  auto& parameters = *request.mutable_parameters();
  parameters["priority"].set_uint64_param(1);
  parameters["timeout"].set_int64_param(1'000'000);
  parameters["top_k"].set_int64_param(3);
  parameters["gate_index"].set_int64_param(0);
  parameters["capacity_factor"].set_double_param(1.25);
  parameters["balance_loss"].set_bool_param(true);
  parameters["triton_enable_empty_final_response"].set_bool_param(true);
  parameters["colour"].set_string_param("green");
  for (const char* name : {"output", "expert_ids", "expert_weights"}) request.add_outputs()->set_name(name);
  (*request.mutable_outputs(0)->mutable_parameters())["classification"].set_int64_param(2);
  request.add_raw_input_contents(Raw(2, 3));
  return request;
}

inference::ModelInferRequest SharedMemoryInfer() {
  auto request = Infer("FP16", 4);
  auto& parameters = *request.mutable_inputs(0)->mutable_parameters();
  parameters["shared_memory_region"].set_string_param("rows");
  parameters["shared_memory_byte_size"].set_int64_param(64);
  parameters["shared_memory_offset"].set_int64_param(0);
  auto& output = *request.add_outputs();
  output.set_name("output");
  *output.mutable_parameters() = parameters;
  return request;
}

// Has contents of every type that exists; rows may have two of these types.
inference::ModelInferRequest InferWithOddContents() {
  auto request = Infer("INT32", 1);
  auto& contents = *request.mutable_inputs(0)->mutable_contents();
  contents.add_bool_contents(true);
  contents.add_int_contents(-1);
  contents.add_int64_contents(-1);
  contents.add_uint_contents(1);
  contents.add_uint64_contents(1);
  contents.add_fp32_contents(1);
  contents.add_fp64_contents(1);
  contents.add_bytes_contents("bytes");
  *request.add_inputs() = request.inputs(0);
  request.add_raw_input_contents("");
  return request;
}

// Has names that are longer than errors show, in letters of several bytes.
inference::ModelInferRequest InferOfUnknownModel() {
  auto request = Infer("FP32", 1);
  std::string name = "m";
  for (int i = 0; i < 60; ++i) name += "é…";
  request.set_model_name(name);
  request.mutable_inputs(0)->set_datatype(name);
  request.add_outputs()->set_name(name);
  return request;
}

v1::ForwardRequest Forward(v1::DataType dtype, size_t element_size, int64_t num_rows) {
  v1::ForwardRequest request;
  request.set_model("m");
  request.set_layer("0");
  request.set_dtype(dtype);
  request.set_num_rows(num_rows);
  request.set_rows(Raw(element_size, num_rows));
  return request;
}

}  // namespace

std::vector<std::string> ForwardCorpus() {
  v1::ForwardRequest full = Forward(v1::DATA_TYPE_FP64, 8, 2);
  full.set_return_routing(true);
  full.set_return_balance_loss(true);
  full.set_gate_index(1);
  full.set_top_k(3);
  full.set_capacity_factor(-1.5);
  full.set_priority(1);
  full.set_queue_timeout_us(500'000);
  full.set_timeout_us(1'000'000);
  full.set_return_stats(true);
  return {Forward(v1::DATA_TYPE_BF16, 2, 3).SerializeAsString(), Forward(v1::DATA_TYPE_FP32, 4, 40).SerializeAsString(),
          full.SerializeAsString()};
}

std::vector<std::string> InferCorpus() {
  auto raw = Infer("FP32", 40);
  raw.add_raw_input_contents(Raw(4, 40));
  std::vector<std::string> corpus;
  for (const auto& request : {raw, TypedInfer(), Typed64Infer(), InferWithParameters(), SharedMemoryInfer(),
                              InferWithOddContents(), InferOfUnknownModel()}) {
    corpus.push_back(request.SerializeAsString());
  }
  return corpus;
}

std::string JoinChunks(const Chunks& chunks) {
  std::string bytes;
  for (const auto& chunk : chunks) bytes.append(reinterpret_cast<const char*>(chunk.data()), chunk.size());
  return bytes;
}

}  // namespace switchyard
