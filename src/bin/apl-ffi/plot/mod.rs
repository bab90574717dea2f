//! Plots as SVG, made here: no library draws them, and no script runs in the page.
//!
//! Colours are classes (`c0` to `c7`), which [`page`] gives values for in light and dark; every mark has a `<title>`, which browsers
//! show under the pointer.

mod bars;
pub mod page;

pub use bars::{Bars, bars};

use std::fmt::Write as _;

/// The size of a plot, and of its margins: left, right, top, bottom.
const SIZE: (f64, f64) = (460.0, 300.0);
const MARGINS: (f64, f64, f64, f64) = (66.0, 14.0, 30.0, 44.0);

/// How values become places.
#[derive(Clone, Copy, PartialEq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By their logarithms.
    Log,
}

/// One axis: what it says, how it counts, and where it is labelled.
pub struct Axis<'a> {
    pub label: &'a str,
    pub scale: Scale,
    /// The values at both ends.
    pub range: (f64, f64),
    /// Values, and what is written at them.
    pub ticks: Vec<(f64, String)>,
}

impl Axis<'_> {
    /// 0 at one end, 1 at the other.
    fn place(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        match self.scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Log => (value / low).ln() / (high / low).ln(),
        }
    }
}

impl<'a> Axis<'a> {
    /// A logarithmic axis over these values, with labels at round numbers where it is short, else at 1, 2 and 5 of each decade, or at 1 and 3 where there are many.
    pub fn log(
        label: &'a str,
        values: impl Iterator<Item = f64>,
        write: fn(f64) -> String,
    ) -> Axis<'a> {
        let (mut low, mut high) = (f64::INFINITY, 0f64);
        for v in values.filter(|v| v.is_finite() && *v > 0.0) {
            (low, high) = (low.min(v), high.max(v));
        }
        if low > high {
            (low, high) = (0.1, 1.0);
        }
        let (low, high) = (0.85 * low, 1.18 * high);
        if high < 3.0 * low {
            return Axis {
                label,
                scale: Scale::Log,
                range: (low, high),
                ticks: round_numbers(low, high).map(|v| (v, write(v))).collect(),
            };
        }
        let decades = (high / low).log10();
        let digits: &[f64] = if decades > 1.8 {
            &[1.0, 3.0]
        } else {
            &[1.0, 2.0, 5.0]
        };
        let first = low.log10().floor() as i32;
        let last = high.log10().ceil() as i32;
        let ticks = (first..=last)
            .flat_map(|e| digits.iter().map(move |d| d * 10f64.powi(e)))
            .filter(|&v| low <= v && v <= high)
            .map(|v| (v, write(v)))
            .collect();
        Axis {
            label,
            scale: Scale::Log,
            range: (low, high),
            ticks,
        }
    }
}

/// Some six multiples of 1, 2 or 5 times a power of ten within a range.
pub fn round_numbers(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let least = (high - low) / 6.0;
    let unit = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().find(|d| d * unit >= least);
    let step = step.unwrap_or(10.0) * unit;
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    // Through an integer, so that 3 times 0.1 is not written 0.30000000000000004.
    let digits = (1.0 / unit).max(1.0).round();
    (first..=last).map(move |i| (i as f64 * step * digits).round() / digits)
}

/// How the points of a series are drawn.
#[derive(Clone, Copy, PartialEq)]
pub enum Marks {
    /// Dots joined by a line.
    Line,
    /// Dots.
    Dots,
    /// Rings: what lies near the dots of another series.
    Rings,
    /// A broken line: what is allowed or expected.
    Dashes,
}

/// A point, and what it says under the pointer.
pub struct Point {
    pub x: f64,
    pub y: f64,
    pub title: String,
}

/// Points that belong together.
pub struct Series {
    /// Empty: not in the legend.
    pub name: String,
    /// The class of its colour, 0 to 7.
    pub colour: usize,
    pub marks: Marks,
    pub points: Vec<Point>,
}

/// Lines and dots on two axes.
pub struct Chart<'a> {
    pub title: &'a str,
    pub x: Axis<'a>,
    pub y: Axis<'a>,
    pub series: Vec<Series>,
}

/// The chart as SVG, its legend behind it as HTML.
pub fn chart(c: &Chart<'_>) -> String {
    let mut svg = String::new();
    frame(&mut svg, c.title, &c.x, &c.y);
    for s in &c.series {
        let places: Vec<(f64, f64)> = s
            .points
            .iter()
            .map(|p| (across(c.x.place(p.x)), down(c.y.place(p.y))))
            .collect();
        if matches!(s.marks, Marks::Line | Marks::Dashes) && places.len() > 1 {
            let path: Vec<String> = places
                .iter()
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            let dashes = if s.marks == Marks::Dashes {
                " dashes"
            } else {
                ""
            };
            put(
                &mut svg,
                format_args!(
                    "<polyline class=\"line l{}{dashes}\" points=\"{}\"/>",
                    s.colour,
                    path.join(" ")
                ),
            );
        }
        for ((x, y), p) in places.iter().zip(&s.points) {
            let (class, r) = match s.marks {
                Marks::Line | Marks::Dots => (format!("f{}", s.colour), 3.6),
                Marks::Rings => (format!("ring l{}", s.colour), 5.4),
                // Nothing to see, but something to point at.
                Marks::Dashes => ("ghost".into(), 6.0),
            };
            put(
                &mut svg,
                format_args!(
                    "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\"><title>{}</title></circle>",
                    escaped(&p.title)
                ),
            );
        }
    }
    svg.push_str("</svg>");
    let names = c
        .series
        .iter()
        .map(|s| (s.name.as_str(), s.colour, s.marks));
    figure(&svg, &legend(names))
}

/// A plot and what belongs to it.
fn figure(svg: &str, legend: &str) -> String {
    format!("<figure>{svg}{legend}</figure>\n")
}

/// What the colours mean.
fn legend<'a>(names: impl Iterator<Item = (&'a str, usize, Marks)>) -> String {
    let mut out = String::from("<figcaption>");
    for (name, colour, marks) in names.filter(|(name, ..)| !name.is_empty()) {
        let shape = match marks {
            Marks::Line => format!(
                "<line class=\"line l{colour}\" x1=\"0\" y1=\"6\" x2=\"22\" y2=\"6\"/><circle class=\"f{colour}\" cx=\"11\" cy=\"6\" r=\"3.6\"/>"
            ),
            Marks::Dots => format!("<circle class=\"f{colour}\" cx=\"11\" cy=\"6\" r=\"4\"/>"),
            Marks::Rings => {
                format!("<circle class=\"ring l{colour}\" cx=\"11\" cy=\"6\" r=\"4.6\"/>")
            }
            Marks::Dashes => format!(
                "<line class=\"line l{colour} dashes\" x1=\"0\" y1=\"6\" x2=\"22\" y2=\"6\"/>"
            ),
        };
        put(
            &mut out,
            format_args!(
                "<span><svg class=\"key\" width=\"22\" height=\"12\">{shape}</svg> {}</span> ",
                escaped(name)
            ),
        );
    }
    out + "</figcaption>"
}

/// The beginning of a plot: title, grid, labels.
fn frame(svg: &mut String, title: &str, x: &Axis<'_>, y: &Axis<'_>) {
    let (width, height) = SIZE;
    let (left, right, top, bottom) = MARGINS;
    put(
        svg,
        format_args!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{0}\"><text class=\"title\" x=\"{left}\" y=\"17\">{0}</text>",
            escaped(title)
        ),
    );
    for (value, label) in &y.ticks {
        let at = down(y.place(*value));
        put(
            svg,
            format_args!(
                "<line class=\"grid\" x1=\"{left}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\"/><text class=\"tick end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                width - right,
                left - 7.0,
                at + 4.0,
                escaped(label)
            ),
        );
    }
    for (value, label) in &x.ticks {
        let at = across(x.place(*value));
        put(
            svg,
            format_args!(
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{0}\"/><text class=\"tick mid\" x=\"{at:.1}\" y=\"{1}\">{2}</text>",
                height - bottom,
                height - bottom + 16.0,
                escaped(label)
            ),
        );
    }
    put(
        svg,
        format_args!(
            "<line class=\"axis\" x1=\"{left}\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\"/><text class=\"label mid\" x=\"{2}\" y=\"{3}\">{4}</text>\
         <text class=\"label mid\" transform=\"translate(12 {5}) rotate(-90)\">{6}</text>",
            height - bottom,
            width - right,
            (left + width - right) / 2.0,
            height - 6.0,
            escaped(x.label),
            (top + height - bottom) / 2.0,
            escaped(y.label)
        ),
    );
}

fn across(place: f64) -> f64 {
    MARGINS.0 + place * (SIZE.0 - MARGINS.0 - MARGINS.1)
}

fn down(place: f64) -> f64 {
    SIZE.1 - MARGINS.3 - place * (SIZE.1 - MARGINS.2 - MARGINS.3)
}

/// Text that is no markup.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    out.write_fmt(what).expect("a String takes everything");
}

/// A share as people write it.
pub fn percent(v: f64) -> String {
    let p = 100.0 * v;
    if p >= 10.0 {
        format!("{p:.0}%")
    } else if p >= 1.0 {
        format!("{}%", (10.0 * p).round() / 10.0)
    } else {
        format!("{}%", (100.0 * p).round() / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_names_stays_text() {
        let c = Chart {
            title: "a < b & \"c\"",
            x: Axis::log("x", [1.0, 10.0].into_iter(), |v| v.to_string()),
            y: Axis::log("y", [f64::NAN, 0.0].into_iter(), percent),
            series: vec![Series {
                name: "<script>".into(),
                colour: 0,
                marks: Marks::Line,
                points: vec![Point {
                    x: 1.0,
                    y: 0.5,
                    title: "<b>".into(),
                }],
            }],
        };
        let made = chart(&c);
        assert!(
            made.contains("a &lt; b &amp; &quot;c&quot;") && !made.contains("<script>"),
            "{made}"
        );
        assert!(!made.contains("NaN") && !made.contains("<b>"), "{made}");
    }

    #[test]
    fn a_log_axis_is_labelled_within_its_range() {
        let axis = Axis::log("error", [0.004, 0.7].into_iter(), percent);
        let labels: Vec<&str> = axis.ticks.iter().map(|(_, l)| l.as_str()).collect();
        assert_eq!(labels, ["1%", "3%", "10%", "30%"]);
        assert!(
            (axis.place(axis.range.0)).abs() < 1e-12
                && (axis.place(axis.range.1) - 1.0).abs() < 1e-12
        );
    }
}
