#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace nibble {

/// One curve. `y` may hold NaN: a gap in a line, nothing in a stack. As many `x` as `y`, ascending.
struct ChartSeries {
  std::string label;
  std::vector<double> x;
  std::vector<double> y;
};

struct Chart {
  enum class Kind { kLines, kStackedAreas };  ///< areas: all series share `x`, values >= 0
  std::string title;
  std::string x_label;
  std::string y_label;
  Kind kind = Kind::kLines;
  std::vector<ChartSeries> series;
};

/// Draws one chart, or several in two columns, as a PNG file that appears whole. Throws
/// Error{kFailedPrecondition} if the machine has no fonts.
void write_charts_png(const std::filesystem::path& path, std::span<const Chart> charts);

/// Whether text can be drawn here.
bool chart_fonts_exist();

/// Positions of about `wanted` ticks at round values (1, 2 or 5 times a power of ten) that cover
/// [low, high].
std::vector<double> chart_ticks(double low, double high, int wanted);

}  // namespace nibble
