// Aligned columns for people to read.
#pragma once

#include <ostream>
#include <string>
#include <vector>

namespace switchyard {

// Not thread-safe.
class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // One cell per column.
  void AddRow(std::vector<std::string> cells);
  void Print(std::ostream& out) const;

 private:
  void PrintRow(const std::vector<std::string>& cells, const std::vector<size_t>& widths, std::ostream& out) const;

  const std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace switchyard
