#include "cli/chart.h"

#include <cairo.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "core/base/fail.h"
#include "core/base/file.h"

namespace nibble {
namespace {

constexpr double kWidth = 800.0;  // of one chart, pixels
constexpr double kHeight = 480.0;
constexpr double kLegendRow = 18.0;
constexpr const char* kFont = "sans-serif";

struct Color {
  double r, g, b;
};
// Okabe and Ito's palette, which people with colour blindness can tell apart, less its yellow.
constexpr std::array<Color, 8> kPalette = {{{0.00, 0.45, 0.70},
                                            {0.84, 0.37, 0.00},
                                            {0.00, 0.62, 0.45},
                                            {0.80, 0.47, 0.65},
                                            {0.34, 0.71, 0.91},
                                            {0.90, 0.62, 0.00},
                                            {0.35, 0.35, 0.35},
                                            {0.55, 0.25, 0.10}}};
Color color_of(size_t series) { return kPalette[series % kPalette.size()]; }

struct Range {
  double low = 0.0;
  double high = 1.0;
};

/// Owns a surface and its context.
class Canvas {
 public:
  Canvas(double width, double height)
      : surface_(cairo_image_surface_create(CAIRO_FORMAT_RGB24, static_cast<int>(width),
                                            static_cast<int>(height))),
        cairo_(cairo_create(surface_)) {
    NIBBLE_CHECK(cairo_status(cairo_) == CAIRO_STATUS_SUCCESS, "cairo: {}",
                 cairo_status_to_string(cairo_status(cairo_)));
    cairo_set_source_rgb(cairo_, 1, 1, 1);
    cairo_paint(cairo_);
  }
  Canvas(const Canvas&) = delete;
  Canvas& operator=(const Canvas&) = delete;
  ~Canvas() {
    cairo_destroy(cairo_);
    cairo_surface_destroy(surface_);
  }
  cairo_t* get() const { return cairo_; }

  std::string png() const {
    std::string bytes;
    const auto append = [](void* closure, const unsigned char* data, unsigned int size) {
      static_cast<std::string*>(closure)->append(reinterpret_cast<const char*>(data), size);
      return CAIRO_STATUS_SUCCESS;
    };
    const auto status = cairo_surface_write_to_png_stream(surface_, append, &bytes);
    NIBBLE_CHECK(status == CAIRO_STATUS_SUCCESS, "cairo: {}", cairo_status_to_string(status));
    return bytes;
  }

 private:
  cairo_surface_t* surface_;
  cairo_t* cairo_;
};

enum class Align { kLeft, kCenter, kRight };

struct TextStyle {
  double size = 12.0;
  cairo_font_weight_t weight = CAIRO_FONT_WEIGHT_NORMAL;
  Align align = Align::kLeft;
};

double text_width(cairo_t* cr, const std::string& text, const TextStyle& style) {
  cairo_select_font_face(cr, kFont, CAIRO_FONT_SLANT_NORMAL, style.weight);
  cairo_set_font_size(cr, style.size);
  cairo_text_extents_t extents;
  cairo_text_extents(cr, text.c_str(), &extents);
  return extents.x_advance;
}

void draw_text(cairo_t* cr, double x, double y, const std::string& text, const TextStyle& style) {
  const double width = text_width(cr, text, style);
  cairo_set_source_rgb(cr, 0.15, 0.15, 0.15);
  cairo_move_to(cr,
                style.align == Align::kLeft     ? x
                : style.align == Align::kCenter ? x - width / 2
                                                : x - width,
                y);
  cairo_show_text(cr, text.c_str());
}

// As many digits as the distance of the ticks asks for.
std::string tick_text(double value, double step) {
  if (std::fabs(value) < step * 1e-6) return "0";
  const double top = std::max(std::fabs(value), step);
  if (top >= 1e6 || top < 1e-3) return fmt::format("{:.3g}", value);
  const int digits = std::clamp(static_cast<int>(std::ceil(-std::log10(step) - 1e-9)), 0, 6);
  return fmt::format("{:.{}f}", value, digits);
}

/// Draws one chart into its rectangle.
class ChartPainter {
 public:
  ChartPainter(cairo_t* cr, const Chart& chart, double left, double top)
      : cr_(cr), chart_(chart), left_(left), top_(top) {}

  void paint() {
    draw_text(cr_, left_ + kWidth / 2, top_ + 28, chart_.title,
              {16.0, CAIRO_FONT_WEIGHT_BOLD, Align::kCenter});
    const double legend_bottom = paint_legend();
    find_ranges();
    x0_ = left_ + 84;
    x1_ = left_ + kWidth - 28;
    y0_ = legend_bottom + 14;
    y1_ = top_ + kHeight - 58;
    paint_axes();
    cairo_save(cr_);
    cairo_rectangle(cr_, x0_, y0_ - 2, x1_ - x0_ + 2, y1_ - y0_ + 4);
    cairo_clip(cr_);
    if (chart_.kind == Chart::Kind::kLines) {
      for (size_t s = 0; s < chart_.series.size(); ++s) paint_line(s);
    } else {
      paint_areas();
    }
    cairo_restore(cr_);
  }

 private:
  double to_x(double value) const {
    return x0_ + (value - x_.low) / (x_.high - x_.low) * (x1_ - x0_);
  }
  double to_y(double value) const {
    return y1_ - (value - y_.low) / (y_.high - y_.low) * (y1_ - y0_);
  }
  void set_color(size_t series, double alpha = 1.0) const {
    const Color c = color_of(series);
    cairo_set_source_rgba(cr_, c.r, c.g, c.b, alpha);
  }

  // Returns the y below the last row.
  double paint_legend() {
    const TextStyle style{12.0};
    double x = left_ + 84;
    double y = top_ + 52;
    for (size_t s = 0; s < chart_.series.size(); ++s) {
      const double width = 24 + text_width(cr_, chart_.series[s].label, style) + 18;
      if (x + width > left_ + kWidth - 20 && x > left_ + 84) {
        x = left_ + 84;
        y += kLegendRow;
      }
      set_color(s);
      cairo_rectangle(cr_, x, y - 8, 16, 8);
      cairo_fill(cr_);
      draw_text(cr_, x + 22, y, chart_.series[s].label, style);
      x += width;
    }
    return y;
  }

  void find_ranges() {
    const double infinity = std::numeric_limits<double>::infinity();
    x_ = {infinity, -infinity};
    y_ = {infinity, -infinity};
    std::vector<double> stacked;
    for (const ChartSeries& series : chart_.series) {
      stacked.resize(std::max(stacked.size(), series.y.size()), 0.0);
      for (size_t i = 0; i < series.y.size(); ++i) {
        if (!std::isfinite(series.y[i])) continue;
        stacked[i] += series.y[i];
        const double y = chart_.kind == Chart::Kind::kLines ? series.y[i] : stacked[i];
        x_ = {std::min(x_.low, series.x[i]), std::max(x_.high, series.x[i])};
        y_ = {std::min(y_.low, y), std::max(y_.high, y)};
      }
    }
    if (x_.low > x_.high) x_ = y_ = {0.0, 1.0};  // nothing to draw
    if (chart_.kind == Chart::Kind::kStackedAreas) y_.low = 0.0;
    if (x_.low == x_.high) x_ = {x_.low - 1.0, x_.high + 1.0};
    if (y_.low == y_.high) {
      const double margin = std::max(std::fabs(y_.low) * 0.1, 1e-9);
      y_ = {y_.low - margin, y_.high + margin};
    }
    // Whole ticks above and below, so that no curve touches the frame.
    const auto ticks = chart_ticks(y_.low, y_.high, 6);
    y_ = {std::min(y_.low, ticks.front()), std::max(y_.high, ticks.back())};
  }

  void paint_axes() {
    cairo_set_line_width(cr_, 1.0);
    const auto y_ticks = chart_ticks(y_.low, y_.high, 6);
    for (const double tick : y_ticks) {
      if (tick < y_.low || tick > y_.high) continue;
      line(x0_, to_y(tick), x1_, to_y(tick), 0.88);
      draw_text(cr_, x0_ - 8, to_y(tick) + 4, tick_text(tick, y_ticks[1] - y_ticks[0]),
                {12.0, CAIRO_FONT_WEIGHT_NORMAL, Align::kRight});
    }
    const auto x_ticks = chart_ticks(x_.low, x_.high, 8);
    for (const double tick : x_ticks) {
      // Steps are whole numbers.
      if (tick < x_.low || tick > x_.high || tick != std::floor(tick)) continue;
      line(to_x(tick), y1_, to_x(tick), y1_ + 5, 0.35);
      draw_text(cr_, to_x(tick), y1_ + 20, tick_text(tick, 1.0),
                {12.0, CAIRO_FONT_WEIGHT_NORMAL, Align::kCenter});
    }
    line(x0_, y1_, x1_, y1_, 0.35);
    line(x0_, y0_, x0_, y1_, 0.35);
    draw_text(cr_, (x0_ + x1_) / 2, y1_ + 42, chart_.x_label,
              {13.0, CAIRO_FONT_WEIGHT_NORMAL, Align::kCenter});
    cairo_save(cr_);
    cairo_translate(cr_, left_ + 20, (y0_ + y1_) / 2);
    cairo_rotate(cr_, -std::acos(0.0));  // a quarter turn
    draw_text(cr_, 0, 0, chart_.y_label, {13.0, CAIRO_FONT_WEIGHT_NORMAL, Align::kCenter});
    cairo_restore(cr_);
  }

  void line(double x0, double y0, double x1, double y1, double gray) const {
    cairo_set_source_rgb(cr_, gray, gray, gray);
    // On pixel centres: one sharp pixel wide.
    cairo_move_to(cr_, std::round(x0) + 0.5, std::round(y0) + 0.5);
    cairo_line_to(cr_, std::round(x1) + 0.5, std::round(y1) + 0.5);
    cairo_stroke(cr_);
  }

  void paint_line(size_t s) {
    const ChartSeries& series = chart_.series[s];
    set_color(s);
    cairo_set_line_width(cr_, 2.0);
    cairo_set_line_join(cr_, CAIRO_LINE_JOIN_ROUND);
    bool is_down = false;
    for (size_t i = 0; i < series.y.size(); ++i) {
      if (!std::isfinite(series.y[i])) {
        is_down = false;
        continue;
      }
      const double x = to_x(series.x[i]);
      const double y = to_y(series.y[i]);
      if (is_down) {
        cairo_line_to(cr_, x, y);
      } else {
        cairo_move_to(cr_, x, y);
      }
      is_down = true;
    }
    cairo_stroke(cr_);
    if (series.y.size() > 60) return;
    for (size_t i = 0; i < series.y.size(); ++i) {  // few points: show where they are
      if (!std::isfinite(series.y[i])) continue;
      cairo_arc(cr_, to_x(series.x[i]), to_y(series.y[i]), 2.8, 0, 4 * std::acos(0.0));
      cairo_fill(cr_);
    }
  }

  void paint_areas() {
    std::vector<double> below;
    for (size_t s = 0; s < chart_.series.size(); ++s) {
      const ChartSeries& series = chart_.series[s];
      below.resize(series.y.size(), 0.0);
      std::vector<double> above = below;
      for (size_t i = 0; i < above.size(); ++i) {
        if (std::isfinite(series.y[i])) above[i] += series.y[i];
      }
      set_color(s, 0.85);
      if (above.size() == 1) {  // one step: a bar
        cairo_rectangle(cr_, to_x(series.x[0]) - 30, to_y(above[0]), 60,
                        to_y(below[0]) - to_y(above[0]));
      }
      for (size_t i = 0; above.size() > 1 && i < above.size(); ++i) {
        cairo_line_to(cr_, to_x(series.x[i]), to_y(above[i]));
      }
      for (size_t i = above.size(); above.size() > 1 && i-- > 0;) {
        cairo_line_to(cr_, to_x(series.x[i]), to_y(below[i]));
      }
      cairo_close_path(cr_);
      cairo_fill(cr_);
      below = std::move(above);
    }
  }

  cairo_t* cr_;
  const Chart& chart_;
  const double left_;
  const double top_;
  double x0_ = 0, x1_ = 0, y0_ = 0, y1_ = 0;  // plot area, pixels
  Range x_, y_;                               // data
};

}  // namespace

std::vector<double> chart_ticks(double low, double high, int wanted) {
  NIBBLE_CHECK(high > low && wanted > 0, "ticks from {} to {}", low, high);
  const double rough = (high - low) / wanted;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) {
      step = factor * power;
      break;
    }
  }
  std::vector<double> ticks;
  const double first = std::floor(low / step + 1e-9);
  const double last = std::ceil(high / step - 1e-9);
  for (double i = first; i <= last; ++i) ticks.push_back(i * step);
  return ticks;
}

bool chart_fonts_exist() {
  const Canvas canvas(16, 16);
  return text_width(canvas.get(), "M", {}) > 0.0;
}

void write_charts_png(const std::filesystem::path& path, std::span<const Chart> charts) {
  NIBBLE_CHECK(!charts.empty(), "no chart for {}", path.string());
  if (!chart_fonts_exist()) {
    fail(ErrorCode::kFailedPrecondition,
         "this machine has no fonts to draw '{}' with; install one, e.g. fonts-dejavu-core",
         path.string());
  }
  const size_t columns = charts.size() == 1 ? 1 : 2;
  const size_t rows = (charts.size() + columns - 1) / columns;
  const Canvas canvas(kWidth * static_cast<double>(columns), kHeight * static_cast<double>(rows));
  for (size_t i = 0; i < charts.size(); ++i) {
    const size_t row = i / columns;
    ChartPainter(canvas.get(), charts[i], kWidth * static_cast<double>(i % columns),
                 kHeight * static_cast<double>(row))
        .paint();
  }
  write_file_atomically(path, canvas.png());
}

}  // namespace nibble
