//! Perplexity against size: of the model that was validated, and of one that was measured beside llama.cpp.

use serde_json::Value;

use apl_ffi::matmul::Activations;
use apl_ffi::quant::Bits;
use apl_ffi::validate::{Outcome, Report};

use super::page::{colour, group};
use crate::plot::page::section;
use crate::plot::{Axis, Chart, Marks, Point, Scale, Series, chart};

/// Perplexities of one small model by this library and by llama.cpp, as they were measured once: `docs/quality.md`.
const QUALITY: &str = include_str!("../../../../bench/results/quality-stories260k.json");

/// Perplexity against size.
pub fn section_of(report: &Report, best: &str) -> String {
    let mut plots = Vec::new();
    if let Some(model) = report.model.as_deref() {
        plots.extend(size(report, best, model));
    }
    plots.push(committed("stories260K, committed figures", f64::INFINITY));
    plots.push(committed("The same from 4 bits on", 7.0));
    section(
        "Perplexity against size",
        "Less is better, and so is smaller. Bits a weight are true: scales and zero points are counted. The figures of \
             stories260K (260,000 weights, so that every bit is felt) were measured once and are committed with the project \
             (docs/quality.md says how), with llama.cpp's formats on the same text: that leaves <code>ffn_down</code> in float16, a fifth \
             of the weights, so that its formats are larger than their names. Its Q2_0 has a perplexity of 47148 at 5.17 bits and lies outside.",
        &plots,
    )
}

/// The model that was validated.
fn size(report: &Report, best: &str, model: &str) -> Option<String> {
    let wanted = |o: &&Outcome| {
        o.backend == best && o.agreement.is_some() && o.activations == Activations::F32
    };
    let ends: Vec<&Outcome> = report.outcomes.iter().filter(wanted).collect();
    let reference = ends.first()?.agreement?.reference_perplexity;
    let mut series: Vec<Series> = Vec::new();
    for bits in Bits::ALL.into_iter().rev() {
        let of_width = ends.iter().filter(|o| o.bits == bits);
        let points: Vec<Point> = of_width
                .filter_map(|o| {
                    let a = o.agreement?;
                    Some(Point {
                        x: o.bits_a_weight,
                        y: a.perplexity,
                        title: format!(
                            "{} bits, {}: {:.2} bits a weight, perplexity {:.3}, divergence {:.4} nats, same likeliest token {:.0}%",
                            bits.get(), group(o.group), o.bits_a_weight, a.perplexity, a.kl, 100.0 * a.same_top
                        ),
                    })
                })
                .collect();
        if !points.is_empty() {
            series.push(Series {
                name: format!("{} bits", bits.get()),
                colour: colour(bits),
                marks: Marks::Dots,
                points,
            });
        }
    }
    let x = sizes_axis(ends.iter().map(|o| o.bits_a_weight));
    series.push(level("float weights", reference, &x));
    let values = series.iter().flat_map(|s| &s.points).map(|p| p.y);
    let y = Axis::log("perplexity", values.collect::<Vec<_>>().into_iter(), plain);
    Some(chart(&Chart {
        title: model,
        x,
        y,
        series,
    }))
}

fn sizes_axis(values: impl Iterator<Item = f64>) -> Axis<'static> {
    let most = values.fold(1.0, f64::max).ceil();
    Axis {
        label: "bits a weight",
        scale: Scale::Linear,
        range: (0.5, most + 0.5),
        ticks: (1..=most as usize)
            .map(|b| (b as f64, b.to_string()))
            .collect(),
    }
}

/// A line at one height.
fn level(name: &str, y: f64, x: &Axis<'_>) -> Series {
    let at = |x: f64| Point {
        x,
        y,
        title: format!("{name}: {y:.3}"),
    };
    Series {
        name: format!("{name}: {y:.3}"),
        colour: 7,
        marks: Marks::Dashes,
        points: vec![at(x.range.0), at(x.range.1)],
    }
}

fn plain(v: f64) -> String {
    v.to_string()
}

/// What was measured once, of stories260K, up to a perplexity.
fn committed(title: &str, most: f64) -> String {
    let quality: Value = serde_json::from_str(QUALITY).unwrap_or_default();
    let number = |v: &Value| {
        v.as_str()
            .and_then(|s| s.parse().ok())
            .or(v.as_f64())
            .unwrap_or(f64::NAN)
    };
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let mut series = Vec::new();
    for (name, colour, wanted) in [
        ("nearest", 7, "nearest"),
        ("search", 0, "search"),
        ("calibrated", 2, "calibrated"),
        ("calibrated and tuned", 4, "calibrated, tuned"),
    ] {
        let of = |r: &&Value| {
            let method = r["method"].as_str().unwrap_or_default();
            method == wanted || (wanted.ends_with("tuned") && method.starts_with(wanted))
        };
        let ours = list(&quality["tables"]["ours"]["rows"]);
        let points = ours.iter().filter(of).map(|r| Point {
            x: number(&r["bits_a_weight"]),
            y: number(&r["perplexity"]),
            title: format!(
                "{} bits, groups of {}, {}: {} bits a weight, perplexity {}",
                r["bits"],
                r["group"],
                name,
                number(&r["bits_a_weight"]),
                number(&r["perplexity"])
            ),
        });
        series.push(Series {
            name: name.into(),
            colour,
            marks: Marks::Dots,
            points: points.collect(),
        });
    }
    let theirs = list(&quality["tables"]["llama_cpp"]["rows"]);
    // One of them is four decades away from all others.
    let near = theirs.iter().filter(|r| number(&r["perplexity"]) < 1e4);
    series.push(Series {
        name: "llama.cpp".into(),
        colour: 1,
        marks: Marks::Dots,
        points: near
            .map(|r| Point {
                x: number(&r["bits_a_weight"]),
                y: number(&r["perplexity"]),
                title: format!(
                    "llama.cpp {}: {} bits a weight, perplexity {}",
                    r["type"].as_str().unwrap_or_default(),
                    number(&r["bits_a_weight"]),
                    number(&r["perplexity"])
                ),
            })
            .collect(),
    });
    for s in &mut series {
        s.points.retain(|p| p.y <= most);
    }
    series.retain(|s| !s.points.is_empty());
    let points = || series.iter().flat_map(|s| &s.points);
    let x = sizes_axis(points().map(|p| p.x));
    let float = level(
        "float weights",
        number(&quality["tables"]["llama_cpp"]["float32"]),
        &x,
    );
    let y = Axis::log(
        "perplexity",
        points()
            .map(|p| p.y)
            .chain([float.points[0].y])
            .collect::<Vec<_>>()
            .into_iter(),
        plain,
    );
    series.push(float);
    chart(&Chart {
        title,
        x,
        y,
        series,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_committed_is_drawn() {
        let plot = super::committed("all", f64::INFINITY);
        for mark in [
            "llama.cpp Q4_0: 6.94 bits",
            "calibrated: 4.51 bits",
            "tuned: 3 bits",
            "float weights: 6.007",
        ] {
            assert!(plot.contains(mark), "{mark}: {plot}");
        }
        assert!(!plot.contains("NaN"), "{plot}");
    }
}
