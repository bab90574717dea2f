//! The page of `apl-ffi bench`: its report, and its rounds as plots.

use serde_json::Value;

use crate::plot::page::{page as whole, section, table};
use crate::plot::{Axis, Chart, Marks, Point, Scale, Series, chart, escaped};
use crate::terminal::bytes;

/// The page of a report, in the form that `--json` prints it.
pub fn page(report: &Value) -> String {
    let number = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
    let size = |key: &str| {
        report[key]
            .as_u64()
            .map_or("unknown".into(), |n| bytes(n as usize))
    };
    let text = |key: &str| escaped(report[key].as_str().unwrap_or_default());
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("", String::new()),
        row("weights", size("weight_bytes")),
        row(
            "bits a weight, scales included",
            format!("{:.2}", number("bits_a_weight")),
        ),
        row("peak memory", size("peak_memory_bytes")),
        row("opened in", format!("{:.3} s", number("opened_s"))),
        row(
            "first token after the prompt",
            format!("{:.1} ms", 1e3 * number("first_token_s")),
        ),
        row(
            "prompt",
            format!("{:.0} tokens a second", number("prompt_tokens_s")),
        ),
        row(
            "text",
            format!("{:.1} tokens a second", number("text_tokens_s")),
        ),
        row(
            "weights read while it generates",
            format!("{:.1} GB/s", number("read_gb_s")),
        ),
    ];
    let peer = &report["llama.cpp"];
    if let (Some(prompt), Some(generated)) = (
        peer["prompt_tokens_s"].as_f64(),
        peer["text_tokens_s"].as_f64(),
    ) {
        rows.push(row(
            "llama.cpp, prompt",
            format!("{prompt:.0} tokens a second"),
        ));
        rows.push(row(
            "llama.cpp, text",
            format!("{generated:.1} tokens a second"),
        ));
    }
    let intro = format!(
        "<p class=\"soft\">{} threads, {}, {} activations; medians of {} rounds in turn.</p>\n",
        report["threads"],
        text("isa"),
        text("activations"),
        report["rounds"].as_array().map_or(0, Vec::len)
    );
    let plots = [
        rounds(report, "prompt_tokens_s", "Prompt"),
        rounds(report, "text_tokens_s", "Text"),
    ];
    let about =
        "Every round: what moves between them is the machine, which others may use as well.";
    whole(
        &format!(
            "{} on this machine",
            report["model"].as_str().unwrap_or_default()
        ),
        &(intro + &table(&rows) + &section("Round by round", about, &plots)),
    )
}

/// Tokens a second in every round.
fn rounds(report: &Value, key: &str, title: &str) -> String {
    let mut series = Vec::new();
    for (name, colour, rounds) in [
        ("apl_ffi", 0, &report["rounds"]),
        ("llama.cpp", 1, &report["llama.cpp"]["rounds"]),
    ] {
        let speeds = rounds
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|r| r[key].as_f64());
        let points: Vec<Point> = speeds
            .enumerate()
            .map(|(i, y)| Point {
                x: (i + 1) as f64,
                y,
                title: format!("{name}, round {}: {y:.1} tokens a second", i + 1),
            })
            .collect();
        if !points.is_empty() {
            series.push(Series {
                name: name.into(),
                colour,
                marks: Marks::Line,
                points,
            });
        }
    }
    let count = series.iter().map(|s| s.points.len()).max().unwrap_or(0);
    let values: Vec<f64> = series.iter().flat_map(|s| &s.points).map(|p| p.y).collect();
    let most = values.iter().copied().fold(1e-9, f64::max);
    chart(&Chart {
        title,
        x: Axis {
            label: "round",
            scale: Scale::Linear,
            range: (0.5, count as f64 + 0.5),
            ticks: (1..=count)
                .step_by(count.div_ceil(12).max(1))
                .map(|i| (i as f64, i.to_string()))
                .collect(),
        },
        // From nothing on, so that a small difference looks small.
        y: Axis {
            label: "tokens a second",
            scale: Scale::Linear,
            range: (0.0, 1.12 * most),
            ticks: crate::plot::round_numbers(0.0, 1.12 * most)
                .map(|v| (v, v.to_string()))
                .collect(),
        },
        series,
    })
}
